# test/t/035_registry.pl: from PostgreSQL 17 on, use and rate limits are kept in shared memory without preload too, and flushed.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = rk_initdb('registry', "rk_apikeys.usage_flush_interval = '1h'\nrestart_after_crash = on");
plan skip_all => 'shared memory without preload needs PostgreSQL 17' if $node->pg_version < 17;
rk_extend($node);
my ($id, $used) = create_key($node, 'used');
my $table = "SELECT use_count, (SELECT sum(uses) FROM rk_apikeys.key_usage_daily d WHERE d.key_id = u.key_id)
	FROM rk_apikeys.key_usage u WHERE key_id = '$id'";
my $launchers = q{SELECT count(*), count(DISTINCT pid) FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'};

# Two sessions count into one place, and nothing is written
my @sessions = map { session($node, 'backend') } 1, 2;
foreach my $n (1 .. 50)
{
	$_->query_safe("SELECT rk_apikeys.verify('$used')") foreach @sessions;
}
is(use_count($node, $id), '100', 'the uses of two sessions are exact in the view');
is($node->safe_psql('postgres', $table), '', 'and no verify has written them');
is(sql_as($node, 'boss', 'SELECT preloaded, verified, tracked_keys, max_tracked_keys, pending_keys FROM rk_apikeys.stats'),
	'f|100|1|16384|1', 'they share the counters, though nothing is preloaded');
is($sessions[0]->query_safe("BEGIN READ ONLY; SELECT rk_apikeys.verify('$used'), pg_current_xact_id_if_assigned() IS NULL; COMMIT"), 't|t',
	'a verify runs in a READ ONLY transaction');
is(use_count($node, $id), '101', 'and is counted');
is($sessions[1]->query_safe("BEGIN; SELECT rk_apikeys.verify('$used'); ROLLBACK"), 't', 'in one that is rolled back');
is(use_count($node, $id), '102', 'too');
is(sql_as($node, 'globex', "SELECT rk_apikeys._live_use_count('$id') IS NULL"), 't', 'a neighbour is told nothing');
is(sql_as($node, 'acme', "SET debug_parallel_query = on; SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"), '102',
	'a parallel worker reads the same');

# A rate limit, over both sessions
my ($limited_id, $limited) = create_key($node, 'limited', q{rate_limit => 5, rate_window => '1 hour'});
is(join(' ', map { code($sessions[$_ % 2], $limited) } 1 .. 7), 'valid valid valid valid valid rate_limited rate_limited',
	'a rate limit is set without preload, and holds over two sessions');
is(sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = 6 WHERE key_id = '$limited_id' RETURNING rate_limit"), '6', 'it can be changed');

# One launcher, however many sessions come at once; it flushes
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT rk_apikeys.verify('$used');\n");
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'});
$node->poll_query_until('postgres', $launchers, '0|0') or die 'the launcher did not end';
$node->command_ok([ 'pgbench', '-n', '-C', '-c', 8, '-t', 5, '-U', 'backend', '-f', "$dir/verify.sql", '-h', $node->host, '-p', $node->port,
		'postgres' ], '8 clients connect at once, 5 times each');
ok($node->poll_query_until('postgres', $launchers, '1|1'), 'one launcher was started anew') or diag $node->safe_psql('postgres', $launchers);
is(use_count($node, $id), '142', 'no use was lost');
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '2', 'flush_usage writes both keys');
is($node->safe_psql('postgres', $table), '142|142', 'exactly');
is($sessions[0]->query_safe("SELECT rk_apikeys.verify('$used')"), 't', 'after it');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
# It sleeps until its latch is set
$node->safe_psql('postgres', q{SELECT pg_reload_conf()});
ok($node->poll_query_until('postgres', $table, '143|143'), 'the launcher flushes by itself');

# A restart: what was flushed is there, the memory is new
$_->quit foreach @sessions;
$node->restart;
is(use_count($node, $id), '143', 'a restart loses nothing that was flushed');
@sessions = map { session($node, 'backend') } 1, 2;
is($_->query_safe("SELECT rk_apikeys.verify('$used')"), 't', 'a session after it verifies') foreach @sessions;
is(use_count($node, $id), '145', 'and counts on from the table');
ok($node->poll_query_until('postgres', $table, '145|145'), 'which is flushed');

# A crash: all is made anew, and there is one launcher
my $pid = $sessions[0]->query_safe('SELECT pg_backend_pid()');
kill 'KILL', $pid;
$sessions[1]->{run}->kill_kill;
foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if logged($node, qr/database system is ready to accept connections/) == 3;
	usleep(100_000);
}
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used')"), 't', 'after a crash');
is(use_count($node, $id), '146', 'use goes on from the table');
ok($node->poll_query_until('postgres', $table, '146|146'), 'and is flushed');
ok($node->poll_query_until('postgres', $launchers, '1|1'), 'by one launcher');
is_deeply([ logged($node, qr/could not get shared memory/) ], [], 'no session had to do without');

# Loaded by a session alone
is(sql_as($node, 'postgres', "LOAD 'rk_apikeys'; SELECT rk_apikeys.verify('$used')"), 't', 'a session that loads the library by itself');
is(sql_as($node, 'boss', 'SELECT preloaded FROM rk_apikeys.stats'), 'f', 'is not preloaded');

done_testing();
