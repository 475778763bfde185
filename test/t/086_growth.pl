# test/t/086_growth.pl: tables that grow for years: lists and purges read what they return, and a purge holds no lock for long.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('growth', PRELOAD, 'autovacuum = off');
$node->safe_psql('postgres', 'CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor; CREATE ROLE ann LOGIN IN ROLE rk_apikeys_member;
	GRANT rk_apikeys_verifier TO acme');
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'key ' || n, CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'tenant ' || n % 100 END
	FROM generate_series(1, 20000) n});
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, use_count)
		SELECT key_id, tenant, now() - interval '200 days' * random(), 3 FROM rk_apikeys.api_keys WHERE key_id > 'F';
	UPDATE rk_apikeys.api_keys SET created_at = now() - interval '200 days' WHERE key_id > 'X';
	INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant) SELECT key_id, current_date - 1, environment, tenant FROM rk_apikeys.api_keys;
	VACUUM ANALYZE});

# What a role's statement answers, and how many rows of a table it has read.
sub rows_read
{
	my ($role, $table, $sql) = @_;
	return split /\n/, sql_as($node, $role, join ';', 'BEGIN', $sql, 'SELECT ' . join(' + ', map { "pg_stat_get_xact_tuples_${_}('rk_apikeys.$table'::regclass)" } qw(fetched returned)));
}

