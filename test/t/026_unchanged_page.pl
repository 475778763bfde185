# test/t/026_unchanged_page.pl: a row is read at its place, without a snapshot, while its page is unchanged, and never after the row was
# changed, by whomsoever and in whatever way.
#
# A new session has kept nothing, but it has to read one row with a snapshot, any, to know the table's file: so each verifies a guide first.
# Then a verify recalls the row at its place, or reads it with a snapshot. The LSN of its page is remembered when the row is read so at its
# known place: by the second verify that reads it.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('unchanged');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'max_prepared_transactions = 2',
	'autovacuum = off', 'shared_buffers = 16MB');
$node->start;
rk_extend($node);
$node->safe_psql('postgres', 'CREATE DATABASE other');

my (undef, $guide) = create_key($node, 'guide');

# What a new session says of a token.
sub fresh
{
	my ($on, $token) = @_;
	return sql_as($on, 'backend', "SELECT rk_apikeys.verify('$guide') \\g /dev/null\nSELECT rk_apikeys.verify('$token')");
}

# Whether a new session's verify takes no snapshot, and what it says.
sub recalled
{
	my ($on, $token) = @_;
	my $misses = stat_of($on, 'cache_misses');
	my $said = fresh($on, $token);
	return (stat_of($on, 'cache_misses') == $misses + 1 ? 'recalled' : 'read') . " $said";
}

# After this a new session is told by memory.
sub remember
{
	my ($on, $token, $name) = @_;
	fresh($on, $token) foreach 1 .. 2;
	is(recalled($on, $token), 'recalled t', "$name: remembered");
}

