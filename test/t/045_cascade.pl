# test/t/045_cascade.pl: a cascade and the COMMIT of a new key, beside prepared transactions, deadlocks, DDL, restores and replication.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('main', PRELOAD, 'wal_level = logical', 'max_wal_senders = 5', 'max_replication_slots = 5', 'max_prepared_transactions = 5', "deadlock_timeout = '100ms'");
$node->safe_psql('postgres', 'GRANT rk_apikeys_verifier TO acme');

# A session of acme in a transaction that has authenticated as a key, and has made a child of that name.
sub maker
{
	my ($token, $name) = @_;
	my $session = session($node, 'acme', on_error_stop => 0);
	$session->query_safe("BEGIN; SELECT code FROM rk_apikeys.authenticate('$token'); INSERT INTO rk_apikeys.keys (name) VALUES ('$name')");
	return $session;
}

sub cascade { return "SELECT rk_apikeys.revoke_key('$_[0]', 'leaked', cascade => true)" }

# Starts a cascade in a session, and returns once the server says that it waits.
sub waiting_cascade
{
	my ($id) = @_;
	my $session = session($node, 'acme', on_error_stop => 0);
	$session->query_until(qr/started/, "\\echo started\n" . cascade($id) . ";\n");
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%cascade%'})
	  or die 'the cascade does not wait';
	return $session;
}

sub status { return sql_as($node, 'acme', "SELECT status FROM rk_apikeys.keys WHERE name = '$_[0]'") }

# A prepared transaction holds the revocation up, and its key is ended.
my ($boss_id, $boss) = create_key($node, 'boss', q{scopes => '{apikeys:manage}'});
my $maker = maker($boss, 'prepared');
$maker->query_safe("PREPARE TRANSACTION 'made'");
my $revoker = waiting_cascade($boss_id);
$node->safe_psql('postgres', "COMMIT PREPARED 'made'");
$revoker->query_safe('SELECT 1');
is(status('prepared'), 'revoked', 'a cascade waits for the prepared transaction of a new key, and ends the key');

# Locks in opposite orders, which PostgreSQL may have to break: no key of the boss is left.
($boss_id, $boss) = create_key($node, 'boss', q{scopes => '{apikeys:manage}'});
sql_as($node, 'acme', "BEGIN; SELECT rk_apikeys.authenticate('$boss'); INSERT INTO rk_apikeys.keys (name) VALUES ('first'); COMMIT");
$maker = maker($boss, 'second');
$maker->query_safe(q{UPDATE rk_apikeys.keys SET description = 'x' WHERE name = 'first'});
$revoker = waiting_cascade($boss_id);
$maker->query('COMMIT');
$revoker->query('SELECT 1');
sql_as($node, 'acme', cascade($boss_id));
is(sql_as($node, 'acme', q{SELECT count(*) FROM rk_apikeys.keys WHERE name IN ('first', 'second') AND status <> 'revoked'}), '0', 'locks in opposite orders leave no key behind');

# The check waits for COMMIT, so DDL on the table is refused until then.
($boss_id, $boss) = create_key($node, 'boss', q{scopes => '{apikeys:manage}'});
my $ddl = "BEGIN; SELECT rk_apikeys.authenticate('$boss'); INSERT INTO rk_apikeys.keys (name) VALUES ('third');";
foreach my $sql ('ALTER TABLE rk_apikeys.api_keys ADD extra text', 'TRUNCATE rk_apikeys.api_keys')
{
	my (undef, undef, $err) = $node->psql('postgres', "$ddl $sql; COMMIT");
	like($err, qr/because it has pending trigger events/, "refused in the transaction that made a key: $sql");
	is($node->psql('postgres', "$ddl SET CONSTRAINTS ALL IMMEDIATE; $sql; ROLLBACK"), 0, 'and not after the check');
}

# Rows with a parent that is ended or gone are restored, replicated and copied.
sql_as($node, 'acme', "$ddl COMMIT");
sql_as($node, 'acme', cascade($boss_id));
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$boss_id'");
my $rows = "SELECT count(*), count(parent) FROM rk_apikeys.api_keys";
my $before = $node->safe_psql('postgres', $rows);
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'a dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'is restored');
is($node->safe_psql('restored', $rows), $before, 'with every row and parent');

my $subscriber = rk_node('subscriber');
$node->safe_psql('postgres', 'CREATE PUBLICATION keys FOR TABLE rk_apikeys.api_keys');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION keys CONNECTION '" . $node->connstr . " dbname=postgres' PUBLICATION keys");
$subscriber->wait_for_subscription_sync($node, 'keys');
($boss_id, $boss) = create_key($node, 'boss', q{scopes => '{apikeys:manage}'});
sql_as($node, 'acme', "BEGIN; SELECT rk_apikeys.authenticate('$boss'); INSERT INTO rk_apikeys.keys (name) VALUES ('fourth'); COMMIT");
sql_as($node, 'acme', cascade($boss_id));
$node->wait_for_catchup('keys');
is($subscriber->safe_psql('postgres', $rows), $node->safe_psql('postgres', $rows), 'a subscriber gets every row');
is($subscriber->safe_psql('postgres', q{SELECT count(revoked_at) FROM rk_apikeys.api_keys WHERE name = 'fourth'}), '1', 'and the end of a cascade');

done_testing();
