# test/t/091_limit_restart.pl: the buckets of the five plans over a clean restart, which keeps each, and over a crash, which loses at most what
# was counted since the last flush; no crash gives a reservation away.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('restart', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'restart_after_crash = on', 'max_prepared_transactions = 5');

# name, columns, values
foreach my $limit ([ 'per_minute', 'units, rate_window', "1000, '60 days'" ], [ 'monthly', 'units, period', "100000, 'month'" ],
	[ 'exports', 'units, rate_window, always', "10, '60 days', false" ], [ 'per_key_pace', 'per_key, units, rate_window', "true, 800, '60 days'" ],
	[ 'per_key_daily', 'per_key, units, period', "true, 5000, 'year'" ], [ 'credits', 'units, period', "100000, 'total'" ],
	[ 'dev', 'environment, units, period', "'dev', 2000, 'week'" ], [ 'personal', 'owner, units, period', "'ann', 3000, 'month'" ])
{
	sql_as($node, 'boss', "INSERT INTO rk_apikeys.limits (tenant, name, $limit->[1]) VALUES ('acme', '$limit->[0]', $limit->[2])");
}
my (%id, %token);
($id{own}, $token{own}) = create_key($node, 'own', "rate_limit => 600, rate_window => '60 days'");
($id{dev}, $token{dev}) = create_key($node, 'dev', "environment => 'dev'");
($id{anns}, $token{anns}) = split /\|/, sql_as($node, 'acme', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('anns', 'ann') RETURNING key_id, secret");

sub take
{
	my ($key, $cost, $more) = @_;
	$more = $more ? ", $more" : '';
	return sql_as($node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token{$key}', cost => $cost$more)");
}

# What is used of each limit, by name and key.
sub used
{
	my ($kind) = @_;
	my $where = { quotas => 'WHERE period IS NOT NULL', rates => 'WHERE period IS NULL' }->{ $kind // '' } // '';
	return { map { split /=/ } split /\n/, sql_as($node, 'acme', "SELECT concat_ws(' ', l.name, k.name) || '=' || used FROM rk_apikeys.limit_status l
		LEFT JOIN rk_apikeys.keys k ON l.per_key AND k.key_id = l.family $where ORDER BY 1") };
}

# --- a clean restart -----------------------------------------------------------------------------------------------------

is(take('own', 100), 'valid', 'used');
is(take('dev', 30), 'valid', 'in development');
is(take('anns', 20, "limits => NULL"), 'valid', 'by ann');
is(take('own', 4, "limits => '{exports}'"), 'valid', 'for exports');
my $expected = { per_minute => 154, monthly => 154, exports => 4, 'per_key_pace own' => 104, 'per_key_pace dev' => 30, 'per_key_pace anns' => 20,
	'per_key_daily own' => 104, 'per_key_daily dev' => 30, 'per_key_daily anns' => 20, credits => 154, dev => 30, personal => 20, 'rate_limit own' => 104 };
is_deeply(used(), $expected, 'each bucket has what was taken');
foreach my $mode ('fast', 'smart')
{
	$node->stop($mode);
	$node->start;
	is_deeply(used(), $expected, "a restart ($mode) keeps each bucket, of rates too");
}
is(take('own', 497), 'rate_limited', 'and it is enforced');
is(sql_as($node, 'backend', "SELECT limit_name, limit_remaining FROM rk_apikeys.verify_key('$token{own}', cost => 497)"), 'rate_limit|496', 'to the unit');
is(take('own', 1), 'valid', 'what is left can be taken');
$expected->{$_}++ foreach 'per_minute', 'monthly', 'per_key_pace own', 'per_key_daily own', 'credits', 'rate_limit own';

# A prepared transaction has paid; a transaction that is open at the stop has not.
my $prepared = session($node, 'backend');
$prepared->query_safe("BEGIN; SELECT code FROM rk_apikeys.verify_key('$token{dev}', cost => 7, charge => 'commit'); PREPARE TRANSACTION 'paid'");
$prepared->quit;
$expected->{$_} += 7 foreach 'per_minute', 'monthly', 'per_key_pace dev', 'per_key_daily dev', 'credits', 'dev';
my $open = session($node, 'backend');
$open->query_safe("BEGIN; SELECT code FROM rk_apikeys.verify_key('$token{anns}', cost => 9, charge => 'commit')");
my $reserved = { %$expected, map { $_ => $expected->{$_} + 9 } 'per_minute', 'monthly', 'per_key_pace anns', 'per_key_daily anns', 'credits', 'personal' };
is_deeply(used(), $reserved, 'what is reserved counts');
$node->stop('fast');
eval { $open->quit };
$node->start;
is_deeply(used(), $expected, 'a stop gives back what was reserved, and keeps what is prepared');
sql_as($node, 'backend', "ROLLBACK PREPARED 'paid'");
is_deeply(used(), $expected, 'PREPARE has charged it for good');

# --- crashes -------------------------------------------------------------------------------------------------------------

sub flushed
{
	return sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
}
my @quotas = ('monthly', 'per_key_daily own', 'per_key_daily dev', 'per_key_daily anns', 'credits', 'dev', 'personal');
my $quotas = sub { return { map { $_ => $expected->{$_} } @quotas } };
flushed();
is(take('own', 3), 'valid', 'used after the flush');
kill_server($node);
$node->start;
is_deeply(used('quotas'), $quotas->(), 'a crash loses what was counted since the last flush, and nothing else');
is(take('dev', 2), 'valid', 'after a crash');
$expected->{$_} += 2 foreach 'monthly', 'per_key_daily dev', 'credits', 'dev';
is_deeply(used('quotas'), $quotas->(), 'quotas go on from there');
flushed();

# A backend that is killed takes the shared memory with it
my $killed = session($node, 'backend');
my $pid = $killed->query_safe('SELECT pg_backend_pid()');
$killed->query_safe("BEGIN; SELECT code FROM rk_apikeys.verify_key('$token{anns}', cost => 11, charge => 'commit')");
kill 'KILL', $pid or die "no such process: $pid";
eval { $killed->quit };
$node->poll_query_until('postgres', "SELECT pg_backend_pid() <> $pid") or die 'the server did not come back';
is_deeply(used('quotas'), $quotas->(), 'the reservation of a backend that was killed is gone');

# Under load, with a short interval: between what a flush had written and what was admitted
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '200ms'");
$node->restart;
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/take.sql", "SELECT code FROM rk_apikeys.verify_key('$token{dev}', limits => NULL);\n");
sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = CASE WHEN period IS NULL THEN 2147483647 ELSE 1000000000 END");
foreach my $round (1 .. 3)
{
	my $before = used('quotas')->{credits};
	my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-T', 60, '-U', 'backend', '-f', "$dir/take.sql", '-h', $node->host, '-p', $node->port, 'postgres' ],
		'>', \my $printed, '2>', \my $warned);
	$node->poll_query_until('postgres', "SELECT sum(u.units) > $before + 500 FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = 'credits'") or die 'no use';
	my ($written) = sql_as($node, 'boss', "SELECT u.units FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits USING (limit_id) WHERE name = 'credits'");
	kill_server($node);
	eval { IPC::Run::finish($load) };
	$node->start;
	my $after = used('quotas')->{credits};
	cmp_ok($after, '>=', $written, "crash $round: no flushed unit is lost");
	is(used('quotas')->{monthly} - $after, $expected->{monthly} - $expected->{credits}, "crash $round: two quotas agree");
}
done_testing();
