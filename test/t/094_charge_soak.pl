# test/t/094_charge_soak.pl: sessions charge at COMMIT and end in every way, and servers restart and are killed. The units used are the
# committed rows, but for what a killed server had not flushed. No reservation stays. RK_CHARGE_SOAK=3600 goes on for that many seconds.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use Charges;
use RkApikeys;
use List::Util qw(sum0);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{RK_CHARGE_SOAK} // 24;
my $sessions = $ENV{RK_CHARGE_SOAK} ? 4 : 6;
# The most units that a session's transaction takes: 8 calls of 3.
my $most = 24;
my $seed = time ^ $$;
srand $seed;
my $dir = PostgreSQL::Test::Utils::tempdir;

my $node = rk_node('soak', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'", 'max_prepared_transactions = 40', 'max_connections = 40',
	'track_commit_timestamp = on', 'restart_after_crash = on', 'log_statement = none');
my $client = client('charge');
$node->safe_psql('postgres', CHARGES);
my ($limits, $keys) = charge_keys();
sql_as($node, 'boss', $limits);
my @token = split /\n/, sql_as($node, 'acme', $keys);
my %counts = charge_limits();
my @quotas = grep { $_ ne 'pace' } sort keys %counts;

sub ask { return $node->safe_psql('postgres', $_[0]); }

