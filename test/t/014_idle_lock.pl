# test/t/014_idle_lock.pl: an idle transaction that has deleted, changed or locked a key delays nobody's verify and nobody's flush.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# What the idle transaction has done to a key.
my %idle = (
	deleted => q{DELETE FROM rk_apikeys.api_keys WHERE key_id = 'ID'},
	disabled => q{UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = 'ID'},
	locked => q{SELECT FROM rk_apikeys.api_keys WHERE key_id = 'ID' FOR UPDATE},
	'its usage locked' => q{SELECT FROM rk_apikeys.key_usage WHERE key_id = 'ID' FOR UPDATE},
	'its rotation begun' => q{SELECT FROM rk_apikeys.rotate_key('ID', '0')});

my @levels = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');

# A session that gives up where it would have to wait; a cold one each time, so that it reads and records.
sub verify_cold
{
	my ($node, $token, $level) = @_;
	return sql_as($node, 'backend', "SET lock_timeout = '100ms'; SET statement_timeout = '5s'; BEGIN ISOLATION LEVEL $level;
		SELECT code FROM rk_apikeys.verify_key('$token'), (SELECT 1) again; SELECT rk_apikeys.verify('$token'); COMMIT");
}

foreach my $preloaded (0, 1)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = rk_node("idle$preloaded", "rk_apikeys.usage_flush_interval = '100ms'\nrk_apikeys.usage_resolution = 0",
		$preloaded ? PRELOAD : ());
	# PostgreSQL 17 gives a library shared memory without preload.
	my $shared = $preloaded || $node->pg_version >= 17;

	foreach my $name (sort keys %idle)
	{
		# A key that nobody has used yet, and one with usage in the table
		foreach my $used (0, 1)
		{
			my $what = "$with, " . ($used ? 'a used key' : 'a new key') . " $name";
			my ($id, $token) = create_key($node, $name);
			my ($other_id, $other) = create_key($node, 'other');

			if ($used)
			{
				sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token')");
				ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM rk_apikeys.key_usage WHERE key_id = '$id'"),
					"$what: its use is in the table");
			}
			my $idle = session($node, 'postgres');
			(my $sql = $idle{$name}) =~ s/ID/$id/;
			$idle->query_safe("BEGIN; $sql");

			is(verify_cold($node, $token, $_), "valid\nt", "$what: verified in $_, without a wait") foreach @levels;
			is(verify_cold($node, $other, $_), "valid\nt", "$what: another key too, in $_") foreach @levels;
			if ($shared)
			{
				ok($node->poll_query_until('postgres',
						"SELECT count(*) = 1 FROM rk_apikeys.key_usage WHERE key_id = '$other_id' AND use_count = 6"),
					"$what: the worker flushes the other key");
				sql_as($node, 'backend', "SELECT rk_apikeys.verify('$other')");
				sql_as($node, 'boss', "SET lock_timeout = '100ms'; SELECT rk_apikeys.flush_usage()");
				ok($node->poll_query_until('postgres',
						"SELECT count(*) = 1 FROM rk_apikeys.key_usage WHERE key_id = '$other_id' AND use_count = 7"),
					"$what: and flush_usage() waits for nothing");
			}
			else
			{
				is($node->safe_psql('postgres', "SELECT use_count FROM rk_apikeys.key_usage WHERE key_id = '$other_id'"), '2',
					"$what: the other's use is recorded in READ COMMITTED");
			}
			$idle->query_safe('ROLLBACK');
			$idle->quit;

			# Once it has ended, what was used meanwhile is told
			next unless $shared;
			ok($node->poll_query_until('postgres', "SELECT use_count = 6 + $used FROM rk_apikeys.key_usage WHERE key_id = '$id'"),
				"$what: its own uses are flushed afterwards");
		}
	}

	# The other way round: a transaction that has verified, and is idle, is in nobody's way.
	my ($id, $token) = create_key($node, 'verified');
	my $idle = session($node, 'backend');
	$idle->query_safe("BEGIN; SELECT rk_apikeys.verify('$token')");
	is(verify_cold($node, $token, $_), "valid\nt", "$with, verified in an open transaction: in $_ elsewhere") foreach @levels;
	is(sql_as($node, 'acme', "SET lock_timeout = '100ms'; UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$id' RETURNING status"),
		'disabled', "$with, verified in an open transaction: disabled elsewhere");
	is(sql_as($node, 'acme', "SET lock_timeout = '100ms'; SELECT rk_apikeys.revoke_key('$id')"),
		't', "$with, verified in an open transaction: revoked elsewhere");
	is(code($idle, $token), 'revoked', "$with, and it sees that");
	$idle->query_safe('COMMIT');
	$idle->quit;

	# Nothing was raised behind anybody's back either.
	is_deeply([ logged($node, qr/ERROR|could not record/) ], [], "$with, no error in the server log");
	$node->stop;
}

done_testing();
