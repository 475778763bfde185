# test/t/093_charge_at_commit.pl: with charge => 'commit' a verify reserves units, COMMIT and PREPARE settle them, and everything else returns
# them: a rollback, a savepoint, an error, a cancel, the end of a session and of the server.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('primary');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'max_prepared_transactions = 5',
	'restart_after_crash = on', 'min_parallel_table_scan_size = 0', 'parallel_setup_cost = 0', 'parallel_tuple_cost = 0');
$node->start;
rk_extend($node);
$node->safe_psql('postgres', 'CREATE ROLE other LOGIN IN ROLE rk_apikeys_verifier; GRANT pg_signal_backend TO other;
	CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO once VALUES (1);
	CREATE TABLE many AS SELECT generate_series(1, 1000) n; ANALYZE many;
	GRANT SELECT, INSERT ON once, many TO backend; GRANT TEMPORARY ON DATABASE postgres TO backend');

# A key with a rate limit of its own, that a shared rate limit, a shared quota and a quota per key bind.
use constant UNITS => 1000;
sql_as($node, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window, period, per_key, always) VALUES
	('acme', 'rate', 1000, '366 days', NULL, false, true), ('acme', 'quota', 1000, NULL, 'total', false, true),
	('acme', 'each', 1000, NULL, 'total', true, true), ('acme', 'small', 3, NULL, 'total', false, false),
	('acme', 'brief', 2, '366 days', NULL, false, false)});
my $quota = sql_as($node, 'boss', q{SELECT limit_id FROM rk_apikeys.limits WHERE name = 'quota'});
my (undef, $token) = create_key($node, 'charged', "rate_limit => 1000, rate_window => '366 days'");
my $family = sql_as($node, 'acme', q{SELECT family FROM rk_apikeys.keys WHERE name = 'charged'});

# What remains of each limit of 1000, as a verify in another session would find it.
my $remaining = q{SELECT string_agg(name || ' ' || remaining, ', ' ORDER BY name) FROM rk_apikeys.limit_status WHERE units = 1000};
sub remains { my ($left) = @_; return join ', ', map { "$_ $left" } qw(each quota rate rate_limit); }
my $left = UNITS;

# Until then a session that was lost may not have ended.
sub is_left
{
	my ($expected, $name, $server) = @_;
	$server //= $node;
	$server->poll_query_until('postgres', "$remaining", remains($expected));
	return is(sql_as($server, 'boss', $remaining), remains($expected), $name);
}

