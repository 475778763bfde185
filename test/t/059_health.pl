# test/t/059_health.pl: the view health is empty on a healthy server, shows each thing to do, and is empty again once that is done.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('health', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'rk_apikeys.max_tracked_keys = 16', 'wal_level = logical', 'max_wal_senders = 10');
$node->safe_psql('postgres', q{CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor; CREATE ROLE app LOGIN; CREATE ROLE "Odd ""Role" LOGIN;
	CREATE ROLE sender LOGIN; CREATE ROLE replicator LOGIN REPLICATION BYPASSRLS; CREATE ROLE nologin; CREATE ROLE super SUPERUSER LOGIN});

# What the least role that may ask finds, and the statements that mend it
my $all = 'SELECT name, severity, object FROM rk_apikeys.health ORDER BY 1, object COLLATE "C"';
sub health
{
	my ($server, $sql) = @_;
	return sql_as($server, 'auditor', 'BEGIN READ ONLY; ' . ($sql // $all) . '; COMMIT');
}
sub mend
{
	my ($server) = @_;
	$server->safe_psql('postgres', $_) foreach split /\n/, health($server, 'SELECT mend FROM rk_apikeys.health ORDER BY object');
}
# Polls until health is as said
sub becomes
{
	my ($server, $rows, $name) = @_;
	my $query = "SELECT coalesce(string_agg(concat_ws('|', name, severity, object), ' ' ORDER BY name, object), '') = '$rows' FROM rk_apikeys.health";
	ok($server->poll_query_until('postgres', $query), $name) or diag(health($server));
}

becomes($node, '', 'a new database needs nothing');
is(sql_as($node, 'boss', 'SELECT count(*) FROM rk_apikeys.health'), '0', 'an administrator may ask');
foreach my $role ('acme', 'backend', 'app')
{
	$node->psql('postgres', "\\set VERBOSITY sqlstate\nSELECT FROM rk_apikeys.health", stderr => \my $error, extra_params => [ '-U', $role ]);
	like($error, qr/ERROR:  42501/, "$role may not");
}
my (undef, $token) = create_key($node, 'principal', q{scopes => '{*}'});
$node->safe_psql('postgres', 'CREATE ROLE either LOGIN IN ROLE rk_apikeys_auditor, rk_apikeys_verifier');
$node->psql('postgres', "\\set VERBOSITY sqlstate\nBEGIN; SELECT FROM rk_apikeys.authenticate('$token'); SELECT FROM rk_apikeys.health",
	stderr => \my $refused, extra_params => [ '-U', 'either' ]);
like($refused, qr/ERROR:  42501/, 'nor may a principal');

# --- what SQL can mend -----------------------------------------------------------------------------------------------------

my $table = 'ALTER TABLE rk_apikeys.api_keys';
my $records = 'CREATE TABLE public."Rec ords" (tenant text); ALTER TABLE public."Rec ords" OWNER TO app;
	CREATE POLICY p ON public."Rec ords" USING (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope($$a$$)));';
my $enabled = "$records ALTER TABLE public.\"Rec ords\" ENABLE ROW LEVEL SECURITY;";
my $drop = 'DROP TABLE public."Rec ords"';
my @sick = (
	(map { [ "ALTER TABLE rk_apikeys.$_ DISABLE TRIGGER USER", $node->safe_psql('postgres', qq{SELECT concat_ws('|', 'triggers', CASE tgenabled WHEN 'A' THEN 'warning' ELSE 'error' END, tgname)
		FROM pg_trigger WHERE tgrelid = 'rk_apikeys.$_'::regclass AND NOT tgisinternal ORDER BY tgname COLLATE "C"}) ] } qw(api_keys policies limits)),
	[ "$table DISABLE TRIGGER ALL; $table ENABLE TRIGGER ALL", "triggers|warning|api_keys_settle\ntriggers|warning|api_keys_settle_imported" ],
	[ "$table ENABLE REPLICA TRIGGER api_keys_guard, ENABLE ALWAYS TRIGGER api_keys_make", "triggers|error|api_keys_guard\ntriggers|warning|api_keys_make" ],
	(map { [ "ALTER TABLE rk_apikeys.key_events $_ TRIGGER key_events_place", 'triggers|warning|key_events_place' ] }
		'ENABLE', 'ENABLE ALWAYS', 'DISABLE'),
	[ q{SELECT setval('rk_apikeys.key_events_event_id_seq', 1, false)}, 'event_numbers|info|rk_apikeys.key_events_event_id_seq' ],
	(map { [ "ALTER TABLE rk_apikeys.$_ DISABLE ROW LEVEL SECURITY", "row_security|error|rk_apikeys.$_" ] }
		  qw(api_keys key_usage key_usage_daily key_events limit_usage limits policies unrecorded_uses usage_senders)),
	# FORCE is what is left to do
	[ $records, 'row_security|error|public."Rec ords"', 'row_security|warning|public."Rec ords"', $drop ],
	[ $enabled, 'row_security|warning|public."Rec ords"', '', $drop ],
	[ 'GRANT SELECT (digest), UPDATE (digest, name), SELECT (name) ON rk_apikeys.api_keys TO app',
		join "\n", map { "grants|warning|rk_apikeys.api_keys.$_" } 'digest', 'name' ],
	[ 'GRANT ALL ON rk_apikeys.api_keys TO rk_apikeys_auditor', 'grants|warning|rk_apikeys.api_keys' ],
	[ 'GRANT SELECT ON rk_apikeys.api_keys TO app WITH GRANT OPTION; GRANT SELECT ON rk_apikeys.keys TO rk_apikeys_auditor WITH GRANT OPTION;
		SET SESSION AUTHORIZATION app; GRANT SELECT ON rk_apikeys.api_keys TO "Odd ""Role"',
		"grants|warning|rk_apikeys.api_keys\ngrants|warning|rk_apikeys.api_keys\ngrants|warning|rk_apikeys.keys" ],
	[ 'GRANT CREATE ON SCHEMA rk_apikeys TO "Odd ""Role"', 'grants|warning|rk_apikeys' ],
	[ 'GRANT USAGE ON SEQUENCE rk_apikeys.key_events_event_id_seq TO PUBLIC', 'grants|warning|rk_apikeys.key_events_event_id_seq' ],
	[ 'GRANT EXECUTE ON FUNCTION rk_apikeys.purge_keys, rk_apikeys._keys_make TO PUBLIC',
		"grants|warning|rk_apikeys._keys_make()\ngrants|warning|rk_apikeys.purge_keys(interval)" ],
	[ 'GRANT EXECUTE ON PROCEDURE rk_apikeys.purge TO app', 'grants|warning|rk_apikeys.purge(interval,interval,interval)' ],
	[ 'GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender WITH GRANT OPTION',
		'grants|warning|rk_apikeys.receive_usage(uuid,bigint,text[],text[],timestamp with time zone[],inet[],bigint[],bigint[],bigint[],bigint[],date[],uuid[])' ],
	# What PUBLIC may do too, stays
	[ 'GRANT USAGE ON TYPE rk_apikeys.verdict TO app WITH GRANT OPTION', 'grants|warning|rk_apikeys.verdict', '',
		'REVOKE USAGE ON TYPE rk_apikeys.verdict FROM app' ],
	[ 'GRANT SET ON PARAMETER rk_apikeys.principal TO app', 'grants|warning|rk_apikeys.principal' ]);
my $plain = catalog($node, 'postgres');
foreach my $case (@sick)
{
	my ($sql, $rows, $left, $clean) = @$case;
	my ($name) = $sql =~ /^(.{1,100})/;
	$node->safe_psql('postgres', $sql);
	is(health($node) =~ s/pg_catalog\.//gr, $rows, $name);
	mend($node);
	is(health($node), $left // '', '... is mended');
	mend($node);
	$node->safe_psql('postgres', $clean // '');
	is(health($node), '', '... and nothing is left to do');
	same_catalog($plain, catalog($node, 'postgres'), '... and all is as it was');
}
$node->safe_psql('postgres', 'DROP TRIGGER api_keys_guard ON rk_apikeys.api_keys');
is(health($node, 'SELECT name, severity, object, mend FROM rk_apikeys.health'),
	'triggers|error|api_keys_guard|Create the trigger as the install script does.', 'a trigger that is missing');
$node->safe_psql('postgres', 'CREATE TRIGGER api_keys_guard BEFORE UPDATE ON rk_apikeys.api_keys FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_guard()');
is(health($node), '', 'is made again');

# What the documents say to do is nothing to mend
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender;
	GRANT USAGE ON SCHEMA rk_apikeys TO replicator; GRANT SELECT ON rk_apikeys.api_keys, rk_apikeys.key_usage TO replicator;
	GRANT SET ON PARAMETER rk_apikeys.tenant TO app; GRANT ALL ON rk_apikeys.api_keys TO super WITH GRANT OPTION; ALTER POLICY all_tenants ON rk_apikeys.api_keys RENAME TO everyone;
	ALTER POLICY everyone ON rk_apikeys.api_keys RENAME TO all_tenants; REVOKE INSERT (rate_limit) ON rk_apikeys.keys FROM rk_apikeys_manager');
foreach my $owner ('nologin', 'super', 'replicator')
{
	$node->safe_psql('postgres', "$enabled; ALTER TABLE public.\"Rec ords\" OWNER TO $owner");
	is(health($node), '', "grants as documented, and a table of $owner");
	$node->safe_psql('postgres', $drop);
}
$node->safe_psql('postgres', 'GRANT INSERT (rate_limit) ON rk_apikeys.keys TO rk_apikeys_manager');

# --- peppers ---------------------------------------------------------------------------------------------------------------

my $file = PostgreSQL::Test::Utils::tempdir . '/peppers';
sub peppers
{
	my ($mode, @ids) = @_;
	unlink $file;
	append_to_file($file, join '', map { "$_:" . ('cGVwcGVy' x 4) . "\n" } @ids);
	chmod $mode, $file or die;
	$node->reload;
}
peppers(0600, 1, 2);
$node->append_conf('postgresql.conf', "rk_apikeys.pepper_file = '$file'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT setting <> '' FROM pg_settings WHERE name = 'rk_apikeys.pepper_file'}) or die;
create_key($node, 'signed');
becomes($node, '', 'a pepper that is there');
peppers(0600, 1);
becomes($node, 'pepper|error|2', 'a pepper that is missing');
like(health($node, 'SELECT message, mend FROM rk_apikeys.health'), qr/pepper 2, which is missing\|Put the pepper back/, 'says what to do');
peppers(0644, 1, 2);
becomes($node, 'pepper|error', 'a file that all can read');
like(health($node, 'SELECT message, mend FROM rk_apikeys.health'), qr/group or world access\|.*mode 0600/, 'says what is wrong');
unlike(health($node, 'SELECT message, mend FROM rk_apikeys.health'), qr/\Q$file/, 'without the name of the file');
is(health($node, q{SELECT count(*) FROM rk_apikeys.health WHERE name <> 'pepper'}), '0', 'it can be left out');
peppers(0600, 1, 2);
becomes($node, '', 'the file as it was');

# --- room ------------------------------------------------------------------------------------------------------------------

sub use_keys
{
	my ($from, $to) = @_;
	foreach ($from .. $to)
	{
		my (undef, $secret) = create_key($node, "used $_");
		sql_as($node, 'backend', "SELECT rk_apikeys.verify('$secret')");
	}
}
# No flush makes room meanwhile
my $holder = session($node, 'postgres');
$holder->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN EXCLUSIVE MODE');
use_keys(1, 13);
is(health($node), 'room|warning|', 'many keys are pending');
use_keys(14, 20);
is(health($node), 'room|error|', 'uses were not recorded');
$holder->quit;
mend($node);
$node->restart;
becomes($node, '', 'a restart with more room');
is(stat_of($node, 'max_tracked_keys'), '32', 'which the statement has set');

# --- the flush, the launcher -------------------------------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
my $locker = session($node, 'postgres');
$locker->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN SHARE ROW EXCLUSIVE MODE');
use_keys(21, 21);
becomes($node, 'flush|error', 'a flush that a lock holds up');
like(health($node, 'SELECT message, mend FROM rk_apikeys.health'), qr/not been written for 1\d seconds\|.*server log/, 'says for how long');
$locker->query_safe('ROLLBACK');
$locker->quit;
becomes($node, '', 'a flush that goes on');
$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
$node->restart;
becomes($node, 'launcher|error', 'no place for the launcher');
mend($node);
$node->restart;
becomes($node, '', 'the launcher has a place');

# --- other kinds of servers ----------------------------------------------------------------------------------------------

# A standby, without and with the address of the primary
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
becomes($standby, '', 'a standby that sends nothing');
sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token')");
$standby->poll_query_until('postgres', 'SELECT flush_lag_ms > 12000 FROM rk_apikeys.stats') or die 'nothing is pending';
is(health($standby), '', 'and has pending use for long');
my $conninfo = 'host=' . $node->host . ' port=' . $node->port;
$standby->append_conf('postgresql.conf', "rk_apikeys.primary_conninfo = '$conninfo user=nobody'");
$standby->reload;
becomes($standby, 'delivery|warning', 'a standby that may not send');
$standby->append_conf('postgresql.conf', "rk_apikeys.primary_conninfo = '$conninfo user=sender'");
$standby->reload;
becomes($standby, '', 'a standby that sends');
is(health($node), '', 'its primary');
$standby->stop;

# A subscriber of the keys, and one of all tables
foreach my $tables ('FOR TABLE rk_apikeys.api_keys', 'FOR ALL TABLES')
{
	my $subscriber = rk_node($tables =~ /ALL/ ? 'all' : 'keys', PRELOAD);
	$subscriber->safe_psql('postgres', 'CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor');
	$node->safe_psql('postgres', "CREATE PUBLICATION p $tables");
	$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION p CONNECTION '$conninfo user=postgres dbname=postgres' PUBLICATION p");
	$subscriber->wait_for_subscription_sync($node, 'p');
	sql_as($node, 'acme', q{UPDATE rk_apikeys.keys SET description = 'changed'});
	$node->wait_for_catchup('p');
	$subscriber->safe_psql('postgres', q{ALTER SYSTEM SET rk_apikeys.pepper_file = '} . $file . q{'; SELECT pg_reload_conf()});
	becomes($subscriber, '', "a subscriber, $tables");
	$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION p');
	$node->safe_psql('postgres', 'DROP PUBLICATION p');
	$subscriber->stop;
}
$node->stop;

# Without preload; the first statement of a session asks
my $bare = rk_node('bare');
$bare->safe_psql('postgres', 'CREATE ROLE auditor LOGIN IN ROLE rk_apikeys_auditor');
is(health($bare), 'preload|info|', 'without preload that is all');
my (undef, $used) = create_key($bare, 'used');
is(sql_as($bare, 'backend', "SELECT rk_apikeys.verify('$used')"), 't', 'a key is used');
is(health($bare), 'preload|info|', 'and nothing more is to do');
$bare->append_conf('postgresql.conf', PRELOAD);
$bare->restart;
becomes($bare, '', 'with preload nothing');

done_testing();
