# test/t/079_sync_standby.pl: while a synchronous standby does not answer, flushes go on, and a sender drops a batch only after the standby
# has it. So a failover at that time loses no use of a server that is alive.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'", 'synchronous_commit = remote_apply');
$primary->start;
rk_extend($primary);
$primary->safe_psql('postgres', 'CREATE ROLE sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender');
$primary->backup('base');
my %standby;
foreach my $name ('sync', 'other')
{
	my $node = $standby{$name} = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($primary, 'base', has_streaming => 1);
	# after a promotion of the first, use finds its way
	$node->append_conf('postgresql.conf', sprintf "rk_apikeys.primary_conninfo = 'host=%s,%s port=%d,%d user=sender target_session_attrs=read-write'",
		$primary->host, $standby{sync}->host, $primary->port, $standby{sync}->port);
	$node->start;
}
my ($sync, $other) = @standby{ 'sync', 'other' };
my %key;
foreach my $name (qw(here there late)) { $key{$name} = [ create_key($primary, $name) ]; }
$primary->wait_for_catchup($_, 'replay') foreach $sync, $other;
$primary->append_conf('postgresql.conf', q(synchronous_standby_names = 'FIRST 1 (sync)'));
$primary->reload;
ok($primary->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'sync' AND sync_state = 'sync')),
	'a standby is synchronous');

sub written { my ($name) = @_; return "SELECT coalesce(sum(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$key{$name}[0]'"; }
sub use_on { my ($node, $name) = @_; sql_as($node, 'backend', "SELECT rk_apikeys.verify('$key{$name}[1]')"); return; }
sub pending { my ($node) = @_; return stat_of($node, 'pending_keys'); }
my $waiting = q(SELECT count(*) FROM pg_stat_activity WHERE usename = 'sender' AND wait_event = 'SyncRep');

use_on($other, 'there');
ok($primary->poll_query_until('postgres', 'SELECT (' . written('there') . ') = 1'), 'a use of another standby arrives');
ok($other->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and the standby knows');

# The synchronous standby does not apply
$sync->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
ok($sync->poll_query_until('postgres', q(SELECT pg_get_wal_replay_pause_state() = 'paused')), 'the synchronous standby pauses');
use_on($other, 'there');
ok($primary->poll_query_until('postgres', 'SELECT (' . written('there') . ') = 2'), 'a use of the other standby is written');
ok($primary->poll_query_until('postgres', "SELECT ($waiting) = 1"), 'its COMMIT waits for the synchronous standby');
is($primary->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'tuple' AND relation = 'rk_apikeys.key_usage'::regclass"),
	'0', 'without the lock of flushes');
is(pending($other), '1', 'and the other standby keeps the use');
foreach my $round (1 .. 3)
{
	use_on($primary, 'here');
	ok($primary->poll_query_until('postgres', 'SELECT (' . written('here') . ") = $round"), "use $round of the primary is flushed");
}
ok($primary->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and settled');

# The other standby gives up, and tries again: one session waits at a time
my $tries = qr/canceling statement due to lock timeout/;
my $end = time + 60;
sleep 1 while time < $end && !logged($primary, $tries);
ok(scalar(() = logged($primary, $tries)), 'it tries again');
is($primary->safe_psql('postgres', $waiting), '1', 'one session waits for the standby');
is(pending($other), '1', 'and the other standby still keeps the use');
my $pid = $primary->safe_psql('postgres', $waiting =~ s/count\(\*\)/pid/r);
$primary->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($primary->poll_query_until('postgres', "SELECT ($waiting AND pid <> $pid) = 1"), 'after the session was terminated, another one waits');
is(pending($other), '1', 'and the use is kept');
use_on($primary, 'late');
ok($primary->poll_query_until('postgres', 'SELECT (' . written('late') . ') = 1'), 'flushes go on');
unlike(slurp_file($primary->logfile), qr/could not flush the usage/, 'no flush found a lock busy');

# It goes on
$sync->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
ok($other->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'after the standby goes on, the other one knows');
is($primary->safe_psql('postgres', written('there')), '2', 'and the use counts once');

# The primary fails while the synchronous standby lacks a batch
my $from = $sync->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
kill 'STOP', $from;
use_on($other, 'there');
ok($primary->poll_query_until('postgres', 'SELECT (' . written('there') . ') = 3'), 'a batch is written that no standby of the quorum gets');
ok($primary->poll_query_until('postgres', "SELECT ($waiting) = 1"), 'the sender waits');
is(pending($other), '1', 'and keeps it');
kill_server($primary);
kill 'CONT', $from;
$sync->promote;
ok($sync->poll_query_until('postgres', 'SELECT (' . written('there') . ') = 3'), 'after a kill and a failover it arrives at the new primary');
ok($other->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and the standby knows');
is($sync->safe_psql('postgres', written('there')), '3', 'it counts once');

$_->stop foreach $other, $sync;
done_testing();