# SQL that charges so many units.
sub take { my ($cost, $more) = @_; return "SELECT v.code FROM rk_apikeys.verify_key('$token', cost => $cost, charge => 'commit'" . ($more // '') . ') v;'; }

is_left(UNITS, 'nothing is taken');

# Each case: SQL in a session of its own, how many units it keeps, and the answers to its verifies. +1 takes one unit.
$node->safe_psql('postgres', qq{
CREATE FUNCTION pay(cost int) RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN RETURN (SELECT v.code FROM rk_apikeys.verify_key('$token', cost => cost, charge => 'commit') v); END \$\$;
CREATE FUNCTION pay_caught(cost int, fails boolean) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN
	BEGIN PERFORM pay(cost); IF fails THEN PERFORM 1 / 0; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END; END \$\$;
CREATE FUNCTION pay_nested(outer_fails boolean) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN
	BEGIN
		PERFORM pay(1);
		BEGIN PERFORM pay(2); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN PERFORM pay(4); END;
		PERFORM pay_caught(8, false);
		IF outer_fails THEN RAISE 'x'; END IF;
	EXCEPTION WHEN raise_exception THEN PERFORM pay(16); END; END \$\$;
CREATE PROCEDURE pay_loop() LANGUAGE plpgsql AS \$\$ BEGIN
	PERFORM pay(1); COMMIT; PERFORM pay(2); ROLLBACK; PERFORM pay(4); COMMIT; PERFORM pay_caught(8, true); PERFORM pay(16); END \$\$;});
foreach my $case (
	[ 'autocommit', '+1', 1 ],
	[ 'several in one statement', "SELECT pay(1), pay(2), pay(3);", 6 ],
	[ 'COMMIT', 'BEGIN; +2 COMMIT;', 2 ],
	[ 'COMMIT AND CHAIN', 'BEGIN; +2 COMMIT AND CHAIN; +4 ROLLBACK;', 2 ],
	[ 'ROLLBACK', 'BEGIN; +2 ROLLBACK;', 0 ],
	[ 'ROLLBACK AND CHAIN', 'BEGIN; +2 ROLLBACK AND CHAIN; +4 COMMIT;', 4 ],
	[ 'several verifies of one transaction', 'BEGIN; +1 +2 +3 COMMIT;', 6 ],
	[ 'and of one that rolls back', 'BEGIN; +1 +2 +3 ROLLBACK;', 0 ],
	[ 'ROLLBACK TO', 'BEGIN; +1 SAVEPOINT a; +2 ROLLBACK TO a; +4 COMMIT;', 5 ],
	[ 'ROLLBACK TO twice', 'BEGIN; +1 SAVEPOINT a; +2 ROLLBACK TO a; +4 ROLLBACK TO a; +8 COMMIT;', 9 ],
	[ 'RELEASE', 'BEGIN; +1 SAVEPOINT a; +2 RELEASE a; COMMIT;', 3 ],
	[ 'RELEASE, then ROLLBACK', 'BEGIN; +1 SAVEPOINT a; +2 RELEASE a; ROLLBACK;', 0 ],
	[ 'RELEASE, then ROLLBACK TO an outer one', 'BEGIN; +1 SAVEPOINT a; +2 SAVEPOINT b; +4 RELEASE b; +8 ROLLBACK TO a; COMMIT;', 1 ],
	[ 'ROLLBACK TO an outer one', 'BEGIN; +1 SAVEPOINT a; +2 SAVEPOINT b; +4 SAVEPOINT c; +8 ROLLBACK TO b; +16 COMMIT;', 19 ],
	[ 'savepoints of one name', 'BEGIN; SAVEPOINT a; +1 SAVEPOINT a; +2 ROLLBACK TO a; RELEASE a; +4 ROLLBACK TO a; +8 COMMIT;', 8 ],
	[ 'a savepoint that has not ended at COMMIT', 'BEGIN; SAVEPOINT a; +1 SAVEPOINT b; +2 COMMIT;', 3 ],
	[ 'and at ROLLBACK', 'BEGIN; SAVEPOINT a; +1 SAVEPOINT b; +2 ROLLBACK;', 0 ],
	[ 'ROLLBACK TO after an error', 'BEGIN; +1 SAVEPOINT a; +2 SELECT 1 / 0; ROLLBACK TO a; +4 COMMIT;', 5 ],
	[ '60 savepoints', 'BEGIN; ' . join(' ', map { "SAVEPOINT s$_; +1" } 1 .. 60) . ' ROLLBACK TO s31; COMMIT;', 30 ],
	[ 'an EXCEPTION block without error', 'SELECT pay_caught(2, false);', 2 ],
	[ 'an EXCEPTION block with an error', 'SELECT pay_caught(2, true);', 0 ],
	[ 'nested EXCEPTION blocks', 'SELECT pay_nested(false);', 13 ],
	[ 'nested EXCEPTION blocks whose outer one fails', 'SELECT pay_nested(true);', 16 ],
	[ 'a DO block that fails', 'DO $$ BEGIN PERFORM pay(1); RAISE \'x\'; END $$;', 0 ],
	[ 'a procedure that commits', 'CALL pay_loop();', 21 ],
	[ 'a statement that fails after the verify', 'SELECT 1 / (code IS NULL)::int FROM pay(3) code;', 0 ],
	[ 'an error later in the transaction', 'BEGIN; +1 SELECT 1 / 0; COMMIT;', 0 ],
	[ 'statements of one message', "SELECT pay(1) \\; SELECT pay(2);", 3 ],
	[ 'statements of one message of which the last fails', "SELECT pay(1) \\; SELECT 1 / 0;", 0 ],
	[ 'a deferred constraint that fails at COMMIT', 'BEGIN; +1 INSERT INTO once VALUES (1); COMMIT;', 0 ],
	[ 'PREPARE and COMMIT PREPARED', "BEGIN; +2 PREPARE TRANSACTION 'a'; COMMIT PREPARED 'a';", 2 ],
	[ 'PREPARE settles, so ROLLBACK PREPARED returns nothing', "BEGIN; +2 SAVEPOINT a; +4 ROLLBACK TO a; PREPARE TRANSACTION 'a'; ROLLBACK PREPARED 'a';", 2 ],
	[ 'PREPARE that fails for a temporary table', "BEGIN; +2 CREATE TEMP TABLE t (); PREPARE TRANSACTION 'a'; COMMIT;", 0 ],
	[ 'PREPARE that fails for a deferred constraint', "BEGIN; +2 INSERT INTO once VALUES (1); PREPARE TRANSACTION 'a'; COMMIT;", 0 ],
	[ 'PREPARE of a failed transaction', "BEGIN; +2 SELECT 1 / 0; PREPARE TRANSACTION 'a';", 0 ],
	[ 'the end of the session', 'BEGIN; +2', 0 ],
	[ 'DISCARD ALL after COMMIT', 'BEGIN; +2 COMMIT; DISCARD ALL;', 2 ],
	[ 'READ ONLY', 'BEGIN READ ONLY; +2 COMMIT; BEGIN READ ONLY; +4 ROLLBACK;', 2 ],
	[ 'REPEATABLE READ', 'BEGIN ISOLATION LEVEL REPEATABLE READ; +2 COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE; +4 COMMIT;', 6 ],
	[ 'a cursor', "BEGIN; DECLARE c CURSOR FOR SELECT pay(1) FROM generate_series(1, 5); FETCH 2 FROM c; COMMIT;", 2 ],
	[ 'a cursor that is open at a ROLLBACK TO', "BEGIN; SAVEPOINT a; DECLARE c CURSOR FOR SELECT pay(1) FROM generate_series(1, 5); FETCH 2 FROM c; ROLLBACK TO a; COMMIT;", 0 ],
	# PostgreSQL runs it anew, after the two rows that were fetched
	[ 'a cursor WITH HOLD is run at COMMIT', "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT pay(1) FROM generate_series(1, 5); FETCH 2 FROM c; COMMIT;", 7 ],
	[ 'charge now stays at a ROLLBACK', "BEGIN; +2 SELECT rk_apikeys.verify('$token'); ROLLBACK;", 1 ],
	[ 'charge now stays at a ROLLBACK TO', "BEGIN; +2 SAVEPOINT a; SELECT (rk_apikeys.verify_key('$token', cost => 4, charge => 'now')).valid; +8 ROLLBACK TO a; COMMIT;", 6 ],
	[ 'authenticate and ROLLBACK', "BEGIN; SELECT (rk_apikeys.authenticate('$token', cost => 3, charge => 'commit')).code; ROLLBACK;", 0 ],
	[ 'authenticate and COMMIT', "BEGIN; SELECT (rk_apikeys.authenticate('$token', cost => 3, charge => 'commit')).code; COMMIT;", 3 ],
	[ 'parallel workers', "SET max_parallel_workers_per_gather = 2; SET " . ($node->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode')
		  . " = on; BEGIN; SELECT count(*) FROM many, rk_apikeys.verify_key('$token', charge => 'commit') v WHERE v.valid; COMMIT;", 1 ])
{
	my ($name, $sql, $units) = @$case;
	$sql =~ s/\+(\d+)/take($1)/ge;
	$node->psql('postgres', $sql, extra_params => [ '-U', 'backend' ], on_error_stop => 0, on_error_die => 0);
	$left -= $units;
	is_left($left, $name);
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing is left prepared');

# A transaction that fails for another one at its COMMIT
{
	my ($one, $two) = map { session($node, 'backend', on_error_stop => 0) } 1, 2;
	$node->safe_psql('postgres', 'CREATE TABLE doctors (on_call boolean); INSERT INTO doctors VALUES (true), (true); GRANT SELECT, INSERT ON doctors TO backend');
	$_->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM doctors; ' . take(5)) foreach $one, $two;
	is_left($left - 10, 'both have reserved');
	$_->query_safe('INSERT INTO doctors VALUES (false)') foreach $one, $two;
	$one->query_safe('COMMIT');
	is_left($left - 10, 'one has settled');
	$two->query('COMMIT');
	is_left($left -= 5, 'the other one fails at COMMIT, and returns');
	$_->quit foreach $one, $two;
}

# Reserved units count for everybody until they are returned
{
	my $session = session($node, 'backend');
	$session->query_safe('BEGIN; ' . take($left - 2));
	is_left(2, 'another session sees what is reserved');
	is(sql_as($node, 'backend', take(3)) , 'rate_limited', 'and is refused');
	is(sql_as($node, 'backend', take(2)) , 'valid', 'beyond what remains');
	$left -= 2;
	is_left(0, 'nothing remains');
	is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage() >= 0'), 't', 'a flush');
	is($node->safe_psql('postgres', "SELECT units FROM rk_apikeys.limit_usage WHERE limit_id = '$quota'"), UNITS - $left, 'does not write what is reserved');
	is(code($session, $token), 'rate_limited', 'the session itself is refused, too');
	$session->query_safe('ROLLBACK');
	is_left($left, 'until the rollback');
	is(sql_as($node, 'backend', "SELECT limit_name, limit_units, limit_remaining FROM rk_apikeys.verify_key('$token', charge => 'commit')") =~ s/\w+?\|//r,
		'1000|' . --$left, 'the verdict tells what remains');
	$session->quit;
}

# Several limits, of which the last refuses: all give back
{
	my $session = session($node, 'backend');
	foreach my $charge ('now', 'commit')
	{
		$session->query_safe('BEGIN');
		my $ask = "SELECT concat_ws(' ', code, CASE WHEN NOT valid THEN limit_name END) FROM rk_apikeys.verify_key('$token', cost => COST, limits => 'NAMES', charge => '$charge')";
		is($session->query_safe($ask =~ s/COST/2/r =~ s/NAMES/{small}/r), 'valid', "$charge: a named quota of 3");
		$left -= 2;
		is_left($left, "$charge: is taken with the others");
		is($session->query_safe($ask =~ s/COST/2/r =~ s/NAMES/{small}/r), 'quota_exceeded small', "$charge: the second time it refuses");
		is_left($left, "$charge: and all others have their units again");
		is($session->query_safe($ask =~ s/COST/1/r =~ s/NAMES/{small,brief}/r), 'valid', "$charge: one unit of both");
		is_left(--$left, "$charge: is taken");
		is($session->query_safe($ask =~ s/COST/1/r =~ s/NAMES/{brief,small}/r), 'quota_exceeded small', "$charge: the last unit of the rate limit");
		is($session->query_safe($ask =~ s/COST/1/r =~ s/NAMES/{brief}/r), 'valid', "$charge: was given back");
		is_left(--$left, "$charge: so it can be taken");
		is($session->query_safe($ask =~ s/COST/1/r =~ s/NAMES/{brief}/r), 'rate_limited brief', "$charge: once");
		is_left($left, "$charge: and the others give back");
		$session->query_safe('ROLLBACK');
		$left += 4 if $charge eq 'commit';
		is_left($left, "$charge: after a rollback");
		sql_as($node, 'boss', q{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits WHERE name IN ('small', 'brief')});
	}
	$session->quit;
}

# What a reset forgets is not returned a second time
{
	my $session = session($node, 'backend');
	$session->query_safe('BEGIN; ' . take(10));
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits WHERE tenant = 'acme' AND units = 1000});
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(family => '$family')});
	$node->poll_query_until('postgres', "$remaining", remains(UNITS));
	$session->query_safe('ROLLBACK');
	is_left(UNITS, 'a rollback after a reset gives no more than all units');
	is(sql_as($node, 'backend', take(UNITS)), 'valid', 'and all of them can be taken');
	is(sql_as($node, 'backend', take(1)), 'rate_limited', 'and no other');
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits WHERE tenant = 'acme'});
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(family => '$family')});
	is_left($left = UNITS, 'after another reset');
}

