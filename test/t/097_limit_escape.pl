# test/t/097_limit_escape.pl: no manager, member, backend or key with apikeys:manage gets more than its limits give: not by new keys, rotation,
# owners, rate limits or rolled back calls, and not by the tables.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('escape', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
$node->safe_psql('postgres', q{
	GRANT rk_apikeys_verifier TO acme, boss;
	CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor;
	CREATE ROLE nobody LOGIN;
	CREATE ROLE web LOGIN IN ROLE rk_apikeys_member;
	ALTER ROLE web SET rk_apikeys.tenant = 'acme';
	ALTER ROLE web SET rk_apikeys.end_user = 'ann';});
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, owner, environment, per_key, units, rate_window, period, always) VALUES
	('acme', 'all', NULL, NULL, false, 20, NULL, 'total', true),
	('acme', 'anns', 'ann', NULL, false, 5, NULL, 'month', true),
	('acme', 'each', NULL, NULL, true, 8, '366 days', NULL, true),
	('acme', 'live', NULL, 'live', false, 50, NULL, 'day', true),
	('acme', 'export', NULL, NULL, false, 2, NULL, 'day', false),
	('acme', 'bobs', 'bob', NULL, false, 9, NULL, 'day', true),
	('globex', 'theirs', NULL, NULL, false, 3, NULL, 'total', false)});

