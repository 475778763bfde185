# test/faults/storm.pl ROUNDS CLIENTS: many short connections at once, each of which verifies; more than the server takes.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;

my ($rounds, $clients) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my ($good) = setup(1);
(my $wrong = $good) =~ s/.$/-/;
open my $out, '>', "$dir/storm.sql" or die;
print $out "SELECT rk_apikeys.verify('$good'), rk_apikeys.verify('$wrong') FROM pg_sleep(1);\n";
close $out;

my (%seen, @slow);
my ($refused, $served, $start) = (0, 0, time);
foreach my $round (1 .. $rounds)
{
	my @pids;
	foreach my $n (1 .. $clients)
	{
		my $pid = fork // die "could not fork: $!\n";
		if ($pid == 0)
		{
			open STDOUT, '>', "$dir/storm.$n.out" or die;
			open STDERR, '>&', \*STDOUT or die;
			exec 'psql', '-qXAt', '-U', 'backend', '-f', "$dir/storm.sql";
		}
		push @pids, $pid;
	}
	waitpid $_, 0 foreach @pids;
	foreach my $n (1 .. $clients)
	{
		my $said = join '', lines_of("$dir/storm.$n.out");
		if ($said eq "t|f\n") { $served++; }
		elsif ($said =~ /too many clients|remaining connection slots/) { $refused++; }
		else { $seen{$said}++; }
	}
	my $after = verdict_of($good);
	$seen{"after round $round: $after"}++ if $after ne 'valid';
}
my $uses = (rows('acme', 'SELECT use_count FROM rk_apikeys.keys'))[0][0];
report("$rounds storms of $clients connections: $served served, each verdict right; $refused refused by max_connections; valid after each",
	(map { "$_: $seen{$_}" } keys %seen), $refused ? () : 'max_connections was not reached');
report("use_count is exact: $uses", $uses == $served + $rounds ? () : "$served connections and $rounds verdicts between them");
report('the flush goes on', until_true(20, sub { (rows('postgres', 'SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage'))[0][0] == $uses }) ? () : 'it does not');
