# test/t/050_upgrade.pl: an update from each release ends where a fresh install does, while sessions verify. The library and the SQL of
# different releases work together, or refuse to.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use IPC::Run qw(start);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my @releases = map { m{rk_apikeys--([\d.]+)\.sql$} } sort glob "$FindBin::Bin/../upgrade/rk_apikeys--*.sql";
install_release($_) foreach @releases;

my $node = rk_initdb('upgrade', PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach 'fresh', 'updated';
rk_extend($node);
my $version = $node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'rk_apikeys'});
isnt($version, '0.1', 'this is not the first release');

# Fresh and updated are the same
$node->safe_psql('fresh', 'CREATE EXTENSION rk_apikeys CASCADE');
$node->safe_psql('updated', q{CREATE EXTENSION rk_apikeys VERSION '0.1' CASCADE});
my ($fresh, $first) = map { catalog($node, $_) } 'fresh', 'updated';
cmp_ok(scalar @$fresh, '>', 1000, 'the catalog tells much of an extension');
isnt(join("\n", @$first), join("\n", @$fresh), 'and that the first release is another');
$node->safe_psql('updated', 'ALTER EXTENSION rk_apikeys UPDATE');
same_catalog($fresh, catalog($node, 'updated'), 'an updated extension is the same as a fresh one');
foreach my $release (@releases)
{
	$node->safe_psql('postgres', 'CREATE DATABASE since');
	$node->safe_psql('since', "CREATE EXTENSION rk_apikeys VERSION '$release' CASCADE");
	$node->safe_psql('since', 'ALTER EXTENSION rk_apikeys UPDATE');
	same_catalog($fresh, catalog($node, 'since'), "an extension that is updated from $release, too");
	$node->safe_psql('postgres', 'DROP DATABASE since');
}
# Each kind of change shows
foreach my $change (
	q{COMMENT ON COLUMN rk_apikeys.api_keys.name IS 'x'},
	q{REVOKE SELECT (name) ON rk_apikeys.api_keys FROM rk_apikeys_auditor},
	q{ALTER TABLE rk_apikeys.api_keys ENABLE TRIGGER api_keys_settle},
	q{ALTER TABLE rk_apikeys.key_usage SET (fillfactor = 51)},
	q{ALTER TABLE rk_apikeys.key_usage ALTER use_count SET DEFAULT 1},
	q{ALTER TABLE rk_apikeys.key_events DISABLE ROW LEVEL SECURITY},
	q{ALTER POLICY principal ON rk_apikeys.key_events TO rk_apikeys_admin},
	q{ALTER VIEW rk_apikeys.stats SET (security_invoker = false)},
	q{ALTER FUNCTION rk_apikeys.verify(text) PARALLEL SAFE},
	q{ALTER FUNCTION rk_apikeys.verify(text) OWNER TO boss},
	q{ALTER EXTENSION rk_apikeys DROP FUNCTION rk_apikeys.verify(text)},
	q{UPDATE pg_extension SET extconfig = extconfig[:3], extcondition = extcondition[:3] WHERE extname = 'rk_apikeys'})
{
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS changed');
	$node->safe_psql('postgres', 'CREATE DATABASE changed TEMPLATE fresh');
	$node->safe_psql('changed', $change);
	isnt(join("\n", @{ catalog($node, 'changed') }), join("\n", @$fresh), "the comparison sees: $change");
}