# What SQL prints for a role and its errors' codes; it goes on after an error.
sub try_sql
{
	my ($role, $sql) = @_;
	$node->psql('postgres', $sql, stdout => \my $out, stderr => \my $error, on_error_stop => 0, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return ($out, join ' ', $error =~ /ERROR: +(\w{5}):/g);
}
sub refused
{
	my ($role, $sql, $codes, $name) = @_;
	my ($out, $errors) = try_sql($role, $sql);
	return is($errors, $codes, $name // "$role: $sql");
}
# How many of so many calls pass, and what refuses the others.
sub calls
{
	my ($token, $count, $more) = @_;
	return sql_as($node, 'backend', "SELECT string_agg(DISTINCT CASE WHEN NOT valid THEN code || ' ' || coalesce(limit_name, '') END, ','), count(*) FILTER (WHERE valid)
		FROM generate_series(1, $count) i, rk_apikeys.verify_key('$token', cost => sign(i)::int" . ($more // '') . ')');
}
sub afresh
{
	sql_as($node, 'boss', 'SELECT count(rk_apikeys.reset_limit(limit_id)) FROM rk_apikeys.limits');
	return;
}
my $used_up = sub { "quota_exceeded $_[0]|0" };

# Rotation, with and without a grace period, keeps the family's units
my ($id, $token) = create_key($node, 'own', "rate_limit => 5, rate_window => '366 days'");
is(calls($token, 7), 'rate_limited rate_limit|5', 'a key uses up its own rate limit');
foreach my $grace ('1 day', '0')
{
	($id, my $next) = split /\|/, sql_as($node, 'acme', "SELECT * FROM rk_apikeys.rotate_key('$id', '$grace')");
	is(calls($next, 2), 'rate_limited rate_limit|0', "a rotation with grace $grace gives no fresh rate limit");
	$token = $next;
}
# Another limit of its own keeps what was used
foreach my $change ("rate_window = '365 days'", "rate_window = '366 days'", 'enabled = false', 'enabled = true', "name = 'renamed'")
{
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET $change WHERE key_id = '$id'");
	is(calls($token, 2), $change =~ /false/ ? 'disabled |0' : 'rate_limited rate_limit|0', "a change gives nothing back: $change");
}
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = 7 WHERE key_id = '$id'");
is(calls($token, 3), 'rate_limited rate_limit|2', 'a rate limit that is raised from 5 to 7 gives 2');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = NULL, rate_window = NULL WHERE key_id = '$id'");
is(calls($token, 3), 'rate_limited each|1', 'without one the limits of the tenant go on to count: 8 of each key');
is(sql_as($node, 'boss', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'"), '8', 'and the quota of all keys has 8');

# Deleting and making keys
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$id'");
my ($second, $second_token) = create_key($node, 'second');
is(calls($second_token, 20), 'rate_limited each|8', 'a new key has its own units');
my ($third, $third_token) = create_key($node, 'third');
is(calls($third_token, 20), 'quota_exceeded all|4', 'of the quota that all share, 4 are left');
sql_as($node, 'acme', 'DELETE FROM rk_apikeys.keys');
my ($fourth, $fourth_token) = create_key($node, 'fourth');
is(calls($fourth_token, 3), $used_up->('all'), 'with all keys deleted none is left');
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
my ($fifth, $fifth_token) = create_key($node, 'fifth');
is(calls($fifth_token, 3), $used_up->('all'), 'nor after a flush');
$node->restart;
is(calls($fifth_token, 3), $used_up->('all'), 'nor after a restart');

# A plain INSERT with replaces is refused, or in the family
afresh();
is(calls($fifth_token, 20), 'rate_limited each|8', 'another key uses up the limit of each key');
my ($out, $errors) = try_sql('acme', "INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('successor', '$fifth') RETURNING secret");
is($errors ? '' : calls($out, 2) =~ s/\|0$//r, $errors ? '' : 'rate_limited each', "an INSERT with replaces gets nothing: $errors");
($out, $errors) = try_sql('acme', "INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('successor', 'AAAAAAAAAAAA') RETURNING secret");
isnt($errors, '', 'an INSERT with replaces of a key that does not exist is refused');

# Owners: a limit of an owner is gone with the owner, but the limits of the tenant bind everybody
afresh();
my ($anns, $anns_token) = split /\|/, sql_as($node, 'acme', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('anns', 'ann') RETURNING key_id, secret");
is(calls($anns_token, 7), 'quota_exceeded anns|5', 'ann uses up her quota');
refused('web', "UPDATE rk_apikeys.keys SET owner = 'eve' WHERE key_id = '$anns'", '42501', 'a member does not give its key away');
refused('web', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('eves', 'eve')", '42501', 'and makes none of another owner');
my $other = sql_as($node, 'web', q{INSERT INTO rk_apikeys.keys (name, owner) VALUES ('more', 'ann') RETURNING secret});
is(calls($other, 2), $used_up->('anns'), "a member's other keys share the quota");
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'eve' WHERE key_id = '$anns'");
is(calls($anns_token, 9), 'rate_limited each|3', "with another owner the family's units are used");
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'ann' WHERE key_id = '$anns'");
is(calls($anns_token, 2) =~ s/\w+ (each|anns)\|/refused|/r, 'refused|0', 'and back with the first nothing is fresh');
sql_as($node, 'boss', q{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits WHERE name = 'each'});
is(calls($anns_token, 2), $used_up->('anns'), 'nor is the quota');

# A rate limit of its own, as high as it can be, lifts no limit of the tenant
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = 2147483647, rate_window = '1 s' WHERE key_id = '$anns'");
is(calls($anns_token, 2), $used_up->('anns'), 'a high rate limit of its own');

# A principal
afresh();
my ($boss_id, $manage) = split /\|/, sql_as($node, 'acme', q{SELECT key_id, secret FROM rk_apikeys.create_key('manage', environment => 'stage',
	scopes => '{apikeys:manage}', rate_limit => 6, rate_window => '366 days')});
my $principal = "BEGIN; DO \$\$ BEGIN PERFORM rk_apikeys.authenticate('$manage'); END \$\$;";
foreach my $case ([ "UPDATE rk_apikeys.keys SET rate_limit = 7 WHERE key_id = '$boss_id'", '42501' ],
	[ "UPDATE rk_apikeys.keys SET rate_limit = NULL, rate_window = NULL WHERE key_id = '$boss_id'", '42501' ],
	[ "UPDATE rk_apikeys.keys SET rate_window = '1 s' WHERE key_id = '$boss_id'", '42501' ],
	[ "SELECT FROM rk_apikeys.reset_limit(family => '$boss_id')", '42501' ])
{
	refused('acme', "$principal $case->[0]; COMMIT", $case->[1], "a principal: $case->[0]");
}
refused('acme', "$principal UPDATE rk_apikeys.keys SET rate_limit = 5 WHERE key_id = '$boss_id'; COMMIT", '', 'a principal may lower its own limit');
is(calls($manage, 2), 'rate_limited rate_limit|0', 'and what was used stays');

# charge => 'now' is not returned by a rollback, with or without a principal
afresh();
my (undef, $now) = create_key($node, 'now');
try_sql('backend', "BEGIN; SELECT rk_apikeys.verify('$now'); SAVEPOINT a; SELECT rk_apikeys.verify_key('$now', charge => 'now'); ROLLBACK TO a;
	SELECT rk_apikeys.authenticate('$now', charge => 'now'); SELECT rk_apikeys.verify_key('$now', charge => 'commit'); ROLLBACK");
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'}), '3', "what is charged now stays at ROLLBACK");

# Names of limits
afresh();
is(calls($now, 2, ", limits => '{}'"), '|2', 'an empty list of names');
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'}), '2', 'takes what every call takes');
is(calls($now, 1, ", limits => '{theirs}'"), '|1', "another tenant's name takes nothing");
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'theirs'}), '0', 'of that tenant');
is(calls($now, 3, ", limits => '{export,export}'"), 'quota_exceeded export|2', 'a name that is given twice is taken once');
is(calls($now, 2, ", limits => '{all}'"), '|2', 'a limit that every call takes may be named');
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'}), '7', 'and is taken once');
foreach my $names ("'{nobody}'", "'{export,nobody}'", "'{NULL}'", "'{export,NULL}'", "'{\"\"}'", "'{{export},{nobody}}'",
	"ARRAY(SELECT 'export' || i FROM generate_series(1, 17) i)", "ARRAY(SELECT 'export' FROM generate_series(1, 17))", "'{rate_limit}'", "'{$now}'",
	"ARRAY[repeat('x', 1000000)]")
{
	refused('backend', "SELECT rk_apikeys.verify_key('$now', limits => $names)", '22023', 'names: ' . $names =~ s/\Q$now\E/a token/r);
}
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'}), '7', 'nothing is taken by a refused name');
is(scalar(logged($node, qr/\Q$now\E/)), 0, 'no token in the log');
foreach my $case ([ 0, '22023' ], [ -1, '22023' ], [ 21, '22023' ], [ 2147483647, '22023' ])
{
	refused('backend', "SELECT rk_apikeys.verify_key('$now', cost => $case->[0])", $case->[1], "cost => $case->[0]");
}
is(sql_as($node, 'boss', q{SELECT used FROM rk_apikeys.limit_status WHERE name = 'all'}), '7', 'nor by a refused cost');

# The tables: who may write them
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
cmp_ok(sql_as($node, 'boss', 'SELECT count(*) FROM rk_apikeys.limit_usage'), '>', 0, 'there is usage');
my $contents = $node->safe_psql('postgres', 'SELECT * FROM rk_apikeys.limits ORDER BY 1; SELECT * FROM rk_apikeys.limit_usage ORDER BY 1, 2, 3');
foreach my $role ('acme', 'web', 'backend', 'auditor', 'nobody')
{
	foreach my $sql ('DELETE FROM rk_apikeys.limit_usage', 'UPDATE rk_apikeys.limit_usage SET units = 0', 'TRUNCATE rk_apikeys.limit_usage',
		"INSERT INTO rk_apikeys.limit_usage SELECT gen_random_uuid(), '', now(), -5, 'acme'", 'SELECT FROM rk_apikeys.limit_usage FOR UPDATE',
		'LOCK TABLE rk_apikeys.limit_usage IN SHARE ROW EXCLUSIVE MODE', 'LOCK TABLE rk_apikeys.limit_usage IN ROW EXCLUSIVE MODE', 'LOCK TABLE rk_apikeys.limit_usage',
		'DELETE FROM rk_apikeys.limits', 'UPDATE rk_apikeys.limits SET units = 1e9', 'UPDATE rk_apikeys.limits SET reset_at = now()', 'TRUNCATE rk_apikeys.limits CASCADE',
		"INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('globex', 'x', 1, 'day')", 'SELECT FROM rk_apikeys.limits FOR SHARE',
		'LOCK TABLE rk_apikeys.limits IN SHARE MODE', 'LOCK TABLE rk_apikeys.limits', 'ALTER TABLE rk_apikeys.limits DISABLE TRIGGER USER',
		"UPDATE rk_apikeys.api_keys SET limits_reset_at = now()", "SELECT rk_apikeys.reset_limit(family => '$boss_id')", 'SELECT rk_apikeys.reset_limit(limit_id => gen_random_uuid())',
		'SELECT rk_apikeys.flush_usage()', "SELECT rk_apikeys.erase_tenant('acme')", 'DELETE FROM rk_apikeys.limit_status')
	{
		my (undef, $code) = try_sql($role, "BEGIN; $sql; ROLLBACK");
		like($code, qr/^(42501|55000)$/, "$role: $sql");
	}
}
# An admin may, but not for a key
foreach my $sql ('UPDATE rk_apikeys.limits SET units = 1e9', 'DELETE FROM rk_apikeys.limits', q{SELECT count(rk_apikeys.reset_limit(limit_id)) FROM rk_apikeys.limits},
	q{INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('acme', 'x', 1, 'day')}, "SELECT rk_apikeys.reset_limit(family => '$boss_id')",
	'DELETE FROM rk_apikeys.limit_usage')
{
	try_sql('boss', "BEGIN; SELECT FROM rk_apikeys.authenticate('$now'); $sql; COMMIT");
}
is($node->safe_psql('postgres', 'SELECT * FROM rk_apikeys.limits ORDER BY 1; SELECT * FROM rk_apikeys.limit_usage ORDER BY 1, 2, 3'), $contents, 'nobody has changed anything');
is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.api_keys WHERE limits_reset_at IS NOT NULL'), '0', 'nor the keys');

# What another server sends: by nobody of these roles
is($node->safe_psql('postgres', q{SELECT string_agg(r || ' ' || p.oid::regprocedure, ', ') FROM unnest('{acme,web,backend,auditor,nobody}'::text[]) r, pg_proc p
	WHERE proname IN ('receive_usage', 'reset_limit', 'erase_tenant') AND has_function_privilege(r, p.oid, 'EXECUTE')}), '', 'nobody of them sends use');

# A reader holds up no flush, no verify and no change of a limit
afresh();
{
	my $reader = session($node, 'acme');
	$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM rk_apikeys.limit_status; SELECT count(*) FROM rk_apikeys.limits; SELECT count(*) FROM rk_apikeys.limit_usage;
		LOCK TABLE rk_apikeys.limits, rk_apikeys.limit_usage IN ACCESS SHARE MODE');
	my $timeout = "SET lock_timeout = '10s';";
	is(sql_as($node, 'backend', "$timeout SELECT rk_apikeys.verify('$now')"), 't', 'a verify beside a reader');
	is(sql_as($node, 'boss', "$timeout SELECT rk_apikeys.flush_usage() > 0"), 't', 'a flush');
	is(sql_as($node, 'boss', "$timeout UPDATE rk_apikeys.limits SET units = units RETURNING 1") =~ tr/1//, 7, 'a change of limits');
	$reader->query_safe('COMMIT');
	$reader->quit;
}
# An admin that holds the limits and their usage locked holds up no verify of what is known
{
	my $locker = session($node, 'boss');
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$now')"), 't', 'known');
	$locker->query_safe('BEGIN; UPDATE rk_apikeys.limits SET units = units');
	is(sql_as($node, 'backend', "SET lock_timeout = '10s'; SELECT rk_apikeys.verify('$now')"), 't', 'a verify beside an open change of the limits');
	$locker->query_safe('ROLLBACK');
	$locker->quit;
}

# What each role sees: the limits that bind it, and nobody else's
sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit(family => '$boss_id')");
sub sees { my ($role, $place, $sql) = @_; return sql_as($node, $role, ($sql // '') . "SELECT coalesce(string_agg(DISTINCT name, ',' ORDER BY name), 'none') FROM rk_apikeys.$place"); }
foreach my $place ('limits', "limit_status WHERE name <> 'rate_limit'", 'limit_usage JOIN rk_apikeys.limits USING (limit_id)')
{
	my $usage = $place =~ /usage/;
	is(sees('acme', $place) , $usage ? sees('boss', $place) =~ s/,theirs//r : 'all,anns,bobs,each,export,live', "acme: $place");
	is(sees('globex', $place), $usage ? 'none' : 'theirs', "globex: $place");
	unlike(sees('web', $place), qr/bobs|theirs/, "a member: $place");
	like(sees('web', $place), qr/all.*anns.*each/, "a member sees those that bind its keys: $place") unless $usage;
	unlike(sees('acme', $place, $principal), qr/live|theirs/, "a key of stage: $place");
}
is_deeply([ logged($node, qr/PANIC:|TRAP:/) ], [], 'nothing crashed');

done_testing();
