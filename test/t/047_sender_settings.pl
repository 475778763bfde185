# test/t/047_sender_settings.pl: use reaches a primary whose database and role have settings that would make the sender's statement an
# error, or make it run otherwise.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
$primary->start;
rk_extend($primary);
$primary->safe_psql('postgres', 'CREATE ROLE sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender');

# Types of the names of ours, first in the search_path; and a receipt that takes longer than the role's statement_timeout
$primary->safe_psql('postgres', <<'SQL');
CREATE SCHEMA evil;
CREATE DOMAIN evil.uuid AS text; CREATE DOMAIN evil.inet AS text; CREATE DOMAIN evil.timestamptz AS text; CREATE DOMAIN evil.text AS pg_catalog.int4;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
CREATE TRIGGER slow BEFORE INSERT ON rk_apikeys.usage_senders FOR EACH STATEMENT EXECUTE FUNCTION evil.slow();
SQL
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', sprintf "rk_apikeys.primary_conninfo = 'host=%s port=%s user=sender'", $primary->host, $primary->port);
$standby->start;

# Polls the primary until the query returns true; a failure to send ends the wait.
sub arrives
{
	my ($query) = @_;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		# The database's statement_timeout may end it
		my (undef, $result) = $primary->psql('postgres', $query);
		return 1 if $result eq 't';
		return 0 if logged($standby, qr/could not send the usage/);
		usleep(100_000);
	}
	return 0;
}

my ($id, $token) = create_key($primary, 'used');
$primary->wait_for_catchup($standby, 'replay');
my $uses = 0;
foreach my $setting ('array_nulls = off', "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kolkata'",
	"client_encoding = 'LATIN1'", "bytea_output = 'escape'", "search_path = evil, pg_catalog", "statement_timeout = '100ms'",
	'default_transaction_read_only = on', "default_transaction_isolation = 'serializable'", 'row_security = off', 'transform_null_equals = on')
{
	# A standby refuses every statement that would be serializable
	foreach my $place ($setting =~ /serializable/ ? () : 'DATABASE postgres', 'ROLE sender')
	{
		# Not of the superuser's own statements
		$primary->safe_psql('postgres', "SET default_transaction_read_only = off; SET search_path = pg_catalog; ALTER $place SET $setting");
		my $seen = $standby->safe_psql('postgres', 'SET statement_timeout = 0; SELECT clock_timestamp()');
		$uses++;
		is(sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token')"), 't', "$place, $setting: a use on the standby");
		ok(arrives("SELECT count(*) = 1 FROM rk_apikeys.key_usage WHERE key_id = '$id' AND use_count = $uses
			AND last_used_at BETWEEN '$seen' AND clock_timestamp()"), 'arrives, with its time') or die 'the setting stays, and so nothing else arrives';
		$primary->safe_psql('postgres', "SET default_transaction_read_only = off; SET search_path = pg_catalog; ALTER $place RESET ALL");
	}
}
is_deeply([ logged($standby, qr/could not send the usage/) ], [], 'and nothing is refused');

# A receipt that waits for another flush would fail by an older snapshot
$primary->safe_psql('postgres', "ALTER ROLE sender SET default_transaction_isolation = 'serializable'");
my $holder = session($primary, 'postgres');
$uses += hold_flushes($holder, $token) + 1;
is(sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token')"), 't', 'a use on the standby while another flush is open');
ok($primary->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'sender' AND wait_event_type = 'Lock'"), 'waits');
$holder->query_safe('COMMIT');
$holder->quit;
ok($primary->poll_query_until('postgres', "SELECT use_count = $uses FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 'and arrives');
is_deeply([ logged($standby, qr/could not serialize/) ], [], 'without an error of serialization');

# All at once; a refusal is told by the primary's own words
$primary->safe_psql('postgres', "SET search_path = pg_catalog; ALTER ROLE sender SET array_nulls = off; ALTER ROLE sender SET statement_timeout = '100ms';
	ALTER ROLE sender SET default_transaction_read_only = on; REVOKE EXECUTE ON FUNCTION rk_apikeys.receive_usage FROM sender");
is(sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token')"), 't', 'a use that the primary refuses');
ok($standby->poll_query_until('postgres', 'SELECT flush_lag_ms > 1000 FROM rk_apikeys.stats'), 'stays on the standby');
like((logged($standby, qr/could not send the usage/))[-1] // '', qr/permission denied for function receive_usage/, 'and the log says why');
$primary->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender');
$uses++;
ok($primary->poll_query_until('postgres', "SELECT use_count = $uses FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 'and arrives once it is allowed');

done_testing();
