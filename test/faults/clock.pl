# test/faults/clock.pl ROUNDS: the server's clock is set forward and back (libfaketime reads it from a file).
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Lifecycle;
use Time::HiRes qw(time usleep);

my ($rounds) = @ARGV;
my $file = $ENV{FAULTS_CLOCK};

# Sets the server's clock to so many seconds from the right time, and lets it run that much faster.
sub set_clock
{
	my ($offset, $speed) = @_;
	open my $out, '>', "$file.new" or die "$file: $!\n";
	printf $out "%+d%s\n", $offset, defined $speed ? " x$speed" : '';
	close $out;
	rename "$file.new", $file or die "$file: $!\n";
	return;
}

sub clock { return (rows('postgres', 'SELECT extract(epoch FROM clock_timestamp())'))[0][0]; }

# A check of what is against what should be.
sub is
{
	my ($text, $got, $expected) = @_;
	return report($text, $got eq $expected ? () : "it is $got and not $expected");
}

my ($minute, $hour, $day) = (60, 3600, 86400);
set_clock(0);
setup(0);
set_clock($day);
is('control: the server sees the clock that is set', sprintf('%.0f', (clock() - time) / $minute), $day / $minute);
set_clock(0);
is('control: and set back', sprintf('%.0f', abs(clock() - time) / $minute), 0);

my ($id, $used) = @{ (rows('acme', "SELECT * FROM rk_apikeys.create_key('used')"))[0] };
my ($ends) = map { $_->[0] } rows('acme', "SELECT secret FROM rk_apikeys.create_key('ends', expires_at => clock_timestamp() + interval '1 hour')");
my ($old_id, $old) = @{ (rows('acme', "SELECT * FROM rk_apikeys.create_key('old')"))[0] };
my ($new) = map { $_->[0] } rows('acme', "SELECT secret FROM rk_apikeys.rotate_key('$old_id', '1 hour')");

# Expiry and grace go by the clock that is, cached or not: one session all the while
open my $script, '>', "$ENV{FAULTS_DIR}/clock.sql" or die;
print $script "SELECT rk_apikeys.verify('$ends'), rk_apikeys.verify('$old'), rk_apikeys.verify('$new');\n\\! echo '$_' >$file\n" foreach '+7200', '-86400', '+0';
print $script "SELECT rk_apikeys.verify('$ends'), rk_apikeys.verify('$old'), rk_apikeys.verify('$new');\n";
close $script;
my $said = join ' ', split /\n/, `psql -qXAt -U backend -f $ENV{FAULTS_DIR}/clock.sql 2>&1`;
is('expiry, the end of grace and no end: now, two hours on, a day back, and now again', $said, 't|t|t f|f|t t|t|t t|t|t');

# The rate limit: after the clock went back, a key waits for a window at most
my ($limited) = map { $_->[0] } rows('acme',
	"SELECT secret FROM rk_apikeys.create_key('limited', rate_limit => 2, rate_window => '1 minute')");
set_clock($day);
is('a limit of 2 in a minute, used up a day ahead', join(' ', map { verdict_of($limited) } 1 .. 3), 'valid valid rate_limited');
set_clock(0);
my $retry = (rows('backend', "SELECT coalesce(retry_after_ms, 0) / 1000.0 FROM rk_apikeys.verify_key('$limited')"))[0][0];
report("set back a day: the limit says to wait for " . sprintf('%.0f s', $retry), $retry <= 61 ? () : 'longer than its window');
set_clock(61);
is('and a window later all of it is there again', join(' ', map { verdict_of($limited) } 1 .. 3), 'valid valid rate_limited');
set_clock($day);
is('set forward, too', join(' ', map { verdict_of($limited) } 1 .. 3), 'valid valid rate_limited');

