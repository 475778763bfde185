# test/t/072_one_message.pl: a transaction sends one message for all the keys it changes, and every session sees every change.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('message', 'max_prepared_transactions = 5', PRELOAD);
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; GRANT rk_apikeys_manager, rk_apikeys_verifier TO app');
my $app = session($node, 'app');
my $other = session($node, 'backend');

# Each case: what a session does, where {a} and {b} disable and enable two keys; what is left of them after it.
my @cases = (
	[ 'both in one transaction', 'BEGIN; {a}; {b}; COMMIT', 'disabled', 'disabled' ],
	[ 'the first in a savepoint that is rolled back', 'BEGIN; SAVEPOINT s; {a}; ROLLBACK TO s; {b}; COMMIT', 'valid', 'disabled' ],
	[ 'the first in a savepoint that is released', 'BEGIN; SAVEPOINT s; {a}; RELEASE s; {b}; COMMIT', 'disabled', 'disabled' ],
	[ 'the first in a savepoint that is released in one that is rolled back',
		'BEGIN; SAVEPOINT s; SAVEPOINT t; {a}; RELEASE t; ROLLBACK TO s; {b}; COMMIT', 'valid', 'disabled' ],
	[ 'the second in a savepoint that is rolled back', 'BEGIN; {a}; SAVEPOINT s; {b}; ROLLBACK TO s; COMMIT', 'disabled', 'valid' ],
	[ 'twice, with a rollback between', 'BEGIN; {a}; SAVEPOINT s; {b}; ROLLBACK TO s; {b}; COMMIT', 'disabled', 'disabled' ],
	[ 'the same savepoint again', 'BEGIN; SAVEPOINT s; {a}; ROLLBACK TO s; {a}; ROLLBACK TO s; {b}; RELEASE s; COMMIT', 'valid', 'disabled' ],
	[ 'deep, and rolled back in the middle', 'BEGIN; SAVEPOINT s; {a}; SAVEPOINT t; SAVEPOINT u; {b}; RELEASE u; ROLLBACK TO t; {b}; COMMIT',
		'disabled', 'disabled' ],
	[ 'after a ROLLBACK', 'BEGIN; {a}; ROLLBACK; {b}', 'valid', 'disabled' ],
	[ 'while the first is prepared', q(BEGIN; {a}; PREPARE TRANSACTION 'a'; {b}), 'valid', 'disabled' ],
	[ 'and is committed', q(COMMIT PREPARED 'a'), 'disabled', 'disabled' ],
	[ 'by a procedure that commits between', q(DO $$ BEGIN {a}; COMMIT; {b}; END $$), 'disabled', 'disabled' ],
	[ 'by a procedure that rolls back between', q(DO $$ BEGIN {a}; ROLLBACK; {b}; END $$), 'valid', 'disabled' ],
	[ 'in blocks that fail and that do not',
		q(DO $$ BEGIN
			BEGIN {a}; PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
			BEGIN {b}; EXCEPTION WHEN division_by_zero THEN NULL; END;
		END $$), 'valid', 'disabled' ]);
my %key;
foreach my $case (@cases)
{
	my ($name, $does, @left) = @$case;
	unless ($does =~ /^COMMIT PREPARED/)
	{
		@{ $key{$_} }{qw(id token)} = create_key($node, $_, undef, 'app') foreach 'a', 'b';
		is_deeply([ map { code($_, $key{a}{token}), code($_, $key{b}{token}) } $app, $other ], [ ('valid') x 4 ], "$name: before");
	}
	$does =~ s/\{(.)\}/UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$key{$1}{id}'/g;
	$app->query_safe("$does;");
	is_deeply([ map { code($_, $key{a}{token}), code($_, $key{b}{token}) } $other, $app ], [ @left, @left ], "$name: after");
}

# The transaction itself sees each change that it has made, and none that it has taken back.
my %own;
@{ $own{$_} }{qw(id token)} = create_key($node, $_, undef, 'app') foreach 'one', 'two';
my $see = sub {
	my ($does, $name, @left) = @_;
	$app->query_safe($does);
	# twice: the second answer may come from the cache
	is_deeply([ map { code($app, $own{$_}{token}) } 'one', 'two', 'one', 'two' ], [ @left, @left ], "in one transaction: $name");
};
$see->('BEGIN', 'before', 'valid', 'valid');
$see->("UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$own{one}{id}'", 'the first change', 'disabled', 'valid');
$see->("UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$own{two}{id}'", 'the second', 'disabled', 'disabled');
$see->("SAVEPOINT s; UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = '$own{one}{id}'", 'in a savepoint', 'valid', 'disabled');
$see->('ROLLBACK TO s', 'after ROLLBACK TO', 'disabled', 'disabled');
$see->('ROLLBACK', 'after ROLLBACK', 'valid', 'valid');

