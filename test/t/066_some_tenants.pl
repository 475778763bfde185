# test/t/066_some_tenants.pl: nodes with the keys of some tenants, by the statements of doc/operations.md.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $origin = rk_initdb('origin', PRELOAD, 'wal_level = logical', 'max_wal_senders = 5');
my $node = rk_initdb('node', PRELOAD, 'max_wal_senders = 5', "rk_apikeys.usage_flush_interval = '100ms'",
	"rk_apikeys.primary_conninfo = '" . $origin->connstr . " user=usage_sender'");
foreach my $server ($origin, $node)
{
	$server->safe_psql('postgres', 'CREATE DATABASE mydb');
	$server->safe_psql('mydb', 'CREATE EXTENSION rk_apikeys');
	documented_roles($server, 'mydb');
}
$origin->safe_psql('mydb', 'CREATE ROLE replicator LOGIN REPLICATION BYPASSRLS; GRANT USAGE ON SCHEMA rk_apikeys TO replicator;
	GRANT SELECT ON rk_apikeys.api_keys TO replicator; CREATE ROLE third LOGIN IN ROLE rk_apikeys_manager;
	CREATE ROLE usage_sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO usage_sender');
my (%id, %token);
foreach my $tenant (qw(acme globex third))
{
	($id{$tenant}, $token{$tenant}) = create_key($origin, "of $tenant", undef, $tenant, 'mydb');
}

sub codes
{
	return join ' ', map { sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{$_}')", 'mydb') } qw(acme globex third);
}

# Without the REPLICA IDENTITY no key can be revoked any more.
my ($publish, $subscribe, $take) = documented('Some tenants only',
	'host=10.0.0.1 dbname=mydb user=replicator passfile=/var/lib/postgresql/replication.pgpass sslmode=require' => $origin->connstr . ' dbname=mydb user=replicator');
my ($identity, $publication) = split /(?<=;\n)/, $publish;
$origin->safe_psql('mydb', $publication);
my (undef, undef, $error) = $origin->psql('mydb', "SELECT rk_apikeys.revoke_key('$id{globex}')", extra_params => [ '-U', 'globex' ]);
like($error, qr/cannot update table "api_keys"/, 'a row filter without REPLICA IDENTITY FULL: no key of any tenant can be revoked');
$origin->safe_psql('mydb', $identity);

$node->safe_psql('mydb', $subscribe);
$node->wait_for_subscription_sync($origin, 'node1_acme', 'mydb');
is(codes(), 'valid unknown unknown', 'a node with one tenant');

# Another tenant later: a changed row filter does not copy the keys that exist.
$origin->safe_psql('mydb', "ALTER PUBLICATION keys_of_acme SET TABLE rk_apikeys.api_keys WHERE (tenant IN ('acme', 'globex'))");
$node->safe_psql('mydb', 'ALTER SUBSCRIPTION node1_acme REFRESH PUBLICATION');
$origin->wait_for_catchup('node1_acme');
is(codes(), 'valid unknown unknown', 'another row filter copies nothing');
$origin->safe_psql('mydb', "ALTER PUBLICATION keys_of_acme SET TABLE rk_apikeys.api_keys WHERE (tenant = 'acme')");
s/acme/globex/g foreach $publication, $subscribe;
$origin->safe_psql('mydb', $publication);
$node->safe_psql('mydb', $subscribe);
$node->wait_for_subscription_sync($origin, 'node1_globex', 'mydb');
is(codes(), 'valid valid unknown', 'another tenant is added, with the keys that exist');

sub applied { $origin->wait_for_catchup($_) foreach 'node1_acme', 'node1_globex'; }
sql_as($origin, 'acme', "SELECT rk_apikeys.revoke_key('$id{acme}')", 'mydb');
sql_as($origin, 'third', "SELECT rk_apikeys.revoke_key('$id{third}')", 'mydb');
applied();
is(codes(), 'revoked valid unknown', 'a revocation arrives');
($id{acme}, $token{acme}) = create_key($origin, 'new', undef, 'acme', 'mydb');
applied();
is(codes(), 'valid valid unknown', 'a new key too');
$origin->safe_psql('mydb', "UPDATE rk_apikeys.api_keys SET tenant = 'third' WHERE key_id = '$id{acme}'");
applied();
is(codes(), 'unknown valid unknown', 'a key that moves to another tenant goes');
is($node->safe_psql('mydb', 'SELECT count(*) FROM rk_apikeys.api_keys'), '2', 'the node has no other rows');

# A column of one's own must be on the node first.
$origin->safe_psql('mydb', 'ALTER TABLE rk_apikeys.api_keys ADD COLUMN cost_center text');
sql_as($origin, 'globex', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$id{globex}'", 'mydb');
$node->poll_query_until('mydb', q{SELECT sum(apply_error_count) > 0 FROM pg_stat_subscription_stats}) or die 'no error';
is(codes(), 'unknown valid unknown', 'a node without a column of the origin applies nothing');
like(slurp_file($node->logfile), qr/missing.*cost_center/, 'and its log names the column');
$node->safe_psql('mydb', 'ALTER TABLE rk_apikeys.api_keys ADD COLUMN cost_center text');
$node->poll_query_until('mydb', "SELECT NOT enabled FROM rk_apikeys.api_keys WHERE key_id = '$id{globex}'") or die 'not applied';
is(codes(), 'unknown disabled unknown', 'with the column it continues');

# A copy of the node for staging: it sends its use, unless that is prevented, and leaves the origin's slots alone.
my ($copied_id, $copied) = create_key($origin, 'copied', undef, 'globex', 'mydb');
applied();
my $slots = q{SELECT string_agg(slot_name || active_pid, ' ' ORDER BY slot_name) FROM pg_replication_slots};
my $before = $origin->safe_psql('mydb', $slots);
$node->backup('copy');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'copy');
$copy->append_conf('postgresql.conf', 'max_logical_replication_workers = 0');
$copy->start;
sql_as($copy, 'backend', "SELECT rk_apikeys.verify('$copied')", 'mydb');
ok($origin->poll_query_until('mydb', "SELECT use_count = 1 FROM rk_apikeys.key_usage WHERE key_id = '$copied_id'"), 'a copy of a node sends its use');
foreach my $name ('node1_acme', 'node1_globex')
{
	my ($empty, $unsubscribe) = (documented('A copy of production for staging', node1 => $name))[ 1, 2 ];
	$copy->safe_psql('mydb', $_) foreach $empty, $unsubscribe;
}
$copy->restart;
is($copy->safe_psql('mydb', 'SELECT (SELECT count(*) FROM pg_subscription), (SELECT count(*) FROM rk_apikeys.api_keys)'), '0|0', 'a copy for staging');
is($origin->safe_psql('mydb', $slots), $before, 'takes nothing from the node that it is a copy of');

# A tenant is taken away
$node->safe_psql('mydb', $_) foreach split /(?<=;\n)/, $take;
is(codes(), 'unknown unknown unknown', 'a tenant is taken away');
$node->safe_psql('mydb', 'DROP SUBSCRIPTION node1_acme');
done_testing();
