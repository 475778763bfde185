# test/t/056_grants.pl: default privileges add nothing to the grants of the extension and take nothing away, and an update mends what stands.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

install_release('0.2');

my $node = rk_initdb('grants');
rk_extend($node);
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor; CREATE ROLE super SUPERUSER LOGIN');
my $plain = catalog($node, 'postgres');

# What stands to be granted by default: all kinds, to a role and to everyone, and the owner's own rights taken away
sub defaults
{
	my ($for, $in) = @_;
	my @kinds = (qw(TABLES SEQUENCES FUNCTIONS TYPES), $in ? () : 'SCHEMAS');
	my $head = "ALTER DEFAULT PRIVILEGES $for $in";
	return join '', (map { "$head GRANT ALL ON $_ TO app WITH GRANT OPTION; $head GRANT ALL ON $_ TO PUBLIC, rk_apikeys_auditor;" } @kinds),
	  $in ? () : map { "$head REVOKE ALL ON $_ FROM " . ($for =~ /super/ ? 'super;' : 'postgres;') } @kinds;
}

# What the role app and an auditor can do in a database
sub nothing_more
{
	my ($database, $name) = @_;
	foreach my $sql (q{SELECT rk_apikeys.import_key('x', sha256('x'), 'sha256', tenant => 'x')}, q{SELECT rk_apikeys.purge_events('1 day')},
		'TRUNCATE rk_apikeys.api_keys', 'SELECT FROM rk_apikeys.key_usage', 'CREATE TABLE rk_apikeys.mine ()',
		q{SELECT nextval(pg_get_serial_sequence('rk_apikeys.key_events', 'event_id'))})
	{
		like(failure($database, 'app', $sql), qr/permission denied/, "$name: app cannot $sql");
	}
	like(failure($database, 'auditor', 'SELECT digest FROM rk_apikeys.api_keys'), qr/permission denied/, "$name: an auditor reads no digest");
	is(sql_as($node, 'auditor', 'SELECT count(*) FROM rk_apikeys.keys', $database), '0', "$name: an auditor reads keys");
	is(sql_as($node, 'auditor', 'SELECT name FROM rk_apikeys.health', $database), 'preload', "$name: health finds no grant");
}

sub failure
{
	my ($database, $role, $sql) = @_;
	$node->psql($database, $sql, stderr => \my $err, extra_params => [ '-U', $role ]);
	return $err;
}

# An extension made under such defaults, by the one whose they are
foreach my $creator ('postgres', 'super')
{
	foreach my $for ('', "FOR ROLE $creator")
	{
		my $name = $for || "by $creator";
		$node->safe_psql('postgres', 'CREATE DATABASE d');
		sql_as($node, $creator, defaults($for, '') . 'CREATE EXTENSION rk_apikeys CASCADE', 'd');
		same_catalog([ sort @$plain ], [ sort map { s/\bsuper\b/postgres/gr } @{ catalog($node, 'd') } ], "$name: the grants of a plain database");
		nothing_more('d', $name);
		$node->safe_psql('postgres', 'DROP DATABASE d');
	}
}

# An update of a database with wrong grants, under such defaults, by the schema too
$node->safe_psql('postgres', 'CREATE DATABASE d');
$node->safe_psql('d', defaults('', '') . q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE;} . defaults('', 'IN SCHEMA rk_apikeys') . q{
	GRANT ALL ON SCHEMA rk_apikeys TO app WITH GRANT OPTION;
	GRANT ALL ON ALL TABLES IN SCHEMA rk_apikeys TO app WITH GRANT OPTION;
	GRANT ALL ON ALL SEQUENCES IN SCHEMA rk_apikeys TO app, PUBLIC;
	GRANT ALL ON ALL FUNCTIONS IN SCHEMA rk_apikeys TO app WITH GRANT OPTION;
	GRANT SELECT (digest), UPDATE (digest) ON rk_apikeys.api_keys TO auditor, app WITH GRANT OPTION;
	REVOKE ALL ON rk_apikeys.api_keys FROM postgres;
	REVOKE USAGE ON TYPE rk_apikeys.verdict FROM PUBLIC;
	GRANT USAGE ON TYPE rk_apikeys.verdict TO app});
sql_as($node, 'app', q{GRANT EXECUTE ON FUNCTION rk_apikeys.purge_events(interval) TO auditor;
	GRANT SELECT ON rk_apikeys.api_keys TO auditor; GRANT SELECT (digest) ON rk_apikeys.api_keys TO acme}, 'd');
is(sql_as($node, 'auditor', 'SELECT count(digest) FROM rk_apikeys.api_keys', 'd'), '0', 'an auditor reads digests before the update');
$node->safe_psql('d', 'ALTER EXTENSION rk_apikeys UPDATE');
same_catalog($plain, catalog($node, 'd'), 'an update: the grants of a plain database');
nothing_more('d', 'an update');
like(failure('d', 'auditor', q{SELECT rk_apikeys.purge_events('1 day')}), qr/permission denied/, 'what app had granted on is gone');

done_testing();