# The library with the SQL of earlier releases, the first one before and after the update
my $token;
foreach my $release (reverse @releases)
{
	$node->safe_psql('postgres', 'DROP EXTENSION rk_apikeys');
	$node->safe_psql('postgres', "CREATE EXTENSION rk_apikeys VERSION '$release' CASCADE");
	$token = keys_of_every_state($node);
	is_deeply(verdicts($node, $token), expected_verdicts(), "every verdict with the SQL of $release");
}
is($node->safe_psql('postgres', "SELECT rk_apikeys.verify('$token->{active}')"), 't', 'verify too');
is(sql_as($node, 'acme', q{SELECT use_count FROM rk_apikeys.keys WHERE name = 'active'}), '2', 'use is counted');
is(sql_as($node, 'acme', q{SELECT count(*), count(secret) FROM rk_apikeys.keys}), '10|0', 'the views');
is(sql_as($node, 'acme', q{SELECT count(*) FROM rk_apikeys.list_keys()}), '10', 'list_keys');
is(sql_as($node, 'boss', q{SELECT preloaded, verified > 0 FROM rk_apikeys.stats}), 't|t', 'stats');
like(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), qr/^\d+$/, 'flush_usage');
is(sql_as($node, 'boss', "BEGIN; SELECT rk_apikeys.purge_keys('0') > 0; ROLLBACK"), 't', 'purge_keys');
is(sql_as($node, 'backend', "BEGIN; SELECT (rk_apikeys.authenticate('$token->{active}')).valid, rk_apikeys.has_scope('records:read'); COMMIT"), 't|t', 'a principal');
is(sql_as($node, 'backend', "SELECT rk_apikeys.find_tokens('$token->{active}') IS NOT NULL"), 't', 'find_tokens');
$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'nothing is flushed';
like(sql_as($node, 'backend', "SELECT to_jsonb(v) - '{scopes,metadata}'::text[] FROM rk_apikeys.verify_key('$token->{named}', cost => 2) v"),
	qr/^\{"code": "valid", "name": "[^"]+", "valid": true, "key_id": "\w+", "tenant": "acme", "expires_at": "[^"]+", "environment": "stage", "retry_after": null\}$/,
	'a verdict of the old shape');
my (undef, $limited) = create_key($node, 'limited', q{rate_limit => 1, rate_window => '366 days'});
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$limited')"), 't', 'a limited key');
is(sql_as($node, 'backend', "SELECT code, retry_after BETWEEN '365 days 23 hours' AND '366 days' FROM rk_apikeys.verify_key('$limited')"), 'rate_limited|t',
	'its interval is whole');
sql_as($node, 'acme', q{DELETE FROM rk_apikeys.keys WHERE name = 'limited'});
my $columns = columns($node);
my $before = contents($node);
$node->safe_psql('postgres', 'ALTER EXTENSION rk_apikeys UPDATE');
same_catalog($fresh, catalog($node, 'postgres'), 'an update with keys ends in the same catalog');
is_deeply(contents($node, 'postgres', $columns), $before, 'and leaves every row as it was');
is_deeply(verdicts($node, $token), expected_verdicts(), 'every verdict after it');
is(sql_as($node, 'boss', 'SELECT * FROM rk_apikeys.health'), '', 'and nothing is to do');

# An update while sessions verify. A call of verify_key that waits for the update fails, because the update to 0.3 replaces the function.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT 1 / (rk_apikeys.verify('$token->{active}')"
	  . " AND NOT rk_apikeys.verify('$token->{revoked}') AND NOT rk_apikeys.verify('$token->{deleted}'))::int;\n");
