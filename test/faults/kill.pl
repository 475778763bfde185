# test/faults/kill.pl ROUNDS: a process of the server is killed at a random moment of lifecycle calls, again and again.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;
use Time::HiRes qw(time usleep);

my ($rounds) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my %victims = (
	backend => qr/^postgres: (?:\S+: )?acme /,
	worker => qr/^postgres: (?:\S+: )?rk_apikeys flush/,
	launcher => qr/^postgres: (?:\S+: )?rk_apikeys launcher/);

my @used = setup(300);
my $list = join ',', map { "'$_'" } @used;

# Verifies without a pause; the file holds how many keys were found good each time.
sub start_verifying
{
	my ($file) = @_;
	my $pid = fork // die "could not fork: $!\n";
	return $pid if $pid;
	open STDOUT, '>', $file or die;
	open STDERR, '>', '/dev/null' or die;
	open my $out, '>', "$file.sql" or die;
	print $out "SELECT count(*) FROM unnest(ARRAY[$list]) AS token WHERE rk_apikeys.verify(token);\n" x 2000;
	close $out;
	exec 'psql', '-qXAt', '-U', 'backend', '-v', 'ON_ERROR_STOP=1', '-f', "$file.sql";
}

# What the table says of the keys that are used.
sub flushed
{
	return { map { $_->[0] => $_ } rows('postgres', 'SELECT key_id, use_count, last_used_at FROM rk_apikeys.key_usage') };
}

# A postmaster that died leaves children that notice soon, and files that name it.
sub start_server
{
	my $data = $ENV{RK_DATA};
	until_true(30, sub { return !processes(qr/^/) }) or die "the children of the server do not end\n";
	unlink "$data/postmaster.pid", glob "$ENV{PGHOST}/.s.PGSQL.*";
	system("pg_ctl -D $data -l $ENV{RK_LOG} -w start >/dev/null 2>&1") == 0 or die "the server does not start\n";
	return;
}

foreach my $victim (qw(backend worker launcher server))
{
	my (%tally, @findings);
	my ($kills, $slowest) = (0, 0);
	foreach my $round (1 .. $rounds)
	{
		my $verifier = start_verifying("$dir/verifying");
		my @clients = start_clients("$victim-$round", 3, 400);
		await_work(@clients) or die "the clients do not start\n";
		usleep(rand 300_000);
		my $before = flushed();
		my @pids;
		if ($victim eq 'server') { @pids = (lines_of("$ENV{RK_DATA}/postmaster.pid"))[0]; }
		else { until_true(20, sub { return @pids = processes($victims{$victim}) }) or push @findings, "round $round: there is no $victim"; }
		chomp @pids;
		my $start = time;
		$kills += kill 'KILL', $pids[ rand @pids ] if @pids;
		end_clients(@clients);
		waitpid $verifier, 0;
		start_server() if $victim eq 'server';
		until_true(60, sub { return defined ask('backend', 'SELECT') }) or die "the server does not come back\n";
		$slowest = time - $start if time - $start > $slowest;

		push @findings, map { "round $round: $_" } check_clients(\%tally, @clients), check_tables();
		my %seen;
		$seen{$_}++ foreach map { chomp; $_ } lines_of("$dir/verifying");
		delete $seen{ scalar @used };
		push @findings, "round $round: a verify of $_ keys was good, of " . @used foreach keys %seen;
		my $after = flushed();
		push @findings, map { "round $round: the usage of $_ went back" }
		  grep { !$after->{$_} || $after->{$_}[1] < $before->{$_}[1] || $after->{$_}[2] lt $before->{$_}[2] } keys %$before;
		Lifecycle::prune();
		unlink glob "$dir/client.*";
	}
	push @findings, Lifecycle::check_pages();
	report("$victim killed $kills times of $rounds under $tally{done} calls: nothing lost, nothing half done, verdicts right"
		  . sprintf(' (%d tokens tried; back within %.1f s)', $tally{keys} // 0, $slowest), @findings, $kills == $rounds ? () : "only $kills kills");
	foreach my $what (qw(create disable enable rotate revoke delete bulk))
	{
		my ($there, $not) = map { $tally{"in flight: $what $_"} // 0 } 'there', 'not there';
		fact("$victim killed within $what: $there committed, $not not") if $there + $not;
	}
	my @other = grep { /^failed/ } sort keys %tally;
	fact("$victim: other errors: " . join ', ', map { "$_: $tally{$_}" } @other) if @other;
}