# What ends a key, or all of them; what a new session says at once, before and after the row is read again.
foreach my $change (
	[ 'disable', q{UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'} ],
	[ 'revoke', q{SELECT rk_apikeys.revoke_key('ID')} ],
	[ 'rotate', q{SELECT FROM rk_apikeys.rotate_key('ID', '0')} ],
	[ 'delete', q{DELETE FROM rk_apikeys.api_keys WHERE key_id = 'ID'} ],
	[ 'an end that comes', q{UPDATE rk_apikeys.api_keys SET expires_at = clock_timestamp() + LIFE WHERE key_id = 'ID';
		SELECT rk_apikeys.verify('TOKEN'), rk_apikeys.verify('TOKEN'); SELECT pg_sleep_until(expires_at) FROM rk_apikeys.api_keys WHERE key_id = 'ID'} ],
	[ 'a list of addresses', q{UPDATE rk_apikeys.api_keys SET allowed_cidrs = '{10.0.0.0/8}' WHERE key_id = 'ID'} ],
	[ 'a new digest', q{UPDATE rk_apikeys.api_keys SET digest = sha256('x') WHERE key_id = 'ID'} ],
	[ 'disable, prepared', q{BEGIN; UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID';
		PREPARE TRANSACTION 'one'; SELECT rk_apikeys.verify('TOKEN'); COMMIT PREPARED 'one'} ],
	[ 'disable, as replication applies it', q{SET session_replication_role = replica;
		UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'} ],
	[ 'disable, and rewrite the table', q{UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'; VACUUM FULL rk_apikeys.api_keys} ],
	[ 'rewrite the table, and disable', q{VACUUM FULL rk_apikeys.api_keys; UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'} ],
	[ 'delete, and vacuum', q{DELETE FROM rk_apikeys.api_keys WHERE key_id = 'ID'; VACUUM (FREEZE) rk_apikeys.api_keys} ],
	[ 'truncate and restore', q{BEGIN; CREATE TEMP TABLE t AS SELECT * FROM rk_apikeys.api_keys; TRUNCATE rk_apikeys.api_keys;
		UPDATE t SET enabled = false WHERE key_id = 'ID'; INSERT INTO rk_apikeys.api_keys SELECT * FROM t; COMMIT} ],
	[ 'truncate', 'TRUNCATE rk_apikeys.api_keys' ])
{
	my ($name, $sql) = @$change;
	my ($id, $token) = create_key($node, $name);
	remember($node, $token, $name);
	$sql =~ s/ID/$id/g;
	$sql =~ s/TOKEN/$token/g;
	$sql =~ /LIFE/ ? sql_in_time($node, 'postgres', $sql, qr/^t\|t$/m) : $node->safe_psql('postgres', $sql);
	is(join(' ', map { fresh($node, $token) } 1 .. 4), 'f f f f', "$name: seen by new sessions");
}

(undef, $guide) = create_key($node, 'another guide');

# All of the row is there: what a database, an address list or a limit asks of it, and what verify_key() answers.
{
	my (undef, $token) = create_key($node, 'of prod');
	remember($node, $token, 'of prod');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET rk_apikeys.required_environment = stage');
	is(recalled($node, $token), 'recalled f', 'another environment is required');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET rk_apikeys.required_environment = prod');
	is(recalled($node, $token), 'recalled t', 'its own environment is required: good');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET rk_apikeys.required_environment');
}
foreach my $case (
	[ q{rate_limit => 100, rate_window => '1 hour'}, 't' ],
	[ q{allowed_cidrs => '{10.0.0.0/8,fe80::/10}'}, 'f' ],
	[ q{scopes => '{a:read,b:write}', metadata => '{"a": [1, {"b": "c"}]}', expires_at => now() + interval '1 hour'}, 't' ],
	[ q{metadata => jsonb_build_object('a', repeat('0123456789', 500))}, 't' ],
	[ q{metadata => jsonb_build_object('a', (SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 200) n))}, 't' ])
{
	my ($settings, $said) = @$case;
	my ($id, $token) = create_key($node, 'full', $settings);
	my $how = $settings =~ /jsonb_agg/ ? 'read' : 'recalled';    # in the TOAST table
	my $columns = "code, key_id, family, tenant, owner, name, environment, scopes, metadata, expires_at, limit_name, limit_units";
	fresh($node, $token) foreach 1 .. 2;
	is(recalled($node, $token), "$how $said", "$settings: $how");
	my $full = sql_as($node, 'backend', "SET rk_apikeys.cache_size = 0; SELECT $columns FROM rk_apikeys.verify_key('$token', NULL, '10.1.2.3')");
	like($full, qr/^valid\|$id\|$id\|acme\|/, "$settings: verify_key with a snapshot");
	my $misses = stat_of($node, 'cache_misses');
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$guide') \\g /dev/null\nSELECT $columns FROM rk_apikeys.verify_key('$token', NULL, '10.1.2.3')"),
		$full, "$settings: verify_key says the same without");
	is(stat_of($node, 'cache_misses') - $misses, $how eq 'read' ? 2 : 1, "$settings: $how");
}

# A column that somebody adds or drops, and the rows before and after it
{
	my ($id, $token) = create_key($node, 'shape');
	my $session = session($node, 'backend');
	my $verdict = "SELECT code, name, family, metadata, owner FROM rk_apikeys.verify_key('$token')";
	remember($node, $token, 'shape');
	$session->query_safe("SELECT rk_apikeys.verify('$guide')");
	foreach my $change ('ALTER TABLE rk_apikeys.api_keys ADD extra text', q{ALTER TABLE rk_apikeys.api_keys ADD more text NOT NULL DEFAULT 'x'},
		q{UPDATE rk_apikeys.api_keys SET more = 'y', metadata = '{"b": 2}' WHERE key_id = 'ID'}, 'ALTER TABLE rk_apikeys.api_keys DROP extra',
		q{UPDATE rk_apikeys.api_keys SET name = 'other', metadata = '{"c": 3}' WHERE key_id = 'ID'}, 'ALTER TABLE rk_apikeys.api_keys DROP more',
		q{ALTER TABLE rk_apikeys.api_keys RENAME owner TO was; ALTER TABLE rk_apikeys.api_keys ADD owner text DEFAULT 'new'},
		'ALTER TABLE rk_apikeys.api_keys DROP owner; ALTER TABLE rk_apikeys.api_keys RENAME was TO owner')
	{
		$node->safe_psql('postgres', $change =~ s/ID/$id/r);
		my $said = sql_as($node, 'backend', "SET rk_apikeys.cache_size = 0; $verdict");
		like($said, qr/^valid\|/, "$change: read with a snapshot");
		# It reads the table for another key; the page of this one is as it was, unless it was changed
		$session->query_safe("SELECT rk_apikeys.verify('$guide')");
		is($session->query_safe($verdict), $said, "$change: the same in a session that knew the shape before");
		remember($node, $token, $change);
		is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$guide') \\g /dev/null\n$verdict"), $said, "$change: recalled, the same");
	}
	$session->quit;
}

# What leaves a key as good as it was. What moves its page costs a look at the row, no more.
my ($id, $token) = create_key($node, 'steady');
my ($neighbour) = create_key($node, 'neighbour');
remember($node, $token, 'steady');
is(recalled($node, $token), 'recalled t', 'and goes on being told by memory');
my $locker = session($node, 'postgres');
foreach my $change (
	[ 'an index built anew', 'REINDEX TABLE rk_apikeys.api_keys' ],
	[ 'a row of the same page changed', "UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$neighbour'" ],
	[ 'a change rolled back', "BEGIN; UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'; ROLLBACK" ],
	[ 'another name', "UPDATE rk_apikeys.api_keys SET name = 'other' WHERE key_id = '$id'" ],
	[ 'a vacuum', 'VACUUM (FREEZE) rk_apikeys.api_keys' ],
	[ 'the table written anew', 'VACUUM FULL rk_apikeys.api_keys' ],
	[ 'a file of another place', 'CLUSTER rk_apikeys.api_keys USING api_keys_pkey' ])
{
	$locker->query_safe($change->[1]);
	is(join(' ', map { fresh($node, $token) } 1 .. 3), 't t t', "$change->[0]: good");
	like(recalled($node, $token), qr/ t$/, "$change->[0]: and good");
}
remember($node, $token, 'after all that');

# A row that has moved, and another key's row in its place: created_at is indexed, so the change moves it.
my $place = $locker->query_safe("SELECT ctid FROM rk_apikeys.api_keys WHERE key_id = '$id'");
$locker->query_safe("UPDATE rk_apikeys.api_keys SET created_at = created_at - interval '1 hour' WHERE key_id = '$id'");
$locker->query_safe('VACUUM (INDEX_CLEANUP ON) rk_apikeys.api_keys');
my $taken = '';
for (my $i = 0; $i < 100 && $taken ne $place; $i++)
{
	my ($new) = create_key($node, 'in its place');
	$taken = $locker->query_safe("SELECT ctid FROM rk_apikeys.api_keys WHERE key_id = '$new'");
}
is($taken, $place, 'another key has taken the place of a row');
is(join(' ', map { fresh($node, $token) } 1 .. 3), 't t t', 'whose key is found where it is now');
remember($node, $token, 'where it is now');

# While a change is not committed others are told of the row before, and its place is not believed.
$locker->query_safe("BEGIN; UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'");
is(join(' ', map { recalled($node, $token) } 1 .. 3), 'read t read t read t', 'a change under way: the row is read');
is($locker->query_safe("SELECT rk_apikeys.verify('$token')"), 'f', 'and its own transaction sees it');
$locker->query_safe('COMMIT');
is(fresh($node, $token), 'f', 'committed: seen');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$id'");
remember($node, $token, 'enabled again');

# What a transaction has written it remembers for nobody: it may be rolled back, which leaves the page as it is.
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'");
$locker->query_safe("BEGIN; UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$id'");
is($locker->query_safe("SELECT rk_apikeys.verify('$token') FROM generate_series(1, 3)"), "t\nt\nt", 'a change of its own is good to its transaction');
is(fresh($node, $token), 'f', 'and not to others');
$locker->query_safe("SELECT rk_apikeys.verify('$token') FROM generate_series(1, 3); ROLLBACK");
is(fresh($node, $token), 'f', 'nor when it is rolled back');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$id'");
remember($node, $token, 'enabled once more');

# A row that is locked is as good as any
$locker->query_safe("BEGIN; SELECT FROM rk_apikeys.api_keys WHERE key_id = '$id' FOR KEY SHARE");
fresh($node, $token) foreach 1 .. 2;
is(recalled($node, $token), 'recalled t', 'a row that is locked');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'; COMMIT");
is(fresh($node, $token), 'f', 'and is changed by whoever locks it');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$id'");
remember($node, $token, 'unlocked');

# A transaction that has written something reads rows: it may have emptied the table.
is($locker->query_safe("BEGIN; SELECT rk_apikeys.verify('$token'); TRUNCATE rk_apikeys.api_keys; SELECT rk_apikeys.verify('$token')"),
	"t\nf", 'its own TRUNCATE is seen at once');
$locker->query_safe('ROLLBACK');
is(fresh($node, $token), 't', 'and is gone when it is rolled back');
is($locker->query_safe("BEGIN; SAVEPOINT s; DELETE FROM rk_apikeys.api_keys WHERE key_id = '$id'; SELECT rk_apikeys.verify('$token');
	ROLLBACK TO s; SELECT rk_apikeys.verify('$token'); COMMIT"), "f\nt", 'its own DELETE, to a savepoint');

# With the lock of a schema change held, a verify is told all the same
remember($node, $token, 'before a lock');
my $backend = session($node, 'backend');
$backend->query_safe("SET statement_timeout = '5s'; SELECT rk_apikeys.verify('$guide')");
$locker->query_safe('BEGIN; LOCK rk_apikeys.api_keys IN ACCESS EXCLUSIVE MODE');
is($backend->query_safe("SELECT rk_apikeys.verify('$token')"), 't', 'ACCESS EXCLUSIVE delays no such verify');
$locker->query_safe('ROLLBACK');
$backend->quit;

# cache_size 0 and track_usage off: the row is read
foreach my $off ('cache_size = 0', 'track_usage = off')
{
	my $misses = stat_of($node, 'cache_misses');
	$node->safe_psql('postgres', "SET rk_apikeys.$off; SELECT rk_apikeys.verify('$token'), rk_apikeys.verify('$token')");
	cmp_ok(stat_of($node, 'cache_misses') - $misses, '>', 0, "$off: the row is read");
}

# Another database's key of the same id is another
$node->safe_psql('other', 'SET client_min_messages = error; CREATE EXTENSION rk_apikeys CASCADE');
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token')", 'other'), 'f', 'not known to another database');

# A standby has a memory of its own
remember($node, $token, 'before the standby');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('unchanged_standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay');
remember($standby, $token, 'on a standby');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'");
$node->wait_for_catchup($standby, 'replay');
is(join(' ', map { fresh($standby, $token) } 1 .. 3), 'f f f', 'a change that was replayed is seen');
$locker->query_safe("UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$id'");
$node->wait_for_catchup($standby, 'replay');
remember($standby, $token, 'on a standby, enabled');
$standby->promote;
is(recalled($standby, $token), 'recalled t', 'promoted: still told');
$standby->safe_psql('postgres', "DELETE FROM rk_apikeys.api_keys WHERE key_id = '$id'");
is(fresh($standby, $token), 'f', 'promoted: and a change is seen');

# A table that writes no WAL tells nothing of its changes by it
$node->safe_psql('postgres', 'ALTER TABLE rk_apikeys.api_keys SET UNLOGGED');
fresh($node, $token) foreach 1 .. 3;
is(recalled($node, $token), 'read t', 'unlogged: the row is read');
$node->safe_psql('postgres', "UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'");
is(fresh($node, $token), 'f', 'unlogged: a change is seen');
$node->safe_psql('postgres', "UPDATE rk_apikeys.api_keys SET enabled = true; ALTER TABLE rk_apikeys.api_keys SET LOGGED");
remember($node, $token, 'logged again');

# Without the extension there is no key; with a new one there are others
$node->safe_psql('postgres', 'DROP EXTENSION rk_apikeys; SET client_min_messages = error; CREATE EXTENSION rk_apikeys');
is(fresh($node, $token), 'f', 'a new extension does not know the key');

$locker->quit;
done_testing();
