# test/t/092_limit_standby.pl: a primary and a standby that both verify. The units of a standby's verifies arrive at the primary, each once,
# and come back to the standby; servers are off by at most what they counted in one round; a promoted standby goes on.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
$primary->start;
rk_extend($primary);
$primary->safe_psql('postgres', 'CREATE ROLE sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', sprintf "rk_apikeys.primary_conninfo = 'host=%s port=%s user=sender'", $primary->host, $primary->port);
$standby->start;

my %limit;
foreach my $limit ([ 'monthly', 'units, period', "100000, 'month'" ], [ 'credits', 'units, period', "1000000, 'total'" ],
	[ 'per_key_daily', 'per_key, units, period', "true, 50000, 'year'" ], [ 'pace', 'units, rate_window', "1000, '60 days'" ])
{
	$limit{ $limit->[0] } = sql_as($primary, 'boss', "INSERT INTO rk_apikeys.limits (tenant, name, $limit->[1]) VALUES ('acme', '$limit->[0]', $limit->[2]) RETURNING limit_id");
}
my (%id, %token);
($id{$_}, $token{$_}) = create_key($primary, $_) foreach 'one', 'two';
my @quotas = ('credits', 'monthly', 'per_key_daily one', 'per_key_daily two');
$primary->wait_for_catchup($standby, 'replay');