# The units of committed rows and of the table, by quota.
sub committed { return { map { $_ => ask('SELECT coalesce(sum(units), 0) FROM ' . COMMITTED . " c WHERE $counts{$_}") } @quotas }; }
sub used
{
	my %used = map { split /\|/ } split /\n/, ask('SELECT name, coalesce(sum(u.units), 0) FROM rk_apikeys.limits
		LEFT JOIN rk_apikeys.limit_usage u USING (limit_id) GROUP BY name');
	return \%used;
}

# What a flush has not written when the server is killed: what was settled since the last one began that has ended. Each session may be
# between its COMMIT and the settling.
my $flushed = 0;
sub flush
{
	my $began = ask('SELECT clock_timestamp()');
	ask('SELECT rk_apikeys.flush_usage()');
	$flushed = $began;
	return;
}
sub bound { return { map { $_ => ask('SELECT coalesce(sum(units), 0) FROM ' . COMMITTED . " c WHERE $counts{$_}
	AND pg_xact_commit_timestamp(xmin) >= '$flushed'") + $sessions * $most } @quotas }; }

# The sessions.
my ($load, %ends);
sub start_load
{
	append_to_file("$dir/run", '');
	my $seed = int rand 1e9;
	$load = fork // die "no fork: $!";
	return if $load;
	open STDOUT, '>', "$dir/out" or die;
	exec($client, $node->connstr('postgres') . " user=backend options='-c client_min_messages=error'", "$dir/run", $sessions, $seed, @token)
	  or POSIX::_exit(1);
}

sub end_load
{
	my ($name) = @_;
	unlink "$dir/run";
	waitpid $load, 0;
	is($?, 0, "$name: every error of the sessions is explained");
	foreach (split /\n/, slurp_file("$dir/out"))
	{
		my ($end, $count) = split / /;
		$ends{$end} += $count;
	}
	return;
}

# Waits until the sessions are gone, and decides what was left prepared.
sub settle
{
	$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'backend'}) or die 'sessions stay';
	ask($_) foreach split /\n/, ask(LEFTOVER);
	return;
}

# Units that killed servers have lost.
my %lost = map { $_ => 0 } @quotas;
my %tally;

sub check_exact
{
	my ($name) = @_;
	my ($committed, $used) = (committed(), used());
	is_deeply({ map { $_ => $used->{$_} + $lost{$_} } @quotas }, $committed, "$name: the units used are the committed rows"
		  . ($lost{every} ? " but for the $lost{every} that were lost" : ''));
	return;
}

sub check_bounded
{
	my ($name, $bound) = @_;
	my ($committed, $used) = (committed(), used());
	my $now = { map { $_ => $committed->{$_} - $used->{$_} - $lost{$_} } @quotas };
	foreach (@quotas)
	{
		cmp_ok($now->{$_}, '>=', 0, "$name: $_ counts nothing twice");
		cmp_ok($now->{$_}, '<=', $bound->{$_}, "$name: $_ loses no more than what came since the last flush");
		$lost{$_} += $now->{$_};
	}
	$tally{"units lost by $name"} += $now->{every};
	$tally{"units that came since the last flush before $name"} += $bound->{every} - $sessions * $most;
	return;
}

# The sessions work for a while. The limit tight is raised, and what its sessions were given is never more.
my $tight = 100;
sub work
{
	my ($while) = @_;
	for (my $end = time + $while; time < $end;)
	{
		usleep(50_000 + rand 400_000);
		flush() if rand() < 0.7;
		my $rows = ask("SELECT coalesce(sum(units), 0) FROM work WHERE $counts{tight}");
		$tally{'tight was used up'}++ if $rows >= $tight - $lost{tight};
		die "tight has given $rows of $tight" if $rows > $tight + $lost{tight};
		$tight += 1 + int rand 40;
		sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = $tight WHERE name = 'tight'");
	}
	return;
}

# Kills a session's process; one that was about to end does not count.
sub kill_a_backend
{
	my $place = -s $node->logfile;
	foreach (1 .. 100)
	{
		my ($pid) = split /\n/, ask(q{SELECT pid FROM pg_stat_activity WHERE usename = 'backend' ORDER BY random() LIMIT 1});
		next unless $pid && kill 'KILL', $pid;
		foreach (1 .. 100)
		{
			return if slurp_file($node->logfile, $place) =~ /all server processes terminated; reinitializing/;
			usleep(100_000);
		}
	}
	die 'no session was killed';
}

my @rounds = ('quiet', 'restart', 'kill of a backend', 'kill of the server', 'immediate shutdown');
my $began = time;
start_load();
for (my $round = 0; $round < @rounds || time < $began + $seconds; $round++)
{
	my $kind = $rounds[ $round < @rounds ? $round : rand @rounds ];
	my $length = $ENV{RK_CHARGE_SOAK} ? 10 + rand 20 : $seconds / @rounds;
	$tally{$kind}++;
	work($length * (0.3 + rand 0.7));
	if ($kind eq 'quiet' || $kind eq 'restart')
	{
		$node->restart if $kind eq 'restart';
		work(2) if $kind eq 'restart';
		end_load($kind);
		settle();
		flush();
		check_exact($kind);
	}
	else
	{
		usleep(rand 500_000);
		if ($kind eq 'kill of a backend')
		{
			kill_a_backend();
			unlink "$dir/run";
			$node->poll_query_until('postgres', 'SELECT true') or die 'the server does not come back';
		}
		elsif ($kind eq 'kill of the server')
		{
			kill_server($node);
			unlink "$dir/run";
			$node->start;
		}
		else
		{
			$node->stop('immediate');
			unlink "$dir/run";
			$node->start;
		}
		end_load($kind);
		settle();
		my $bound = bound();
		flush();
		check_bounded($kind, $bound);
	}
	start_load();
}
end_load('at the end');
settle();
flush();
check_exact('at the end');

# Each unit that is left can be taken, and no other: nothing stays reserved.
my $used = used();
$used->{each} = ask(q{SELECT u.units FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits l USING (limit_id)
	WHERE l.name = 'each' AND u.family = (SELECT family FROM rk_apikeys.api_keys WHERE name = '1')});
foreach my $case ([ every => 0 ], [ each => 1 ], [ yearly => 2 ], [ tight => 4 ])
{
	my ($name, $key) = @$case;
	sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = $used->{$name} + 10 WHERE name = '$name'");
	is(sql_as($node, 'backend', "SELECT string_agg(code || coalesce(' ' || CASE WHEN NOT valid THEN limit_name END, ''), ',')
		FROM generate_series(1, 11) i, rk_apikeys.verify_key('$token[$key]', cost => sign(i)::int)"), join(',', ('valid') x 10, "quota_exceeded $name"),
		"$name: the 10 units that are left can be taken");
	sql_as($node, 'boss', "UPDATE rk_apikeys.limits SET units = 1e12 WHERE name = '$name'");
}
# The rate limits have all their units again.
ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$token[5]', cost => 50)"), 'the shared rate limit is full again');
ok($node->poll_query_until('postgres', "SELECT code = 'valid' FROM rk_apikeys.verify_key('$token[3]', cost => 200)"), "a key's own rate limit, too");
is_deeply([ logged($node, qr/PANIC:|TRAP:|terminated by signal (?!9)/) ], [], 'nothing crashed');

diag sprintf 'seed %s, %.0f s: %d transactions', $seed, time - $began, sum0(@ends{ grep { !/^(given|refused|reconnects)$/ } keys %ends });
diag join ', ', map { "$_ $ends{$_}" } sort keys %ends;
diag "$_: $tally{$_}" foreach sort keys %tally;
diag 'units of committed rows: ' . ask('SELECT sum(units) FROM ' . COMMITTED . ' c');

done_testing();
