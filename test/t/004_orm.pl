# test/t/004_orm.pl: the view is used as ORMs, drivers and loaders use a table.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('orm');
# An application that manages and verifies its own keys; its tenant is orm.
$node->safe_psql('postgres', 'CREATE ROLE orm LOGIN; GRANT rk_apikeys_manager, rk_apikeys_verifier TO orm');

sub orm { return sql_as($node, 'orm', shift); }

# Several rows, every column back
my @rows = split /\n/, orm(q{INSERT INTO rk_apikeys.keys (name, description, scopes)
	VALUES ('one', '', '{a:read}'), ('two', DEFAULT, DEFAULT), ('three', 'third', '{}') RETURNING *});
is(scalar @rows, 3, 'INSERT of three rows RETURNING * gives three');
my @tokens = map { grep { /^rk_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$/ } split /\|/ } @rows;
my %distinct = map { $_ => 1 } grep { /^rk_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$/ } @tokens;
is(scalar keys %distinct, 3, 'each with a token of its own');
is(orm('SELECT bool_and(rk_apikeys.verify(t)) FROM unnest(ARRAY[' . join(', ', map { "'$_'" } @tokens) . ']) t'),
	't', 'and they verify');

# In bulk
is(orm(q{CREATE TEMP TABLE made (key_id text, secret text);
	WITH k AS (INSERT INTO rk_apikeys.keys (name) SELECT 'bulk ' || i FROM generate_series(1, 10000) i RETURNING key_id, secret)
		INSERT INTO made SELECT * FROM k;
	SELECT count(DISTINCT key_id), count(DISTINCT secret), count(*) FILTER (WHERE rk_apikeys.is_well_formed(secret)),
		count(*) FILTER (WHERE rk_apikeys.verify(secret)) FROM made}),
	'10000|10000|10000|10000', 'INSERT ... SELECT of 10,000: all distinct, all verify');
is(orm(q{SELECT count(*), count(DISTINCT key_id) FROM rk_apikeys.key_events WHERE event = 'created'
	AND key_id IN (SELECT key_id FROM rk_apikeys.keys WHERE name LIKE 'bulk %')}),
	'10000|10000', 'one event each');
is(orm(q{WITH gone AS (DELETE FROM rk_apikeys.keys WHERE name LIKE 'bulk %' RETURNING key_id) SELECT count(*) FROM gone}),
	'10000', 'DELETE of 10,000');
is(orm(q{SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'deleted'}), '10000', 'one event each');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_usage u WHERE NOT EXISTS
	(SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = u.key_id)}), '0', 'no usage is left behind');

# COPY goes to the table, as its owner
$node->safe_psql('postgres', "COPY rk_apikeys.api_keys (name, tenant) FROM STDIN;\ncopied 1\torm\ncopied 2\torm\n\\.\n");
is(orm(q{SELECT count(*), count(DISTINCT key_id), min(status), count(secret) FROM rk_apikeys.keys WHERE name LIKE 'copied %'}),
	'2|2|active|0', 'COPY by the owner makes keys');
is($node->safe_psql('postgres', "BEGIN; COPY rk_apikeys.api_keys (name, tenant) FROM STDIN;\ncopied 3\torm\n\\.\n"
		. q{SELECT rk_apikeys.is_well_formed(secret) FROM rk_apikeys.keys WHERE name = 'copied 3'; ROLLBACK}),
	't', 'and tells their tokens in its transaction');
isnt($node->psql('postgres', "COPY rk_apikeys.api_keys (name, tenant) FROM STDIN;\nmine\torm\n\\.\n",
		extra_params => [ '-U', 'orm' ], stderr => \my $refusal),
	0, 'COPY by a manager is refused');
like($refusal, qr/row-level security/, 'for its policies');

# The statements that ORMs make
like(orm(q{INSERT INTO rk_apikeys.keys (name) VALUES ('upsert') ON CONFLICT DO NOTHING RETURNING secret}),
	qr/^rk_prod_/, 'ON CONFLICT DO NOTHING');
is(orm(q{UPDATE rk_apikeys.keys SET enabled = false, description = 'off' WHERE name = 'two' RETURNING name, status, description, secret}),
	'two|disabled|off|', 'UPDATE ... RETURNING tells the new state and no secret');
is(orm(q{UPDATE rk_apikeys.keys SET description = 'never' WHERE name = 'no such name' RETURNING name}), '', 'UPDATE of nothing');
is(orm(q{DELETE FROM rk_apikeys.keys WHERE name = 'upsert' RETURNING name}), 'upsert', 'DELETE ... RETURNING');
is(orm(q{WITH changed AS (UPDATE rk_apikeys.keys SET metadata = metadata || '{"seen": true}' WHERE name = 'one' RETURNING *)
	SELECT metadata ->> 'seen' FROM changed}), 'true', 'UPDATE in a WITH');

# Cursors
is(orm(q{BEGIN; DECLARE c SCROLL CURSOR FOR SELECT name FROM rk_apikeys.keys WHERE name IN ('one', 'two', 'three') ORDER BY name;
	FETCH 2 FROM c; MOVE BACKWARD ALL FROM c; FETCH 1 FROM c; CLOSE c; COMMIT}),
	"one\nthree\none", 'a scroll cursor');
is(orm(q{BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT name FROM rk_apikeys.keys WHERE name = 'one'; COMMIT; FETCH ALL FROM h; CLOSE h}),
	'one', 'a cursor that outlives its transaction');

# Prepared statements, long enough to get a generic plan
is(orm(q{PREPARE make (text, text[]) AS INSERT INTO rk_apikeys.keys (name, scopes) VALUES ($1, $2) RETURNING name, scopes;}
		. join '', map { "EXECUTE make('prepared $_', '{s:$_}');" } 1 .. 8),
	join("\n", map { "prepared $_|{s:$_}" } 1 .. 8), 'a prepared INSERT');
is(orm(q{PREPARE page (text, int) AS SELECT name FROM rk_apikeys.list_keys(search => $1, sort_by => 'name', page_size => $2);}
		. "EXECUTE page('prepared', 2);" x 8),
	join("\n", ('prepared 1', 'prepared 2') x 8), 'a prepared list');

# The extended protocol with typed parameters, as drivers speak it: pgbench divides by zero unless the verdict is right.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT 1 / rk_apikeys.verify(:token)::int;\n"
		. "SELECT 1 / (code = 'valid')::int FROM rk_apikeys.verify_key(:token, :scope);\n"
		. "INSERT INTO rk_apikeys.keys (name, description) VALUES (:name, :token_free) RETURNING key_id, secret;\n"
		. "UPDATE rk_apikeys.keys SET description = :name WHERE name = :name RETURNING name;\n");
foreach my $mode ('extended', 'prepared')
{
	$node->command_ok(
		[ 'pgbench', '-n', '-M', $mode, '-t', '20', '-U', 'orm', '-D', "token=$tokens[0]", '-D', 'scope=a:read', '-D', "name=bench $mode",
			'-D', 'token_free=from a driver', '-f', "$dir/verify.sql", '-p', $node->port, '-h', $node->host, 'postgres' ],
		"parameters over the $mode protocol");
	is(orm("SELECT count(*) FROM rk_apikeys.keys WHERE name = 'bench $mode'"), '20', 'and each insert made a key');
}

done_testing();
