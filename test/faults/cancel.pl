# test/faults/cancel.pl ROUNDS: lifecycle calls and verifies are cancelled at random moments, by pg_cancel_backend and by statement_timeout.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;
use Time::HiRes qw(usleep);

my ($rounds) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my ($good) = setup(1);
(my $wrong = $good) =~ s/.$/-/;

# Cancels what a role's sessions run, again and again; returns the pid.
sub start_cancelling
{
	my ($role) = @_;
	my $pid = fork // die "could not fork: $!\n";
	return $pid if $pid;
	open my $out, '>', "$dir/cancel.sql" or die;
	print $out "SELECT count(pg_cancel_backend(pid)), pg_sleep(random() * 0.02) FROM pg_stat_activity
		WHERE usename = '$role' AND state = 'active' AND random() < 0.5;\n" x 5000;
	close $out;
	open STDOUT, '>', '/dev/null' or die;
	exec 'psql', '-qXAt', '-U', 'postgres', '-f', "$dir/cancel.sql";
}

foreach my $how ('pg_cancel_backend', 'statement_timeout')
{
	my (%tally, @findings);
	my $cancelled = 0;
	# More rounds, until one has met a call: the machine may be too fast, or too busy with something else.
	for (my $round = 1; $round <= $rounds || !$cancelled && $round < $rounds + 100; $round++)
	{
		my $canceller = $how eq 'pg_cancel_backend' ? start_cancelling('acme') : undef;
		# from below what the fastest call takes to above what the slowest does
		my @clients = start_clients("$how-$round", 3, 12, $canceller ? '' : 'SET statement_timeout = ' . (1 + $round % 4) . ';');
		end_clients(@clients);
		kill 'TERM', $canceller and waitpid $canceller, 0 if $canceller;
		push @findings, map { "round $round: $_" } check_clients(\%tally, @clients), check_tables();
		Lifecycle::prune();
		unlink glob "$dir/client.*";
		$cancelled = $tally{'failed 57014'} // 0;
	}
	my @other = grep { /^(failed|in flight)/ && $_ ne 'failed 57014' } sort keys %tally;
	report("$how, $rounds rounds: $cancelled calls cancelled, $tally{done} done: a cancelled one has left nothing, verdicts right ($tally{keys} tokens tried)",
		@findings, (map { "also: $_ ($tally{$_})" } @other), $cancelled ? () : 'nothing was cancelled');

	# verify: a cancel ends the statement, or comes too late; it never makes a verdict. Again, until one was cancelled and one was not, with
	# more time for each.
	my (%seen, $statements);
	my ($stopped, $whole) = (0, 0);
	for (my $attempt = 1; !($stopped && $whole) && $attempt <= 100; $attempt++)
	{
		my $canceller = $how eq 'pg_cancel_backend' ? start_cancelling('backend') : undef;
		open my $out, '>', "$dir/verify.sql" or die;
		foreach my $n (1 .. 40 * $rounds)
		{
			print $out 'SET statement_timeout = ', $attempt * (1 + $n % 9), ";\n" unless $canceller;
			print $out "SELECT count(*) FILTER (WHERE rk_apikeys.verify('$good')), count(*) FILTER (WHERE rk_apikeys.verify('$wrong')),"
			  . " count(*) FILTER (WHERE (rk_apikeys.verify_key('$good')).code <> 'valid') FROM generate_series(1, 1000);\n"
			  . "\\if :ERROR\n\\echo :SQLSTATE\n\\endif\n";
		}
		close $out;
		$seen{$_}++ foreach split /\n/, `psql -qXAt -U backend -f $dir/verify.sql 2>/dev/null`;
		kill 'TERM', $canceller and waitpid $canceller, 0 if $canceller;
		$statements += 40 * $rounds;
		$stopped += delete $seen{57014} // 0;
		$whole += delete $seen{'1000|0|0'} // 0;
	}
	report("$how: $stopped of $statements statements of 3000 verifies cancelled, in the others each verdict right",
		(map { "$_: $seen{$_} times" } keys %seen), $stopped ? () : 'none was cancelled', $whole ? () : 'none was whole');
	report("$how: and the key is verified afterwards", verdict_of($good) eq 'valid' ? () : 'it is not');
}
