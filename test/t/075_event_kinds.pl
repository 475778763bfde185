# test/t/075_event_kinds.pl: keys that end soon, tokens that are presented after their key's end, a tenant that is erased, and a purge of one
# tenant's events.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', PRELOAD . "\nrk_apikeys.usage_flush_interval = '1h'");
$primary->start;
rk_extend($primary);

sub events
{
	my ($kind, $what) = @_;
	return $primary->safe_psql('postgres', "SELECT coalesce(k.name, tenant, '') || ' ' || ($what) FROM rk_apikeys.key_events e
		LEFT JOIN rk_apikeys.api_keys k USING (key_id, tenant) WHERE event = '$kind' ORDER BY event_id");
}

sub state_of
{
	my ($sql, $role) = @_;
	my (undef, undef, $error) = $primary->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', $role // 'boss' ]);
	return $error =~ /ERROR:  (\w+):/ ? $1 : 'none';
}

# Keys that end soon
my %key = map { $_->[0] => [ create_key($primary, @$_) ] } [ 'soon', q{expires_at => '2030-01-02'} ], [ 'later', q{expires_at => '2040-01-01'} ],
  ['never'], [ 'rotated', q{expires_at => '2040-01-01'} ], [ 'off', q{expires_at => '2030-01-02'} ], [ 'revoked', q{expires_at => '2030-01-02'} ],
  [ 'theirs', q{expires_at => '2030-01-03'}, 'globex' ];
sub id { return $key{ $_[0] }[0] }
sql_as($primary, 'acme', sprintf q{SELECT FROM rk_apikeys.rotate_key('%s', '3 days'); UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '%s';
	SELECT rk_apikeys.revoke_key('%s')}, id('rotated'), id('off'), id('revoked'));
my $ahead = $primary->safe_psql('postgres', q{SELECT '2031-01-01' - now()});
is(sql_as($primary, 'boss', q{SELECT rk_apikeys.notice_expiring('1 hour')}), '0', 'nothing ends within an hour');
is(sql_as($primary, 'boss', q{SELECT rk_apikeys.notice_expiring('4 days')}), '1', 'one key within 4 days');
like(events('expiring', 'changes'), qr/^rotated \{"grace_until": "[^"]+"\}$/, 'with its end');
my $loser = session($primary, 'boss');
$loser->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my @calls = map { session($primary, 'boss') } 1 .. 2;
$_->query_until(qr/going/, "\\echo going\nSELECT rk_apikeys.notice_expiring('$ahead');\n") foreach @calls;
$_->quit foreach @calls;
is(events('expiring', q{''}), "rotated \nsoon \ntheirs ", 'two calls at once write one event for each end');
is($loser->query_safe("SELECT rk_apikeys.notice_expiring('$ahead')"), '0', 'an older snapshot sees them too');
$loser->quit;
is(sql_as($primary, 'boss', "SET timezone = 'Asia/Kathmandu'; SELECT rk_apikeys.notice_expiring('$ahead')"), '0', 'and another time zone');
sql_as($primary, 'acme', sprintf q{UPDATE rk_apikeys.keys SET expires_at = '2030-06-01' WHERE key_id = '%s'}, id('soon'));
is(sql_as($primary, 'boss', "SELECT rk_apikeys.notice_expiring('$ahead')"), '1', 'an end that was changed is told again');
is(sql_as($primary, 'boss', 'SELECT rk_apikeys.notice_expiring(NULL) IS NULL'), 't', 'NULL');
is(state_of(q{SELECT rk_apikeys.notice_expiring('-1 s')}), '22023', 'negative');
is(state_of(q{SELECT rk_apikeys.notice_expiring('1 day')}, 'acme'), '42501', 'not for a manager');
is(state_of(q{BEGIN READ ONLY; SELECT rk_apikeys.notice_expiring('1 day')}), '25006', 'nor read only');

# Tokens that are presented after the end of their key
sub present { sql_as($_[0], 'backend', join ';', map { "SELECT rk_apikeys.verify('$key{$_}[1]')" } @_[ 1 .. $#_ ]) }
sub flush { sql_as($primary, 'boss', 'SELECT rk_apikeys.flush_usage()') }
present($primary, qw(soon off revoked revoked));
flush();
is(events('used_after_end', 'changes'), 'revoked {"day": "' . $primary->safe_psql('postgres', q{SELECT (now() AT TIME ZONE 'UTC')::date}) . '"}',
	'one event for the key that has ended, not for the one that is disabled');
present($primary, 'revoked');
flush();
is(events('used_after_end', q{''}), 'revoked ', 'one a day');
$primary->safe_psql('postgres', q{UPDATE rk_apikeys.key_events SET changes = '{"day": "2001-01-01"}' WHERE event = 'used_after_end'});
present($primary, 'revoked');
flush();
is(events('used_after_end', q{''}), "revoked \nrevoked ", 'and the next day another');
present($primary, 'off');
sql_as($primary, 'acme', sprintf q{SELECT rk_apikeys.revoke_key('%s')}, id('off'));
flush();
is(events('used_after_end', q{''}), "revoked \nrevoked ", 'a token that was refused before the end does not count');
present($primary, 'off');
sql_as($primary, 'acme', sprintf q{DELETE FROM rk_apikeys.keys WHERE key_id = '%s'}, id('off'));
flush();
is(events('used_after_end', q{''}), "revoked \nrevoked ", 'nor one of a deleted key');
sql_as($primary, 'acme', sprintf q{SELECT FROM rk_apikeys.rotate_key('%s', '0')}, id('never'));
present($primary, 'never');
flush();
is(events('used_after_end', 'principal IS NULL'), "revoked true\nrevoked true\nnever true", 'the token of a rotated key');

# On a standby
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'\nrk_apikeys.primary_conninfo = '" . $primary->connstr . " user=boss'");
$standby->start;
sql_as($primary, 'acme', sprintf q{SELECT rk_apikeys.revoke_key('%s')}, id('later'));
$primary->wait_for_catchup($standby, 'replay');
present($standby, 'later', 'soon');
ok($primary->poll_query_until('postgres', q{SELECT count(*) = 4 FROM rk_apikeys.key_events WHERE event = 'used_after_end'}), 'on a standby');
like(events('used_after_end', 'actor'), qr/^later boss$/m, 'written by the role that sends');

# A primary with older SQL has no place for the days: the counts come all the same.
my $denied = $primary->safe_psql('postgres', sprintf q{SELECT denied_count FROM rk_apikeys.key_usage WHERE key_id = '%s'}, id('later'));
$primary->safe_psql('postgres', q{ALTER EXTENSION rk_apikeys DROP FUNCTION rk_apikeys.receive_usage;
	ALTER FUNCTION rk_apikeys.receive_usage RENAME TO receive_usage_0_3;
	CREATE FUNCTION rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[], environments text[], last_used_at timestamptz[],
	addrs inet[], uses bigint[], denials bigint[], known_uses bigint[], known_denials bigint[],
	OUT n integer, OUT use_count bigint, OUT denied_count bigint) RETURNS SETOF record
	LANGUAGE C STRICT AS '$libdir/rk_apikeys', 'rk_apikeys_receive_usage'});
present($standby, 'later');
ok($primary->poll_query_until('postgres', sprintf q{SELECT denied_count = %d FROM rk_apikeys.key_usage WHERE key_id = '%s'}, $denied + 1, id('later')),
	'a primary with older SQL gets the counts');
$standby->stop;

# A purge of one tenant's events
my $theirs = q{SELECT count(*) FROM rk_apikeys.key_events WHERE tenant = 'globex' AND event <> 'purged'};
my $others = q{SELECT count(*) FROM rk_apikeys.key_events WHERE tenant <> 'globex'};
my ($had, $kept) = map { $primary->safe_psql('postgres', $_) } $theirs, $others;
cmp_ok($had, '>', 0, 'a tenant has events');
is(sql_as($primary, 'boss', q{SELECT rk_apikeys.purge_events('0', 'globex')}), $had, 'they are purged');
is(join(' ', map { $primary->safe_psql('postgres', $_) } $theirs, $others), "0 $kept", 'and no others');
is(sql_as($primary, 'globex', q{SELECT event, changes FROM rk_apikeys.key_events}), qq(purged|{"events": $had, "older_than": "00:00:00"}),
	'the tenant sees the event that is left');
is(sql_as($primary, 'boss', q{SELECT rk_apikeys.purge_events('0', 'nobody'), rk_apikeys.purge_events('1 day', NULL), rk_apikeys.purge_events(NULL, 'acme') IS NULL}),
	'0|0|t', 'nothing to purge');
is(state_of(q{SELECT rk_apikeys.purge_events('-1 s', 'acme')}), '22023', 'negative');
is(state_of(q{SELECT rk_apikeys.purge_events('0', 'acme')}, 'acme'), '42501', 'not for a manager');

# A tenant is erased: all rows with its name go, and one event without personal data stays.
create_key($primary, 'Ann Example', q{description => 'ann@example.com', metadata => '{"mail": "ann@example.com"}'}, 'globex');
my $used = (create_key($primary, 'used', undef, 'globex'))[1];
sql_as($primary, 'boss', q{INSERT INTO rk_apikeys.policies (tenant, max_keys) VALUES ('globex', 10)});
sql_as($primary, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('globex', 'calls', 10, 'day'), ('globex', 'more', 10, 'day')});
$primary->safe_psql('postgres', q{INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '2026-01-01', 1, tenant FROM rk_apikeys.limits WHERE tenant = 'globex' AND name = 'calls'});
sql_as($primary, 'backend', "SELECT rk_apikeys.verify('$used')");
flush();
sql_as($primary, 'backend', "SELECT rk_apikeys.verify('$used')");
my $rows = q{SELECT (SELECT count(*) FROM rk_apikeys.api_keys WHERE tenant = 'globex'), (SELECT count(*) FROM rk_apikeys.key_usage WHERE tenant = 'globex'),
	(SELECT count(*) FROM rk_apikeys.key_usage_daily WHERE tenant = 'globex'), (SELECT count(*) FROM rk_apikeys.policies WHERE tenant = 'globex'),
	(SELECT count(*) FROM rk_apikeys.limits WHERE tenant = 'globex'), (SELECT count(*) FROM rk_apikeys.limit_usage WHERE tenant = 'globex'),
	(SELECT count(*) FROM rk_apikeys.key_events WHERE tenant = 'globex')};
my $counts = $primary->safe_psql('postgres', $rows);
like($counts, qr/^3\|1\|1\|1\|2\|\d+\|\d+$/, 'the tenant has rows');
my $before = $primary->safe_psql('postgres', $others);
is(sql_as($primary, 'boss', q{SELECT * FROM rk_apikeys.erase_tenant('globex')}), $counts, 'erased');
is($primary->safe_psql('postgres', $rows), '0|0|0|0|0|0|1', 'nothing is left but one event');
flush();
is($primary->safe_psql('postgres', $rows), '0|0|0|0|0|0|1', 'not even after a flush');
my ($keys, $usage, $daily, $policies, $limits, $limit_usage, $events) = split /\|/, $counts;
is(events('erased', 'changes::text || coalesce(key_id, $$$$)'), qq(globex {"keys": $keys, "daily": $daily, "usage": $usage, "events": $events, "limits": $limits, "policies": $policies, "limit_usage": $limit_usage}), 'its counts');
is($primary->safe_psql('postgres', $others), $before, 'other tenants keep theirs');
is(sql_as($primary, 'boss', q{SELECT * FROM rk_apikeys.erase_tenant('nobody')}), '0|0|0|0|0|0|0', 'a tenant without rows');
is(events('erased', q{''}), 'globex ', 'leaves no event');
is(sql_as($primary, 'boss', q{SELECT count(*) FROM rk_apikeys.erase_tenant(NULL) e WHERE e.keys IS NULL}), '1', 'NULL');
is(state_of(q{SELECT rk_apikeys.erase_tenant('acme')}, 'acme'), '42501', 'not for a manager');
is(state_of(q{SELECT rk_apikeys.erase_tenant('acme')}, 'backend'), '42501', 'nor a verifier');
my $manage = (create_key($primary, 'manage', q{scopes => '{apikeys:manage}'}))[1];
is(state_of("BEGIN; SELECT rk_apikeys.authenticate('$manage'); SELECT rk_apikeys.erase_tenant('acme')"), '42501', 'nor a principal');
is(state_of("BEGIN; SELECT rk_apikeys.authenticate('$manage'); SELECT rk_apikeys.notice_expiring('1 day')"), '42501', 'which gives no notice either');

# A name that needs escapes
$primary->safe_psql('postgres', q{CREATE ROLE "o""b\r" LOGIN; GRANT rk_apikeys_manager TO "o""b\r"});
create_key($primary, 'x', undef, 'o"b\\r');
is(sql_as($primary, 'boss', q{SELECT keys FROM rk_apikeys.erase_tenant(E'o"b\\\\r')}), '1', 'a tenant with quotes in its name');
is(events('erased', q{''}), qq(globex \no"b\\r ), 'keeps its name in the event');

done_testing();