foreach ([ 'acme', 'api_keys', 25, q{SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name')}, 'a page by name' ],
	[ 'acme', 'api_keys', 25, q{SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', descending => true)}, 'the last page by name' ],
	[ 'boss', 'api_keys', 25, 'SELECT count(*) FROM rk_apikeys.list_keys()', q{a page of all tenants' keys} ],
	[ 'auditor', 'api_keys', 25, 'SELECT count(*) FROM rk_apikeys.list_keys(descending => true)', 'the newest keys of all tenants' ],
	[ 'boss', 'key_events', 0, q{SELECT rk_apikeys.purge_events('1 year')}, 'a purge of no event' ],
	[ 'boss', 'key_usage_daily', 0, q{SELECT rk_apikeys.purge_usage('1 year')}, 'a purge of no day' ])
{
	my ($role, $table, $answer, $sql, $what) = @$_;
	my ($got, $read) = rows_read($role, $table, $sql);
	is($got, $answer, $what);
	cmp_ok($read, '<', 300, "$what reads few rows of 20000");
}
my $middle = sql_as($node, 'acme', q{SELECT string_agg(name, ',' ORDER BY n) FROM (SELECT k.*, row_number() OVER () n FROM rk_apikeys.list_keys(sort_by => 'name', page_size => 3,
	after => (SELECT cursor FROM rk_apikeys.list_keys(sort_by => 'name', page_size => 1000) OFFSET 499 LIMIT 1)) k) x});
is($middle, sql_as($node, 'acme', q{SELECT string_agg(name, ',' ORDER BY name, key_id) FROM (SELECT * FROM rk_apikeys.keys ORDER BY name, key_id OFFSET 500 LIMIT 3) x}),
	'a page by name in the middle');

# For a role without a principal, the planner takes its policies as cheap, so that it does not look up the use of all keys one by one.
sub cost
{
	my ($role, $table) = @_;
	return sql_as($node, $role, "EXPLAIN SELECT tenant FROM rk_apikeys.$table") =~ /cost=\S+\.\.(\S+)/ ? $1 : undef;
}
cmp_ok(cost('boss', $_), '<', 2 * cost('postgres', $_), "the cost of $_") foreach qw(key_usage key_usage_daily key_events);
my $stale = q{SELECT count(*) FROM rk_apikeys.keys WHERE status = 'active' AND coalesce(last_used_at, created_at) < statement_timestamp() - interval '90 days'};
foreach my $role ('boss', 'acme')
{
	is(sql_as($node, $role, 'SELECT count(*) FROM rk_apikeys.stale_keys'), sql_as($node, $role, $stale), "stale_keys of $role");
}

# A use that no flush has written makes a key no longer stale; other states are not stale.
$node->safe_psql('postgres', q{ALTER SYSTEM SET rk_apikeys.usage_flush_interval = '1h'; SELECT pg_reload_conf()});
my ($used, $token) = create_key($node, 'used');
my %other;
$other{$_} = (create_key($node, $_))[0] foreach qw(disabled revoked expired grace);
$node->safe_psql('postgres', qq{UPDATE rk_apikeys.api_keys SET created_at = now() - interval '1 year' WHERE key_id IN ('$used', '} . join(q{', '}, values %other) . q{')});
my $are_stale = q{SELECT string_agg(name, ' ' ORDER BY name) FROM rk_apikeys.stale_keys WHERE name !~ '^key '};
is(sql_as($node, 'acme', $are_stale), 'disabled expired grace revoked used', 'unused keys are stale');
sql_as($node, 'acme', qq{UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'disabled'; SELECT rk_apikeys.revoke_key('$other{revoked}')});
sql_as($node, 'acme', qq{SELECT rk_apikeys.rotate_key('$other{grace}')});
$node->safe_psql('postgres', qq{SET session_replication_role = replica; UPDATE rk_apikeys.api_keys SET expires_at = now() - interval '1 s' WHERE key_id = '$other{expired}'});
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token')"), 't', 'a use');
is(sql_as($node, $_, $are_stale), '', "none is stale for $_") foreach qw(acme boss);

# Which usage and events a principal sees: those of keys that it sees, with deleted keys left out.
my ($manager, $principal) = create_key($node, 'manager', q{scopes => '{apikeys:manage}', environment => 'dev'});
my ($seen) = create_key($node, 'seen', q{environment => 'dev'});
my ($gone) = create_key($node, 'gone', q{environment => 'dev'});
$node->safe_psql('postgres', qq{INSERT INTO rk_apikeys.key_usage (key_id, tenant) SELECT key_id, tenant FROM rk_apikeys.api_keys WHERE name IN ('seen', 'used', 'gone') ON CONFLICT DO NOTHING});
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$gone'");
foreach my $role (qw(acme boss))
{
	is(sql_as($node, $role, qq{BEGIN; SELECT rk_apikeys.authenticate('$principal') \\g /dev/null
		SELECT key_id FROM rk_apikeys.key_usage; SELECT DISTINCT key_id FROM rk_apikeys.key_events WHERE key_id <> '$manager'}), "$seen\n$seen", "$role as a principal of an environment");
}

# purge: in transactions of their own, with progress, of the long dead alone.
$node->safe_psql('postgres', q{UPDATE rk_apikeys.key_events SET occurred_at = now() - interval '4 years' + interval '1 s' * event_id WHERE event_id <= 15000;
	INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant) SELECT key_id, current_date - 500 - n, environment, tenant FROM rk_apikeys.api_keys, generate_series(1, 1) n;
	UPDATE rk_apikeys.api_keys SET revoked_at = now() - interval '2 years' WHERE name LIKE 'key 1%'});
my $dead = $node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.api_keys WHERE revoked_at < now() - interval '1 year'});
my $days = $node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_usage_daily WHERE day < current_date - 400});
my $holder = session($node, 'postgres');
$holder->query_safe(q{BEGIN; SELECT FROM rk_apikeys.api_keys WHERE name = 'key 1' FOR UPDATE});
my ($out, $notices);
$node->psql('postgres', q{CALL rk_apikeys.purge(keys => '1 year', usage => '400 days', events => '3 years')}, stderr => \$notices, extra_params => [ '-U', 'boss' ], on_error_die => 1);
$holder->query_safe('COMMIT');
is($node->safe_psql('postgres', q{SELECT string_agg(name, ',') FROM rk_apikeys.api_keys WHERE revoked_at < now() - interval '1 year'}), 'key 1', 'a locked key is skipped');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_usage_daily WHERE day < current_date - 400}), '0', 'old days are gone');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_events WHERE occurred_at < now() - interval '3 years'}), '0', 'old events are gone');
is($node->safe_psql('postgres', q{SELECT count(*) >= 20000 FROM rk_apikeys.key_usage_daily}), 't', 'young days stay');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'deleted'}), $dead, 'each deleted key has an event');
my @told = $notices =~ /NOTICE:  (.*)/g;
cmp_ok(scalar(grep { /api_keys/ } @told), '>', 10, 'keys in batches');
is_deeply([ grep { !/api_keys/ } @told ],
	[ 'purged 10000 rows of "key_usage_daily"', 'purged 20000 rows of "key_usage_daily"', "purged $days rows of \"key_usage_daily\"",
		'purged 10000 rows of "key_events"', 'purged 15000 rows of "key_events"' ], 'days and events in batches');
