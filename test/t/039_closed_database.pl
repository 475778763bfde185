# test/t/039_closed_database.pl: a database that allows no connections keeps its pending use and its rate limits, one whose worker cannot
# start holds up no other, and a launcher that is started again on a standby remembers that.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('closed');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', PRELOAD . "\nrk_apikeys.usage_flush_interval = '100ms'\nautovacuum = off");
$node->start;
rk_extend($node);
my $launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'";
my $pid = $node->safe_psql('postgres', $launcher);

my (%id, %token);
foreach my $db (qw(postgres closed stalled))
{
	$node->safe_psql('postgres', "CREATE DATABASE $db") if $db ne 'postgres';
	$node->safe_psql($db, 'CREATE EXTENSION IF NOT EXISTS rk_apikeys CASCADE');
	($id{$db}, $token{$db}) = create_key($node, $db, q{rate_limit => 5, rate_window => '1 hour'}, 'acme', $db);
}

# A round that began after this call has ended
sub round
{
	my ($id, $token) = create_key($node, 'round');
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token')");
	$node->poll_query_until('postgres', "SELECT use_count = 1 FROM rk_apikeys.key_usage WHERE key_id = '$id'") or die 'no round';
}

# Closed, with a session that goes on verifying
my $session = $node->background_psql('closed', extra_params => [ '-U', 'backend' ]);
my $passed = sub { return $session->query_safe("SELECT count(*) FILTER (WHERE rk_apikeys.verify('$token{closed}')) FROM generate_series(1, 10)"); };
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS false');
is($passed->(), '5', 'a closed database: five uses pass');
foreach my $round (1 .. 3)
{
	round();
	is($passed->(), '0', "after round $round the limit still holds");
}
is(stat_of($node, 'dropped'), '0', 'nothing is dropped');
is(stat_of($node, 'pending_keys'), '1', 'its use is pending');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
ok($node->poll_query_until('closed', "SELECT use_count = 5 AND denied_count = 35 FROM rk_apikeys.key_usage WHERE key_id = '$id{closed}'"),
	'when it allows connections again, its use is written');
$session->quit;

# A database that is gone
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{closed}')", 'closed');
$node->safe_psql('postgres', 'DROP DATABASE closed');
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'one that is gone has no use');

# A worker that waits for a lock at its start
my $offset = -s $node->logfile;
my $verifier = $node->background_psql('stalled', extra_params => [ '-U', 'backend' ]);
my $locker = session($node, 'postgres');
$verifier->query_safe("SELECT rk_apikeys.verify('$token{stalled}')");
$node->poll_query_until('stalled', 'SELECT sum(use_count) = 1 FROM rk_apikeys.key_usage') or die 'no use';
$verifier->quit;
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '1h'");
$node->reload;
$node->poll_query_until('postgres', "SELECT setting = '3600000' FROM pg_settings WHERE name = 'rk_apikeys.usage_flush_interval'") or die 'no reload';
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{stalled}') FROM generate_series(1, 2)", 'stalled');
$locker->query_safe('BEGIN; ALTER DATABASE stalled RENAME TO renamed');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND classid = 'pg_database'::regclass")
  or die 'no worker waits';
round();
pass('a worker waits for a lock on its database: the others are flushed');
round();
my $stalled = qr/LOG:  terminating the background worker that flushes/;
is(scalar(() = substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $offset) =~ /$stalled/g), 1, 'the log says so, once');
is($node->safe_psql('postgres', $launcher), $pid, 'by the same launcher');
$locker->query_safe('COMMIT');
$locker->quit;
ok($node->poll_query_until('renamed', "SELECT use_count = 3 FROM rk_apikeys.key_usage WHERE key_id = '$id{stalled}'"), 'then its use is written, once');

# A standby that has sent its uses, whose launcher is started again, and that lacks what the primary wrote
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', 'rk_apikeys.primary_conninfo = ' . sprintf("'host=%s port=%s user=boss'", $node->host, $node->port));
$standby->start;
my ($sent_id, $sent) = create_key($node, 'sent');
$node->wait_for_catchup($standby, 'replay', $node->lsn('write'));
# no more WAL comes: only the batch goes
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication') or die 'still streaming';
sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$sent') FROM generate_series(1, 4)");
ok($node->poll_query_until('postgres', "SELECT use_count = 4 FROM rk_apikeys.key_usage WHERE key_id = '$sent_id'"), 'a standby sends its uses');
$standby->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'still pending';
$standby->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '1h'");
$standby->reload;
my $first = $standby->safe_psql('postgres', $launcher);
$standby->safe_psql('postgres', "SELECT pg_terminate_backend($first)");
ok($standby->poll_query_until('postgres', "SELECT pid <> $first FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'"),
	'its launcher is started again');
$standby->promote;
$standby->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$standby->reload;
ok($standby->poll_query_until('postgres', "SELECT use_count = 4 FROM rk_apikeys.key_usage WHERE key_id = '$sent_id'"),
	'after a promotion its table has them, although replication had not brought them');

is_deeply([ logged($_, qr/PANIC:|TRAP:/) ], [], 'nothing crashed') foreach $node, $standby;
done_testing();
