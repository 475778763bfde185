# test/t/078_room_gives_way.pl: a key that needs a place takes one that is written, the launcher makes room when it runs short, and a use that
# finds no room is told and never taken for none.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# Makes keys, each of a tenant of its own unless a tenant is named, and returns their tokens. The keys are old.
sub make_keys
{
	my ($node, $name, $count, $tenant) = @_;
	my @tokens = split /\n/, sql_as($node, 'boss', "WITH k AS (INSERT INTO rk_apikeys.keys (name, tenant) SELECT '$name', "
		  . ($tenant ? "'$tenant'" : "'$name ' || i") . " FROM generate_series(1, $count) i RETURNING secret) SELECT secret FROM k");
	$node->safe_psql('postgres', "UPDATE rk_apikeys.api_keys SET created_at = created_at - interval '200 days' WHERE name = '$name'");
	return @tokens;
}

# How many of some tokens verify.
sub verify
{
	my ($node, @tokens) = @_;
	return sql_as($node, 'backend', 'SELECT count(*) FILTER (WHERE rk_apikeys.verify(t)) FROM unnest(ARRAY[' . join(',', map { "'$_'" } @tokens) . ']) t');
}

# The recorded uses of keys of a name.
sub uses
{
	my ($node, $name) = @_;
	return sql_as($node, 'boss', "SELECT sum(use_count) FROM rk_apikeys.keys WHERE name = '$name'");
}

# Waits until the log has a line.
sub tells
{
	my ($node, $pattern) = @_;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if logged($node, $pattern);
		usleep(100_000);
	}
	return 0;
}
my $warning = qr/WARNING: .*no room/;

# Who needs a place takes one whose use is written
{
	my $node = rk_node('gives_way', PRELOAD, 'rk_apikeys.max_tracked_keys = 1000', "rk_apikeys.usage_flush_interval = '1h'");
	my %token = map { $_ => [ make_keys($node, $_, /first/ ? 1000 : 200) ] } qw(first second);
	my ($id, $limited) = create_key($node, 'limited', "rate_limit => 5, rate_window => '1 hour'");
	is(verify($node, @{ $token{first} }), '1000', '1000 keys verify');
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	# The launcher, which was woken, may be flushing too
	ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and their use is written');
	my $before = stat_of($node, 'overflow');
	is(verify($node, @{ $token{second} }), '200', '200 others verify');
	is(uses($node, 'second'), '200', 'and each use is recorded');
	is(stat_of($node, 'overflow'), $before, 'none is lost');
	is(sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$limited')"), 'valid', 'a key with a rate limit passes');
	cmp_ok(stat_of($node, 'tracked_keys'), '<=', 1000, 'memory stays bounded');
	is(verify($node, @{ $token{first} }[ 0 .. 499 ]), '500', '500 of the first again');
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is(uses($node, 'first') + uses($node, 'second'), 1700 - stat_of($node, 'overflow'), 'all uses are counted, each once');
	$node->stop;
}

# More new keys than there is room
{
	my $node = rk_node('loses', PRELOAD, 'rk_apikeys.max_tracked_keys = 100', "rk_apikeys.usage_flush_interval = '1h'");
	my @token = make_keys($node, 'many', 2000);
	my @unused = make_keys($node, 'unused', 20);
	is(sql_as($node, 'boss', 'SELECT count(*) FROM rk_apikeys.stale_keys'), '2020', 'old keys are stale');
	is(verify($node, @token), '2000', '2000 keys verify, with room for 100');
	cmp_ok(stat_of($node, 'overflow'), '>', 0, 'uses are lost');
	is(sql_as($node, 'boss', q{SELECT count(*) FROM rk_apikeys.stale_keys WHERE name = 'many'}), '0', 'no key that was used is stale');
	ok($node->poll_query_until('postgres', 'SELECT flushes > 0 AND pending_keys < 50 FROM rk_apikeys.stats'), 'the launcher makes room at once');
	ok(tells($node, $warning), 'the loss is in the log');
	is(scalar(() = logged($node, $warning)), 1, 'once');
	$node->stop;
}

done_testing();
