# test/t/022_worker_killed.pl: the workers are named where an administrator looks, take a new interval on reload, and come back after
# a kill -9.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('workers', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'restart_after_crash = on');
my ($id, $token) = create_key($node, 'used');
my $session = session($node, 'backend');
my $flushed = "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$id'";
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'
	AND application_name = 'rk_apikeys launcher' AND datname IS NULL};
my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'rk_apikeys flush'
	AND application_name = 'rk_apikeys flush' AND datname = 'postgres' AND query = 'flushing the usage of API keys'};

# Reload
is(code($session, $token), 'valid', 'a use');
is($node->safe_psql('postgres', $flushed), '0', 'is pending for an hour');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
ok($node->poll_query_until('postgres', "SELECT ($flushed) = 1"), 'and flushed after a reload with another interval');
is(code($session, $token), 'valid', 'another use');
ok($node->poll_query_until('postgres', "SELECT ($flushed) = 2"), 'at that interval');

# Names. A worker is seen where it has to wait: for the row of the day, which it gives up soon.
sub catch_worker
{
	my $blocker = session($node, 'postgres');
	$blocker->query_safe("BEGIN; SELECT FROM rk_apikeys.key_usage_daily WHERE key_id = '$id' FOR UPDATE");
	code($session, $token);
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($worker) w"), 'a worker is named, with its database');
	return $blocker;
}
like($node->safe_psql('postgres', $launcher), qr/^\d+$/, 'the launcher is named');
my $blocker = catch_worker();
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token')"), 't', 'a worker that waits is in no way of a verify');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM ($worker) w"), 'and gives up');
$blocker->query_safe('ROLLBACK');
$blocker->quit;
ok($node->poll_query_until('postgres', "SELECT ($flushed) = 4"), 'what it gave up is flushed by the next');

# A table that somebody has locked is left for another round.
$blocker = session($node, 'postgres');
$blocker->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN SHARE MODE');
is(code($session, $token), 'valid', 'a use while the table is locked');
ok($node->poll_query_until('postgres', 'SELECT flush_lag_ms > 1000 FROM rk_apikeys.stats'), 'no worker waits for it');
is(stat_of($node, 'pending_keys'), '1', 'the use stays pending');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE NOT granted"), '0', 'nobody waits');
$blocker->query_safe('ROLLBACK');
$blocker->quit;
ok($node->poll_query_until('postgres', "SELECT ($flushed) = 5"), 'and is flushed once the lock is gone');

# kill -9: the postmaster restarts everything
foreach my $victim ('worker', 'launcher')
{
	my $before = $node->safe_psql('postgres', $flushed);
	my $start = $node->safe_psql('postgres', "SELECT min(backend_start) FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
	$blocker = catch_worker() if $victim eq 'worker';
	my $pid = $node->safe_psql('postgres', $victim eq 'worker' ? $worker : $launcher);
	like($pid, qr/^\d+$/, "the $victim is there");
	is(kill('KILL', $pid), 1, "and killed");
	eval { $_->quit } foreach $session, $victim eq 'worker' ? $blocker : ();
	ok($node->poll_query_until('postgres',
			"SELECT backend_start > '$start' FROM pg_stat_activity WHERE backend_type = 'checkpointer'"), "$victim killed: the server restarts");
	$session = session($node, 'backend');
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($launcher) l"), "$victim killed: with a launcher");
	cmp_ok(use_count($node, $id), '>=', $before, "$victim killed: what was flushed is there");
	my $count = use_count($node, $id);
	is(code($session, $token), 'valid', "$victim killed: verified");
	is(use_count($node, $id), $count + 1, "$victim killed: and counted");
	ok($node->poll_query_until('postgres', "SELECT ($flushed) = $count + 1"), "$victim killed: and flushed");
}

# A database's worker that is told to end does, and the next one goes on
$blocker = catch_worker();
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM ($worker) w");
$blocker->query_safe('ROLLBACK');
$blocker->quit;
my $count = use_count($node, $id);
ok($node->poll_query_until('postgres', "SELECT ($flushed) = $count"), 'after pg_terminate_backend the next worker flushes');
$session->quit;

done_testing();
