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

# What a role's statement is refused with
sub error_of
{
	my ($node, $role, $sql) = @_;
	$node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", stderr => \my $error, extra_params => [ '-U', $role ]);
	return $error =~ /ERROR:  (\w{5})/ ? $1 : '';
}
my $stale = 'SELECT count(*) FROM rk_apikeys.stale_keys WHERE name =';

# More new keys than there is room
{
	my $node = rk_node('loses', PRELOAD, 'rk_apikeys.max_tracked_keys = 100', "rk_apikeys.usage_flush_interval = '1h'");
	my @token = make_keys($node, 'many', 2000);
	make_keys($node, 'unused', 20);
	my ($own) = make_keys($node, 'own', 1, 'acme');
	is(sql_as($node, 'boss', 'SELECT count(*) FROM rk_apikeys.stale_keys'), '2021', 'old keys are stale');

	# While no flush can make room
	my $holder = session($node, 'postgres');
	$holder->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN EXCLUSIVE MODE');
	is(verify($node, @token, $own), '2001', '2001 keys verify, with room for 100');
	cmp_ok(stat_of($node, 'overflow'), '>=', 1901, 'uses are lost');
	is(sql_as($node, 'boss', "$stale 'many'"), '0', 'no key that was used is stale');
	is(sql_as($node, 'acme', "$stale 'own'"), '0', 'nor for its tenant');
	cmp_ok(sql_as($node, 'boss', "$stale 'unused'"), '>', 0, 'unused keys are');
	ok(tells($node, $warning), 'the loss is in the log');
	verify($node, @token);
	is(scalar(() = logged($node, $warning)), 1, 'once');
	like((logged($node, qr/HINT: .*max_tracked_keys/))[0], qr/Increase/, 'with a hint');
	$holder->quit;

	# Whoever may not see the key, or the times
	my $lost = sql_as($node, 'boss', q{SELECT key_id FROM rk_apikeys.keys WHERE name = 'many' AND last_used_at IS NULL LIMIT 1});
	my $at = "SELECT rk_apikeys._unrecorded_use_at('$lost') IS NOT NULL";
	is(sql_as($node, 'boss', $at) . sql_as($node, 'acme', $at), 'tf', 'another tenant learns no time');
	is(error_of($node, 'acme', $at), '', 'and no error');
	is(error_of($node, 'backend', $at), '42501', 'a verifier may not ask');
	is(error_of($node, $_, 'SELECT FROM rk_apikeys.unrecorded_uses'), '42501', "nor may $_ read the table") foreach qw(acme boss);

	# Over a restart, a flush and a crash
	$node->restart;
	is(sql_as($node, 'boss', "$stale 'many'"), '0', 'a restart keeps that');
	ok($node->poll_query_until('postgres', 'SELECT rk_apikeys.flush_usage() IS NOT NULL AND count(*) > 0 FROM rk_apikeys.unrecorded_uses'), 'a flush writes it');
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	kill_server($node);
	$node->start;
	is(sql_as($node, 'boss', "$stale 'many'"), '0', 'a crash after that keeps it');
	sql_as($node, 'boss', q{INSERT INTO rk_apikeys.policies (max_idle) VALUES ('90 days')});
	cmp_ok(sql_as($node, 'boss', 'SELECT rk_apikeys.disable_idle_keys()'), '>', 0, 'idle keys are disabled');
	is(sql_as($node, 'boss', q{SELECT count(*) FROM rk_apikeys.keys WHERE name IN ('many', 'own') AND NOT enabled}), '0', 'and no key that was used');
	$node->command_like([ 'pg_dump', '-U', 'postgres', '-p', $node->port, '-h', $node->host, 'postgres' ], qr/^COPY rk_apikeys\.unrecorded_uses .*\n\d+\t\d/m, 'a dump has it');
	$node->safe_psql('postgres', q{UPDATE rk_apikeys.unrecorded_uses SET last_used_at = now() - interval '91 days'});
	cmp_ok(sql_as($node, 'boss', "$stale 'many'"), '>', 1800, 'after the time of stale_after they are stale again');
	is(sql_as($node, 'boss', q{SELECT max(unused_for) < '92 days' FROM rk_apikeys.stale_keys WHERE name = 'many'}), 't', 'since that time');
	$node->stop;
}

