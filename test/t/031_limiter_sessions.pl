# test/t/031_limiter_sessions.pl: eight sessions at once get no more through than the limit and one burst per window.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('limited', PRELOAD);
my ($limit, $window) = (200, 1);
# So many that sessions collide, so slow that none comes back.
my $many = 100_000;
my (undef, $slow) = create_key($node, 'slow', "rate_limit => $many, rate_window => '366 days'");
my ($id, $token) = create_key($node, 'limited', "rate_limit => $limit, rate_window => '$window s'");
$node->safe_psql('postgres', 'CREATE UNLOGGED TABLE asked (sent timestamptz, at timestamptz, cost int); GRANT INSERT ON asked TO backend;');

# Each session notes when it asks and what it gets through, 0 if that is nothing: the moment lies between the start of its statement and its
# note.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/limited.sql", "\\set cost random(1, 3)\nINSERT INTO asked SELECT statement_timestamp(), clock_timestamp(), CASE WHEN valid THEN :cost ELSE 0 END
	FROM rk_apikeys.verify_key('$token', cost => :cost);\n");
append_to_file("$dir/slow.sql", "INSERT INTO asked SELECT NULL, NULL, count(*) FILTER (WHERE rk_apikeys.verify('$slow'))
	FROM generate_series(1, $many / 5);\n");

sub bench
{
	my ($script, @how) = @_;
	$node->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', 8, '-j', 2, @how, '-U', 'backend', '-f', "$dir/$script.sql",
			'-h', $node->host, '-p', $node->port, 'postgres' ], "8 sessions verify a $script key");
}

bench('slow', '-t', 1);
# 366 days for 100,000: one in five minutes, and this has not taken ten
like($node->safe_psql('postgres', "SELECT sum(cost) - $many FROM asked"), qr/^[012]$/, "of 160,000 at once $many pass, and no more");

# The pace is owed for the time in which they ask: not while all of them wait for a processor, half a window or longer, so that the limit
# fills up. They go on until they have asked for two windows.
$node->safe_psql('postgres', 'TRUNCATE asked');
my ($total, $most, $span, $busy);
foreach my $round (1 .. 10)
{
	my $start = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	bench('limited', '-T', 4);
	($total, $most, $span, $busy) = split /\|/, $node->safe_psql('postgres', "WITH a AS MATERIALIZED (SELECT * FROM asked WHERE sent > '$start'),
			p AS MATERIALIZED (SELECT * FROM a WHERE cost > 0),
			gaps AS (SELECT lead(sent) OVER (ORDER BY sent) - sent AS gap FROM a)
		SELECT sum(cost), max(w), extract(epoch FROM max(at) - '$start'), (SELECT extract(epoch FROM sum(gap)) FROM gaps WHERE gap < interval '$window s' / 2)
		FROM p, LATERAL (SELECT sum(q.cost) w FROM p q WHERE q.at <= p.at AND q.sent > p.at - interval '$window s') x");
	last if $busy > 2 * $window;
}
cmp_ok($busy, '>', 2 * $window, "they asked for $busy s");
cmp_ok($most, '<=', 2 * $limit, "no window has more than limit and burst: at most $most");
cmp_ok($total, '<=', $limit * ($span / $window + 1) + 1, "altogether no more than the pace and one burst: $total in $span s");
cmp_ok($total, '>=', $limit * $busy / $window * 0.8, 'and not much less');
is(sql_as($node, 'acme', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"),
	$node->safe_psql('postgres', 'SELECT count(*) FROM asked WHERE cost > 0'), 'each that passed is a use, and nothing else is');

done_testing();
