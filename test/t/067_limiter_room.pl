# test/t/067_limiter_room.pl: a tenant that fills the shared memory with keys whose rate limits are used up takes no other tenant's place,
# and keys that are gone, revoked or expired keep none.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

use constant ONCE => "rate_limit => 1, rate_window => '366 days'";

# Makes limited keys, and returns their tokens.
sub make_limited
{
	my ($node, $role, $name, $count) = @_;
	return split /\n/, sql_as($node, $role, "WITH k AS (INSERT INTO rk_apikeys.keys (name, rate_limit, rate_window)
		SELECT '$name', 1, '366 days' FROM generate_series(1, $count) RETURNING secret) SELECT secret FROM k");
}

# How often each code is the answer for some tokens.
sub codes
{
	my ($node, @tokens) = @_;
	return { map { split /\|/ } split /\n/, sql_as($node, 'backend', 'SELECT v.code, count(*) FROM unnest(ARRAY['
		  . join(',', map { "'$_'" } @tokens) . ']) t, rk_apikeys.verify_key(t) v GROUP BY 1') };
}

# Uses a tenant's new keys until there is no room, or all of them; returns how many found a place.
sub fill
{
	my ($node, $role, $name, $count) = @_;
	return codes($node, make_limited($node, $role, $name, $count))->{valid} // 0;
}

# The same, again after each flush, until there is no room. A used key's own place is free after its flush, and its limit's is not.
sub fill_up
{
	my ($node, $role, $name, $room) = @_;
	my ($total, $in_vain) = (0, 0);
	while ($in_vain < 10)
	{
		my $more = fill($node, $role, $name, $room / 8);
		$total += $more;
		$in_vain = $more ? 0 : $in_vain + 1;
		written($node);
		select(undef, undef, undef, 0.2);
	}
	return $total;
}

# Verifies tokens until each has passed.
sub pass
{
	my ($node, $database, @tokens) = @_;
	foreach my $token (@tokens)
	{
		$node->poll_query_until($database, "SELECT code = 'valid' FROM rk_apikeys.verify_key('$token')") or die 'found no room';
	}
	return;
}

sub written
{
	my ($node) = @_;
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'not written';
}

# On a server with room for so many keys.
sub test_room
{
	my ($node, $room, @kinds) = @_;
	my $most = $room - $room / 8;    # of one tenant
	my @first = make_limited($node, 'acme', 'first', 5);
	is_deeply(codes($node, @first), { valid => 5 }, 'five keys are used up');
	is(fill_up($node, 'acme', 'alive', $room), $most - 5, "a tenant gets $most of $room places");
	is(stat_of($node, 'tracked_keys'), $most, 'which are in use');
	cmp_ok(stat_of($node, 'limiter_unavailable'), '>=', $room / 8, 'its other keys are refused, and counted');

	# Others find room, also after that
	my @other = make_limited($node, 'globex', 'other', 3);
	pass($node, 'postgres', @other);
	written($node);
	is_deeply(codes($node, @other, @first), { rate_limited => 8 }, 'and no key has got its limit back');
	is(fill($node, 'acme', 'late', 3), 0, 'the first tenant gets no more');
	my ($query) = slurp_file("$FindBin::Bin/../../doc/operations.md") =~ /^(SELECT tenant, count\(\*\) AS keys.*?;)$/ms;
	like(sql_as($node, 'boss', $query), qr/^acme\|\d+\nglobex\|\d$/, 'the query of doc/operations.md names it');

	# Keys that are over make room for keys of the same tenant
	my %over = (
		deleted => q{DELETE FROM rk_apikeys.keys WHERE name = 'NAME'},
		revoked => q{UPDATE rk_apikeys.keys SET revoked_at = now() WHERE name = 'NAME'},
		expired => q{UPDATE rk_apikeys.keys SET expires_at = clock_timestamp() + interval '1 second' WHERE name = 'NAME'});
	my $name = 'alive';
	my $again = $most - @other - @first;
	foreach my $how (@kinds)
	{
		sql_as($node, 'acme', $over{$how} =~ s/NAME/$name/r);
		$name = "after $how";
		my $passed = 0;
		foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			my $one = fill($node, 'acme', $name, 1);
			$passed += $one;
			last if $passed >= $again;
			select(undef, undef, undef, 0.1), next if !$one;
			$passed += fill($node, 'acme', $name, $again - $passed);
			last if $passed >= $again;
		}
		is($passed, $again, "keys that are $how make room");
		is(fill($node, 'acme', $name, 3), 0, 'and no more than they had');
		written($node);
		is_deeply(codes($node, @other, @first), { rate_limited => 8 }, 'no other key has got its limit back');
	}
	# The successor of a rotated key has its limit.
	sql_as($node, 'acme', "SELECT count(rk_apikeys.rotate_key(key_id, '0')) FROM rk_apikeys.keys WHERE name = '$name'");
	my @successors = split /\n/, sql_as($node, 'boss', "SELECT replaces FROM rk_apikeys.keys WHERE name = '$name' AND replaces IS NOT NULL");
	cmp_ok(scalar @successors, '>=', $again, 'the keys are rotated');
	select(undef, undef, undef, 1);
	is(fill($node, 'acme', 'after rotated', 3), 0, 'their families keep their places');
	return;
}

