# test/t/083_limit_tables.pl: limit_status shows what verify takes, reset_limit lets a limit begin anew, and limits with their usage come
# along with a dump.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('primary', PRELOAD);
my ($id, $token) = create_key($node, 'key', q{rate_limit => 100, rate_window => '1 day'});
my ($other, $other_token) = create_key($node, 'other');
create_key($node, 'elsewhere', undef, 'globex');
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, units, period, rate_window, per_key, always) VALUES
	('acme', 'monthly', 1000, 'month', NULL, false, true), ('acme', 'each', 10, NULL, '1 day', true, true), ('acme', 'export', 5, 'total', NULL, false, false)});
my $backend = session($node, 'backend');
my $take = sub { my ($t, $cost, $more) = @_; return $backend->query_safe("SELECT code, limit_name, limit_remaining FROM rk_apikeys.verify_key('$t', cost => $cost" . ($more // '') . ')'); };
my $status = sub { my ($role, $where) = @_; return sql_as($node, $role, "SELECT name, used, remaining FROM rk_apikeys.limit_status WHERE $where ORDER BY name, used"); };

# What verify takes is seen at once, by the tenant alone.
is($take->($token, 3), 'valid|each|7', 'a verify takes from all limits');
is($take->($other_token, 2, q{, limits => '{export}'}), 'valid|export|3', 'and from a named one');
is($status->('acme', 'true'), "each|2|8\neach|3|7\nexport|2|3\nmonthly|5|995\nrate_limit|3|97", 'the manager sees what is used');
is($status->('boss', 'true'), $status->('acme', 'true'), 'the administrator too');
is($status->('acme', "family = '$id'"), "each|3|7\nrate_limit|3|97", 'of one family');
is($status->('globex', 'true'), '', 'another tenant sees nothing');
my $function = q{SELECT used FROM rk_apikeys._limit_state('acme', NULL, '%s', 100, '1 day', NULL, NULL)};
is(sql_as($node, 'acme', sprintf $function, $id), '3', 'the function behind the view');
is(sql_as($node, 'globex', sprintf $function, $id), '', 'hides it from another tenant');
# Another tenant that has learned the id of a limit, and says that the limit is its own.
my $monthly = q{SELECT used FROM rk_apikeys._limit_state('%s', (SELECT limit_id FROM monthly), NULL, 1000, NULL, 'month', NULL)};
$node->safe_psql('postgres', q{CREATE TABLE monthly AS SELECT limit_id FROM rk_apikeys.limits WHERE name = 'monthly'; GRANT SELECT ON monthly TO PUBLIC});
is(sql_as($node, 'acme', sprintf $monthly, 'acme'), '5', 'the use of a quota in shared memory');
is(sql_as($node, 'globex', sprintf $monthly, 'globex'), '0', 'is not shown to another tenant by the id of the limit');

# A successor has what the old key has left. A limit that is raised keeps what was used.
my ($new, $new_token) = split /\|/, sql_as($node, 'acme', "SELECT * FROM rk_apikeys.rotate_key('$id', '1 hour')");
is($take->($new_token, 1), 'valid|each|6', 'the successor goes on');
is($status->('acme', "family = '$id'"), "each|4|6\nrate_limit|4|96", 'as one family');
sql_as($node, 'boss', q{UPDATE rk_apikeys.limits SET units = 5 WHERE name = 'monthly'});
is($take->($new_token, 1), 'quota_exceeded|monthly|0', 'a lowered quota is exceeded in the next verify');
sql_as($node, 'boss', q{UPDATE rk_apikeys.limits SET units = 100 WHERE name = 'monthly'});
is($take->($new_token, 1), 'valid|each|5', 'and raised has room at once');

# A reset of a limit, of a family, and one that is taken back.
my $limit = $node->safe_psql('postgres', q{SELECT limit_id FROM rk_apikeys.limits WHERE name = 'monthly'});
sql_as($node, 'boss', "BEGIN; SELECT rk_apikeys.reset_limit('$limit'), rk_apikeys.reset_limit(family => '$id'); ROLLBACK");
is($status->('acme', "name = 'monthly' OR family = '$id'"), "each|5|5\nmonthly|7|93\nrate_limit|5|95", 'a rollback undoes a reset');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit('$limit')"), 't', 'a reset of a quota');
is($status->('acme', "name = 'monthly' OR family = '$id'"), "each|5|5\nmonthly|0|100\nrate_limit|5|95", 'concerns that alone');
is(sql_as($node, 'boss', "SELECT rk_apikeys.reset_limit(family => '$id')"), 't', 'a reset of a family');
is($status->('acme', "name IN ('monthly', 'each', 'rate_limit')"), "each|0|10\neach|2|8\nmonthly|0|100\nrate_limit|0|100", 'concerns its own limits alone');
is($take->($token, 1), 'valid|each|9', 'the next verify of the old key takes from the new bucket');
is($take->($new_token, 1), 'valid|each|8', 'and that of the successor');
is($status->('acme', "name IN ('monthly', 'rate_limit')"), "monthly|2|98\nrate_limit|2|98", 'as the view shows');

# The use of quotas is flushed, and is restored with the limits.
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
is(sql_as($node, 'acme', q{SELECT l.name, u.family, u.units FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits l USING (limit_id)
	WHERE u.units > 0 ORDER BY u.period_start DESC LIMIT 1}), 'monthly||2', 'the flush writes the use of a quota');
$node->restart;
is(sql_as($node, 'acme', sprintf $monthly, 'acme'), '7', 'the use of a quota in the table');
is(sql_as($node, 'globex', sprintf $monthly, 'globex'), '0', 'is hidden likewise');
my $rows = q{SELECT * FROM rk_apikeys.limits ORDER BY limit_id; SELECT * FROM rk_apikeys.limit_usage ORDER BY limit_id, family, period_start;
	SELECT count(*) FROM rk_apikeys.key_events};
my $dumped = $node->safe_psql('postgres', $rows);
my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump";
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
foreach my $how ([], ['--section=pre-data'])
{
	my $database = @$how ? 'restored_data' : 'restored';
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->command_ok([ 'pg_restore', '--exit-on-error', @$how, '-d', $node->connstr($database), $dump ], "pg_restore @$how");
	$node->command_ok([ 'pg_restore', '--exit-on-error', '--data-only', '--disable-triggers', '-d', $node->connstr($database), $dump ], 'of the rows alone') if @$how;
	is($node->safe_psql($database, $rows), $dumped, "the restored rows and events are those of the dump: @$how");
	is(sql_as($node, 'acme', q{SELECT name, used FROM rk_apikeys.limit_status WHERE name = 'monthly'}, $database), 'monthly|2', 'the quota goes on there');
}
$backend->quit;
done_testing();
