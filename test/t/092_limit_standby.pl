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

# The table has the sum, and both servers say so.
sub agree
{
	my ($one, $two, $what) = @_;
	my $sums = sums($one, $two);
	ok($primary->poll_query_until('postgres', $in_table, $sums), "$what: the primary's table has the sum")
	  or diag $primary->safe_psql('postgres', $in_table);
	ok($_->[0]->poll_query_until('postgres', $in_view, $sums), "$what: $_->[1] says so") or diag $_->[0]->safe_psql('postgres', $in_view)
	  foreach [ $primary, 'the primary' ], [ $standby, 'the standby' ];
}

is(take($standby, 'one', 30), 'valid', 'a verify on the standby');
is(take($primary, 'one', 4), 'valid', 'and one on the primary');
is(take($standby, 'two', 5), 'valid', 'and of another key');
agree(34, 5, 'first');
my ($one, $two) = (34, 5);
foreach my $round (1 .. 10)
{
	take($standby, 'one', $round);
	take($primary, 'two', 2 * $round);
	take($primary, 'one', 1);
	$one += $round + 1;
	$two += 2 * $round;
}
agree($one, $two, 'both at once');

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
agree($one, $two, 'under load');

# A used-up quota is used up on the other server too, after a round
$primary->safe_psql('postgres', "UPDATE rk_apikeys.limits SET units = $one + $two + 10 WHERE name = 'credits'");
$primary->wait_for_catchup($standby, 'replay');
is(take($primary, 'one', 10), 'valid', 'the last ten');
$one += 10;
agree($one, $two, 'used up');
is(take($standby, 'one', 1), 'quota_exceeded', 'are gone on the standby too');
is(take($primary, 'one', 1), 'quota_exceeded', 'as on the primary');

# Off by at most what is counted in one round: with the delivery held, each admits what remains, and the sum is told afterwards
$primary->safe_psql('postgres', "ALTER ROLE sender NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sender'");
$primary->safe_psql('postgres', "UPDATE rk_apikeys.limits SET units = units + 20 WHERE name = 'credits'");
$primary->wait_for_catchup($standby, 'replay');
my %valid;
foreach my $server ($primary, $standby)
{
	$valid{ $server->name } = grep { take($server, 'one', 1) eq 'valid' } 1 .. 30;
}
is_deeply(\%valid, { primary => 20, standby => 20 }, 'while nothing is delivered each server admits the 20 units that remain, and not one more');
$one += 40;
$primary->safe_psql('postgres', 'ALTER ROLE sender LOGIN');
agree($one, $two, 'delivered');
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