sub take
{
	my ($server, $key, $cost) = @_;
	return sql_as($server, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{$key}', cost => $cost)");
}

# What the quotas have used: in the table of the primary, or by the view of a server.
my $in_table = "SELECT string_agg(concat_ws(' ', l.name, k.name) || '=' || u.units, ', ' ORDER BY l.name, k.name) FROM rk_apikeys.limit_usage u
	JOIN rk_apikeys.limits l USING (limit_id) LEFT JOIN rk_apikeys.api_keys k ON k.key_id = u.family";
my $in_view = "SELECT string_agg(concat_ws(' ', l.name, k.name) || '=' || l.used, ', ' ORDER BY l.name, k.name) FROM rk_apikeys.limit_status l
	LEFT JOIN rk_apikeys.api_keys k ON l.per_key AND k.key_id = l.family WHERE l.period IS NOT NULL";

sub sums
{
	my ($one, $two) = @_;
	return join ', ', 'credits=' . ($one + $two), 'monthly=' . ($one + $two), "per_key_daily one=$one", "per_key_daily two=$two";
}

# The table has the sum, and the primary says so. The standby learns the sum when it sends units of its own next: here, one of each key.
my ($one, $two) = (0, 0);
sub agree
{
	my ($what) = @_;
	foreach my $round ('written', 'told')
	{
		my $sums = sums($one, $two);
		my @views = ([ $primary, $in_table, "the primary's table" ], [ $primary, $in_view, "the primary's view" ]);
		push @views, [ $standby, $in_view, "the standby's view" ] if $round eq 'told';
		ok($_->[0]->poll_query_until('postgres', $_->[1], $sums), "$what: the sum is in $_->[2]") or BAIL_OUT($_->[0]->safe_psql('postgres', $_->[1]) . " and not $sums")
		  foreach @views;
		last if $round eq 'told';
		is(take($standby, $_, 1), 'valid', "$what: another unit of $_ on the standby") foreach 'one', 'two';
		$one++;
		$two++;
	}
}

is(take($standby, 'one', 30), 'valid', 'a verify on the standby');
is(take($primary, 'one', 4), 'valid', 'and one on the primary');
is(take($standby, 'two', 5), 'valid', 'and of another key');
($one, $two) = (34, 5);
agree('first');
foreach my $round (1 .. 10)
{
	take($standby, 'one', $round);
	take($primary, 'two', 2 * $round);
	take($primary, 'one', 1);
	$one += $round + 1;
	$two += 2 * $round;
}
agree('both at once');

# A rate counts per server
my $pace = sub { $_[0]->safe_psql('postgres', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'pace'") };
is($pace->($primary) + $pace->($standby), $one + $two, 'a rate limit counts on each server for itself');

# Load on both
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/one.sql", "SELECT rk_apikeys.verify('$token{one}');\n");
$primary->safe_psql('postgres', "UPDATE rk_apikeys.limits SET units = 2000000000 WHERE name = 'pace'");
$primary->wait_for_catchup($standby, 'replay');
my @loads = map { my ($printed, $warned); IPC::Run::start([ 'pgbench', '-n', '-M', 'prepared', '-c', 2, '-t', 2000, '-U', 'backend', '-f', "$dir/one.sql", '-h', $_->host,
		'-p', $_->port, 'postgres' ], '>', \$printed, '2>', \$warned) } $primary, $standby;
ok(IPC::Run::finish($_), 'load') foreach @loads;
$one += 8000;
agree('under load');

# A quota that is used up on the primary is used up on the standby after a round of its own, and exactly that is in the sum
$primary->safe_psql('postgres', "UPDATE rk_apikeys.limits SET units = $one + $two + 10 WHERE name = 'credits'");
$primary->wait_for_catchup($standby, 'replay');
is(take($primary, 'one', 10), 'valid', 'the last ten');
$one += 10;
ok($primary->poll_query_until('postgres', $in_table, sums($one, $two)), 'are written');
is(take($primary, 'one', 1), 'quota_exceeded', 'and gone');
my $more = 0;
$more++ while $more < 1000 && take($standby, 'one', 1) eq 'valid';
cmp_ok($more, '<', 11, "the standby admits what it counts in one round, here $more, and no more than it knew to remain");
$one += $more;
ok($primary->poll_query_until('postgres', $in_table, sums($one, $two)), 'the sum is exact');
is(take($standby, 'one', 1), 'quota_exceeded', 'and known to the standby');

# Off by at most what is counted in one round: with the delivery held, each admits what remains, and the sum is told afterwards
$primary->safe_psql('postgres', "ALTER ROLE sender NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sender'");
$primary->safe_psql('postgres', "UPDATE rk_apikeys.limits SET units = $one + $two + 20 WHERE name = 'credits'");
$primary->wait_for_catchup($standby, 'replay');
my %valid;
foreach my $server ($primary, $standby)
{
	$valid{ $server->name } = grep { take($server, 'one', 1) eq 'valid' } 1 .. 30;
}
is_deeply(\%valid, { primary => 20, standby => 20 }, 'while nothing is delivered each server admits the 20 units that remain, and not one more');
$one += 40;
$primary->safe_psql('postgres', 'ALTER ROLE sender LOGIN');
ok($primary->poll_query_until('postgres', $in_table, sums($one, $two)), 'delivered, all of it is in the sum');
ok($standby->poll_query_until('postgres', $in_view, sums($one, $two)), 'which the standby knows') or diag $standby->safe_psql('postgres', $in_view);
is(sql_as($primary, 'acme', "SELECT remaining FROM rk_apikeys.limit_status WHERE name = 'credits'"), '0', 'what remains is never below 0');

# A reset and a raise on the primary reach the standby
$primary->safe_psql('postgres', "SELECT rk_apikeys.reset_limit('$limit{credits}')");
$primary->wait_for_catchup($standby, 'replay');
is(take($standby, 'one', 3), 'valid', 'a reset follows by replication');
ok($standby->poll_query_until('postgres', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'credits'", '3'), 'and begins anew there');
ok($primary->poll_query_until('postgres', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'credits'", '3'), 'and here');
$one += 3;

# The primary is gone for good
$primary->poll_query_until('postgres', "SELECT sum(u.units) = $one + $two FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = 'monthly'") or die 'not delivered';
$primary->wait_for_catchup($standby, 'replay');
take($standby, 'two', 6);
$two += 6;
kill_server($primary);
$standby->promote;
ok($standby->poll_query_until('postgres', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'monthly'", $one + $two), 'a promoted standby goes on from the sum');
take($standby, 'two', 4);
$two += 4;
ok($standby->poll_query_until('postgres', "SELECT sum(u.units) = $one + $two FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = 'monthly'"),
	'and writes it to its own table') or diag $standby->safe_psql('postgres', $in_table);
$standby->restart;
is($standby->safe_psql('postgres', "SELECT used FROM rk_apikeys.limit_status WHERE name = 'monthly'"), $one + $two, 'which a restart keeps');
done_testing();
