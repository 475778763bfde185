# test/t/077_policies.pl: policies beside prepared transactions, many sessions, locks, restores, replication and shared memory.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('main', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'wal_level = logical', 'max_wal_senders = 5', 'max_replication_slots = 5',
	'max_prepared_transactions = 5', 'log_lock_waits = on');
my $good = q{revoked_at IS NULL AND grace_until IS NULL AND coalesce(expires_at, 'infinity') > clock_timestamp()};
sub policy { sql_as($node, 'boss', "DELETE FROM rk_apikeys.policies; INSERT INTO rk_apikeys.policies $_[0]") }
sub insert { return "INSERT INTO rk_apikeys.keys (name) SELECT '$_[0]' FROM generate_series(1, $_[1])" }
sub keys_of { return $node->safe_psql('postgres', "SELECT count(*) FROM rk_apikeys.api_keys WHERE tenant = '$_[0]' AND $good") }
# The code of the error that a statement ends with
sub error_of
{
	my ($role, $sql) = @_;
	$node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", stderr => \my $error, extra_params => [ '-U', $role ]);
	return $error =~ /ERROR:  (\w{5})/ ? $1 : '';
}

# A prepared transaction counts, until it is over.
policy('(tenant, max_keys) VALUES ($$acme$$, 10)');
sql_as($node, 'acme', 'BEGIN; ' . insert('prepared', 6) . "; PREPARE TRANSACTION 'six'");
is(error_of('acme', "SET lock_timeout = '100ms'; " . insert('more', 5)), '55P03', 'a prepared transaction that gives keys holds the next one up');
is(error_of('globex', insert('more', 11)), '', 'but not one of another tenant');
$node->safe_psql('postgres', "COMMIT PREPARED 'six'");
is(error_of('acme', insert('more', 5)), '23514', 'its keys count after its COMMIT');
is(error_of('acme', insert('more', 4)), '', 'up to max_keys');

# No advisory lock is in the way, not even of the lock's own numbers.
my $holder = session($node, 'acme', on_error_stop => 0);
$holder->query_safe('BEGIN; DELETE FROM rk_apikeys.keys WHERE name = $$more$$; ' . insert('more', 4));
my $lock = $node->safe_psql('postgres', q{SELECT classid, objid FROM pg_locks WHERE locktype = 'object' AND classid = 'rk_apikeys.policies'::regclass AND mode = 'ExclusiveLock'});
like($lock, qr/^\d+\|\d+$/, 'one lock, of an object of the class policies');
$holder->query_safe('ROLLBACK');
my ($class, $object) = split /\|/, $lock;
$holder->query_safe("SELECT pg_advisory_lock($class, ${object}::bigint::bit(32)::int), pg_advisory_lock($object), pg_advisory_lock($class)");
sql_as($node, 'acme', 'DELETE FROM rk_apikeys.keys WHERE name = $$more$$');
is(error_of('acme', "SET lock_timeout = '1s'; " . insert('more', 4)), '', 'no advisory lock holds a new key up');
$holder->quit;

# verify reads no policy.
my (undef, $token) = create_key($node, 'verified', undef, 'globex');
my $closed = session($node, 'postgres');
$closed->query_safe('BEGIN; LOCK rk_apikeys.policies');
is(sql_as($node, 'backend', "SET lock_timeout = '1s'; SELECT code FROM rk_apikeys.verify_key('$token')"), 'valid', 'a locked table of policies does not hold verify up');
$closed->query_safe('ROLLBACK');
$closed->quit;

# A message of several statements can be several transactions with one start time.
{
	my $gate = session($node, 'postgres');
	my ($out, $err) = ('', '');
	policy('(tenant, max_lifetime) VALUES ($$acme$$, $$1 year$$)');
	$gate->query_safe('SELECT pg_advisory_lock(7)');
	my $message = IPC::Run::start([ 'psql', '-XAtq', '-h', $node->host, '-p', $node->port, '-U', 'acme', '-v', 'VERBOSITY=sqlstate', '-d', 'postgres', '-c',
			q{BEGIN; INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('first', now() + interval '1 day'); COMMIT; SELECT pg_advisory_lock(7);
				BEGIN; INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('second', now() + interval '1 day'); COMMIT} ],
		'<', \undef, '>', \$out, '2>', \$err);
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory'}) or die 'the message does not wait';
	policy('(tenant, max_lifetime) VALUES ($$acme$$, $$1 hour$$)');
	$gate->query_safe('SELECT pg_advisory_unlock(7)');
	$message->finish;
	like($err, qr/23514/, 'a later transaction of one message reads the policies anew');
	is($node->safe_psql('postgres', q{SELECT string_agg(name, ' ') FROM rk_apikeys.api_keys WHERE name IN ('first', 'second')}), 'first', 'and makes no key');
	$gate->quit;
}

