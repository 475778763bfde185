# test/faults/quota.pl ROUNDS: what quotas lose when a process, a flush, the server or a promotion is killed, while sessions charge at COMMIT and
# end in every way.
#
# What may be lost is what was settled since the last flush began that has committed, and what each session had between its COMMIT and the
# settling. Nothing is counted twice. A quota that is used up gives no more than its units and what was lost.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin, "$FindBin::Bin/../t";
use Charges;
use Lifecycle;
use POSIX ();
use Time::HiRes qw(time usleep);

my ($rounds) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my $primary_data = $ENV{RK_DATA};
# The most units that a session's transaction takes: 8 calls of 3.
my ($sessions, $most) = (4, 24);

setup(1);
defined ask('postgres', CHARGES) or die "could not make the tables\n";
my ($limits, $keys) = charge_keys();
defined ask('boss', $limits) or die "could not make the limits\n";
my @token = map { $_->[0] } rows('acme', $keys);
# A key that is used on the standby alone
defined ask('boss', q{INSERT INTO rk_apikeys.limits (tenant, name, owner, units, period) VALUES ('acme', 'there', 's', 1e12, 'total')}) or die;
my ($there) = map { $_->[0] } rows('acme', q{INSERT INTO rk_apikeys.keys (name, owner) VALUES ('there', 's') RETURNING secret});
defined ask('postgres', 'CREATE ROLE sender LOGIN REPLICATION; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender') or die;
my %counts = charge_limits();
my @quotas = grep { $_ ne 'pace' } sort keys %counts;

system('sh', '-c', 'cc -O2 "-I$(pg_config --includedir)" -o "$0" "$1" "-L$(pg_config --libdir)" -lpq -pthread', "$dir/charge",
	"$FindBin::Bin/../clients/charge.c") == 0 or die "could not compile charge.c\n";

