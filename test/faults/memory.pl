# test/faults/memory.pl ROUNDS: no shared memory is left, for locks and for usage; a backend has no memory left.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;
use IPC::Open2;
use Time::HiRes qw(usleep);

my ($rounds) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my ($good) = setup(1);
(my $wrong = $good) =~ s/.$/-/;

# An open psql of a role: [pid, its output, its input].
sub open_session
{
	my ($role) = @_;
	my $pid = open2(my $out, my $in, "exec psql -qXAt -U $role 2>&1");
	return [ $pid, $out, $in ];
}

# What it prints for a line.
sub in_session
{
	my ($session, $line) = @_;
	my ($out, $in) = @$session[ 1, 2 ];
	local $SIG{PIPE} = 'IGNORE';
	print $in "$line\n\\echo :::\n";
	$in->flush;
	my $said = '';
	while (defined(my $got = <$out>))
	{
		last if $got eq ":::\n";
		$said .= $got;
	}
	chomp $said;
	return $said;
}

sub close_session
{
	my ($session) = @_;
	close $session->[2];
	waitpid $session->[0], 0;
	return;
}

# --- locks --------------------------------------------------------------------------------------------------------------

my (%tally, @findings);
my $verified = 0;
my $expected = (rows('acme', 'SELECT use_count FROM rk_apikeys.keys'))[0][0];
foreach my $round (1 .. $rounds)
{
	# Who has a session before may still work: a new one needs locks itself
	my $verifier = open_session('backend');
	in_session($verifier, $round % 2 ? 'SELECT 1;' : "SELECT rk_apikeys.verify('$good');");
	$expected++ unless $round % 2;
	my @clients = start_clients("locks-$round", 2, 10, "SELECT 1 \\g /dev/null\n\\! until [ -e $dir/go ]; do sleep 0.02; done");
	await_work(@clients) or die "the clients do not start\n";

	# A session takes all locks that there are, and gives a few back
	my $greedy = open_session('postgres');
	in_session($greedy, 'DO $$ BEGIN FOR i IN 1 .. 1000000 LOOP PERFORM pg_advisory_lock(i); END LOOP; EXCEPTION WHEN out_of_memory THEN NULL; END $$;');
	in_session($greedy, 'SELECT count(pg_advisory_unlock(i)) FROM generate_series(1, ' . ($round % 3) . ') i;');
	open my $go, '>', "$dir/go" or die;
	close $go;
	end_clients(@clients);
	unlink "$dir/go";
	my $said = in_session($verifier, "SELECT rk_apikeys.verify('$good'), rk_apikeys.verify('$wrong');");
	close_session($verifier);
	if ($said eq 't|f') { $expected++; $verified++; }
	elsif ($said !~ /^\S*ERROR:  out of shared memory/) { push @findings, "round $round: verdicts are $said"; }
	in_session($greedy, 'SELECT pg_advisory_unlock_all();');
	close_session($greedy);
	push @findings, map { "round $round: $_" } check_clients(\%tally, @clients), check_tables();
	until_true(20, sub { (rows('postgres', 'SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage JOIN rk_apikeys.api_keys USING (key_id)
		WHERE name = \'used\''))[0][0] == $expected })
	  or push @findings, "round $round: the uses are not flushed once there are locks";
	Lifecycle::prune();
	unlink glob "$dir/client.*";
}
my $refused = $tally{'failed 53200'} // 0;
my @other = grep { /^(failed|in flight)/ && $_ ne 'failed 53200' } sort keys %tally;
report("no lock left, $rounds rounds: $refused calls failed with 53200, " . ($tally{done} // 0) . " done, nothing half done; $verified sessions verified meanwhile, the others raised; uses flushed afterwards",
	@findings, (map { "also: $_ ($tally{$_})" } @other),
	$refused ? () : 'there were locks left', $verified ? () : 'no session verified');

# --- usage --------------------------------------------------------------------------------------------------------------

# More keys than max_tracked_keys, in one go
my @tokens = map { $_->[0] } rows('acme', "INSERT INTO rk_apikeys.keys (name) SELECT 'many' FROM generate_series(1, 500) RETURNING secret");
my ($limited) = map { $_->[0] } rows('acme', "SELECT secret FROM rk_apikeys.create_key('limited', rate_limit => 10, rate_window => '1 minute')");
my $list = join ',', map { "'$_'" } @tokens;
@findings = ();
my %limit;
foreach my $round (1 .. $rounds)
{
	my @row = @{ (rows('backend', "SELECT count(*) FILTER (WHERE rk_apikeys.verify(t)), count(*) FILTER (WHERE rk_apikeys.verify(left(t, -1) || '-')),
		(rk_apikeys.verify_key('$limited')).code FROM unnest(ARRAY[$list]) AS t"))[0] };
	push @findings, "round $round: $row[0] of 500 good, $row[1] of 500 wrong" if $row[0] != 500 || $row[1] != 0;
	$limit{ $row[2] }++;
}
my ($overflow, $max) = @{ (rows('boss', 'SELECT overflow, max_tracked_keys FROM rk_apikeys.stats'))[0] };
push @findings, "a limited key is $_" foreach grep { !/^(valid|rate_limited|limiter_unavailable)$/ } keys %limit;
report("501 keys and room for $max, $rounds rounds: each verdict right, $overflow uses told as not counted; the limited key was "
	  . join(', ', map { "$_ $limit{$_}" } sort keys %limit), @findings, $overflow ? () : 'there was room');
ask('acme', "DELETE FROM rk_apikeys.keys WHERE name IN ('many', 'limited')");

# --- a backend ----------------------------------------------------------------------------------------------------------

@findings = ();
my ($short, $whole, $ended) = (0, 0, 0);
foreach my $round (1 .. 4 * $rounds)
{
	my $session = open_session('acme');
	my $verifier = open_session('backend');
	my ($pid, $verifying) = map { in_session($_, 'SELECT pg_backend_pid();') } $session, $verifier;
	in_session($session, "SELECT count(*) FROM rk_apikeys.keys;") if $round % 2;
	foreach my $backend ($pid, $verifying)
	{
		my ($size) = map { /^VmSize:\s+(\d+)/ ? $1 * 1024 : () } lines_of("/proc/$backend/status");
		system('prlimit', "--pid=$backend", '--as=' . ($size + int rand 12_000_000)) == 0 or die "could not limit a backend\n";
	}
	my $said = in_session($session, "INSERT INTO rk_apikeys.keys (name) SELECT 'short-$round' FROM generate_series(1, 5000);");
	my $there = (rows('postgres', "SELECT count(*) FROM rk_apikeys.api_keys WHERE name = 'short-$round'"))[0][0];
	if ($said =~ /out of memory/) { $short++; push @findings, "round $round: $there keys of a failed create" if $there; }
	elsif ($said eq '') { $whole++; push @findings, "round $round: $there keys of a create" if $there != 5000; }
	else { $ended++; push @findings, "round $round: $said" unless $said =~ /could not|terminating|closed the connection/; push @findings, "round $round: $there keys" if $there; }
	# a verify says what is so, or raises
	my $verdict = in_session($verifier, "SELECT rk_apikeys.verify('$good'), rk_apikeys.verify('$wrong');");
	push @findings, "round $round: verdicts $verdict" unless $verdict eq 't|f' || $verdict =~ /^ERROR:  out of memory/;
	if ($verdict ne 't|f') { $ended++ }
	push @findings, "round $round: after it the key is not verified" if verdict_of($good) ne 'valid';
	close_session($_) foreach $session, $verifier;
	push @findings, map { "round $round: $_" } check_tables();
	ask('postgres', "DELETE FROM rk_apikeys.api_keys WHERE name = 'short-$round'");
	Lifecycle::prune();
}
report(4 * $rounds . " backends short of memory: a bulk create failed wholly $short times, succeeded wholly $whole times, raised otherwise $ended times; verdicts right or an error",
	@findings, $short ? () : 'memory was never short');
report('rows, events and days agree', check_tables());
report('tables and indexes are whole', Lifecycle::check_pages());
