# test/t/063_operations.pl: what doc/operations.md says about backups, copies, tenants and the extension's tables; its statements are run.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_initdb('main', PRELOAD, 'wal_level = logical', "rk_apikeys.usage_flush_interval = '1h'");
my $dir = PostgreSQL::Test::Utils::tempdir;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

$node->safe_psql('postgres', 'CREATE DATABASE mydb');
$node->safe_psql('mydb', 'CREATE EXTENSION rk_apikeys');
documented_roles($node, 'mydb');
my ($acme_id, $acme) = create_key($node, 'first', undef, 'acme', 'mydb');
my ($globex_id, $globex) = create_key($node, 'other', undef, 'globex', 'mydb');

sub sql { my ($sql, $role, $database) = @_; return sql_as($node, $role // 'postgres', $sql, $database // 'mydb'); }

# The error of a statement
sub error_of
{
	my ($sql, $role) = @_;
	$node->psql('mydb', $sql, extra_params => [ '-U', $role // 'postgres' ], stderr => \my $error);
	return $error;
}

# What a command of the document prints, run in the folder of the dumps; its exit status stays in $?.
sub sh
{
	my ($command) = @_;
	return `cd '$dir' && ($command) 2>&1` =~ s/\n\z//r;
}

sub verdict
{
	my ($token, $database) = @_;
	return sql("SELECT code FROM rk_apikeys.verify_key('$token')", 'backend', $database);
}

my $flush = 'SELECT rk_apikeys.flush_usage()';

# --- the role that makes the backup
my ($backup, $count) = documented('Which role makes the backup?');
sql($backup);
sql('CREATE ROLE reader LOGIN IN ROLE pg_read_all_data');
sh('pg_dump -U backup -Fc -f keys.dump mydb');
is($?, 0, 'the documented role dumps');
is(sh($count), '2', 'every key');
like(sh('pg_dump -U reader -Fc -f refused.dump mydb'), qr/query would be affected by row-level security policy for table "api_keys"/,
	'pg_read_all_data alone is refused');
sh('pg_dump -U reader --enable-row-security -Fc -f keys.dump mydb');
is($?, 0, 'with --enable-row-security it exits with 0');
is(sh($count), '0', 'and saves no key');

# --- triggers
my ($wrong, $mend) = documented('The restore ran with --disable-triggers');
is(sql($wrong), '', 'no trigger is in a wrong state');
my $all = 'ALTER TABLE rk_apikeys.api_keys';
foreach my $left ([ "$all DISABLE TRIGGER ALL; $all ENABLE TRIGGER ALL", 2 ], [ "$all DISABLE TRIGGER ALL", 10 ])
{
	sql($left->[0]);
	my $rows = () = sql($wrong) =~ /^api_keys_/mg;
	is($rows, $left->[1], "$left->[1] triggers are found");
	sql($mend);
	is(sql($wrong), '', 'and mended');
	sql('ALTER TABLE rk_apikeys.key_events ENABLE TRIGGER ALL');
	like(sql($wrong), qr/^key_events_place/, 'the one of events too');
	sql($mend);
	is(sql($wrong), '', 'and mended');
}

# --- a copy for staging
my ($without_keys, $empty, $unsubscribe) = documented('A copy of production for staging', mydb => 'staging');
sh($without_keys =~ s/staging$/mydb/mr);
is($?, 0, 'a dump without keys');
$node->safe_psql('postgres', 'CREATE DATABASE staging');
sh('pg_restore --exit-on-error -d staging staging.dump');
is($?, 0, 'is restored');
is(verdict($acme, 'staging'), 'unknown', 'and knows no token of production');
is(sql('SELECT count(*) FROM rk_apikeys.key_events', undef, 'staging'), '0', 'nor an event');
$node->safe_psql('postgres', 'DROP DATABASE staging');
$node->safe_psql('postgres', 'CREATE DATABASE staging TEMPLATE mydb');
is(verdict($acme, 'staging'), 'valid', 'a whole copy verifies the tokens of production');
sql($empty, undef, 'staging');
is(verdict($acme, 'staging'), 'unknown', 'until it is emptied');
like((create_key($node, 'new', undef, 'acme', 'staging'))[1], qr/^rk_stage_/, 'new tokens there show the environment');
sql(q{CREATE SUBSCRIPTION node1 CONNECTION 'host=nowhere' PUBLICATION keys WITH (connect = false)}, undef, 'staging');
sql($unsubscribe, undef, 'staging');
is(sql('SELECT count(*) FROM pg_subscription'), '0', 'a copied subscription goes without its publisher');

# --- a column of one's own
my @restore = split /\n/, (documented('May I add a column to api_keys?'))[0];
$node->safe_psql('postgres', 'CREATE DATABASE again');
my ($column) = $restore[1] =~ /'(ALTER TABLE .*)'/;
sql($column);
sql(q{UPDATE rk_apikeys.api_keys SET cost_center = '42' WHERE name = 'first'});
is(sql("SELECT event || changes FROM rk_apikeys.key_events WHERE key_id = '$acme_id' ORDER BY event_id DESC LIMIT 1"),
	'updated{"cost_center": {"new": "42", "old": null}}', 'a change of the column is an event');
sh('pg_dump -U backup -Fc -f keys.dump mydb');
$node->safe_psql('postgres', 'CREATE DATABASE failed');
like(sh('pg_restore --exit-on-error -d failed keys.dump'), qr/column "cost_center" of relation "api_keys" does not exist/,
	'a restore fails');
foreach my $step (@restore)
{
	my $printed = sh($step =~ s/\bmydb\b/again/r);
	is($?, 0, "but not in steps: $step") or diag($printed);
}
is(sql('SELECT cost_center FROM rk_apikeys.api_keys WHERE name = $$first$$', undef, 'again'), '42', 'with its value');
is(verdict($acme, 'again'), 'valid', 'and the keys');
is(sql($wrong, undef, 'again'), '', 'and the triggers');
sql("$all DROP COLUMN cost_center");
is(verdict($acme), 'valid', 'the column can go');

# --- a table that was dropped from the extension
my ($lost, $member) = documented('A table was dropped from the extension');
is(sql($lost), '', 'every table is dumped');
sql('ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.key_usage');
is(verdict($acme), 'valid', 'verify continues');
my (undef, $limited) = create_key($node, 'limited', "rate_limit => 1, rate_window => '1 hour'", 'globex', 'mydb');
is(verdict($limited), $_, "a rate limit: $_") foreach 'valid', 'rate_limited';
sql(q{ALTER SYSTEM SET rk_apikeys.usage_flush_interval = '100ms'});
$node->reload;
$node->poll_query_until('mydb', 'SELECT dropped > 0 FROM rk_apikeys.stats') or die 'nothing is thrown away';
is(sql('SELECT count(*) FROM rk_apikeys.key_usage'), '0', 'but the use is thrown away');
ok($node->poll_query_until('mydb', "SELECT rk_apikeys.verify('$limited')"), 'and rate limits begin anew');
sql('ALTER EXTENSION rk_apikeys ADD TABLE rk_apikeys.key_usage');
sql(q{ALTER SYSTEM RESET rk_apikeys.usage_flush_interval});
$node->reload;
sql("DELETE FROM rk_apikeys.keys WHERE name = 'limited'", 'globex');
is(sql($lost), 'key_usage', 'the rows of a table that was out are not dumped');
sql('ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.api_keys');
sql("ALTER EXTENSION rk_apikeys ADD TABLE rk_apikeys.api_keys");
sh('pg_dump -U backup -Fc -f keys.dump mydb');
is("$? " . sh($count), '0 0', 'pg_dump saves no key and exits with 0');
sql('ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.api_keys');
sql($member);
sql($member =~ s/^ALTER.*//r =~ s/api_keys'/key_usage'/r);
is(sql($lost), '', 'the documented statements mend that');
sh('pg_dump -U backup -Fc -f keys.dump mydb');
is("$? " . sh($count), '0 2', 'and pg_dump saves the keys');
$node->safe_psql('postgres', 'DROP DATABASE again');
$node->safe_psql('postgres', 'CREATE DATABASE again');
sh('pg_restore --exit-on-error -d again keys.dump');
is($?, 0, 'so that the dump is restored');
is(verdict($acme, 'again'), 'valid', 'with the keys');

# --- digests and change data capture
my ($leaking, $capture) = documented('Change data capture without digests');
sql('CREATE PUBLICATION everything FOR ALL TABLES');
is(sql($leaking), 'everything', 'a publication of all tables is found');
sql('DROP PUBLICATION everything');
sql($capture);
is(sql($leaking), '', 'the documented one has no digest');
sql("UPDATE rk_apikeys.keys SET description = 'captured' WHERE key_id = '$acme_id'", 'acme');
sql("$all REPLICA IDENTITY FULL");
like(error_of("SELECT rk_apikeys.revoke_key('$acme_id')", 'acme'), qr/cannot update table "api_keys"/, 'with REPLICA IDENTITY FULL no key can be revoked');
sql('DROP PUBLICATION capture');
sql("$all REPLICA IDENTITY DEFAULT");
sql('CREATE ROLE copier LOGIN REPLICATION');
sql(q{SELECT pg_create_logical_replication_slot('any', 'test_decoding')}, 'copier');
sql("UPDATE rk_apikeys.api_keys SET digest = digest, name = 'second' WHERE key_id = '$acme_id'");
like(sql(q{SELECT data FROM pg_logical_slot_get_changes('any', NULL, NULL)}, 'copier'), qr/digest\[bytea\]:'\\x/, 'a role with REPLICATION reads digests');
sql(q{SELECT pg_drop_replication_slot('any')}, 'copier');

# --- a tenant gets another name
my $views = 'SELECT (SELECT sum(use_count) FROM rk_apikeys.keys), (SELECT count(*) > 0 FROM rk_apikeys.key_events), (SELECT sum(uses) FROM rk_apikeys.key_activity)';
my ($keep, $move) = documented('A tenant gets another name');
verdict($acme) foreach 1 .. 3;
sql($flush, 'keeper');
my $before = sql($views, 'acme');
sql($keep);
is(sql('SELECT rk_apikeys.current_tenant()', 'acme_inc'), 'acme', 'a role keeps its tenant');
is(sql($views, 'acme_inc'), $before, 'and what is its own');
my $events = sql('SELECT count(*) FROM rk_apikeys.key_events');
sql($move);
sql('ALTER ROLE acme_inc RESET rk_apikeys.tenant');
is(sql('SELECT rk_apikeys.current_tenant()', 'acme_inc'), 'acme_inc', 'a tenant with another name');
is(sql($views, 'acme_inc'), $before, 'has what it had');
is(sql('SELECT count(*) FROM rk_apikeys.key_events'), $events, 'no event is written');
is(sql("SELECT code || ' ' || tenant FROM rk_apikeys.verify_key('$acme')", 'backend'), 'valid acme_inc', 'its token gives the new tenant');
my ($uses) = $before =~ /^(\d+)/;
is(sql($views, 'acme_inc'), $before, 'the new use is not seen before it is flushed');
sql($flush, 'keeper');
is(sql($views, 'acme_inc'), ($uses + 1) . '|t|' . ($uses + 1), 'and its use counts on');
like(sql('SELECT name FROM rk_apikeys.list_keys()', 'acme_inc'), qr/second/, 'it lists its keys');
sql($move =~ s/acme_inc/tenant/gr =~ s/'acme'/'acme_inc'/gr =~ s/'tenant'/'acme'/gr);

# --- the role of a tenant is made again
sql('ALTER ROLE acme_inc RENAME TO acme; DROP ROLE acme');
is(verdict($acme), 'valid', 'a key outlives the role of its tenant');
my ($orphans) = documented("A tenant's role is dropped, and made again by another");
is(sql($orphans, 'monitor'), 'acme|1', 'the tenant is found');
sql('CREATE ROLE hr LOGIN CREATEROLE');
my $take = 'CREATE ROLE acme LOGIN IN ROLE rk_apikeys_manager';
if ($node->pg_version < 16)
{
	sql($take, 'hr');
	sql('GRANT rk_apikeys_admin TO hr', 'hr');
	is(sql('SELECT count(*) FROM rk_apikeys.keys', 'hr'), '2', 'CREATEROLE makes an admin before 16');
}
else
{
	like(error_of($take, 'hr'), qr/permission denied/, 'CREATEROLE alone makes no manager');
	like(error_of('GRANT rk_apikeys_admin TO hr', 'hr'), qr/permission denied/, 'nor an admin');
	sql($take);
}
is(sql('SELECT name FROM rk_apikeys.keys', 'acme'), 'second', 'a new role of that name has the keys of the old one');

# --- a person leaves
my ($hand_over, $end_hers) = documented('A person leaves');
sql("INSERT INTO rk_apikeys.keys (name, tenant, owner) VALUES ('hers', 'acme', 'ann\@acme.example')", 'keeper');
my $hers = q{SELECT owner, status, revoked_reason FROM rk_apikeys.keys WHERE name = 'hers'};
sql($end_hers =~ s/'ann\@acme.example'/'eve\@acme.example'/r, 'keeper');
is(sql($hers, 'keeper'), 'ann@acme.example|active|', 'the keys of a person who leaves are its own alone');
sql($hand_over, 'keeper');
is(sql($hers, 'keeper'), 'bob@acme.example|active|', 'they get another owner');
sql($end_hers =~ s/'ann\@acme.example'/'bob\@acme.example'/r, 'keeper');
is(sql($hers, 'keeper'), 'bob@acme.example|revoked|the owner has left', 'or end');

# --- a tenant leaves
my ($end, $delete, $erase, $forget) = documented('A tenant leaves');
my $session = $node->background_psql('mydb', extra_params => [ '-U', 'backend' ]);
is(code($session, $acme), 'valid', 'a session has a key cached') foreach 1 .. 2;
sql($end, 'keeper');
is(code($session, $acme), 'revoked', 'the keys of a tenant that leaves end at once');
is(verdict($globex), 'valid', 'those of others stay');
sql($flush, 'keeper');
sql($delete, 'keeper');
is(code($session, $acme), 'unknown', 'and can be deleted');
my $rest = "SELECT (SELECT count(*) FROM rk_apikeys.key_usage WHERE tenant = 'acme'), (SELECT count(*) > 0 FROM rk_apikeys.key_usage_daily WHERE tenant = 'acme'),
	(SELECT count(*) > 0 FROM rk_apikeys.key_events WHERE tenant = 'acme')";
is(sql($rest), '0|t|t', 'events and days of use stay');
like(sql($erase, 'keeper'), qr/^0\|0\|[1-9]\d*\|0\|0\|0\|[1-9]\d*$/, 'until the tenant is erased');
is(sql($rest), '0|f|t', 'then one event stays');
is(sql("SELECT event FROM rk_apikeys.key_events WHERE tenant = 'acme'"), 'erased', 'which says so');
sql($forget, 'keeper');
is(sql("SELECT event FROM rk_apikeys.key_events WHERE tenant = 'acme'"), 'purged', 'and can be purged');
$session->quit;
done_testing();
