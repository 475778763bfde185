# test/t/064_lost_revocations.pl: a failover that lost the ends of keys; the statements of doc/operations.md end those keys again.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = PostgreSQL::Test::Cluster->new('old');
$old->init(allows_streaming => 1, extra => INITDB);
$old->append_conf('postgresql.conf', join "\n", PRELOAD, 'wal_log_hints = on', "wal_keep_size = '1GB'", 'autovacuum = off',
	"rk_apikeys.usage_flush_interval = '1h'", 'synchronous_commit = local', "synchronous_standby_names = '*'");
$old->start;
$old->safe_psql('postgres', 'CREATE DATABASE mydb');
$old->safe_psql('mydb', 'CREATE EXTENSION rk_apikeys');
documented_roles($old, 'mydb');
my (%id, %token);
sub make { my ($name) = @_; ($id{$name}, $token{$name}) = create_key($old, $name, undef, 'acme', 'mydb'); }
make($_) foreach qw(synchronous revoked leaked disabled deleted rotated enabled untouched recorded);

$old->backup('base');
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init_from_backup($old, 'base', has_streaming => 1);
$new->start;
$old->wait_for_catchup($new, 'replay');

sub codes
{
	my ($server) = @_;
	return { map { $_ => sql_as($server, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{$_}')", 'mydb') } sort keys %token };
}

# A revocation that waits for the standby is there at COMMIT.
my $moment = $old->safe_psql('mydb', 'SELECT clock_timestamp()');
my ($wait) = (documented('A failover or a recovery lost revocations', '7Yh2kQ9mZp1x' => $id{synchronous}))[-1];
my $standby = $new->background_psql('mydb', extra_params => [ '-U', 'backend' ]);
is(code($standby, $token{synchronous}), 'valid', 'a session of the standby has the key cached');
sql_as($old, 'acme', $wait, 'mydb');
is(code($standby, $token{synchronous}), 'revoked', 'a revocation that waited for the standby is seen there at once');
$standby->quit;
make('used');
$old->wait_for_catchup($new, 'replay');

# The standby is cut off, keys end on the old primary, and the standby is promoted.
$new->append_conf('postgresql.conf', "primary_conninfo = ''");
$new->reload;
$new->poll_query_until('mydb', 'SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)') or die 'still streaming';
sql_as($old, 'acme', $_, 'mydb') foreach
  "SELECT rk_apikeys.revoke_key('$id{revoked}', 'it''s leaked')",
  "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id IN ('$id{disabled}', '$id{enabled}')",
  "UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = '$id{enabled}'",
  "DELETE FROM rk_apikeys.keys WHERE key_id = '$id{deleted}'",
  "SELECT FROM rk_apikeys.rotate_key('$id{rotated}', '0')";
sql_as($old, 'backend', "SELECT rk_apikeys.revoke_token('$token{leaked}', 'found')", 'mydb');
make('lost');
sql_as($old, 'acme', "SELECT rk_apikeys.revoke_key('$id{lost}')", 'mydb');
codes($old);
$old->stop;
my $file = $old->data_dir . '/pg_stat/rk_apikeys.usage';
ok(-e $file, 'the old primary leaves a file with pending use');
$new->promote;
my %good = map { $_ => 'valid' } keys %token;
is_deeply(codes($new), { %good, synchronous => 'revoked', lost => 'unknown' }, 'after the failover the keys that had ended verify again');

# The old primary is started without clients, and asked.
my $sockets = PostgreSQL::Test::Utils::tempdir_short;
my $heading = 'A failover or a recovery lost revocations';
my ($start) = documented($heading, OLD_DATA => $old->data_dir, SOCKETS => $sockets);
my ($end_again, $others, $recorded) = (documented($heading, '2026-11-25 09:00:00+00' => $moment, '7Yh2kQ9mZp1x' => $id{recorded}))[ 1 .. 3 ];
chomp $start;
PostgreSQL::Test::Utils::system_or_bail('sh', '-c', "$start -l '" . $old->logfile . "' >/dev/null");
my @ask = ('psql', '-XAt', '-v', 'ON_ERROR_STOP=1', '-h', $sockets, '-p', $old->port, '-d', 'mydb', '-U', 'monitor');
my $sql = '';
ok(IPC::Run::run([ @ask, '-c', $end_again ], '>', \$sql), 'an auditor asks the old primary');
my $listed = '';
ok(IPC::Run::run([ @ask, '-c', $others ], '>', \$listed), 'and for the other changes');
PostgreSQL::Test::Utils::system_or_bail('pg_ctl', '-D', $old->data_dir, '-m', 'fast', '-w', '-s', 'stop');
like($listed, qr/acme\|$id{rotated}\|rotated/, 'which name the rotation');
like($listed, qr/acme\|$id{lost}\|created/, 'the lost key');
like($listed, qr/acme\|$id{enabled}\|enabled/, 'and the key that was enabled again');

my ($status, $out) = $new->psql('mydb', $sql, extra_params => [ '-U', 'keeper' ], on_error_stop => 1);
is($status, 0, 'an administrator runs what was printed');
my %expected = (%good, lost => 'unknown', disabled => 'disabled', enabled => 'disabled', map { $_ => 'revoked' } qw(synchronous revoked leaked deleted));
is_deeply(codes($new), \%expected, 'the keys have ended again');
$new->psql('mydb', $sql, extra_params => [ '-U', 'keeper' ], on_error_stop => 1);
is_deeply(codes($new), \%expected, 'twice is the same');

# pg_rewind takes the events and the pending use of the old primary away.
$new->safe_psql('postgres', 'CHECKPOINT');
ok(-e $file, 'before pg_rewind there is pending use');
command_ok([ 'pg_rewind', '--target-pgdata', $old->data_dir, '--source-server', $new->connstr('postgres'), '--no-sync' ], 'pg_rewind');
ok(!-e $file, 'pg_rewind removes the pending use');
$old->append_conf('postgresql.conf', 'port = ' . $old->port . "\nunix_socket_directories = '" . $old->host . "'\nsynchronous_standby_names = ''\nprimary_conninfo = '"
	  . $new->connstr . "'");
$old->set_standby_mode;
$old->start;
$new->wait_for_catchup($old, 'replay');
is($old->safe_psql('mydb', "SELECT count(*) FROM rk_apikeys.key_events WHERE key_id = '$id{lost}'"), '0', 'and the events that the failover lost');
is_deeply(codes($old), \%expected, 'as a standby it has the verdicts of the new primary');

# Without the old primary: by a record of one's own
sql_as($new, 'keeper', $recorded, 'mydb');
is_deeply(codes($new), { %expected, recorded => 'revoked' }, 'a key ends by its id');
done_testing();
