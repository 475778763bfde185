# test/t/003_dump_restore.pl: a dump restored into another cluster has every row, adds none, and its keys verify the same.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('first', "rk_apikeys.usage_flush_interval = '1h'");
my $token = keys_of_every_state($node);
my $expected = expected_verdicts();
is_deeply(verdicts($node, $token), $expected, 'verdicts in the first cluster');
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
isnt($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage'), '0', 'there is usage to dump');
my $before = contents($node);
my $last_event = $node->safe_psql('postgres', 'SELECT max(event_id) FROM rk_apikeys.key_events');

my $dir = PostgreSQL::Test::Utils::tempdir;
$node->command_ok([ 'pg_dumpall', '--roles-only', '-f', "$dir/roles.sql", '-d', $node->connstr('postgres') ], 'dump of the roles');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom", $node->connstr('postgres') ], 'dump in custom format');
$node->command_ok([ 'pg_dump', '-Fp', '-f', "$dir/plain", $node->connstr('postgres') ], 'dump in plain format');
is_deeply(contents($node), $before, 'a dump changes no row');

my $second = rk_initdb('second');
# the one role that is there already is an error
$second->psql('postgres', slurp_file("$dir/roles.sql"), on_error_stop => 0, stderr => \my $ignored);

my %restore = (
	custom => sub { return ('pg_restore', '--exit-on-error', '-d', $second->connstr('custom'), "$dir/custom") },
	plain => sub { return ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $second->connstr('plain'), '-f', "$dir/plain") });

foreach my $db (sort keys %restore)
{
	$second->safe_psql('postgres', "CREATE DATABASE $db");
	$second->command_ok([ $restore{$db}->() ], "$db: restored");

	my $after = contents($second, $db);
	foreach my $table (sort keys %$before)
	{
		is($after->{$table}, $before->{$table}, "$db: $table has the same rows");
	}
	is_deeply(verdicts($second, $token, $db), $expected, "$db: same verdicts");
	is(sql_as($second, 'boss', 'SELECT name FROM rk_apikeys.health', $db), 'preload', "$db: nothing is to do, but for preload");

	# Life goes on
	like(sql_as($second, 'acme', q{INSERT INTO rk_apikeys.keys (name) VALUES ('next') RETURNING secret}, $db),
		qr/^rk_prod_/, "$db: the next key is made");
	is($second->safe_psql($db, "SELECT count(*), min(event) FROM rk_apikeys.key_events WHERE event_id > $last_event"),
		'1|created', "$db: its event has a number of its own");
	sql_as($second, 'acme', q{UPDATE rk_apikeys.keys SET name = 'renamed' WHERE name = 'expired'}, $db);
	is($second->safe_psql($db, "SELECT event FROM rk_apikeys.key_events ORDER BY event_id DESC LIMIT 1"),
		'updated', "$db: an expired key can be renamed");
	is(sql_as($second, 'globex', 'SELECT string_agg(name, $$,$$) FROM rk_apikeys.keys', $db), 'neighbour',
		"$db: a tenant sees its own keys only");
	is($second->psql($db, 'SELECT digest FROM rk_apikeys.api_keys', extra_params => [ '-U', 'acme' ], stderr => \$ignored), 3,
		"$db: no role reads a digest");
}

done_testing();