sub one { return (rows(@_))[0][0]; }
sub committed { return { map { $_ => one('postgres', 'SELECT coalesce(sum(units), 0) FROM ' . COMMITTED . " c WHERE $counts{$_}") } @quotas }; }
sub used
{
	return { map { $_->[0] => $_->[1] } rows('postgres', 'SELECT name, coalesce(sum(u.units), 0) FROM rk_apikeys.limits
		LEFT JOIN rk_apikeys.limit_usage u USING (limit_id) GROUP BY name') };
}

# When the last flush began that has ended; and when each of this round began
my ($flushed, @flushes) = 0;
sub flush
{
	my $began = one('postgres', 'SELECT clock_timestamp()');
	defined ask('boss', 'SELECT rk_apikeys.flush_usage()') or return;
	push @flushes, $flushed = $began;
	return;
}
sub bound
{
	return { map { $_ => $sessions * $most + one('postgres', 'SELECT coalesce(sum(units), 0) FROM ' . COMMITTED . " c WHERE $counts{$_}
		AND pg_xact_commit_timestamp(xmin) >= '$flushed'") } @quotas };
}

# A child that runs some code.
sub child
{
	my ($file, $code) = @_;
	my $pid = fork // die "could not fork: $!\n";
	return $pid if $pid;
	open STDOUT, '>', $file or POSIX::_exit(1);
	open STDERR, '>', "$file.err" or POSIX::_exit(1);
	$code->();
	POSIX::_exit(1);
}
sub start_load
{
	open my $fh, '>', "$dir/run" or die;
	close $fh;
	my $seed = int rand 1e9;
	return child("$dir/charge.out", sub { exec "$dir/charge", "user=backend options='-c client_min_messages=error'", "$dir/run", $sessions, $seed, @token });
}

# A flush in a loop; the file has when each began that has ended.
sub start_flusher
{
	open my $out, '>', "$dir/flusher.sql" or die;
	print $out "SELECT clock_timestamp() AS began \\gset\nSELECT rk_apikeys.flush_usage() \\g /dev/null\nSELECT :'began';\n" x 20000;
	close $out;
	return child("$dir/flusher.out", sub { $ENV{PGAPPNAME} = 'flusher'; exec 'psql', '-qXAt', '-U', 'boss', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/flusher.sql" });
}

sub start_server
{
	my ($data) = @_;
	local $ENV{RK_DATA} = $data;
	until_true(30, sub { return !processes(qr/^/) }) or die "the children of the server do not end\n";
	unlink "$data/postmaster.pid", "$ENV{PGHOST}/.s.PGSQL.$ENV{PGPORT}", "$ENV{PGHOST}/.s.PGSQL.$ENV{PGPORT}.lock";
	system("pg_ctl -D $data -l $ENV{RK_LOG} -w start >/dev/null 2>&1") == 0 or die "the server does not start\n";
	return;
}
sub postmaster { my ($pid) = lines_of("$_[0]/postmaster.pid"); chomp $pid; return $pid; }

# Once the sessions are gone: decides what was left prepared.
sub settle
{
	until_true(60, sub { return (ask('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'backend'}) // 1) eq '0' }) or die "sessions stay\n";
	defined ask('postgres', $_->[0]) || die "could not decide $_->[0]\n" foreach rows('postgres', LEFTOVER);
	return;
}

my %lost = map { $_ => 0 } @quotas;
my $tight = 20;

# Compares, once everything is flushed; returns what is wrong. Adds up what was lost.
sub compare
{
	my ($round, $tally, $bound, $elsewhere) = @_;
	my ($committed, $used) = (committed(), used());
	my @findings;
	foreach (@quotas)
	{
		my $more = /every|each/ ? $elsewhere // 0 : 0;
		my $now = $committed->{$_} + $more - $used->{$_} - $lost{$_};
		push @findings, "round $round: $_ counts $now units less than it should, of $bound->{$_} that may be lost" if $now > $bound->{$_};
		push @findings, "round $round: $_ counts " . -$now . ' units twice' if $now < 0;
		$lost{$_} += $now;
		next if $_ ne 'every';
		$tally->{lost} += $now;
		$tally->{most} = $now if $now > ($tally->{most} // 0);
		$tally->{with}++ if $now > 0;
		$tally->{since} += $bound->{$_} - $sessions * $most if $bound->{$_};
	}
	push @findings, "round $round: tight has given $committed->{tight} of $tight" if $committed->{tight} > $tight + $lost{tight};
	$tally->{'used up'}++ if $used->{tight} >= $tight;
	return @findings;
}

# Whether every unit that is left can be taken: nothing stays reserved.
sub leaks
{
	my ($round) = @_;
	my $used = used()->{every};
	defined ask('boss', "UPDATE rk_apikeys.limits SET units = $used + 3 WHERE name = 'every'") or die;
	my $codes = one('backend', "SELECT string_agg(v.code, ' ') FROM generate_series(1, 4) i, rk_apikeys.verify_key('$token[0]', cost => sign(i)::int) v");
	defined ask('boss', q{UPDATE rk_apikeys.limits SET units = 1e12 WHERE name = 'every'}) or die;
	defined ask('postgres', 'INSERT INTO work VALUES (0, 3)') or die;
	flush();
	return $codes eq 'valid valid valid quota_exceeded' ? () : "round $round: of 3 units that are left: $codes";
}

foreach my $victim ('backend', 'flush', 'server', 'immediate shutdown', 'restart')
{
	my (%tally, @findings);
	foreach my $round (1 .. $rounds)
	{
		$tight += int rand 30;
		defined ask('boss', "UPDATE rk_apikeys.limits SET units = $tight WHERE name = 'tight'") or die "could not raise the limit\n";
		flush();
		my $load = start_load();
		my $flusher = $victim eq 'flush' ? start_flusher() : undef;
		for (my $end = time + 0.2 + rand 0.8; time < $end; usleep(50_000 + rand 200_000))
		{
			flush() if !$flusher && rand() < 0.5;
		}
		usleep(rand 100_000);
		if ($victim eq 'backend' || $victim eq 'flush')
		{
			my $who = $victim eq 'flush' ? q{application_name = 'flusher'} : q{usename = 'backend'};
			my $pid = ask('postgres', "SELECT pid FROM pg_stat_activity WHERE $who ORDER BY random() LIMIT 1") || 0;
			unlink "$dir/run";
			push @findings, "round $round: there is no $victim" unless $pid && kill 'KILL', $pid;
			waitpid $flusher, 0 if $flusher;
		}
		elsif ($victim eq 'server') { kill 'KILL', postmaster($primary_data); unlink "$dir/run"; start_server($primary_data); }
		else
		{
			my $mode = $victim eq 'restart' ? 'fast' : 'immediate';
			system("pg_ctl -D $primary_data -m $mode -w stop >/dev/null 2>&1") == 0 or die "the server does not stop\n";
			unlink "$dir/run";
			start_server($primary_data);
		}
		waitpid $load, 0;
		push @findings, "round $round: a session was told " . join('', lines_of("$dir/charge.out.err")) if $?;
		until_true(60, sub { return defined ask('backend', 'SELECT') }) or die "the server does not come back\n";
		if ($flusher)
		{
			my @began = grep { /^\d/ } lines_of("$dir/flusher.out");
			chomp @began;
			$flushed = $began[-1] if @began;
			$tally{flushes} += @began;
		}
		settle();
		my $bound = $victim eq 'restart' ? { map { $_ => 0 } @quotas } : bound();
		flush();
		push @findings, compare($round, \%tally, $bound), leaks($round);
	}
	$_ //= 0 foreach @tally{qw(lost most with since flushes), 'used up'};
	report("quota: $rounds times " . ($victim =~ /shutdown|restart/ ? $victim : "kill of a $victim") . ': '
		  . ($victim eq 'restart' ? 'nothing is lost' : 'no more is lost than what came since the last flush')
		  . ', nothing is counted twice, nothing stays reserved', @findings);
	fact("quota: $victim: $tally{lost} units lost in $tally{with} of $rounds rounds (at most $tally{most}), $tally{since} came since the last flush;"
		  . " a quota was used up $tally{'used up'} times" . ($tally{flushes} ? "; $tally{flushes} flushes" : ''));
}

# --- promotion ------------------------------------------------------------------------------------------------------------

# A standby counts by itself. The primary is killed, and the standby is promoted; every other time it is killed meanwhile. Then it is the
# primary of the next round.
{
	my (%tally, @findings);
	my ($elsewhere, $lost_there, $counted_there) = (0, 0, 0);
	my $data = $primary_data;
	my $verify = "SELECT v.code FROM rk_apikeys.verify_key('$there', charge => 'commit') v;\n" x 200000;
	foreach my $round (1 .. $rounds)
	{
		my $standby = "$dir/standby.$round";
		@flushes = ();
		flush();
		system("pg_basebackup -D $standby -R -c fast -U sender >/dev/null 2>&1") == 0 or die "could not copy the server\n";
		open my $conf, '>>', "$standby/postgresql.conf" or die;
		print $conf "port = 5433\nrk_apikeys.usage_flush_interval = '100ms'\nrk_apikeys.primary_conninfo = 'host=$ENV{PGHOST} port=5432 user=sender'\n";
		close $conf;
		my $on_standby = sub { my ($code) = @_; local @ENV{qw(PGPORT RK_DATA)} = (5433, $standby); return $code->(); };
		$on_standby->(sub { start_server($standby) });

		my $load = start_load();
		open my $sql, '>', "$dir/there.sql" or die;
		print $sql $verify;
		close $sql;
		my $other = $on_standby->(sub { child("$dir/there.out", sub { exec 'psql', '-qXAt', '-U', 'backend', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/there.sql" }) });
		for (my $end = time + 0.5 + rand; time < $end; usleep(50_000 + rand 200_000))
		{
			flush() if rand() < 0.5;
		}
		# What the standby knows the primary to have counted for it
		my $known = $on_standby->(sub { used()->{there} });
		kill 'KILL', postmaster($data);
		unlink "$dir/run";
		waitpid $load, 0;
		my $killed = $round % 2;
		if ($killed)
		{
			system("pg_ctl -D $standby -W promote >/dev/null 2>&1");
			usleep(rand 300_000);
			kill 'KILL', postmaster($standby);
			waitpid $other, 0;
			$on_standby->(sub { start_server($standby) });
		}
		# It may have been promoted before it was killed
		$on_standby->(sub {
			ask('postgres', 'SELECT pg_promote() WHERE pg_is_in_recovery()');
			until_true(60, sub { return (ask('postgres', 'SELECT pg_is_in_recovery()') // 't') eq 'f' }) or die "the standby is not promoted\n";
			if (!$killed)
			{
				kill 'TERM', $other;
				waitpid $other, 0;
			}
			settle();
		});
		my $given = grep { /^valid/ } lines_of("$dir/there.out");

		# The next round's primary
		system("pg_ctl -D $standby -m fast -w stop >/dev/null 2>&1") == 0 or die "the server does not stop\n";
		{
			local $ENV{RK_DATA} = $data;
			until_true(30, sub { return !processes(qr/^/) }) or die "the children of the primary do not end\n";
		}
		unlink glob "$ENV{PGHOST}/.s.PGSQL.5432*";
		system('rm', '-rf', $data) if $data ne $primary_data;
		$data = $standby;
		open $conf, '>>', "$data/postgresql.conf" or die;
		print $conf "port = 5432\nrk_apikeys.usage_flush_interval = '1h'\nrk_apikeys.primary_conninfo = ''\n";
		close $conf;
		start_server($data);
		# The last flush of the old primary that reached the standby, at the latest the one before the copy
		my $last = one('postgres', q{SELECT max(pg_xact_commit_timestamp(u.xmin)) FROM rk_apikeys.limit_usage u JOIN rk_apikeys.limits l USING (limit_id)
			WHERE l.name IN ('yearly', 'tight') OR l.name = 'each' AND u.family <> (SELECT family FROM rk_apikeys.api_keys WHERE name = 'there')});
		$flushed = (grep { $_ le $last } reverse @flushes)[0] // $flushes[0];
		my $bound = bound();
		flush();
		# Of the standby's own: none is lost unless it was killed, and then no more than the primary did not have. One call had no answer.
		my $counted = used()->{there};
		my $lost = $counted_there + $given - $counted;
		push @findings, "round $round: the standby counts $lost units less than it gave, of " . ($killed ? $counted_there + $given - $known : 0) . ' that may be lost'
		  if $lost > ($killed ? $counted_there + $given - $known : 0);
		push @findings, "round $round: the standby counts " . -$lost . ' units twice' if $lost < -1;
		$lost_there += $lost if $lost > 0;
		$tally{given} += $given;
		$tally{arrived} += $known - $counted_there;
		$elsewhere += $counted - $counted_there;
		$counted_there = $counted;
		push @findings, compare($round, \%tally, $bound, $elsewhere), leaks($round);
	}
	$_ //= 0 foreach @tally{qw(lost most with since given arrived)};
	report("quota: $rounds promotions, half of them killed: no more is lost than what came since the last flush, nothing is counted twice", @findings);
	fact("quota: promotion: $tally{lost} units of the primary lost in $tally{with} of $rounds rounds (at most $tally{most}), $tally{since} came since the last flush");
	fact("quota: promotion: $lost_there units of the standby lost of $tally{given}, of which $tally{arrived} had arrived when the primary was killed");
	system("pg_ctl -D $data -m fast -w stop >/dev/null 2>&1");
	$ENV{RK_DATA} = $primary_data;
}