# A change or the end of a limit while units are reserved
{
	my $session = session($node, 'backend');
	$session->query_safe('BEGIN; ' . take(10));
	sql_as($node, 'boss', q{INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('acme', 'brand-new', 5, 'total')});
	$session->query_safe('ROLLBACK');
	is(sql_as($node, 'boss', q{SELECT remaining FROM rk_apikeys.limit_status WHERE name = 'brand-new'}), '5', 'a limit made after the verify gets nothing');
	$session->query_safe('BEGIN; ' . take(2));
	sql_as($node, 'boss', q{UPDATE rk_apikeys.limits SET units = 1 WHERE name = 'brand-new'});
	is(sql_as($node, 'boss', q{SELECT remaining FROM rk_apikeys.limit_status WHERE name = 'brand-new'}), '0', 'lowered below what is reserved: 0 remain');
	sql_as($node, 'boss', q{DELETE FROM rk_apikeys.limits WHERE name = 'brand-new'});
	$session->query_safe('COMMIT');
	is_left($left -= 2, 'a limit that is gone keeps no COMMIT from settling the others');
	$session->quit;
}

# Cancel, termination and a socket that is closed: in the call, between calls, and in a nested block
foreach my $way ('cancel', 'terminate', 'statement_timeout', 'idle_in_transaction_session_timeout', 'close')
{
	foreach my $nested (0, 1)
	{
		my $name = "$way" . ($nested ? ' below a savepoint' : '');
		my $session = session($node, 'backend', on_error_stop => 0);
		my $pid = $session->query_safe('SELECT pg_backend_pid()');
		$session->query_safe("SET statement_timeout = '300ms'") if $way eq 'statement_timeout';
		$session->query_safe('BEGIN; ' . take(1) . ($nested ? ' SAVEPOINT a; ' . take(2) : ''));
		if ($way =~ /cancel|statement_timeout/)
		{
			$session->query_until(qr/begun/, "\\echo begun\nSELECT pay(4), pg_sleep(600);\n");
			if ($way eq 'cancel')
			{
				$node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid") or die;
				sql_as($node, 'other', "SELECT pg_cancel_backend($pid)");
			}
			$session->query($nested ? 'ROLLBACK TO a; COMMIT' : 'COMMIT');
			$left -= 1 if $nested;
		}
		elsif ($way eq 'terminate') { sql_as($node, 'other', "SELECT pg_terminate_backend($pid)"); }
		elsif ($way eq 'close') { $session->{run}->kill_kill; }
		else { $session->query_safe("SET idle_in_transaction_session_timeout = '10ms'"); }
		is_left($left, $name);
		eval { $session->quit };
	}
}

