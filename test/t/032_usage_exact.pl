# test/t/032_usage_exact.pl: preloaded, last_used_at and use_count are exact at once for whoever manages the key, and for nobody else; a
# flush neither loses nor doubles anything.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = rk_node('usage', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'max_prepared_transactions = 2');
$node->safe_psql('postgres', 'CREATE ROLE audit LOGIN; GRANT rk_apikeys_auditor TO audit');
my ($id, $token) = create_key($node, 'used');
my ($off_id, $off) = create_key($node, 'off');
my ($first_id, $first) = create_key($node, 'another');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$off_id'");
my $backend = session($node, 'backend');
my $acme = session($node, 'acme');
my $boss = session($node, 'boss');
my $updated = $acme->query_safe("SELECT updated_at FROM rk_apikeys.keys WHERE key_id = '$id'");

sub count { return $acme->query_safe("SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"); }
sub listed { return $acme->query_safe("SELECT use_count FROM rk_apikeys.list_keys(sort_by => 'use_count') WHERE key_id = '$id'"); }
sub table { return $node->safe_psql('postgres', "SELECT use_count, denied_count FROM rk_apikeys.key_usage WHERE key_id = '" . shift() . "'"); }

# At once
is($acme->query_safe("SELECT use_count, last_used_at FROM rk_apikeys.keys WHERE key_id = '$id'"), '0|', 'never used');
foreach my $n (1 .. 3)
{
	my $before = $backend->query_safe('SELECT clock_timestamp()');
	code($backend, $token);
	my $after = $backend->query_safe('SELECT clock_timestamp()');
	is(count(), $n, "$n in the view");
	is(listed(), $n, "$n in the list");
	is($acme->query_safe("SELECT last_used_at BETWEEN '$before' AND '$after' FROM rk_apikeys.keys WHERE key_id = '$id'"), 't', 'and when');
}
is($acme->query_safe("SELECT max(last_used_at) = (SELECT last_used_at FROM rk_apikeys.keys WHERE key_id = '$id')
	FROM rk_apikeys.list_keys(sort_by => 'last_used_at')"), 't', 'the list tells the same moment');
code($backend, $first);
is($acme->query_safe(q{SELECT string_agg(name, ' ') FROM rk_apikeys.list_keys(sort_by => 'use_count', descending => true)}), 'used another off',
	'the list is sorted by what is exact');
is($acme->query_safe(q{SELECT string_agg(name, ' ') FROM rk_apikeys.list_keys(sort_by => 'last_used_at', descending => true)}), 'another used off',
	'by the last use, too');
is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage'), '0', 'nothing of that is in the table yet');

# For whom
my $live = "SELECT coalesce(rk_apikeys._live_use_count('$id')::text, 'NULL'), rk_apikeys._live_last_used_at('$id') IS NULL";
is(sql_as($node, $_, $live), '3|f', "$_ may ask memory itself") foreach qw(acme audit boss);
is(sql_as($node, 'globex', $live), 'NULL|t', "another tenant's manager gets NULL");
is(sql_as($node, 'globex', "SELECT count(*) FROM rk_apikeys.keys WHERE key_id = '$id'"), '0', 'and no row');
isnt($node->psql('postgres', $live, extra_params => [ '-U', 'backend' ], stderr => \my $refusal), 0, 'a verifier may not ask at all');
like($refusal, qr/permission denied/, 'it has no right to');
is(sql_as($node, 'audit', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"), '3', 'an auditor sees the view exact');

# Denials
code($backend, $off) foreach 1 .. 5;
is($acme->query_safe("SELECT use_count, last_used_at FROM rk_apikeys.keys WHERE key_id = '$off_id'"), '0|', 'a denial is not a use');
$boss->query_safe('SELECT rk_apikeys.flush_usage()');
is(table($off_id), '0|5', 'a flush writes the denials');
is(table($id), '3|0', 'and the uses');
is($node->safe_psql('postgres', "SELECT string_agg(uses || '/' || denials, ' ' ORDER BY uses) FROM rk_apikeys.key_usage_daily"), '0/5 1/0 3/0',
	'by the day, too');
is($acme->query_safe("SELECT name, uses, denials FROM rk_apikeys.key_activity WHERE uses = 3"), 'used|3|0', 'which the manager reads');
is(sql_as($node, 'globex', 'SELECT count(*) FROM rk_apikeys.key_activity'), '0', 'and no other');

# Around flushes of every kind: after each use the count is one more, seen by everybody, whatever is under way.
my $n = 3;
my $step = sub {
	my ($what) = @_;
	my @seen;
	foreach (1 .. 20)
	{
		code($backend, $token);
		$n++;
		push @seen, map { $_ - $n } count(), listed();
	}
	is_deeply([ grep { $_ } @seen ], [], "exact $what");
};
$step->('after a flush');
$boss->query_safe('BEGIN; SELECT rk_apikeys.flush_usage()');
$step->('while one is not committed');
$boss->query_safe('ROLLBACK');
$step->('after it was rolled back');
$boss->query_safe('BEGIN; SELECT rk_apikeys.flush_usage()');
$step->('while another is not committed');
$boss->query_safe('COMMIT');
$step->('after it was committed');
$boss->query_safe('SELECT rk_apikeys.flush_usage()') foreach 1 .. 3;
$step->('after several');
$boss->query_safe('BEGIN; SAVEPOINT s; SELECT rk_apikeys.flush_usage()');
$step->('while one is in a subtransaction');
$boss->query_safe('SELECT rk_apikeys.flush_usage(); ROLLBACK TO s');
$step->('after that was rolled back');
$boss->query_safe('SELECT rk_apikeys.flush_usage(); SAVEPOINT t; SELECT rk_apikeys.flush_usage(); COMMIT');
is(table($id), ($n) . '|0', 'the rest was committed');
foreach my $end ('COMMIT', 'ROLLBACK')
{
	$step->('before one is prepared');
	my $written = table($id);
	$boss->query_safe("BEGIN; SELECT rk_apikeys.flush_usage(); PREPARE TRANSACTION 'p'");
	$step->("while one is prepared: $end");
	is($boss->query_safe('SELECT rk_apikeys.flush_usage()'), '0', 'no other writes meanwhile');
	$boss->query_safe("$end PREPARED 'p'");
	is(table($id), $end eq 'COMMIT' ? ($n - 20) . '|0' : $written, "$end PREPARED");
	$step->("after $end PREPARED");
	$boss->query_safe('SELECT rk_apikeys.flush_usage()');
	is(table($id), "$n|0", "after $end PREPARED another writes what is missing, once");
}
$boss->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$step->('while a transaction is older');
$boss->query_safe('SELECT rk_apikeys.flush_usage(); COMMIT');
$step->('and has flushed');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
my $flushes = stat_of($node, 'flushed_keys');
foreach my $round (1 .. 5)
{
	$step->("while the worker flushes, round $round");
	$boss->query_safe('SELECT rk_apikeys.flush_usage()');
}
# It may have come too late for each of them, but not for this one.
code($backend, $token);
$n++;
ok($node->poll_query_until('postgres', "SELECT pending_keys = 0 AND flushed_keys > $flushes FROM rk_apikeys.stats"), 'the worker has flushed');
is(table($id), "$n|0", 'the table has every use, once');
is($node->safe_psql('postgres', "SELECT sum(uses), sum(denials) FROM rk_apikeys.key_usage_daily WHERE key_id = '$id'"), "$n|0", 'so have the days');

# Eight sessions
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT rk_apikeys.verify('$token');\nSELECT rk_apikeys.verify('$off');\n");
$node->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', 8, '-t', 1000, '-U', 'backend', '-f', "$dir/verify.sql", '-h', $node->host,
		'-p', $node->port, 'postgres' ], '8 sessions use it');
$n += 8000;
is(count(), $n, 'every one of 8000 uses is counted');
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and flushed');
is(table($id), "$n|0", 'exactly');
is(table($off_id), '0|8005', 'the denials as well');
is($node->safe_psql('postgres', 'SELECT sum(uses), sum(denials) FROM rk_apikeys.key_usage_daily'), ($n + 1) . '|8005', 'once each, by the day');

# What a use leaves alone, and what leaves it alone
is($acme->query_safe("SELECT updated_at FROM rk_apikeys.keys WHERE key_id = '$id'"), $updated, 'use does not move updated_at');
$node->safe_psql('postgres', 'SET rk_apikeys.track_usage = off; SELECT rk_apikeys.verify($$' . $token . '$$)');
is(count(), $n, 'track_usage off: not counted');
$backend->query_safe("BEGIN; SELECT rk_apikeys.verify('$token'); ROLLBACK");
is(count(), $n + 1, 'a use counts though its transaction is rolled back');
$backend->query_safe("SELECT FROM rk_apikeys.verify_key('$token', client_addr => '::ffff:192.0.2.9')");
ok($node->poll_query_until('postgres', "SELECT last_used_addr IN ('192.0.2.9', '::ffff:192.0.2.9') FROM rk_apikeys.key_usage WHERE key_id = '$id'"),
	'the address is kept');

$_->quit foreach $backend, $acme, $boss;

# An update stays on its page: no index is touched, though there are some. It cannot stay on a page that is full of old versions, which
# some transaction may still see. So those are removed first, until there are none: then there is room for many times 20.
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '1h'");
$node->restart;
$node->safe_psql('postgres', "CREATE EXTENSION pgstattuple; SELECT rk_apikeys.verify('$token'), rk_apikeys.flush_usage()");
my $tables = 'rk_apikeys.key_usage, rk_apikeys.key_usage_daily';
foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	$node->safe_psql('postgres', "VACUUM FULL $tables");
	last if $node->safe_psql('postgres', "SELECT sum((pgstattuple(t)).dead_tuple_count) FROM unnest('{$tables}'::regclass[]) t") eq '0';
	usleep(100_000);
}
my $updates = "SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_all_tables WHERE relid = ANY ('{$tables}'::regclass[])";
my @before = split /\|/, $node->safe_psql('postgres', $updates);
$node->safe_psql('postgres', "SELECT rk_apikeys.verify('$token'); SELECT rk_apikeys.flush_usage(); SELECT pg_stat_force_next_flush()")
  foreach 1 .. 20;
my @after = split /\|/, $node->safe_psql('postgres', $updates);
my ($updated_rows, $hot) = map { $after[$_] - $before[$_] } 0, 1;
# At midnight one of the days is a new row.
cmp_ok($updated_rows, '>=', 39, 'twenty flushes update both tables');
is($hot, $updated_rows, 'every update of usage is a HOT one');
done_testing();