# Many sessions make, rotate, revoke, delete, enable and prolong keys. Nobody ever sees too many, and there is no deadlock.
$node->safe_psql('postgres', 'DELETE FROM rk_apikeys.api_keys');
policy('(tenant, environment, max_keys) VALUES (NULL, NULL, 12), ($$acme$$, $$dev$$, 5)');
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/change.sql", q{\set n random(1, 4)
\set what random(1, 8)
DO $$
DECLARE
  one text;
BEGIN
  PERFORM pg_sleep(random() / 500);
  SELECT key_id INTO one FROM rk_apikeys.keys WHERE status IN ('active', 'disabled') ORDER BY random() LIMIT 1;
  CASE current_setting('my.what')::int
    WHEN 1, 2 THEN INSERT INTO rk_apikeys.keys (name) SELECT 'p' FROM generate_series(1, current_setting('my.n')::int);
    WHEN 3 THEN INSERT INTO rk_apikeys.orm_keys (name, environment, expires_at) SELECT 'd', 'dev', clock_timestamp() + random() * interval '0.1 s' + interval '0.1 s'
      FROM generate_series(1, current_setting('my.n')::int);
    WHEN 4 THEN PERFORM rk_apikeys.rotate_key(one);
    WHEN 5 THEN PERFORM rk_apikeys.rotate_key(one, '1 s', clock_timestamp() + interval '0.3 s');
    WHEN 6 THEN PERFORM rk_apikeys.revoke_key(one);
    WHEN 7 THEN UPDATE rk_apikeys.keys SET expires_at = clock_timestamp() + interval '0.2 s' WHERE key_id = (SELECT key_id FROM rk_apikeys.keys
      WHERE revoked_at IS NULL AND expires_at IS NOT NULL AND grace_until IS NULL ORDER BY random() LIMIT 1);
    ELSE WITH gone AS (DELETE FROM rk_apikeys.keys WHERE key_id = one RETURNING environment)
      INSERT INTO rk_apikeys.keys (name, environment) SELECT 'r', environment FROM gone;
  END CASE;
EXCEPTION WHEN check_violation OR object_not_in_prerequisite_state OR undefined_object OR serialization_failure OR invalid_parameter_value THEN
  NULL;
END $$;
} =~ s/^(\\set what.*\n)/$1SELECT set_config('my.n', (:n)::text, false), set_config('my.what', (:what)::text, false);\n/mr);
my @load = ('pgbench', '-n', '-c', 6, '-T', 15, '-U', 'acme', '-h', $node->host, '-p', $node->port, '-f', "$dir/change.sql");
my @runs = map { IPC::Run::start([ 'env', "PGOPTIONS=-c default_transaction_isolation=$_", @load, 'postgres' ], '>', \my $out, '2>', \my $err) }
  ('read\ committed', 'repeatable\ read');
my $watch = session($node, 'postgres');
my ($most, $most_dev, $looks) = (0, 0, 0);
while (grep { $_->pumpable } @runs)
{
	my ($all, $dev) = split /\|/, $watch->query_safe("SELECT count(*), count(*) FILTER (WHERE environment = 'dev') FROM rk_apikeys.api_keys WHERE $good");
	($most, $most_dev, $looks) = ($most < $all ? $all : $most, $most_dev < $dev ? $dev : $most_dev, $looks + 1);
	$_->pump_nb foreach grep { $_->pumpable } @runs;
}
$watch->quit;
ok($_->finish, 'the sessions work') foreach @runs;
cmp_ok($looks, '>', 50, "looked $looks times");
is($most, 12, 'at most max_keys, and as many');
is($most_dev, 5, 'at most max_keys of the environment, and as many');
isnt($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'rotated'}), '0', 'keys were rotated meanwhile');
unlike(slurp_file($node->logfile), qr/deadlock detected/, 'no deadlock');

