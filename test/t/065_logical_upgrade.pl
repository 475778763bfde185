# test/t/065_logical_upgrade.pl: logical replication takes keys, use and events to the next major, by the statements of doc/operations.md.
#
# RK_OLD_BINDIR: as in 054_pg_upgrade.pl.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $new_bin = `pg_config --bindir`;
chomp $new_bin;
my $old_bin = $ENV{RK_OLD_BINDIR} || $new_bin;

sub server
{
	my ($name, @params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @params);
	$node->init(extra => INITDB);
	$node->append_conf('postgresql.conf', join "\n", PRELOAD, 'wal_level = logical', 'max_wal_senders = 5',
		"rk_apikeys.usage_flush_interval = '1h'");
	$node->start;
	return $node;
}

my $old = server('old', install_path => $old_bin =~ s{/bin$}{}r);
my $new = server('new');
my $way = $old->pg_version . ' to ' . $new->pg_version;
$old->safe_psql('postgres', 'CREATE DATABASE mydb');
$old->safe_psql('mydb', 'CREATE EXTENSION rk_apikeys');
documented_roles($old, 'mydb');
$old->safe_psql('mydb', 'CREATE ROLE replicator LOGIN REPLICATION BYPASSRLS; CREATE ROLE usage_sender LOGIN;
	GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO usage_sender');

my (%id, %token);
sub make { my ($server, $name) = @_; ($id{$name}, $token{$name}) = create_key($server, $name, undef, 'acme', 'mydb'); }
sub code_of { my ($server, $name) = @_; return sql_as($server, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{$name}')", 'mydb'); }
make($old, $_) foreach qw(early revoked deleted);
code_of($old, $_) foreach qw(early revoked deleted);
sql_as($old, 'keeper', 'SELECT rk_apikeys.flush_usage()', 'mydb');

my ($publish, $schema, $subscribe, $drain, $compare) = documented('To another major by logical replication',
	'host=10.0.0.1 dbname=mydb user=replicator passfile=/var/lib/postgresql/replication.pgpass sslmode=require' => $old->connstr . ' dbname=mydb user=replicator',
	'-h 10.0.0.1' => '-h ' . $old->host . ' -p ' . $old->port);
$old->safe_psql('mydb', $publish);
{
	local %ENV = (%ENV, PATH => "$old_bin:$ENV{PATH}", PGHOST => $new->host, PGPORT => $new->port);
	# the superuser of both servers is an error
	my $printed = `($schema) 2>&1`;
	my @errors = $printed =~ /^.*ERROR:.*$/mg;
	is_deeply([ grep { !/role "postgres" already exists/ } @errors ], [], "$way: roles and schema");
}
my ($create, $waits) = split /(?<=;\n)(?=SELECT)/, $subscribe;
$new->safe_psql('mydb', $create);
$new->poll_query_until('mydb', $waits, '') or die 'the first copy does not end';

# Changes while both servers run
make($old, 'late');
sql_as($old, 'acme', $_, 'mydb') foreach
  "SELECT rk_apikeys.revoke_key('$id{revoked}')",
  "DELETE FROM rk_apikeys.keys WHERE key_id = '$id{deleted}'",
  "UPDATE rk_apikeys.keys SET scopes = '{records:read}' WHERE key_id = '$id{early}'";
code_of($old, 'late') foreach 1 .. 3;

# The applications stand still.
my ($flush, $arrived) = $drain =~ /^(.*?;\n)(.*)/s;
is(sql_as($old, 'keeper', $flush, 'mydb'), '1', "$way: pending use is written");
$old->poll_query_until('mydb', $arrived) or die 'not all has arrived';
my %rows = map { $_->name => $_->safe_psql('mydb', $compare) } $old, $new;
is($rows{new}, $rows{old}, "$way: both servers have the same rows");
like($rows{new}, qr/^3\|.*\n3\|.*\n7\|/, "$way: and there are rows") or diag($rows{new});
$new->safe_psql('mydb', 'DROP SUBSCRIPTION upgrade');
$old->stop;

is_deeply([ map { code_of($new, $_) } qw(early revoked deleted late) ], [qw(valid revoked unknown valid)], "$way: verdicts");
is(sql_as($new, 'acme', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id{late}'", 'mydb'), '4', "$way: use counts on");
sql_as($new, 'keeper', 'SELECT rk_apikeys.flush_usage()', 'mydb');
is($new->safe_psql('mydb', "SELECT use_count FROM rk_apikeys.key_usage WHERE key_id = '$id{late}'"), '4', "$way: and is written");
make($new, 'first there');
is(code_of($new, 'first there'), 'valid', "$way: a new key");
sql_as($new, 'acme', "SELECT rk_apikeys.revoke_key('$id{early}')", 'mydb');
is(code_of($new, 'early'), 'revoked', "$way: a revocation");
is($new->safe_psql('mydb', 'SELECT count(*) = count(DISTINCT event_id) AND count(*) FILTER (WHERE event <> $$used_after_end$$) = 9 FROM rk_apikeys.key_events'), 't', "$way: each event has a number of its own");
is($new->safe_psql('mydb', q{SELECT has_function_privilege('usage_sender', oid, 'EXECUTE') FROM pg_proc WHERE proname = 'receive_usage'}), 't',
	"$way: grants of one's own came along");
is($new->safe_psql('mydb', (documented('The restore ran with --disable-triggers'))[0]), '', "$way: triggers are in their states");
is_deeply([ logged($new, qr/ERROR/) ], [ grep { /role "postgres" already exists/ } logged($new, qr/ERROR/) ], "$way: nothing failed");
done_testing();