# Whether there are imported keys at all is remembered in the same way.
my $boss = session($node, 'boss');
my $import = q{SELECT rk_apikeys.import_key('imported', sha256('legacy-token-0001'), 'sha256', tenant => 'app')};
$boss->query_safe("BEGIN; $import; DELETE FROM rk_apikeys.keys WHERE name = 'imported'");
is(code($boss, 'legacy-token-0001'), 'malformed', 'an imported key is gone in its transaction');
$boss->query_safe($import);
is(code($boss, 'legacy-token-0001'), 'valid', 'and another is there');
$boss->query_safe('COMMIT');
is(code($other, 'legacy-token-0001'), 'valid', 'for all after COMMIT');

# The queue of messages holds 4,096, and is one for all databases. A session that has missed some forgets all that it keeps.
$node->safe_psql('postgres', 'CREATE DATABASE neighbour');
$node->safe_psql('neighbour', 'CREATE EXTENSION pgcrypto; CREATE EXTENSION rk_apikeys');
my (undef, $token) = map { split /\|/ } $node->safe_psql('neighbour', q{SELECT * FROM rk_apikeys.create_key('quiet', tenant => 'x')});
my ($neighbour, $holder) = map { $node->background_psql('neighbour') } 1, 2;
my $pid = $neighbour->query_safe('SELECT pg_backend_pid()');
my $misses = sub {
	$neighbour->query_safe("SELECT rk_apikeys.verify('$token')") eq 't' or die 'the neighbour verifies nothing';
	return $neighbour->query_safe('SELECT cache_misses FROM rk_apikeys.stats');
};
$misses->() foreach 1 .. 3;
my $before = $misses->();
$node->safe_psql('postgres', q{INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'bulk', 'bulk' FROM generate_series(1, 5000)});
my %many = (
	'a loop of UPDATEs' => q{DO $$ DECLARE id text; BEGIN
		FOR id IN SELECT key_id FROM rk_apikeys.keys WHERE tenant = 'bulk' LOOP
			UPDATE rk_apikeys.keys SET description = description || 'x' WHERE key_id = id;
		END LOOP; END $$},
	'one UPDATE' => q{UPDATE rk_apikeys.keys SET description = 'y' WHERE tenant = 'bulk'},
	'a loop of blocks' => q{DO $$ DECLARE id text; BEGIN
		FOR id IN SELECT key_id FROM rk_apikeys.keys, generate_series(1, 4) WHERE tenant = 'bulk' LOOP
			BEGIN
				UPDATE rk_apikeys.keys SET description = clock_timestamp()::text WHERE key_id = id;
			EXCEPTION WHEN division_by_zero THEN NULL;
			END;
			BEGIN
				PERFORM 1 / 0;
			EXCEPTION WHEN division_by_zero THEN NULL;
			END;
		END LOOP; END $$},
	'orm_keys' => q{UPDATE rk_apikeys.orm_keys SET description = 'z' WHERE tenant = 'bulk'},
	'one DELETE' => q{DELETE FROM rk_apikeys.keys WHERE tenant = 'bulk'});
foreach my $how ('a loop of UPDATEs', 'one UPDATE', 'a loop of blocks', 'orm_keys', 'one DELETE')
{
	# A session that waits takes no messages.
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	$neighbour->query_until(qr/waits/, q(\echo waits
DO $$ BEGIN PERFORM pg_advisory_lock(1); PERFORM pg_advisory_unlock(1); END $$;
));
	$node->poll_query_until('postgres', q{SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = } . $pid) or die 'the neighbour does not wait';
	$node->safe_psql('postgres', $many{$how});
	$holder->query_safe('SELECT pg_advisory_unlock(1)');
	is($misses->(), $before, "$how of 5,000 keys costs another database nothing");
}
$_->quit foreach $app, $other, $boss, $neighbour, $holder;
$node->stop;

done_testing();