# Health says which keys are beyond a policy, and what to do.
$node->safe_psql('postgres', 'DELETE FROM rk_apikeys.api_keys');
my ($used_id, $used) = create_key($node, 'used');
sql_as($node, 'acme', insert($_, 1)) foreach qw(idle locked held);
policy('(max_idle, max_keys) VALUES ($$30 days$$, 3)');
$node->safe_psql('postgres', q{SET session_replication_role = replica; UPDATE rk_apikeys.api_keys SET created_at = now() - interval '31 days'});
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used')");
is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage'), '0', 'the use is pending in shared memory');
my $health = 'SELECT severity, object, message, mend FROM rk_apikeys.health WHERE name = $$policy$$ ORDER BY object';
is(sql_as($node, 'boss', $health), "warning|max_idle|3 keys are beyond their policy|SELECT rk_apikeys.disable_idle_keys();\n" .
	'warning|max_keys|1 keys are beyond their policy|Look at rk_apikeys.noncompliant_keys. Change these keys, or end them.', 'health');

# A key that another transaction holds is left for the next time, and pending use counts.
my $busy = session($node, 'acme');
$busy->query_safe("BEGIN; UPDATE rk_apikeys.keys SET description = 'x' WHERE name = 'locked'");
my $other = session($node, 'boss');
$other->query_safe("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM rk_apikeys.keys");
is(sql_as($node, 'boss', "SET lock_timeout = '1s'; SELECT rk_apikeys.disable_idle_keys()"), '2', 'two idle keys are disabled');
is($other->query_safe('SELECT rk_apikeys.disable_idle_keys()'), '0', 'a second session at another isolation level finds none');
$other->query_safe('COMMIT');
$busy->query_safe('COMMIT');
is(sql_as($node, 'acme', q{SELECT string_agg(name, ' ' ORDER BY name) FROM rk_apikeys.keys WHERE enabled}), 'locked used', 'which are the others');
is($other->query_safe('SELECT rk_apikeys.disable_idle_keys()'), '1', 'the locked one is disabled the next time');
$_->quit foreach $busy, $other;

# A dump has the policies, and its restore adds no event and refuses no key.
policy(q{(tenant, environment, max_lifetime, max_idle, max_keys, allowed_scopes, require_cidrs, require_owner)
	VALUES ('acme', 'prod', '1 day', '1 hour', 1, '{a,b:*}', true, true), (NULL, NULL, NULL, NULL, 2, NULL, false, false)});
my $events = $node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_events');
my $policies = 'SELECT * FROM rk_apikeys.policies ORDER BY tenant, environment';
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/dump", $node->connstr('postgres') ], 'dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), "$dir/dump" ], 'restore');
is($node->safe_psql('restored', $policies), $node->safe_psql('postgres', $policies), 'the policies are the same');
is($node->safe_psql('restored', 'SELECT count(*) FROM rk_apikeys.key_events'), $events, 'no event more');
is($node->safe_psql('restored', 'SELECT count(*) FROM rk_apikeys.api_keys'), '4', 'keys that break a policy are restored');
is($node->safe_psql('restored', q{SELECT string_agg(DISTINCT rule, ' ' ORDER BY rule) FROM rk_apikeys.noncompliant_keys}),
	'max_idle max_keys max_lifetime require_cidrs require_owner', 'and are listed');

# Logical replication brings keys that a policy of the subscriber refuses, and the policies themselves.
my $subscriber = rk_node('subscriber', PRELOAD);
sql_as($subscriber, 'boss', 'INSERT INTO rk_apikeys.policies (tenant, max_keys, require_owner) VALUES ($$acme$$, 0, true)');
$node->safe_psql('postgres', 'CREATE PUBLICATION keys FOR TABLE rk_apikeys.api_keys, rk_apikeys.policies');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION keys CONNECTION '" . $node->connstr . " dbname=postgres' PUBLICATION keys");
$subscriber->wait_for_subscription_sync($node, 'keys');
sql_as($node, 'boss', q{UPDATE rk_apikeys.policies SET max_keys = NULL WHERE tenant IS NULL; DELETE FROM rk_apikeys.policies WHERE tenant = 'acme'});
sql_as($node, 'acme', insert('later', 3) . q{; UPDATE rk_apikeys.keys SET enabled = true});
$node->wait_for_catchup('keys');
is($subscriber->safe_psql('postgres', 'SELECT count(*), bool_and(enabled) FROM rk_apikeys.api_keys'), '7|t', 'the keys are there');
is($subscriber->safe_psql('postgres', 'SELECT tenant, environment, max_keys, require_owner FROM rk_apikeys.policies ORDER BY tenant'), "acme||0|t\n|||f", 'so are the policies');
$subscriber->psql('postgres', insert('here', 1), stderr => \my $refused, extra_params => [ '-U', 'acme' ]);
like($refused, qr/owner of an API key is required/, 'the subscriber binds its own keys');

done_testing();
