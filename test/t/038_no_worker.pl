# test/t/038_no_worker.pl: where the server has no free worker, the log says so once; pending use waits and is written later.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# One worker for the launcher, one for whoever comes first
my $node = rk_node('noworker', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'max_worker_processes = 2',
	'max_logical_replication_workers = 0');
my ($id, $token) = create_key($node, 'used');
my $failed = qr/LOG:  could not start a background worker to flush the usage of API keys/;
my $again = qr/LOG:  a background worker to flush the usage of API keys can be started again/;

sub use_it
{
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token') FROM generate_series(1, 3)");
}

# Another session's parallel worker holds the last place
sub hold
{
	my $session = session($node, 'postgres');
	my $force = $node->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
	$session->query_until(qr/begun/, "\\echo begun\nSET $force = on;\nSELECT pg_sleep(3600);\n");
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'parallel worker'")
	  or die 'no parallel worker';
	return $session;
}

sub interval
{
	$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '$_[0]'");
	$node->reload;
}

my $total = 0;
foreach my $time (1, 2)
{
	my $held = hold();
	use_it();
	interval('100ms');
	ok($node->poll_query_until('postgres', "SELECT pending_keys = 1 AND flush_lag_ms > 2000 FROM rk_apikeys.stats"), "time $time: the use waits");
	$node->wait_for_log($failed);
	is(scalar(() = logged($node, $failed)), $time, "time $time: the log says so, once");
	is(scalar(() = logged($node, $again)), $time - 1, "time $time: and nothing else");
	like((logged($node, qr/HINT: .*max_worker_processes/))[-1], qr/increase/, "time $time: with a hint");
	ok($node->poll_query_until('postgres', q{SELECT mend ~ 'SET max_worker_processes' FROM rk_apikeys.health WHERE name = 'flush'}),
		'the view health says so too') if $time == 1;
	is($node->safe_psql('postgres', 'SELECT coalesce(sum(use_count), 0) FROM rk_apikeys.key_usage'), $total, "time $time: nothing is written");

	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'
		AND backend_type = 'client backend'});
	$total += 3;
	ok($node->poll_query_until('postgres', "SELECT use_count = $total FROM rk_apikeys.key_usage WHERE key_id = '$id'"), "time $time: then it is written");
	is(scalar(() = logged($node, $again)), $time, "time $time: and the log says that workers start again");
	interval('1h');
	$node->poll_query_until('postgres', "SELECT pending_keys = 0 AND (SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'rk_apikeys flush') FROM rk_apikeys.stats") or die 'still flushing';
	$held->{run}->kill_kill;
}

# No place at all, as with PostgreSQL's own launcher before ours
$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
$node->restart;
use_it();
interval('100ms');
$node->poll_query_until('postgres', "SELECT flush_lag_ms > 1000 FROM rk_apikeys.stats") or die 'no lag';
is(scalar(() = logged($node, $failed)), 3, 'no place at all: the log says so, once');
is(scalar(() = logged($node, qr/PANIC|TRAP/)), 0, 'nothing crashed');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
$total += 3;
ok($node->poll_query_until('postgres', "SELECT use_count = $total FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 'after a restart with more places all is written, once');

done_testing();
