# test/t/020_overflow.pl: with more active keys than max_tracked_keys no verify fails, memory stays bounded, what is not counted is told,
# and a rate limit fails closed.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = rk_node('overflow', PRELOAD, 'rk_apikeys.max_tracked_keys = 16', "rk_apikeys.usage_flush_interval = '1h'");
my @token = split /\n/, sql_as($node, 'acme', q{WITH k AS (
	INSERT INTO rk_apikeys.keys (name) SELECT 'key ' || i FROM generate_series(1, 200) i RETURNING secret) SELECT secret FROM k});
my ($limited_id, $limited) = create_key($node, 'limited', "rate_limit => 100, rate_window => '30 days'");
my $all = 'unnest(ARRAY[' . join(', ', map { "'$_'" } @token) . '])';

is(stat_of($node, 'max_tracked_keys'), '16', 'the smallest table');
# No flush makes room meanwhile
my $holder = session($node, 'postgres');
$holder->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN EXCLUSIVE MODE');
is(sql_as($node, 'backend', "SELECT count(*) FILTER (WHERE rk_apikeys.verify(t)) FROM $all t"), '200', '200 keys verify');
is(stat_of($node, 'tracked_keys'), '14', '14 are tracked, the share of one tenant');
is(stat_of($node, 'overflow'), '186', 'and the rest is told');
is(stat_of($node, 'verified'), '200', 'every verdict is counted');

# The limiter has no room
is(sql_as($node, 'backend', "SELECT code, valid, retry_after_ms IS NULL, rk_apikeys.verify('$limited') FROM rk_apikeys.verify_key('$limited')"),
	'limiter_unavailable|f|t|f', 'a key with a rate limit is refused');
is($node->psql('postgres', "SELECT rk_apikeys.authenticate('$limited')", extra_params => [ '-U', 'backend' ], stderr => \my $refusal),
	3, 'it cannot authenticate');
like($refusal, qr/limiter_unavailable/, 'and is told why');
is(stat_of($node, 'limiter_unavailable'), '3', 'and that is counted');

# Many at once
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT 1 / (count(*) FILTER (WHERE rk_apikeys.verify(t)) = 200)::int FROM $all t;\n");
$node->command_ok([ 'pgbench', '-n', '-c', 8, '-t', 20, '-U', 'backend', '-f', "$dir/verify.sql", '-h', $node->host, '-p', $node->port,
		'postgres' ], '8 sessions verify all of them');
is(stat_of($node, 'tracked_keys'), '14', 'still 14 are tracked');
is(stat_of($node, 'overflow'), 186 + 3 + 160 * 186, 'and the rest is told');

# What is tracked is flushed, then room is made
is(sql_as($node, 'acme', 'SELECT sum(use_count) FROM rk_apikeys.keys'), 161 * 14, 'the uses of what is tracked are exact');
# The new setting comes while the launcher waits for a worker, which the postmaster cannot start
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'");
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
kill STOP => $postmaster;
$holder->query_safe('ROLLBACK');
sleep 3;
kill HUP => $launcher;
usleep(300_000);
kill CONT => $postmaster;
ok($node->poll_query_until('postgres', 'SELECT tracked_keys < 14 AND pending_keys = 0 FROM rk_apikeys.stats'), 'a flush makes room');
$node->reload;
is($node->safe_psql('postgres', 'SELECT sum(use_count) FROM rk_apikeys.key_usage'), 161 * 14, 'and has written them');
is(sql_as($node, 'acme', 'SELECT sum(use_count) FROM rk_apikeys.keys'), 161 * 14, 'the sum stays');
ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$limited')"), 'the limited key passes');
is(sql_as($node, 'backend', "SELECT (rk_apikeys.verify_key('$limited', cost => 100)).code"), 'rate_limited', 'and is limited');

# While it is limited it is not evicted, whoever wants its place
foreach my $i (1 .. 5)
{
	my $flushes = stat_of($node, 'flushes');
	$node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE rk_apikeys.verify(t)) FROM $all t");
	$node->poll_query_until('postgres', "SELECT flushes > $flushes AND pending_keys = 0 FROM rk_apikeys.stats");
}
is(sql_as($node, 'backend', "SELECT (rk_apikeys.verify_key('$limited', cost => 100)).code"), 'rate_limited', 'and stays limited');

done_testing();
