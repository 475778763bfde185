# test/t/095_limit_sessions.pl: 64 sessions at once take exactly the units of a quota, whatever else refuses them and gives back, and however
# they end. A shared rate limit lets no more through than its pace and one burst. What the sessions were refused too early is counted.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;
my $rounds = $ENV{RK_ROUNDS} // 2;
my $node = rk_node('limited', PRELOAD, 'max_connections = 80', "rk_apikeys.usage_flush_interval = '1h'");
my $dir = PostgreSQL::Test::Utils::tempdir;

# a: bound by the quota alone. b: by a rate limit, too, that has nothing left. c: by another quota, too, that is soon used up. d: by a limit of
# its own, too, of which each window gives a few. What refuses b, c and d gives back to the quota that all share.
my $units = 1000;
# Quotas are asked in the order of their ids, so some is asked after all.
$node->safe_psql('postgres', qq{INSERT INTO rk_apikeys.limits (limit_id, tenant, name, owner, units, rate_window, period) VALUES
	('00000000-0000-0000-0000-000000000001', 'acme', 'all', NULL, $units, NULL, 'total'),
	('00000000-0000-0000-0000-000000000002', 'acme', 'zero', 'b', 1, '366 days', NULL),
	('00000000-0000-0000-0000-000000000003', 'acme', 'some', 'c', 50, NULL, 'month'),
	('00000000-0000-0000-0000-000000000004', 'globex', 'paced', NULL, 200, '1 s', NULL)});
my %token = token_of($node, 'acme', q{WITH k AS (INSERT INTO rk_apikeys.keys (name, owner, rate_limit, rate_window) VALUES
	('a', NULL, NULL, NULL), ('b', 'b', NULL, NULL), ('c', 'c', NULL, NULL), ('d', NULL, 3, '10 ms') RETURNING name, secret) SELECT * FROM k});