# A backend that is killed takes the server's memory along; reservations are gone, and what was flushed stays
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
my $quota_remaining = q{SELECT remaining FROM rk_apikeys.limit_status WHERE name = 'quota'};
foreach my $way ('kill -9 of the backend', 'kill -9 of the server', 'immediate shutdown')
{
	my ($session, $busy) = map { session($node, 'backend', on_error_stop => 0) } 1, 2;
	$session->query_safe('BEGIN; ' . take(10));
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	is(sql_as($node, 'boss', $quota_remaining), $left - 10, "$way: reserved before");
	my $place = -s $node->logfile;
	if ($way =~ /backend/)
	{
		kill 'KILL', $pid;
		$node->wait_for_log(qr/all server processes terminated; reinitializing/, $place);
		$node->poll_query_until('postgres', 'SELECT true') or die;
	}
	elsif ($way =~ /server/) { kill_server($node); $node->start; }
	else { $node->stop('immediate'); $node->start; }
	is(sql_as($node, 'boss', $quota_remaining), $left, "$way: returned after");
	eval { $_->quit } foreach $session, $busy;
}
# A clean restart keeps every bucket, and returns what was reserved
{
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(limit_id) FROM rk_apikeys.limits WHERE tenant = 'acme'});
	sql_as($node, 'boss', qq{SELECT rk_apikeys.reset_limit(family => '$family')});
	sql_as($node, 'backend', take(7));
	my $session = session($node, 'backend', on_error_stop => 0);
	$session->query_safe('BEGIN; ' . take(10));
	$node->restart;
	is_left($left = UNITS - 7, 'a clean restart returns what was reserved');
	eval { $session->quit };

	# Prepared before, and decided after
	sql_as($node, 'backend', 'BEGIN; ' . take(5) . " PREPARE TRANSACTION 'a'; BEGIN; " . take(6) . " PREPARE TRANSACTION 'b'");
	is_left($left -= 11, 'PREPARE settles');
	$node->restart;
	is_left($left, 'over a restart');
	sql_as($node, 'backend', "COMMIT PREPARED 'a'; ROLLBACK PREPARED 'b'");
	is_left($left, 'and the end of a prepared transaction changes nothing');
}