my $node = rk_node('room', PRELOAD, 'rk_apikeys.max_tracked_keys = 64', "rk_apikeys.usage_flush_interval = '100ms'");

# A tenant that has deleted all its keys has its share again
is(fill_up($node, 'globex', 'past', 64), 56, 'a tenant fills the memory');
written($node);
sql_as($node, 'globex', "DELETE FROM rk_apikeys.keys WHERE name = 'past'");
ok($node->poll_query_until('postgres', 'SELECT tracked_keys = 0 FROM rk_apikeys.stats'), 'and deletes its keys');
test_room($node, 64, qw(deleted revoked expired));

sql_as($node, 'boss', 'DELETE FROM rk_apikeys.keys');
ok($node->poll_query_until('postgres', 'SELECT tracked_keys = 0 FROM rk_apikeys.stats'), 'without keys no place is taken');

# A database that is gone, and one without the extension any more
foreach my $end ('DROP DATABASE other', 'DROP EXTENSION rk_apikeys CASCADE')
{
	$node->restart;
	$node->safe_psql('postgres', "CREATE DATABASE other");
	$node->safe_psql('other', 'CREATE EXTENSION rk_apikeys CASCADE');
	my @tokens = map { (create_key($node, 'gone', ONCE, 'acme', 'other'))[1] } 1 .. 52;
	pass($node, 'other', @tokens);
	written($node);
	cmp_ok(stat_of($node, 'tracked_keys'), '>=', 48, 'keys of another database have taken the room');
	$node->safe_psql($end =~ /DATABASE/ ? 'postgres' : 'other', $end);
	ok($node->poll_query_until('postgres', 'SELECT tracked_keys < 8 FROM rk_apikeys.stats'), "$end gives it back");
	is(stat_of($node, 'dropped'), '0', 'no use was pending there');
}

# Use that a restart brings along has its tenant
$node->safe_psql('postgres', 'ALTER SYSTEM SET rk_apikeys.usage_flush_interval = \'1h\'');
$node->restart;
is(fill($node, 'acme', 'before', 64), 28, 'a tenant has taken all that it may: a place for each key, and one for its limit');
$node->restart;
is(stat_of($node, 'pending_keys') . ' of ' . stat_of($node, 'tracked_keys'), '28 of 56', 'which a restart brings along');
is(fill($node, 'acme', 'after', 3), 0, 'it still gets no more');
is(fill($node, 'globex', 'after', 2), 2, 'another tenant finds room');
$node->stop;

# Without preload
SKIP:
{
	skip 'PostgreSQL 15 and 16 have no rate limits without preload', 1 if $node->pg_version < 17;
	my $plain = rk_node('plain', "rk_apikeys.usage_flush_interval = '100ms'");
	test_room($plain, 16384, 'deleted');
}

is_deeply([ logged($node, qr/PANIC:|TRAP:/) ], [], 'nothing crashed');
done_testing();