$node->safe_psql('postgres', "CREATE DATABASE model TEMPLATE template0");
$node->safe_psql('model', q{CREATE EXTENSION rk_apikeys VERSION '0.1' CASCADE});
foreach my $table (qw(api_keys key_usage))
{
	$node->safe_psql('postgres', "COPY rk_apikeys.$table ($columns->{$table}) TO '$dir/$table'");
	$node->safe_psql('model', "COPY rk_apikeys.$table ($columns->{$table}) FROM '$dir/$table'");
}
foreach my $preloaded (1, 0)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	unless ($preloaded)
	{
		$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\nrk_apikeys.usage_resolution = 0");
		$node->restart;
	}
	foreach my $time (1 .. 3)
	{
		my $database = "live${preloaded}_$time";
		$node->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE model");
		my $verifies = start([ 'pgbench', '-n', '-c', 4, '-T', 600, '-P', 1, '-U', 'backend', '-f', "$dir/verify.sql", '-h', $node->host, '-p',
				$node->port, $database ], '<', \undef, '>', \my $out, '2>', \my $err);
		my $transactions = sub {
			return $node->safe_psql('postgres', "SELECT xact_commit FROM pg_stat_database WHERE datname = '$database'");
		};
		my $reaches = sub {
			my ($many) = @_;
			foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
			{
				$verifies->pump_nb;
				return 1 if $transactions->() >= $many;
				return 0 unless $verifies->pumpable;
				usleep(100_000);
			}
			return 0;
		};
		ok($reaches->(500), "$with: sessions verify");
		my $session = $node->background_psql($database, extra_params => [ '-U', 'backend' ]);
		my $code = "SELECT code FROM rk_apikeys.verify_key('$token->{revoked}')";
		is($session->query_safe($code), 'revoked', "$with: a session calls verify_key");
		$node->safe_psql($database, 'ALTER EXTENSION rk_apikeys UPDATE');
		is($session->query_safe($code), 'revoked', "$with: and calls the new one after the update");
		$session->quit;
		my $now = $transactions->();
		ok($reaches->($now + 500), "$with: they go on after the update");
		# it has ended before only for a wrong verdict or an error
		$verifies->signal('TERM');
		$verifies->finish;
		unlike($err, qr/ERROR|aborted|FATAL/, "$with: no error, no wrong verdict");
		same_catalog($fresh, catalog($node, $database), "$with: the same catalog");
	}
}

# A table to which a DBA added and dropped columns before the update
$node->safe_psql('postgres', 'CREATE DATABASE broader TEMPLATE template0');
$node->safe_psql('broader', q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE});
$node->safe_psql('broader', 'ALTER TABLE rk_apikeys.api_keys ADD gone text, ADD centre text');
$node->safe_psql('broader', 'ALTER TABLE rk_apikeys.api_keys DROP gone');
my ($parent_id, $parent) = create_key($node, 'parent', q{scopes => '{apikeys:manage}'}, 'acme', 'broader');
$node->safe_psql('broader', "UPDATE rk_apikeys.api_keys SET centre = 'x'");
# Columns of a DBA with the names of later ones
$node->safe_psql('broader', 'ALTER TABLE rk_apikeys.api_keys ADD family bigint DEFAULT 7, ADD owner int DEFAULT 7, ADD parent bool DEFAULT true, ADD start date DEFAULT now()');
my (undef, $like) = create_key($node, 'like a later one', '', 'acme', 'broader');
is($node->safe_psql('broader', "SELECT (rk_apikeys.verify_key('$like')).code"), 'valid', 'a column of a DBA with the name of a later column');
is(sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET description = 'x' WHERE name = 'like a later one' RETURNING name}, 'broader'), 'like a later one', 'a change of such a row');
$node->safe_psql('broader', q{DELETE FROM rk_apikeys.keys WHERE name = 'like a later one';
	ALTER TABLE rk_apikeys.api_keys DROP family, DROP owner, DROP parent, DROP start});
my ($chain_id) = create_key($node, 'chain', '', 'acme', 'broader');
my @chain = ($chain_id);
push @chain, sql_as($node, 'acme', "SELECT key_id FROM rk_apikeys.rotate_key('$chain[-1]')", 'broader') foreach 1 .. 3;
# A key whose first keys are gone, and one that was never rotated
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$chain[0]'", 'broader');
$node->safe_psql('broader', 'ALTER EXTENSION rk_apikeys UPDATE; GRANT rk_apikeys_verifier TO acme');
is($node->safe_psql('broader', "SELECT count(*), count(*) FILTER (WHERE family = '$chain_id'), count(*) FILTER (WHERE family = key_id) FROM rk_apikeys.api_keys"), '4|3|1',
	'the update fills the family, of a whole chain');
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id <> '$parent_id'", 'broader');
sql_as($node, 'acme', "BEGIN; SELECT rk_apikeys.authenticate('$parent'); INSERT INTO rk_apikeys.keys (name) VALUES ('child'); COMMIT", 'broader');
sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET description = 'y'}, 'broader');
is($node->safe_psql('broader', 'SELECT name, description, parent, start, centre FROM rk_apikeys.api_keys ORDER BY created_at'),
	"parent|y|||x\nchild|y|$parent_id||", 'a later column is found behind the columns of others');
