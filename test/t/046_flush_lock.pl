# test/t/046_flush_lock.pl: no role without rights can stop the flush, and a flush that another one keeps out counts as none: the lag
# grows, and the log says it once.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('locks', PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
my ($id, $token) = create_key($node, 'used');
my $backend = session($node, 'backend');
my $written = "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$id'";

# The advisory lock of 0.2, and every tuple that SQL can name
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
my $nobody = session($node, 'nobody');
$nobody->query_safe('SELECT pg_advisory_lock(1919639920, 0)');
is(code($backend, $token), 'valid', 'a use while a role without rights holds the advisory lock of 0.2');
ok($node->poll_query_until('postgres', "SELECT ($written) = 1"), 'is flushed');
is(code($backend, $token), 'valid', 'another use');
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
ok($node->poll_query_until('postgres', "SELECT ($written) = 2"), 'so is one with a flush by hand');
$nobody->quit;

# A flush in a transaction that stays open keeps the others out
my $holder = session($node, 'postgres');
hold_flushes($holder, $token);
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'tuple' AND relation = 'rk_apikeys.key_usage'::regclass AND granted"),
	'1', 'an open transaction holds the lock of flushes');
is(code($backend, $token), 'valid', 'a use meanwhile');
ok($node->poll_query_until('postgres', 'SELECT flush_lag_ms > 1000 FROM rk_apikeys.stats'), 'the lag grows');
my $flushes = stat_of($node, 'flushes');
my $busy = qr/LOG: .*could not flush the usage of API keys in database "postgres": another transaction holds a lock/;
is(scalar(() = logged($node, $busy)), 1, 'the log says why');
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '0', 'a flush by hand writes nothing and does not wait');
ok($node->poll_query_until('postgres', 'SELECT flush_lag_ms > 2000 FROM rk_apikeys.stats'), 'the lag goes on growing');
is(stat_of($node, 'flushes'), $flushes, 'no flush is counted that wrote nothing');
is(scalar(() = logged($node, $busy)), 1, 'and the log says it once');
$holder->query_safe('COMMIT');
my $uses = use_count($node, $id);
ok($node->poll_query_until('postgres', "SELECT ($written) = $uses"), 'the use is flushed once the lock is free');
ok($node->poll_query_until('postgres', 'SELECT flush_lag_ms < 1000 FROM rk_apikeys.stats'), 'and the lag is small again');
is(scalar(() = logged($node, qr/LOG: .*the usage of API keys in database "postgres" is flushed again/)), 1, 'the log says so');

# The next time is told too, and a table that is locked
my $owner = session($node, 'postgres');
$owner->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN SHARE MODE');
is(code($backend, $token), 'valid', 'a use while a table is locked');
ok($node->poll_query_until('postgres', 'SELECT flush_lag_ms > 1000 FROM rk_apikeys.stats'), 'makes the lag grow');
is(scalar(() = logged($node, $busy)), 2, 'and is told');
$owner->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT ($written) = $uses + 1"), 'the use is flushed');

# The server that sends waits for the lock, and is refused after two seconds
hold_flushes($holder, $token);
my $receive = q{SELECT rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', 1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')};
isnt($node->psql('postgres', $receive, extra_params => [ '-U', 'boss' ], stderr => \my $refusal), 0, 'receive_usage is refused');
like($refusal, qr/lock timeout/, 'by its lock_timeout');
$holder->query_safe('COMMIT');
is($node->psql('postgres', $receive, extra_params => [ '-U', 'boss' ]), 0, 'and works once the lock is free');
$_->quit foreach $holder, $owner, $backend;

done_testing();
