# test/faults/disk.pl ROUNDS: no space is left, for the tables and for the log. FAULTS_DISK is the file system of the tables, FAULTS_LOG_DISK that
# of the log (pg_wal).
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;
use Time::HiRes qw(time usleep);

my ($rounds) = @ARGV;
my $dir = $ENV{FAULTS_DIR};
my @used = setup(200);
my $list = join ',', map { "'$_'" } @used;
my $use_all = "SELECT count(*) FROM unnest(ARRAY[$list]) AS token WHERE rk_apikeys.verify(token)";
my $uses = "SELECT sum(use_count) FROM rk_apikeys.keys WHERE name = 'used'";
my $table = 'SELECT coalesce(sum(use_count), 0) FROM rk_apikeys.key_usage JOIN rk_apikeys.api_keys USING (key_id) WHERE name = \'used\'';

# Fills a file system but for some bytes, and frees it again.
sub fill
{
	my ($disk, $leave) = @_;
	my ($free) = `df --output=avail -B1 $disk` =~ /(\d+)\s*$/;
	open my $out, '>', "$disk/ballast" or die "$disk: $!\n";
	my $block = 'x' x 65536;
	while ($free > $leave && syswrite($out, $block, $free - $leave < 65536 ? $free - $leave : 65536)) { $free -= 65536; }
	close $out;
	return;
}

sub free { unlink "$_[0]/ballast"; return; }

sub server { system("pg_ctl -D $ENV{RK_DATA} -l $ENV{RK_LOG} -w $_[0] >/dev/null 2>&1"); return; }

sub log_has { my ($pattern) = @_; return scalar grep { $_ =~ $pattern } lines_of($ENV{RK_LOG}); }

# --- the tables ---------------------------------------------------------------------------------------------------------

my (%tally, @findings);
my $expected = 0;
foreach my $round (1 .. $rounds)
{
	fill($ENV{FAULTS_DISK}, rand 400_000);
	# each create is one call, so the clients go on after an error
	my @clients = start_clients("full-$round", 2, 30);
	end_clients(@clients);
	my $good = ask('backend', $use_all) // 'error';
	push @findings, "round $round: $good verified on a full disk" if $good ne @used;
	$expected += @used;
	my $seen = (rows('acme', $uses))[0][0];
	push @findings, "round $round: $seen uses are seen on a full disk and not $expected" if $seen != $expected;
	free($ENV{FAULTS_DISK});
	push @findings, map { "round $round: $_" } check_clients(\%tally, @clients), check_tables();
	until_true(20, sub { (rows('postgres', $table))[0][0] == $expected }) or push @findings, "round $round: no flush once there was space";
	Lifecycle::prune();
	foreach my $table (qw(key_events api_keys)) { ask('postgres', "VACUUM FULL rk_apikeys.$table") // push @findings, "could not vacuum $table"; }
	unlink glob "$dir/client.*";
}
my $full = $tally{'failed 53100'} // 0;
my @other = grep { /^(failed|in flight)/ && $_ ne 'failed 53100' } sort keys %tally;
report("tables full, $rounds rounds: $full calls failed with 53100, $tally{done} done, nothing half done; " . scalar @used
	  . ' keys verified and counted meanwhile, all flushed afterwards', @findings, (map { "also: $_ ($tally{$_})" } @other),
	$full ? () : 'the disk was not full');
report('the server stayed up', log_has(qr/PANIC|was terminated by signal/) ? 'it did not' : ());
fact('flushes that found no space: ' . log_has(qr/FATAL|ERROR.*No space left/)) if log_has(qr/No space left/);

# --- a shutdown ---------------------------------------------------------------------------------------------------------

ask('postgres', "ALTER SYSTEM SET rk_apikeys.usage_flush_interval = '1h'; SELECT pg_reload_conf()");
usleep(500_000);
@findings = ();
my $lost = 0;
my $loss = qr/could not write file "pg_stat\/rk_apikeys.usage|abnormal database system shutdown/;
foreach my $round (1 .. $rounds)
{
	my $full = $round % 2;
	my $flushed = (rows('postgres', $table))[0][0];
	ask('backend', $use_all);
	ask('backend', $use_all);
	$expected += 2 * @used;
	# nothing left: PostgreSQL's own checkpoint panics; a little: our file does not fit
	my $told = log_has($loss);
	fill($ENV{FAULTS_DISK}, $round % 4 == 1 ? 0 : 16384) if $full;
	server('stop -m fast');
	push @findings, "round $round: the server did not stop" unless until_true(10, sub { return !processes(qr/^/) });
	my $left = -e "$ENV{RK_DATA}/pg_stat/rk_apikeys.usage.tmp";
	push @findings, "round $round: half a file is left" if $left;
	free($ENV{FAULTS_DISK});
	server('start');
	my $seen = (rows('acme', $uses))[0][0];
	if ($full && $seen != $expected)
	{
		# what could not be written is lost, and it is told
		push @findings, "round $round: $seen uses of $expected, and $flushed were in the table" if $seen < $flushed;
		push @findings, "round $round: a loss that the log does not tell" unless log_has($loss) > $told;
		$lost++;
		$expected = $seen;
	}
	push @findings, "round $round: $seen uses and not $expected" if $seen != $expected;
	push @findings, "round $round: a key is not verified" if (ask('backend', $use_all) // '') ne @used;
	$expected += @used;
}
report("$rounds shutdowns, every other with a full disk: the server stops and starts, keys are verified; $lost times the use since the last flush was lost, and the log told so",
	@findings, $lost || $rounds == 1 ? () : 'no loss was tried');
ask('postgres', "ALTER SYSTEM RESET rk_apikeys.usage_flush_interval; SELECT pg_reload_conf()");

my $panics = log_has(qr/abnormal database system shutdown/);

# --- the log ------------------------------------------------------------------------------------------------------------

@findings = ();
%tally = ();
my $stopped = 0;
foreach my $round (1 .. $rounds)
{
	fill($ENV{FAULTS_LOG_DISK}, 0);
	my @clients = start_clients("wal-$round", 2, 1000);
	# PostgreSQL panics where it cannot write its log, and starts again only when there is space
	$stopped++ if until_true(15, sub { !kill 0, $clients[0]{pid} or waitpid($clients[0]{pid}, 1) != 0 });
	end_clients(@clients);
	free($ENV{FAULTS_LOG_DISK});
	server('start') unless until_true(5, sub { defined ask('backend', 'SELECT') });
	until_true(30, sub { defined ask('backend', 'SELECT') }) or die "the server does not come back\n";
	push @findings, map { "round $round: $_" } check_clients(\%tally, @clients), check_tables();
	push @findings, "round $round: a key is not verified" if (ask('backend', $use_all) // '') ne @used;
	Lifecycle::prune();
	unlink glob "$dir/client.*";
}
fact('of these, shutdowns that ended in a panic of PostgreSQL: ' . $panics);
report("log full, $rounds rounds: the server stopped $stopped times under $tally{done} calls, and once there is space starts with all that was done, nothing half done",
	@findings, $stopped ? () : 'it never stopped');
report('tables and indexes are whole', Lifecycle::check_pages());