is(sql_as($node, 'boss', q{SELECT changes FROM rk_apikeys.key_events WHERE event = 'purged' ORDER BY event_id}),
	join("\n", map { sprintf '{"%s": %d, "older_than": "%s"}', @$_ } [ 'daily', 10000, '400 days' ], [ 'daily', 10000, '400 days' ], [ 'daily', $days - 20000, '400 days' ],
		[ 'events', 10000, '3 years' ], [ 'events', 5000, '3 years' ]), 'each batch has its event');
is($node->safe_psql('postgres', q{SELECT count(DISTINCT xid) FROM rk_apikeys.key_events WHERE event = 'purged'}), '5', 'and its transaction');
is(sql_as($node, 'boss', q{CALL rk_apikeys.purge('1 year')}), '', 'and the rest the next time');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.api_keys WHERE revoked_at < now() - interval '1 year'}), '0', 'the key that was locked');

# A batch that was committed stays so when the next one fails.
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant) SELECT lpad(n::text, 12, '0'), current_date - 900 + n / 10000, 'prod', 'x' FROM generate_series(1, 15000) n;
	INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant) VALUES ('last', current_date - 500, 'prod', 'x')});
$holder->query_safe(q{BEGIN; SELECT FROM rk_apikeys.key_usage_daily WHERE key_id = 'last' FOR UPDATE});
my $code = $node->psql('postgres', q{SET lock_timeout = '100ms'; CALL rk_apikeys.purge(usage => '400 days')}, stderr => \$notices, extra_params => [ '-U', 'boss' ]);
like($notices, qr/lock timeout/, 'a purge that fails');
$holder->query_safe('COMMIT');
is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_usage_daily WHERE day < current_date - 400}), '5001', 'has deleted its first batch');
is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_usage('400 days', 'y'), rk_apikeys.purge_usage('400 days', 'x'), rk_apikeys.purge_usage(NULL) IS NULL}), '0|5001|t', 'purge_usage, of one tenant');
is(sql_as($node, 'boss', q{SELECT tenant, changes FROM rk_apikeys.key_events WHERE event = 'purged' ORDER BY event_id DESC LIMIT 1}), 'x|{"daily": 5001, "older_than": "400 days"}', 'its event');
is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_usage('0')}), $node->safe_psql('postgres', q{SELECT 0}), 'nothing')
  if $node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_usage_daily WHERE day < (now() AT TIME ZONE 'UTC')::date}) eq '0';
# Of the use of quotas, what periods used that ended before; a total never ends.
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('x', 'monthly', 9, 'month'), ('x', 'daily', 9, 'day'), ('y', 'total', 9, 'total')});
my $used = q{INSERT INTO rk_apikeys.limit_usage SELECT limit_id, n, CASE WHEN period = 'total' THEN '-infinity' ELSE date_trunc(period, now(), 'UTC') - n * ('1 ' || period)::interval END, 1, tenant
	FROM rk_apikeys.limits, generate_series(0, 3) n};
