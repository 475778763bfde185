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
$node->safe_psql('postgres', 'CREATE UNLOGGED TABLE passed (sent timestamptz, at timestamptz, cost int); GRANT INSERT ON passed TO backend;');

# Each session notes what it gets through and when: the moment lies between the start of its statement and its note.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/limited.sql", "\\set cost random(1, 3)\nINSERT INTO passed SELECT statement_timestamp(), clock_timestamp(), :cost
	FROM rk_apikeys.verify_key('$token', cost => :cost) WHERE valid;\n");
append_to_file("$dir/slow.sql", "INSERT INTO passed SELECT NULL, NULL, count(*) FILTER (WHERE rk_apikeys.verify('$slow'))
	FROM generate_series(1, $many / 5);\n");

sub bench
{
	my ($script, @how) = @_;
	$node->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', 8, '-j', 2, @how, '-U', 'backend', '-f', "$dir/$script.sql",
			'-h', $node->host, '-p', $node->port, 'postgres' ], "8 sessions verify a $script key");
}

bench('slow', '-t', 1);
# 366 days for 100,000: one in five minutes, and this has not taken ten
like($node->safe_psql('postgres', "SELECT sum(cost) - $many FROM passed"), qr/^[012]$/, "of 160,000 at once $many pass, and no more");

$node->safe_psql('postgres', 'TRUNCATE passed');
my $start = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
bench('limited', '-T', 4);
my ($total, $most, $span) = split /\|/, $node->safe_psql('postgres', "SELECT sum(cost), max(w), extract(epoch FROM max(at) - '$start')
	FROM passed p, LATERAL (SELECT sum(q.cost) w FROM passed q WHERE q.at <= p.at AND q.sent > p.at - interval '$window s') q");
cmp_ok($most, '<=', 2 * $limit, "no window has more than limit and burst: at most $most");
cmp_ok($total, '<=', $limit * ($span / $window + 1) + 1, "altogether no more than the pace and one burst: $total in $span s");
cmp_ok($total, '>=', $limit * $span / $window * 0.8, 'and not much less');
is(sql_as($node, 'acme', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"),
	$node->safe_psql('postgres', 'SELECT count(*) FROM passed'), 'each that passed is a use, and nothing else is');

done_testing();