# A standby reserves by itself
{
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby, 'replay');
	my $there = $left;
	is(sql_as($standby, 'boss', $quota_remaining), $there, 'a standby knows what was flushed');
	foreach my $case ([ '+1', 1 ], [ 'BEGIN; +2 COMMIT;', 2 ], [ 'BEGIN; +2 ROLLBACK;', 0 ], [ 'BEGIN; +1 SAVEPOINT a; +2 ROLLBACK TO a; +4 COMMIT;', 5 ],
		[ 'BEGIN; +2 SELECT 1 / 0;', 0 ], [ 'BEGIN; +2', 0 ], [ 'SELECT pay_nested(false);', 13 ])
	{
		my ($sql, $units) = @$case;
		my $name = "standby: $sql";
		$sql =~ s/\+(\d+)/take($1)/ge;
		$standby->psql('postgres', $sql, extra_params => [ '-U', 'backend' ], on_error_stop => 0, on_error_die => 0);
		$there -= $units;
		$standby->poll_query_until('postgres', $quota_remaining, $there);
		is(sql_as($standby, 'boss', $quota_remaining), $there, $name);
	}
	is(sql_as($node, 'boss', $quota_remaining), $left, 'the primary has its own reservations');
	$standby->stop;
}

# Who may charge, and with which words
foreach my $case ([ 'backend', "'later'", '22023' ], [ 'backend', "''", '22023' ], [ 'backend', 'NULL', '' ], [ 'backend', "'COMMIT'", '22023' ], [ 'backend', "'commit'", '' ],
	[ 'acme', "'commit'", '42501' ])
{
	my ($role, $charge, $state) = @$case;
	$node->psql('postgres', "\\set VERBOSITY sqlstate\nBEGIN; SELECT rk_apikeys.verify_key('$token', charge => $charge); ROLLBACK",
		stderr => \my $err, extra_params => [ '-U', $role ], on_error_die => 0);
	is($err =~ s/.*ERROR:\s+//sr, $state, "charge => $charge as $role");
}
is_left($left - 1, 'NULL is now, which a rollback does not return; the others took nothing');
is_deeply([ logged($node, qr/PANIC:|TRAP:|WARNING:.*(leak|reserv)/) ], [], 'nothing crashed or leaked');

done_testing();