my $left = q{SELECT string_agg(l.name || ' ' || u.family, ',' ORDER BY l.name, u.family) FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits l USING (limit_id)};
my $all = 'daily 0,daily 1,daily 2,daily 3,monthly 0,monthly 1,monthly 2,monthly 3,total 0,total 1,total 2,total 3';
$node->safe_psql('postgres', $used);
is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_usage('0', 'y')}), '0', 'the use of a total stays');
is($node->safe_psql('postgres', $left), $all, 'and that of another tenant');
is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_usage('1 day', 'x') >= 4}), 't', 'the use of a quota in periods that ended long ago');
like($node->safe_psql('postgres', $left), qr/^daily 0,daily 1,monthly 0,(monthly 1,)?total 0,total 1,total 2,total 3$/, 'goes, and what ended a moment ago stays');
like(sql_as($node, 'boss', q{SELECT changes FROM rk_apikeys.key_events WHERE event = 'purged' ORDER BY event_id DESC LIMIT 1}), qr/^\{"older_than": "1 day", "limit_usage": [45]\}$/, 'with an event');
$node->safe_psql('postgres', 'DELETE FROM rk_apikeys.limit_usage');
$node->safe_psql('postgres', $used);
$node->psql('postgres', q{CALL rk_apikeys.purge(usage => '0')}, stderr => \$notices, extra_params => [ '-U', 'boss' ], on_error_die => 1);
like($notices, qr/purged 6 rows of "limit_usage"/, 'purge tells');
is($node->safe_psql('postgres', $left), 'daily 0,monthly 0,total 0,total 1,total 2,total 3', 'the use of the present period stays');
is(sql_as($node, 'boss', 'CALL rk_apikeys.purge()'), '', 'a purge of nothing');

# Senders that are silent for 30 days are forgotten when another one comes, whatever the number of its batch: a sender counts the batches of all
# its databases as one series.
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.usage_senders (sender, batch, received_at, left_out) SELECT gen_random_uuid(), 1, now() - interval '1 day' * d, '{}' FROM unnest('{1,31}'::int[]) d});
my $send = sub { sql_as($node, 'boss', "SELECT FROM rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', $_[0], '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')") };
$send->($_) foreach 2, 3;
is(sql_as($node, 'boss', q{SELECT string_agg(batch || ' ' || (now() - received_at < interval '30 days'), ' ' ORDER BY batch) FROM rk_apikeys.usage_senders}), '1 true 3 true', 'a silent sender is forgotten');

# Who may, and when.
sub state_of
{
	my ($role, $sql) = @_;
	$node->psql('postgres', $sql, stderr => \my $error, extra_params => [ '-U', $role, '-v', 'VERBOSITY=sqlstate' ]);
	return $error =~ /ERROR:  (\S+)/ ? $1 : 'none';
}
foreach my $role (qw(acme auditor backend ann))
{
	is(state_of($role, q{CALL rk_apikeys.purge('1 day')}), '42501', "purge is not for $role");
	is(state_of($role, q{SELECT rk_apikeys.purge_usage('1 day')}), '42501', "purge_usage is not for $role");
	is(state_of($role, q{SELECT rk_apikeys._sees_key('000000000000')}), '42501', "nor is _sees_key for $role") if $role eq 'backend';
}
is(state_of('boss', $_->[1]), $_->[0], $_->[1])
  foreach ([ '22023', q{CALL rk_apikeys.purge('1 year', '-1 s')} ], [ '22023', q{SELECT rk_apikeys.purge_usage('-1 s')} ],
	[ '2D000', q{BEGIN; CALL rk_apikeys.purge('1 year')} ], [ '2D000', q{DO $$ BEGIN CALL rk_apikeys.purge('1 year'); EXCEPTION WHEN division_by_zero THEN END $$} ],
	[ 'none', q{DO $$ BEGIN CALL rk_apikeys.purge('1 year'); END $$} ]);
is(state_of('boss', qq{SET search_path = pg_temp; BEGIN; SELECT rk_apikeys.authenticate('$principal') \\g /dev/null
	SELECT rk_apikeys.purge_usage('1 day')}), '42501', 'not as a principal');

done_testing();
