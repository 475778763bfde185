# test/t/068_tells.pl: what PostgreSQL itself tells a role about the keys of others, and what not. The known limits of SECURITY.md stand here
# as tests too, so that a limit that goes is noticed.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Compress::Zlib 'crc32';
use Test::More;

my $node = rk_node('tells', PRELOAD, 'wal_level = logical', 'autovacuum = off');
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
my ($own) = create_key($node, 'own');
my $acme = "INSERT INTO rk_apikeys.keys (name) SELECT 'acme ' || n FROM generate_series(1, 20) n";
my $globex = q{INSERT INTO rk_apikeys.keys (name, description, scopes, metadata, allowed_cidrs)
	SELECT 'payroll', 'for the merger', '{merger:read}', '{"merger": true}', '{192.0.2.0/24}' FROM generate_series(1, 400)};
sql_as($node, 'acme', $acme);
sql_as($node, 'globex', $globex);
my ($victim, $token) = create_key($node, 'victim', undef, 'globex');
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, last_used_addr)
	SELECT key_id, tenant, now(), '192.0.2.1' FROM rk_apikeys.api_keys; VACUUM ANALYZE});
my $others = 401;

# A plan as a role sees it, without the values that were asked for
sub planned
{
	my ($role, $table, $condition, $options, $settings) = @_;
	my $plan = sql_as($node, $role, join '; ', map({ "SET $_" } @{ $settings // [] }),
		'EXPLAIN (' . join(', ', 'VERBOSE off', @{ $options // [] }) . ") SELECT FROM rk_apikeys.$table WHERE $condition");
	return $plan =~ s/'[^']*'/VALUE/gr;
}

sub analyzed
{
	my ($table, $condition, @settings) = @_;
	return planned('acme', $table, $condition, [ 'ANALYZE', 'COSTS off', 'TIMING off', 'SUMMARY off' ], \@settings);
}

# Promise 8: the estimates of a plan are the same for a value that only another tenant has, and for a value that nobody has.
foreach ([ 'api_keys', 'name', 'payroll' ], [ 'api_keys', 'tenant', 'globex' ], [ 'api_keys', 'description', 'for the merger' ],
	[ 'api_keys', 'scopes', '{merger:read}' ], [ 'api_keys', 'metadata', '{"merger": true}' ], [ 'api_keys', 'allowed_cidrs', '{192.0.2.0/24}' ],
	[ 'api_keys', 'created_by', 'globex' ], [ 'api_keys', 'updated_by', 'globex' ], [ 'api_keys', 'hint', substr($token, -4) ],
	[ 'api_keys', 'prefix', 'rk' ], [ 'api_keys', 'key_id', $victim ],
	[ 'key_usage', 'tenant', 'globex' ], [ 'key_usage', 'last_used_addr', '192.0.2.1' ], [ 'key_usage', 'key_id', $victim ],
	[ 'key_events', 'tenant', 'globex' ], [ 'key_events', 'actor', 'globex' ], [ 'key_events', 'role', 'globex' ],
	[ 'key_events', 'key_id', $victim ], [ 'key_events', 'application_name', '068_tells.pl' ])
{
	my ($table, $column, $value) = @$_;
	my $unused = { scopes => '{x:y}', metadata => '{"x": 1}', allowed_cidrs => '{198.51.100.0/24}', last_used_addr => '198.51.100.1' }->{$column} // 'unused';
	is(planned('acme', $table, "$column = '$value'"), planned('acme', $table, "$column = '$unused'"), "estimates of $table.$column");
}
my %range = map { $_ => planned('acme', 'api_keys', "$_ < '" . ($_ eq 'key_id' ? substr($victim, 0, 1) : 'pb') . "'") } qw(key_id name tenant);
is($range{$_}, planned('acme', 'api_keys', "$_ < '!'"), "estimates of a range of api_keys.$_") foreach sort keys %range;
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys' AND attname IN ('name', 'tenant', 'key_id', 'digest')}),
	'0', 'there are no statistics of names, tenants, key ids and digests');
cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys' AND attname IN ('environment', 'created_at')}),
	'>', 1, 'there are statistics of environments and times');
is($node->safe_psql('postgres', q{SELECT string_agg(format('%s.%s', relname, attname), ' ' ORDER BY relname, attname)
		FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
		WHERE relnamespace = 'rk_apikeys'::regnamespace AND relkind = 'r' AND relname <> 'usage_senders' AND attnum > 0 AND attstattarget IS DISTINCT FROM 0
			AND NOT (atttypid = ANY ('{timestamptz,date,bigint,integer,smallint,boolean,interval}'::regtype[]))}),
	'api_keys.digest_kind api_keys.environment key_events.event key_usage_daily.environment', 'no other column that tenants write has statistics');
is(sql_as($node, $_, q{SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys'}), '0', "pg_stats shows $_ nothing") foreach qw(acme nobody backend);
unlike(sql_as($node, 'acme', q{SELECT string_agg(c::text, ' ') FROM pg_class c WHERE relnamespace = 'rk_apikeys'::regnamespace}), qr/globex|payroll/,
	'pg_class shows no names');

# The lists of a large tenant among many small ones are not planned as a nested loop over all its keys.
$node->safe_psql('postgres', 'CREATE DATABASE many');
$node->safe_psql('many', q{CREATE EXTENSION rk_apikeys CASCADE; SET ROLE boss;
	INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'key ' || n, CASE WHEN n % 10 = 0 THEN 'acme' ELSE 't' || n END FROM generate_series(1, 20000) n;
	RESET ROLE; INSERT INTO rk_apikeys.key_usage (key_id, tenant) SELECT key_id, tenant FROM rk_apikeys.api_keys; VACUUM ANALYZE});
my $list = sql_as($node, 'acme', 'EXPLAIN (ANALYZE, TIMING off) SELECT k.key_id, u.last_used_at FROM rk_apikeys.api_keys k
	LEFT JOIN rk_apikeys.key_usage u ON u.key_id = k.key_id ORDER BY 2, 1 LIMIT 25', 'many');
unlike($list, qr/Rows Removed by Join Filter/, 'the usage of each key is looked up, not searched') or diag($list);

# What no answer tells: the key id of another tenant is unknown, as an invented one is.
sub refusal
{
	my ($role, $sql) = @_;
	$node->psql('postgres', $sql, stderr => \my $error, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return $error =~ s/$victim|000000000000/KEY/gr;
}
foreach my $call ('revoke_key', 'rotate_key')
{
	is(refusal('acme', "SELECT rk_apikeys.$call('$victim')"), refusal('acme', "SELECT rk_apikeys.$call('000000000000')"), "$call: the same error");
}

# Known limit: a role that may write SQL sees how many rows others have, in plans and in statistics that PostgreSQL shows to all.
like(analyzed('api_keys', q{name = 'x'}, 'enable_indexscan = off', 'enable_bitmapscan = off'), qr/Rows Removed by Filter: @{[ $others + 21 ]}\b/,
	'limit: the number of all rows, by EXPLAIN ANALYZE');
my @only = ('enable_seqscan = off', 'enable_indexscan = off', 'enable_indexonlyscan = off');
like(analyzed('api_keys', "key_id = '$victim'", @only), qr/Rows Removed by Filter: 1\b/, 'limit: a key id that exists, by EXPLAIN ANALYZE');
unlike(analyzed('api_keys', q{key_id = '000000000000'}, @only), qr/Rows Removed/, 'and a key id that does not');
# Repeated conditions make a range seem small, so that the planner takes the primary key, which has the keys of all tenants.
my $range = sub {
	my ($from, $to) = @_;
	return join ' AND ', "key_id >= '$from'", "key_id < '$to'", map { "(key_id, key_id) > ('$from', '!$_') AND (key_id, key_id) < ('$to', '~$_')" } 0 .. 15;
};
like(analyzed('api_keys', $range->($victim, "${victim}0"), @only), qr/Rows Removed by Filter: 1\b/, 'limit: ranges find key ids, by EXPLAIN ANALYZE');
my $moment = $node->safe_psql('postgres', "SELECT occurred_at FROM rk_apikeys.key_events WHERE key_id = '$victim'");
like(analyzed('key_events', "occurred_at = '$moment'", @only), qr/Rows Removed by Filter: 1\b/, 'limit: the time of an event of others, by EXPLAIN ANALYZE');
unlike(analyzed('key_events', "occurred_at = timestamptz '$moment' + interval '1 us'", @only), qr/Rows Removed/, 'and a time without one');
unlike(analyzed('api_keys', $range->('000000000000', '0000000000000'), @only), qr/Rows Removed/, 'and ranges without one');
is(sql_as($node, $_, q{SELECT reltuples FROM pg_class WHERE oid = 'rk_apikeys.api_keys'::regclass}), $others + 21, "limit: reltuples, for $_")
  foreach qw(acme nobody);
ok($node->poll_query_until('postgres', "SELECT n_tup_ins = $others + 21 FROM pg_stat_user_tables WHERE relid = 'rk_apikeys.api_keys'::regclass"),
	'PostgreSQL counts inserted rows');
is(sql_as($node, 'nobody', q{SELECT n_tup_ins FROM pg_stat_user_tables WHERE relid = 'rk_apikeys.api_keys'::regclass}), $others + 21,
	'limit: inserted rows, for any role');
cmp_ok(sql_as($node, 'nobody', q{SELECT pg_relation_size('rk_apikeys.api_keys')}), '>', 0, 'limit: the size of a table, for any role');

# Known limit: the numbers of events, and the places of their rows, have gaps where others changed keys.
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET description = 'a' WHERE key_id = '$own'");
sql_as($node, 'globex', q{UPDATE rk_apikeys.keys SET description = 'b' WHERE name = 'payroll'});
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET description = 'c' WHERE key_id = '$own'");
is(sql_as($node, 'acme', q{SELECT max(event_id) - min(event_id) - 1 FROM rk_apikeys.key_events WHERE event = 'updated'}), '400',
	'limit: the number of events of others, by the gap of event_id');
like(refusal('acme', q{SELECT last_value FROM rk_apikeys.key_events_event_id_seq}), qr/42501/, 'the sequence itself is not readable');
isnt(sql_as($node, 'acme', q{SELECT ctid FROM rk_apikeys.key_events LIMIT 1}), '', 'limit: the places of events');
like(refusal('acme', 'SELECT ctid FROM rk_apikeys.api_keys'), qr/42501/, 'the places of keys are not readable');

# Promise 9: a wrong secret gets the same answer as an unknown key id. Known limit: counters show a role what its own verify has read.
sub forged
{
	my ($id) = @_;
	my $text = $token =~ s/_[^_]{12}_[^_]*$/"_${id}_" . 'x' x 43/er;
	my ($crc, $digits) = (crc32($text), '');
	foreach (1 .. 6)
	{
		$digits = ('0' .. '9', 'A' .. 'Z', 'a' .. 'z')[ $crc % 62 ] . $digits;
		$crc = int($crc / 62);
	}
	return $text . $digits;
}
my %read;
foreach my $id ($victim, '000000000000')
{
	my $forged = forged($id);
	my ($verdict, $read) = split /\n/, sql_as($node, 'backend', qq{BEGIN; SELECT rk_apikeys.verify_key('$forged');
		SELECT pg_stat_get_xact_tuples_fetched('rk_apikeys.api_keys'::regclass) + pg_stat_get_xact_tuples_fetched('rk_apikeys.api_keys_pkey'::regclass)
			+ pg_stat_get_xact_tuples_returned('rk_apikeys.api_keys_pkey'::regclass)});
	is($verdict, '(f,unknown,,,,,,,,,,,,,,)', "$id: the same answer");
	$read{$id} = $read;
}
cmp_ok($read{$victim}, '>', $read{'000000000000'}, 'limit: a key id that exists, by pg_stat_get_xact_tuples_fetched');

# Known limit: REPLICATION and logical decoding show rows with their digests, and never a token.
$node->safe_psql('postgres', 'CREATE ROLE replicator LOGIN REPLICATION; CREATE ROLE maker LOGIN CREATEROLE');
like(refusal('acme', q{SELECT pg_create_logical_replication_slot('s', 'test_decoding')}), qr/42501/, 'a manager decodes nothing');
sql_as($node, 'replicator', q{SELECT pg_create_logical_replication_slot('s', 'test_decoding')});
my ($late_id, $late) = create_key($node, 'late', undef, 'globex');
my $decoded = sql_as($node, 'replicator', q{SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL)});
like($decoded, qr/api_keys: INSERT: key_id\[text\]:'$late_id' .* digest\[bytea\]:'\\x[0-9a-f]{64}'/, 'limit: a digest, by logical decoding');
unlike($decoded, qr/\Q@{[ substr $late, -49, 43 ]}\E/, 'no secret');
like(refusal('replicator', 'SELECT count(*) FROM rk_apikeys.api_keys'), qr/42501/, 'by SQL the role reads no table');

# Known limit: before PostgreSQL 16 a role with CREATEROLE may make itself an administrator.
my $refused = refusal('maker', 'GRANT rk_apikeys_admin TO maker');
if ($node->pg_version < 16)
{
	is(sql_as($node, 'maker', 'SELECT count(*) FROM rk_apikeys.keys') > 400, 1, 'limit: CREATEROLE gives itself the keys of all tenants');
}
else
{
	like($refused, qr/42501/, 'CREATEROLE alone gives no group role');
	like(refusal('maker', 'SELECT count(*) FROM rk_apikeys.keys'), qr/42501/, 'and no keys');
}

# An update removes the statistics that an earlier release let ANALYZE make.
install_release('0.2');
$node->safe_psql('postgres', 'CREATE DATABASE old');
$node->safe_psql('old', q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE; SET ROLE boss;
	INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'payroll', 'globex' FROM generate_series(1, 10); RESET ROLE; ANALYZE});
my $kept = q{SELECT string_agg(attname, ' ' ORDER BY attname DESC) FROM pg_stats WHERE schemaname = 'rk_apikeys' AND most_common_vals::text LIKE ANY ('{%payroll%,%globex%}')};
is($node->safe_psql('old', $kept . q{ AND tablename = 'api_keys' AND attname IN ('name', 'tenant')}), 'tenant name', '0.2 keeps statistics of names');
$node->safe_psql('old', 'ALTER EXTENSION rk_apikeys UPDATE');
is($node->safe_psql('old', $kept), '', 'they are gone after the update');
$node->safe_psql('old', 'ANALYZE');
is($node->safe_psql('old', $kept), '', 'ANALYZE makes no others');

done_testing();
