# test/t/048_trigger_states.pl: a restore leaves the triggers of api_keys and limits in another state; no session honours a key that has ended,
# or a limit that has changed, and an update of the extension sets the states again.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = rk_node('publisher', 'wal_level = logical', 'max_wal_senders = 5', PRELOAD);
my $subscriber = rk_node('subscriber', PRELOAD);
$publisher->safe_psql('postgres', 'CREATE PUBLICATION keys FOR TABLE rk_apikeys.api_keys, rk_apikeys.limits');
my $conninfo = $publisher->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION keys CONNECTION '$conninfo' PUBLICATION keys");
$subscriber->wait_for_subscription_sync($publisher, 'keys');

my $states = q{SELECT string_agg(format('%s=%s', tgname, tgenabled), ' ' ORDER BY tgname) FROM pg_trigger
	WHERE tgrelid = 'rk_apikeys.api_keys'::regclass};
my $fresh = $subscriber->safe_psql('postgres', $states);
my $table = 'ALTER TABLE rk_apikeys.api_keys';
my %after = (
	'pg_restore --disable-triggers' => "$table DISABLE TRIGGER ALL; $table ENABLE TRIGGER ALL",
	'DISABLE TRIGGER USER' => "$table DISABLE TRIGGER USER; $table ENABLE TRIGGER USER",
	'one trigger at ORIGIN' => "$table ENABLE TRIGGER api_keys_settle",
	'one trigger at REPLICA' => "$table ENABLE REPLICA TRIGGER api_keys_settle",
	'one trigger disabled' => "$table DISABLE TRIGGER api_keys_settle");

foreach my $how (sort keys %after)
{
	my ($id, $token) = create_key($publisher, $how);
	$publisher->wait_for_catchup('keys');
	my $session = session($subscriber, 'backend');
	is(code($session, $token), 'valid', "$how: the key is good, before") foreach 1 .. 3;
	$subscriber->safe_psql('postgres', $after{$how});
	is(code($session, $token), 'valid', "$how: and after") foreach 1 .. 3;
	sql_as($publisher, 'acme', "SELECT rk_apikeys.revoke_key('$id')");
	$publisher->wait_for_catchup('keys');
	is(code($session, $token), 'revoked', "$how: a revocation that replication applies is seen");
	$session->quit;
}

# A limit that replication adds, changes or deletes is seen too.
my $limits = 'ALTER TABLE rk_apikeys.limits';
my $always = "$table ENABLE ALWAYS TRIGGER api_keys_settle, ENABLE ALWAYS TRIGGER api_keys_settle_imported;
	$limits ENABLE ALWAYS TRIGGER limits_settle, ENABLE ALWAYS TRIGGER limits_settle_truncate";
my %limits_after = ('fresh' => 'SELECT', 'pg_restore --disable-triggers' => "$limits DISABLE TRIGGER ALL; $limits ENABLE TRIGGER ALL");
my (undef, $limited) = create_key($publisher, 'limited');
$publisher->wait_for_catchup('keys');
foreach my $how (sort keys %limits_after)
{
	my $session = session($subscriber, 'backend');
	my $seen = sub { return $session->query_safe("SELECT code, limit_units FROM rk_apikeys.verify_key('$limited')"); };
	my $apply = sub { sql_as($publisher, 'boss', $_[0]); $publisher->wait_for_catchup('keys'); };
	$subscriber->safe_psql('postgres', $always);
	is($seen->(), 'valid|', "limits, $how: none") foreach 1 .. 2;
	$subscriber->safe_psql('postgres', $limits_after{$how});
	is($seen->(), 'valid|', "limits, $how: none yet") foreach 1 .. 2;
	$apply->(q{INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('acme', 'calls', 1000, '1 minute')});
	is($seen->(), 'valid|1000', "limits, $how: one that replication adds is seen") foreach 1 .. 2;
	$apply->(q{UPDATE rk_apikeys.limits SET units = 500});
	is($seen->(), 'valid|500', "limits, $how: its change is seen") foreach 1 .. 2;
	$subscriber->safe_psql('postgres', q{INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '-infinity', 1, tenant FROM rk_apikeys.limits});
	$apply->(q{DELETE FROM rk_apikeys.limits});
	is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.limit_usage'), '0', 'no usage of a deleted limit stays') if $how eq 'fresh';
	$subscriber->safe_psql('postgres', 'DELETE FROM rk_apikeys.limit_usage');
	is($seen->(), 'valid|', "limits, $how: and its end") foreach 1 .. 2;
	$session->quit;
}
$subscriber->safe_psql('postgres', $always);

# "There are no imported keys" is not remembered either.
my $session = session($subscriber, 'backend');
my $imported = 'an imported token of 30 bytes!';
$subscriber->safe_psql('postgres', "$table ENABLE ALWAYS TRIGGER api_keys_settle, ENABLE TRIGGER api_keys_settle_imported");
is(code($session, $imported), 'malformed', 'no imported key') foreach 1 .. 2;
sql_as($publisher, 'boss', qq{SELECT rk_apikeys.import_key('i', sha256('$imported'), 'sha256', tenant => 'acme')});
$publisher->wait_for_catchup('keys');
is(code($session, $imported), 'valid', 'an imported key that replication applies is seen');

# With the right states, rows are kept again.
$subscriber->safe_psql('postgres', "$table ENABLE ALWAYS TRIGGER api_keys_settle_imported");
is($subscriber->safe_psql('postgres', $states), $fresh, 'the states are as they were');
my (undef, $token) = create_key($publisher, 'kept');
$publisher->wait_for_catchup('keys');
my $misses = 'SELECT cache_misses FROM rk_apikeys.stats';
code($session, $token) foreach 1 .. 3;
my $before = $subscriber->safe_psql('postgres', $misses);
is(code($session, $token), 'valid', 'a key') foreach 1 .. 5;
is($subscriber->safe_psql('postgres', $misses), $before, 'is kept, and not read again');
$session->quit;
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION keys');

# The update sets the states.
install_release('0.2');
$publisher->safe_psql('postgres', 'CREATE DATABASE old');
$publisher->safe_psql('old', q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE});
$publisher->safe_psql('old', "$table DISABLE TRIGGER USER");
$publisher->safe_psql('old', 'ALTER EXTENSION rk_apikeys UPDATE');
is($publisher->safe_psql('old', $states), $fresh, 'the update sets the states of all triggers');
done_testing();