$node->safe_psql('postgres', 'CREATE UNLOGGED TABLE asked (key text, sent timestamptz, at timestamptz DEFAULT clock_timestamp(), cost int, code text);
	GRANT INSERT ON asked TO backend');

# The sessions ask without a pause. An end is what follows the note of an answer.
sub script
{
	my ($name, $body) = @_;
	append_to_file("$dir/$name.sql", $body);
	return "$dir/$name.sql";
}
sub asks
{
	my ($key, $cost, $charge) = @_;
	return "INSERT INTO asked (key, sent, cost, code) SELECT '$key', statement_timestamp(), $cost, code
		FROM rk_apikeys.verify_key('$token{$key}', cost => $cost, charge => '$charge');\n";
}
sub bench
{
	my ($name, @how) = @_;
	return $node->command_ok([ 'pgbench', '-n', '-c', $clients, '-j', 2, '-U', 'backend', @how, '-h', $node->host, '-p', $node->port, 'postgres' ], $name);
}
sub reset_all
{
	sql_as($node, 'boss', 'SELECT count(rk_apikeys.reset_limit(limit_id)) FROM rk_apikeys.limits');
	$node->safe_psql('postgres', 'TRUNCATE asked');
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{b}')");
	return;
}
sub left { return sql_as($node, 'boss', q{SELECT remaining FROM rk_apikeys.limit_status WHERE name = 'all'}); }
sub taken { return $node->safe_psql('postgres', q{SELECT coalesce(sum(cost), 0) FROM asked WHERE code = 'valid'}); }

# More demand than units: exactly the units are given, each once. The quota is reset while nobody asks.
my %file = (
	now => script('now', asks('a', 1, 'now')),
	two => script('two', asks('a', 2, 'now')),
	b => script('b', asks('b', 1, 'now')),
	c => script('c', asks('c', 1, 'now')),
	d => script('d', asks('d', 1, 'now')),
	commit => script('commit', 'BEGIN; ' . asks('a', 1, 'commit') . 'COMMIT;'),
	undone => script('undone', 'BEGIN; ' . asks('a', 3, 'commit') . 'ROLLBACK;'),
	savepoint => script('savepoint', 'BEGIN; ' . asks('c', 1, 'commit') . 'SAVEPOINT a; ' . asks('a', 2, 'commit') . 'ROLLBACK TO a; '
		  . asks('d', 1, 'commit') . 'COMMIT;'));
foreach my $round (1 .. $rounds)
{
	foreach my $mix ([ now => qw(now) ], [ 'costs of 1 and 2' => qw(now two) ], [ 'refusals that give back' => qw(now b c d) ],
		[ commit => qw(commit) ], [ 'commit, rollback and savepoints' => qw(commit undone savepoint) ], [ all => keys %file ])
	{
		my ($name, @files) = @$mix;
		$name = "round $round, $name";
		reset_all();
		my $before = 1;    # b's in reset_all()
		bench($name, '-t', int(1 + 2.5 * $units / $clients), map { ('-f', $file{$_}) } @files);
		my $given = taken() + $before;
		cmp_ok($given, '<=', $units, "$name: no more than $units are given");
		is(left(), $units - $given, "$name: the view tells what is left");
		# What was refused too early is still there
		my $more = sql_as($node, 'backend', "SELECT count(*) FILTER (WHERE rk_apikeys.verify('$token{a}')) FROM generate_series(1, $units)");
		is($given + $more, $units, "$name: exactly $units of $units are given in the end");
	}
}

# How often is a call refused that would have passed, had the others not taken for a moment what they gave back? a asks for all units
# and no more; c is refused each time after it has taken from the quota, and gives back.
my ($each, $refused_early, $refusals) = (15, 0, 0);
my $early = script('early', asks('c', 1, 'now') . asks('a', 1, 'now') . asks('c', 1, 'now'));
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 51 + $clients * $each WHERE name = 'all'");
foreach my $round (1 .. $rounds)
{
	my $name = "round $round, as much demand as units";
	reset_all();
	sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{c}', cost => 50)");
	bench($name, '-t', $each, '-f', $early);
	my ($given, $back) = split /\|/, $node->safe_psql('postgres', q{SELECT count(*) FILTER (WHERE key = 'a' AND code = 'valid'),
		count(*) FILTER (WHERE key = 'c' AND code <> 'valid') FROM asked});
	is($back, 2 * $each * $clients, "$name: c is refused each time");
	$refused_early += $each * $clients - $given;
	$refusals += $back;
	is(left(), $each * $clients - $given, "$name: what was refused too early is left");
}

# The shared rate limit of globex, by two keys, one of which asks for 3 and sometimes returns it
my $limit = 200;
my ($paced, $other) = map { (create_key($node, $_, undef, 'globex'))[1] } 'paced', 'other';
@token{ 'paced', 'other' } = ($paced, $other);
$node->safe_psql('postgres', 'TRUNCATE asked');
my $start = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
bench('a shared rate limit', '-T', 5, '-f', script('paced', asks('paced', 1, 'now')), '-f', script('other', asks('other', 3, 'now')),
	'-f', script('paced_commit', 'BEGIN; ' . asks('paced', 2, 'commit') . 'COMMIT;'), '-f', script('undone2', 'BEGIN; ' . asks('other', 3, 'commit') . 'ROLLBACK;'));
my ($total, $most, $span) = split /\|/, $node->safe_psql('postgres', "WITH p AS MATERIALIZED (SELECT * FROM asked WHERE code = 'valid')
	SELECT sum(cost), max(w), extract(epoch FROM max(at) - '$start') FROM p,
	LATERAL (SELECT sum(q.cost) w FROM p q WHERE q.at <= p.at AND q.sent > p.at - interval '1 s') x");
cmp_ok($most, '<=', 2 * $limit, "no window has more than limit and burst: at most $most");
cmp_ok($total, '<=', $limit * ($span + 1) + 1, "altogether no more than the pace and one burst: $total in $span s");
ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$paced', cost => $limit)"), 'the burst comes back');
is_deeply([ logged($node, qr/PANIC:|TRAP:|ERROR:/) ], [], 'no error');

diag sprintf '%d of %d calls were refused too early, beside %d refusals that gave back', $refused_early, $rounds * $each * $clients, $refusals;

done_testing();