# The launcher makes room in time, and no count is lost or another key's
{
	my $node = rk_node('exact', PRELOAD, 'rk_apikeys.max_tracked_keys = 1000', "rk_apikeys.usage_flush_interval = '1h'");
	my @token = make_keys($node, 'wakes', 800);
	is(verify($node, @token), '800', '800 of 1000 places are taken');
	ok($node->poll_query_until('postgres', 'SELECT pending_keys < 500 FROM rk_apikeys.stats'), 'the launcher makes room before the last one is');
	is(stat_of($node, 'overflow'), '0', 'no use is lost');
	is_deeply([ logged($node, $warning) ], [], 'and the log has nothing');
	$node->safe_psql('postgres', 'CREATE TABLE tokens (token text); GRANT SELECT ON tokens TO backend');
	@token = make_keys($node, 'many', 3000);
	$node->safe_psql('postgres', 'INSERT INTO tokens SELECT unnest(ARRAY[' . join(',', map { "'$_'" } @token) . '])');
	my $dir = PostgreSQL::Test::Utils::tempdir;
	append_to_file("$dir/verify.sql", 'SELECT 1 / (count(*) FILTER (WHERE NOT rk_apikeys.verify(token)) = 0)::int FROM (SELECT token FROM tokens ORDER BY random()) t;');
	$node->command_ok([ 'pgbench', '-n', '-c', 8, '-t', 4, '-U', 'backend', '-f', "$dir/verify.sql", '-h', $node->host, '-p', $node->port, 'postgres' ],
		'8 sessions verify 3000 keys at random, four times each');
	is(sql_as($node, 'boss', "$stale 'many'"), '0', 'no key that was used is stale');
	is(uses($node, 'many') + stat_of($node, 'overflow'), 8 * 4 * 3000, 'each use is recorded once, or told as lost');
	cmp_ok(sql_as($node, 'boss', q{SELECT max(use_count) FROM rk_apikeys.keys WHERE name = 'many'}), '<=', 32, 'and none is another key\'s');
	diag 'lost ' . stat_of($node, 'overflow') . ' of ' . 8 * 4 * 3000;
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	$node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	is($node->safe_psql('postgres', q{SELECT sum(use_count) FROM rk_apikeys.key_usage JOIN rk_apikeys.api_keys USING (key_id) WHERE name = 'many'})
		+ stat_of($node, 'overflow'), 8 * 4 * 3000, 'the table has the same');
	$node->stop;
}

# A standby with little room: its primary knows, and so does a standby that sends nothing
{
	my $primary = PostgreSQL::Test::Cluster->new('primary');
	$primary->init(allows_streaming => 1, extra => INITDB);
	$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
	$primary->start;
	rk_extend($primary);
	$primary->safe_psql('postgres', 'CREATE ROLE sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender');
	my @token = make_keys($primary, 'far', 1000);
	$primary->backup('base');
	my %conninfo = (silent => '', sends => sprintf('host=%s port=%s user=sender', $primary->host, $primary->port));
	foreach my $name ('silent', 'sends')
	{
		my $standby = PostgreSQL::Test::Cluster->new($name);
		$standby->init_from_backup($primary, 'base', has_streaming => 1);
		$standby->append_conf('postgresql.conf', "rk_apikeys.max_tracked_keys = 100\nrk_apikeys.primary_conninfo = '$conninfo{$name}'");
		$standby->start;
		$primary->wait_for_catchup($standby, 'replay');
		is(verify($standby, @token), '1000', "$name: 1000 keys verify on a standby with room for 100");
		cmp_ok(stat_of($standby, 'overflow') + stat_of($standby, 'dropped'), '>', 0, "$name: uses are lost");
		is(sql_as($standby, 'boss', "$stale 'far'"), '0', "$name: no key that was used is stale there");
		if ($name eq 'silent')
		{
			is(sql_as($primary, 'boss', "$stale 'far'"), '1000', "$name: the primary cannot know");
		}
		else
		{
			ok($primary->poll_query_until('postgres', "$stale 'far'", '0'), "$name: nor on the primary, in the end");
			is(scalar(() = logged($standby, qr/could not send/)), 0, "$name: which takes what it gets");
		}
		$standby->stop;
	}
	$primary->stop;
}

# SQL of 0.2 has no table for it
{
	install_release('0.2');
	my $node = rk_initdb('old', PRELOAD, 'rk_apikeys.max_tracked_keys = 16', "rk_apikeys.usage_flush_interval = '100ms'");
	$node->safe_psql('postgres', q{CREATE EXTENSION pgcrypto; CREATE EXTENSION rk_apikeys VERSION '0.2'});
	my @token = split /\n/, $node->safe_psql('postgres', q{WITH k AS (INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'k', 'k ' || i FROM generate_series(1, 200) i
		RETURNING secret) SELECT secret FROM k});
	is($node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE code = $$valid$$) FROM unnest(ARRAY[' . join(',', map { "'$_'" } @token) . ']) t, rk_apikeys.verify_key(t)'),
		'200', 'with SQL of 0.2 the keys verify');
	cmp_ok($node->safe_psql('postgres', 'SELECT overflow FROM rk_apikeys.stats'), '>', 0, 'uses are lost');
	ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 AND flushed_keys > 0 FROM rk_apikeys.stats'), 'and the others are written');
	is_deeply([ logged($node, qr/ERROR: /) ], [], 'without an error');
	$node->stop;
}

done_testing();
