# test/t/017_readonly_wal.pl: preloaded, a verify writes nothing: 100,000 of them add no byte of WAL, take no transaction id, and run in
# a READ ONLY transaction.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

# Without preload each use would be written, with this resolution.
my $node = rk_node('wal', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'rk_apikeys.usage_resolution = 0', 'autovacuum = off');
my $token = keys_of_every_state($node);
sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name) SELECT 'bulk ' || i FROM generate_series(1, 1000) i});
my (undef, $limited) = create_key($node, 'limited', "rate_limit => 1000000, rate_window => '1 day'");

# The tokens that the load presents: good ones, with and without a limit, and each kind of bad one.
my @tokens = (@$token{ sort keys %$token }, $limited);
my $array = 'ARRAY[' . join(', ', map { "'$_'" } @tokens) . ']';
my $session = session($node, 'backend');
my $super = session($node, 'postgres');

# Warm, so that what the first look reads has been read.
my $each = 100_000 / @tokens + 1;
my $once = "SELECT count(*) FILTER (WHERE (rk_apikeys.verify_key(t)).valid) FROM unnest($array) t, generate_series(1, %d)";
is($session->query_safe(sprintf $once, 1), '8', 'the load has good tokens and bad ones');
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT rk_apikeys.verify('$token->{active}');\nSELECT rk_apikeys.verify('$token->{disabled}');\n");
sub bench
{
	$node->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', 4, '-t', shift, '-U', 'backend', '-f', "$dir/verify.sql",
			'-h', $node->host, '-p', $node->port, 'postgres' ], 'verifies in statements of their own');
}
bench(1);
$node->safe_psql('postgres', 'VACUUM (FREEZE); CHECKPOINT');

# The background writer logs which transactions run, 15 seconds after it did so before: it is stopped until the verifies are done.
my $writer = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'");
kill STOP => $writer;

my $state = 'SELECT pg_current_wal_insert_lsn(), pg_snapshot_xmax(pg_current_snapshot())';
my $before = $super->query_safe($state);
$session->query_safe(sprintf $once, $each);
is($super->query_safe($state), $before, '100,000 verifies in one statement: no WAL and no transaction id');
bench(1000);
is($super->query_safe($state), $before, '8,000 verifies in statements of their own: neither');
$session->query_safe("BEGIN; " . sprintf $once, 10);
is($session->query_safe('SELECT pg_current_xact_id_if_assigned() IS NULL'), 't', 'an open transaction has no id after it');
is($super->query_safe("SELECT count(*) FROM pg_locks WHERE locktype <> 'virtualxid' AND pid IN
	(SELECT pid FROM pg_stat_activity WHERE usename = 'backend') AND relation >= 16384"), '0', 'and no lock on a table');
$session->query_safe('COMMIT');
is($super->query_safe($state), $before, 'nothing was written by its end');
kill CONT => $writer;
cmp_ok(stat_of($node, 'verified'), '>', 8 * 7000, 'the uses were counted');

# The flush writes them, afterwards
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage() >= 8'), 't', 'a flush writes them');
isnt($super->query_safe($state), $before, 'into the WAL');

# READ ONLY, in every level; verdicts() begins no transaction block, so the default counts
my $expected = expected_verdicts();
foreach my $level ('read committed', 'repeatable read', 'serializable')
{
	local $ENV{PGOPTIONS} = "-c default_transaction_read_only=on -c default_transaction_isolation=" . ($level =~ s/ /\\ /r);
	is(sql_as($node, 'backend', 'SHOW transaction_read_only; SHOW transaction_isolation'), "on\n$level", "READ ONLY, $level");
	is_deeply(verdicts($node, $token), $expected, "READ ONLY, $level: same verdicts");
}
$session->query_safe("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE");
is(code($session, $token->{active}), 'valid', 'and in a deferrable one');
$session->query_safe('COMMIT');

$_->quit foreach $session, $super;
done_testing();