$node->safe_psql('postgres', 'REVOKE rk_apikeys_verifier FROM acme');

# The SQL of a release to come with the library of today: refused, or it works
my ($script) = glob `pg_config --sharedir | tr -d '\n'` . "/extension/rk_apikeys--$version.sql";
my $symbol = q{CREATE FUNCTION rk_apikeys.future() RETURNS int LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_future';};
install_version('rk_apikeys--99.0.sql', slurp_file($script) . "\n$symbol\n");
install_version("rk_apikeys--$version--99.0.sql", "$symbol\n");
install_version("rk_apikeys--$version--99.1.sql", q{
	ALTER TABLE rk_apikeys.api_keys ADD COLUMN future text DEFAULT 'x';
	ALTER TABLE rk_apikeys.key_usage ADD COLUMN future bigint DEFAULT 1;});
install_version("rk_apikeys--99.1--99.2.sql", q{
	ALTER TYPE rk_apikeys.verdict ADD ATTRIBUTE future text;
	DROP VIEW rk_apikeys.stats;
	DROP FUNCTION rk_apikeys._server_stats();
	CREATE FUNCTION rk_apikeys._server_stats(OUT preloaded boolean, OUT future bigint) LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_stats_0_3';
	DROP FUNCTION rk_apikeys.list_keys, rk_apikeys._live_usage();
	CREATE FUNCTION rk_apikeys._live_usage(OUT key_id text, OUT last_used_at timestamptz, OUT use_count bigint, OUT future text)
		RETURNS SETOF record LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_live_usage';
	DROP FUNCTION rk_apikeys.find_tokens(text);
	CREATE FUNCTION rk_apikeys.find_tokens(document text, OUT masked text, OUT key_id text, OUT at int, OUT future text)
		RETURNS SETOF record LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_find_tokens';});
$node->safe_psql('postgres', 'CREATE DATABASE newer');
my $refused = sub {
	my ($sql, $database) = @_;
	my $err;
	isnt($node->psql($database, $sql, stderr => \$err), 0, "refused: $sql");
	return $err;
};
like($refused->(q{CREATE EXTENSION rk_apikeys VERSION '99.0' CASCADE}, 'newer'), qr/could not find function "rk_apikeys_future"/,
	'an install of a release whose symbol the library lacks');
is($node->safe_psql('newer', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'rk_apikeys'}), '0', 'leaves nothing');
like($refused->(q{ALTER EXTENSION rk_apikeys UPDATE TO '99.0'}, 'postgres'), qr/could not find function "rk_apikeys_future"/, 'an update to it');
same_catalog($fresh, catalog($node, 'postgres'), 'changes nothing');
is_deeply(verdicts($node, $token), expected_verdicts(), 'and all goes on');
$node->safe_psql('postgres', q{ALTER EXTENSION rk_apikeys UPDATE TO '99.1'});
is_deeply(verdicts($node, $token), expected_verdicts(), 'columns of a later release do no harm');
is(sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET enabled = NOT enabled WHERE name = 'active' RETURNING status}), 'disabled', 'to a change neither');
$node->safe_psql('postgres', q{ALTER EXTENSION rk_apikeys UPDATE TO '99.2'});
foreach my $call ("verify_key('$token->{named}')", '_server_stats()', '_live_usage()', "find_tokens('$token->{named}')")
{
	like($refused->("SELECT * FROM rk_apikeys.$call", 'postgres'), qr/another row than expected|does not return a verdict/, 'a row of another shape');
}
is($node->safe_psql('postgres', "SELECT rk_apikeys.verify('$token->{named}')"), 't', 'what is not concerned works');

SKIP:
{
	skip 'a library tells its version from PostgreSQL 18 on', 1 if $node->pg_version < 18;
	is($node->safe_psql('postgres', "LOAD 'rk_apikeys'; SELECT version FROM pg_get_loaded_modules() WHERE module_name = 'rk_apikeys'"),
		$version, 'the library tells its version');
}
is_deeply([ logged($node, qr/PANIC|terminated by signal|TRAP/) ], [], 'the server never crashed');

done_testing();
