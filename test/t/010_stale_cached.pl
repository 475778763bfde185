# test/t/010_stale_cached.pl: a verify that starts after a change was committed sees it, in every session that has the key cached.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# The open transactions, each with a snapshot from before the change.
my %begin = (
	'no transaction' => 'SELECT 1',
	'READ COMMITTED' => 'BEGIN; SELECT 1',
	'REPEATABLE READ' => 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1',
	'SERIALIZABLE' => 'BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1',
	'READ ONLY' => 'BEGIN READ ONLY; SELECT 1',
	'a cursor' => 'BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; SAVEPOINT s');

# What is done to a key, by whom, and the code that verify gives then.
my @changes = (
	[ 'disable', 'acme', q{UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = 'ID'}, 'disabled' ],
	[ 'enable', 'acme', q{UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = 'ID'}, 'valid' ],
	[ 'disable by the owner', 'postgres', q{UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'}, 'disabled' ],
	[ 'enable among others', 'boss', q{UPDATE rk_apikeys.keys SET enabled = true}, 'valid' ],
	[ 'an end that comes', 'acme', q{UPDATE rk_apikeys.keys SET expires_at = clock_timestamp() + LIFE
		WHERE key_id = 'ID'; SELECT pg_sleep_until(expires_at) FROM rk_apikeys.keys WHERE key_id = 'ID'}, 'expired' ],
	[ 'a later end', 'acme', q{UPDATE rk_apikeys.keys SET expires_at = now() + interval '1 day' WHERE key_id = 'ID'}, 'valid' ],
	[ 'rotate with grace', 'acme', q{SELECT FROM rk_apikeys.rotate_key('ID', '1 hour')}, 'valid' ],
	[ 'end of grace', 'acme', q{UPDATE rk_apikeys.keys SET grace_until = now() WHERE key_id = 'ID'}, 'rotated' ],
	[ 'revoke', 'acme', q{SELECT rk_apikeys.revoke_key('ID', 'test')}, 'revoked' ],
	[ 'delete', 'acme', q{DELETE FROM rk_apikeys.keys WHERE key_id = 'ID'}, 'unknown' ],
	[ 'rotate at once', 'acme', q{SELECT FROM rk_apikeys.rotate_key('ID', '0')}, 'rotated', 'new' ],
	[ 'revoke by token', 'backend', q{SELECT rk_apikeys.revoke_token('TOKEN', 'leaked')}, 'revoked', 'new' ],
	[ 'purge', 'boss', q{SELECT pg_sleep(0.01); SELECT rk_apikeys.purge_keys('0')}, 'unknown' ],
	[ 'truncate', 'postgres', 'TRUNCATE rk_apikeys.api_keys', 'unknown', 'new' ]);

foreach my $preloaded (0, 1)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = rk_node("stale$preloaded", $preloaded ? PRELOAD : ());
	my %session = map { $_ => session($node, 'backend') } sort keys %begin;
	my ($id, $token) = create_key($node, 'first');
	my $before = 'valid';

	foreach my $change (@changes)
	{
		my ($name, $role, $sql, $after, $new) = @$change;

		if ($new)
		{
			($id, $token) = create_key($node, $name);
			$before = 'valid';
		}
		# Without preload the first of these records the use; a transaction that did would hold the row.
		code($session{'no transaction'}, $token);
		$session{$_}->query_safe($begin{$_}) foreach keys %begin;
		code($_, $token) foreach values %session;
		# One lookup in 64, at random, pins the row's page plainly, which is no hit; then the row is kept
		my $hits;
		foreach (1 .. 5)
		{
			$hits = -stat_of($node, 'cache_hits');
			is_deeply([ map { code($session{$_}, $token) } sort keys %begin ], [ ($before) x keys %begin ],
				"$with, $name: $before before");
			$hits += stat_of($node, 'cache_hits');
			last if $hits == keys %begin || !$preloaded || $before eq 'unknown';
		}
		is($hits, keys %begin, "$with, $name: and cached") if $preloaded && $before ne 'unknown';

		$sql =~ s/ID/$id/g;
		$sql =~ s/TOKEN/$token/g;
		$sql =~ /LIFE/ ? sql_in_time($node, $role, $sql, qr/^/) : sql_as($node, $role, $sql);
		foreach (sort keys %begin)
		{
			is(code($session{$_}, $token), $after, "$with, $name: $after in $_");
		}
		$session{$_}->query_safe('COMMIT') foreach grep { $_ ne 'no transaction' } keys %begin;
		$before = $after;
	}

	# What else a verdict tells, changed
	($id, $token) = create_key($node, 'renamed', "scopes => '{a:read}', allowed_cidrs => '{10.0.0.0/8}'");
	my $ask = "SELECT code, name, scopes, expires_at IS NULL FROM rk_apikeys.verify_key('$token', 'a:read', '10.1.1.1')";
	$session{$_}->query_safe("$begin{$_}; $ask") foreach keys %begin;
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET name = 'other', scopes = '{a:*,b:read}', expires_at = now() + interval '1 day'
		WHERE key_id = '$id'");
	is($session{$_}->query_safe($ask), 'valid|other|{a:*,b:read}|f', "$with, new settings are told in $_") foreach sort keys %begin;
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET scopes = '{b:read}' WHERE key_id = '$id'");
	like($session{$_}->query_safe($ask), qr/^scope_missing/, "$with, lost scopes count in $_") foreach sort keys %begin;
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET allowed_cidrs = '{10.2.0.0/16}' WHERE key_id = '$id'");
	like($session{$_}->query_safe($ask), qr/^address_denied/, "$with, lost addresses count in $_") foreach sort keys %begin;

	# A session that does not come to read its messages, until they are thrown away
	($id, $token) = create_key($node, 'flooded');
	is(code($session{'no transaction'}, $token), 'valid', "$with, valid before a flood of messages") foreach 1 .. 2;
	my $pid = $session{'no transaction'}->query_safe('SELECT pg_backend_pid()');
	kill STOP => $pid;
	sql_as($node, 'acme', "SELECT rk_apikeys.revoke_key('$id')");
	$node->safe_psql('postgres', q{DO $$ BEGIN FOR i IN 1 .. 1000 LOOP
		CREATE TEMP TABLE flood (x int); DROP TABLE flood; END LOOP; END $$});
	kill CONT => $pid;
	is(code($session{'no transaction'}, $token), 'revoked', "$with, revoked behind it");

	# Imported keys are found in another way
	is(code($session{$_}, 'legacy-token-0001'), 'malformed', "$with, no imported key in $_") foreach sort keys %begin;
	my $imported = sql_as($node, 'boss',
		q{SELECT rk_apikeys.import_key('imported', sha256('legacy-token-0001'), 'sha256', tenant => 'acme')});
	is(code($session{$_}, 'legacy-token-0001'), 'valid', "$with, the first imported key in $_") foreach sort keys %begin;
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$imported'");
	is(code($session{$_}, 'legacy-token-0001'), 'disabled', "$with, disabled in $_") foreach sort keys %begin;

	$_->quit foreach values %session;
	$node->stop;
}

done_testing();