# last_used_at never goes back; counts and flushes go on
my $seen = "SELECT last_used_at, use_count FROM rk_apikeys.keys WHERE key_id = '$id'";
my $table = "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$id'";
set_clock($day);
verdict_of($used);
my ($last) = @{ (rows('acme', $seen))[0] };
set_clock(0);
verdict_of($used);
is('last_used_at stays when the clock went back a day, and the use counts', join('|', @{ (rows('acme', $seen))[0] }), "$last|2");
report('and is flushed', until_true(20, sub { (rows('postgres', $table))[0][0] == 2 }) ? () : 'it is not');
is('the table has the same last_used_at', (rows('postgres', "SELECT last_used_at FROM rk_apikeys.key_usage WHERE key_id = '$id'"))[0][0], $last);
set_clock(2 * $day);
verdict_of($used);
report('beyond it, last_used_at moves on', (rows('acme', "SELECT last_used_at > '$last' FROM rk_apikeys.keys WHERE key_id = '$id'"))[0][0] eq 't' ? () : 'it does not');

# A key that is gone is forgotten, whatever time it was used at
my ($gone_id, $gone) = @{ (rows('acme', "SELECT * FROM rk_apikeys.create_key('gone')"))[0] };
ask('postgres', "ALTER SYSTEM SET rk_apikeys.usage_flush_interval = '1h'; SELECT pg_reload_conf()");
usleep(500_000);
set_clock(30 * $day);
verdict_of($gone);
set_clock(0);
ask('acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$gone_id'");
ask('postgres', "ALTER SYSTEM RESET rk_apikeys.usage_flush_interval; SELECT pg_reload_conf()");
report('a use a month ahead, of a key that was deleted since, does not stay pending',
	until_true(20, sub { (rows('boss', 'SELECT pending_keys FROM rk_apikeys.stats'))[0][0] == 0 }) ? () : 'it does');

# Jumps at any moment, of a flush too: many keys, so that a round takes several workers
my $many = join ',', map { "'$_->[0]'" } rows('acme',
	"INSERT INTO rk_apikeys.keys (name) SELECT 'many' FROM generate_series(1, 15000) RETURNING secret");
my $load = fork // die "could not fork: $!\n";
if ($load == 0)
{
	open my $out, '>', "$ENV{FAULTS_DIR}/load.sql" or die;
	print $out "PREPARE load AS SELECT count(*) FROM unnest(ARRAY[$many]) AS token WHERE rk_apikeys.verify(token);\n", "EXECUTE load;\n" x 100_000;
	close $out;
	open STDOUT, '>', '/dev/null' or die;
	exec 'psql', '-qXAt', '-U', 'backend', '-f', "$ENV{FAULTS_DIR}/load.sql";
}
my $count = (rows('acme', $seen))[0][1];
my ($slowest, $before, @findings) = (0, '');
foreach my $round (1 .. $rounds)
{
	foreach (1 .. 10)
	{
		set_clock(int((rand() - 0.5) * 60 * $day));
		usleep(rand 60_000);
	}
	# so fast that each worker finds its time over, and the launcher pauses most of the time; then back
	my $offset = int((rand() - 0.5) * 60 * $day);
	set_clock($offset, 1000);
	usleep(500_000 + rand 300_000);
	set_clock($offset - $day);
	verdict_of($used) eq 'valid' or push @findings, "round $round: the key is not valid";
	$count++;
	my ($last, $uses) = @{ (rows('acme', $seen))[0] };
	push @findings, "round $round: use_count is $uses and not $count" if $uses != $count;
	push @findings, "round $round: last_used_at went back from $before to $last" if $last lt $before;
	$before = $last;
	my $start = time;
	until_true(20, sub { (rows('postgres', $table))[0][0] == $count }) or push(@findings, "round $round: no flush"), last;
	$slowest = time - $start if time - $start > $slowest;
}
kill 'TERM', $load;
waitpid $load, 0;
set_clock(0);
report("$rounds rounds of 12 jumps within a month: verdict and count right, last_used_at never back, each flushed (the slowest after "
	  . sprintf('%.1f s)', $slowest), @findings);
my @tables = check_tables();
report('rows, events and days agree', @tables);
