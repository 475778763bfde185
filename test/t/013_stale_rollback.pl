# test/t/013_stale_rollback.pl: what was rolled back is unknown afterwards, where it was verified too; COMMIT PREPARED counts at once.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

foreach my $preloaded (0, 1)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = rk_node("rollback$preloaded", 'max_prepared_transactions = 5', $preloaded ? PRELOAD : ());
	# A role that makes and verifies keys in one transaction
	$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; GRANT rk_apikeys_manager, rk_apikeys_verifier TO app');
	my $app = session($node, 'app');
	my $other = session($node, 'backend');
	my $make = q{SELECT secret FROM rk_apikeys.create_key('made')};

	# Both sessions, twice: the second answer may come from the cache.
	my $agree = sub {
		my ($token, $code, $what) = @_;
		is_deeply([ map { code($_, $token) } $app, $other, $app, $other ], [ ($code) x 4 ], "$with, $what: $code");
	};
	# Verified by the transaction that made it, and by nobody else.
	my $made = sub {
		my ($what) = @_;
		my $token = $app->query_safe($make);
		is_deeply([ map { code($_, $token) } $app, $app, $other ], [ 'valid', 'valid', 'unknown' ], "$with, $what: valid where it was made");
		return $token;
	};

	$app->query_safe('BEGIN');
	my $token = $made->('ROLLBACK');
	$app->query_safe('ROLLBACK');
	$agree->($token, 'unknown', 'after ROLLBACK');

	$app->query_safe('BEGIN; SAVEPOINT s');
	$token = $made->('ROLLBACK TO');
	$app->query_safe('ROLLBACK TO s');
	$agree->($token, 'unknown', 'after ROLLBACK TO');
	$app->query_safe('COMMIT');
	$agree->($token, 'unknown', 'and after COMMIT');

	$app->query_safe('BEGIN; SAVEPOINT s');
	$token = $made->('RELEASE');
	$app->query_safe('RELEASE s; ROLLBACK');
	$agree->($token, 'unknown', 'after RELEASE and ROLLBACK');

	foreach my $end ('ROLLBACK', 'COMMIT')
	{
		$app->query_safe('BEGIN');
		$token = $made->("$end PREPARED");
		$app->query_safe("PREPARE TRANSACTION 'rk'");
		$agree->($token, 'unknown', 'while it is prepared');
		$node->safe_psql('postgres', "$end PREPARED 'rk'");
		$agree->($token, $end eq 'COMMIT' ? 'valid' : 'unknown', "after $end PREPARED");
	}

	# Changes of a key that was there
	my %change = (
		disabled => q{UPDATE rk_apikeys.keys SET enabled = false},
		revoked => q{UPDATE rk_apikeys.keys SET revoked_at = now()},
		unknown => q{DELETE FROM rk_apikeys.keys});
	foreach my $code (sort keys %change)
	{
		my ($id, $kept) = create_key($node, $code, undef, 'app');
		my $change = "$change{$code} WHERE key_id = '$id'";

		$agree->($kept, 'valid', "before it is $code");
		foreach my $undo ([ 'BEGIN', 'ROLLBACK' ], [ 'BEGIN; SAVEPOINT s', 'ROLLBACK TO s; COMMIT' ])
		{
			$app->query_safe("$undo->[0]; $change");
			is_deeply([ map { code($_, $kept) } $app, $other, $app, $other ], [ $code, 'valid', $code, 'valid' ],
				"$with, $code where it was changed, valid elsewhere");
			$app->query_safe($undo->[1]);
			$agree->($kept, 'valid', "after $undo->[1]");
		}
		foreach my $end ('ROLLBACK', 'COMMIT')
		{
			$app->query_safe("BEGIN; $change; PREPARE TRANSACTION 'rk'");
			$agree->($kept, 'valid', "prepared to be $code");
			$node->safe_psql('postgres', "$end PREPARED 'rk'");
			$agree->($kept, $end eq 'COMMIT' ? $code : 'valid', "after $end PREPARED");
		}
	}

	# A session remembers whether there are imported keys at all.
	my $boss = session($node, 'boss');
	my $import = q{SELECT rk_apikeys.import_key('imported', sha256('legacy-token-0001'), 'sha256', tenant => 'app')};
	$boss->query_safe("BEGIN; $import");
	is(code($boss, 'legacy-token-0001'), 'valid', "$with, imported and verified in one transaction");
	$boss->query_safe('ROLLBACK');
	is(code($_, 'legacy-token-0001'), 'malformed', "$with, and rolled back") foreach $boss, $other;
	$boss->query_safe($import);
	$boss->query_safe("BEGIN; DELETE FROM rk_apikeys.keys WHERE name = 'imported'");
	is(code($boss, 'legacy-token-0001'), 'malformed', "$with, the only imported key deleted");
	$boss->query_safe('ROLLBACK');
	is(code($_, 'legacy-token-0001'), 'valid', "$with, and back again") foreach $boss, $other;

	# What was never there leaves nothing behind
	is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage u
		WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = u.key_id)'), '0', "$with, no usage of a key that is not there");
	$_->quit foreach $app, $other, $boss;
	$node->stop;
}

done_testing();
