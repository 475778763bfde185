# test/t/028_review.pl: windows that a review has found: a new file of the table, a verify that was cancelled, memory that fills up, plans
# that are kept, and flushes that end while others are under way.
#
# What lasts for no more than a moment is held open by gdb, which stops a session where it calls a function.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use constant INTERVAL => 'rk_apikeys.usage_flush_interval';

# Makes that many keys, with their tokens in a table of the superuser's.
sub make_keys
{
	my ($on, $count) = @_;
	$on->safe_psql('postgres', qq{CREATE TABLE tokens (i int PRIMARY KEY, token text);
		WITH k AS (INSERT INTO rk_apikeys.keys (name) SELECT 'key ' || i FROM generate_series(1, $count) i RETURNING secret)
		INSERT INTO tokens SELECT row_number() OVER (), secret FROM k; VACUUM ANALYZE tokens, rk_apikeys.api_keys});
}

# Verifies those of them whose number is in a range.
sub verify_keys
{
	my ($session, $from, $to) = @_;
	return $session->query_safe("SELECT count(*) FILTER (WHERE rk_apikeys.verify(token)) FROM tokens WHERE i BETWEEN $from AND $to");
}

# Has gdb stop a session where it next calls a function, until release(). Returns undef, and why, if gdb cannot.
my $stops = 0;
sub stop_at
{
	my ($session, $function) = @_;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $go = PostgreSQL::Test::Utils::tempdir . '/go' . ++$stops;
	my $timeout = $PostgreSQL::Test::Utils::timeout_default;
	# An error ends the script.
	append_to_file("$go.gdb", join "\n", 'set breakpoint pending off', 'handle SIGUSR1 nostop noprint pass', "attach $pid",
		'shell echo attached', "break $function", 'shell echo armed', 'continue', 'shell echo stopped',
		"shell for i in \$(seq ${timeout}0); do [ ! -e $go ] || break; sleep 0.1; done", 'detach', '');
	local $ENV{DEBUGINFOD_URLS} = '';
	my $stop = { said => '', go => $go, timer => IPC::Run::timer($timeout) };
	return (undef, 'gdb is missing') unless grep { -x "$_/gdb" } split /:/, $ENV{PATH};
	$stop->{gdb} = IPC::Run::start([ 'gdb', '-nx', '-batch', '-x', "$go.gdb" ], '<', \undef, '>', \$stop->{said}, '2>&1', $stop->{timer});
	return $stop if pump_until($stop->{gdb}, $stop->{timer}, \$stop->{said}, qr/^armed$/m);
	$stop->{gdb}->finish;
	die "gdb cannot stop at $function: $stop->{said}" if $stop->{said} =~ /^attached$/m;
	return (undef, 'gdb may not attach to a process');
}

# The session runs a statement until it is stopped.
sub run_until_stop
{
	my ($session, $stop, $sql) = @_;
	$session->query_until(qr/begun/, "\\echo begun\n$sql;\n");
	pump_until($stop->{gdb}, $stop->{timer}, \$stop->{said}, qr/^stopped$/m) or die "did not stop: $stop->{said}";
}

# It goes on; returns what the statement gives.
sub release
{
	my ($session, $stop) = @_;
	append_to_file($stop->{go}, '');
	$stop->{gdb}->finish;
	return $session->query_safe('');
}

my $node = PostgreSQL::Test::Cluster->new('review');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, INTERVAL . " = '1h'", 'autovacuum = off', 'shared_buffers = 32MB');
$node->start;
rk_extend($node);

# A flush of many keys costs no more where the tables were tiny when the session flushed before. It is the processor's time that counts:
# others may be using the machine.
make_keys($node, 10_000);

# What a flush of all keys costs a session, in seconds.
sub flush_all_keys
{
	my ($session) = @_;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $ticks = sub { my @fields = split / /, slurp_file("/proc/$pid/stat") =~ s/.*\) //sr; return $fields[11] + $fields[12]; };
	verify_keys($session, 1, 10_000);
	my $before = $ticks->();
	is($session->query_safe('SELECT rk_apikeys.flush_usage()'), '10000', 'all keys are flushed');
	return ($ticks->() - $before) / 100;
}

my $early = session($node, 'postgres');
foreach (1 .. 2)
{
	verify_keys($early, 1, 3);
	$early->query_safe('SELECT rk_apikeys.flush_usage(); ANALYZE rk_apikeys.key_usage, rk_apikeys.key_usage_daily');
}
my ($first, $second) = map { flush_all_keys($early) } 1 .. 2;
my $late = session($node, 'postgres');
my ($anew) = sort { $a <=> $b } map { flush_all_keys($late) } 1 .. 2;
note "flushes of 10,000 keys: $first s and $second s, by a new session $anew s";
cmp_ok($first, '<', 6 * $anew + 0.5, 'the first flush of many keys, after one of few');
cmp_ok($second, '<', 3 * $anew + 0.3, 'and the second');
$_->quit foreach $early, $late;

# A verify that is cancelled while it looks for the table leaves the session as it was
my (undef, $token) = create_key($node, 'good');
my $locker = session($node, 'postgres');
my $cancelled = session($node, 'postgres', on_error_stop => 0);
$cancelled->query_safe("SELECT rk_apikeys.is_well_formed('x'); SET statement_timeout = '300ms'");
$locker->query_safe('BEGIN; LOCK pg_class IN ACCESS EXCLUSIVE MODE');
foreach (1 .. 2)
{
	$cancelled->query("SELECT rk_apikeys.verify('$token')");
	like($cancelled->{stderr}, qr/statement timeout/, 'a verify that waits for pg_class is cancelled');
	$cancelled->{stderr} = '';
}
$locker->query_safe('ROLLBACK');
$cancelled->query_safe('RESET statement_timeout');
is($cancelled->query_safe("SELECT rk_apikeys.verify('$token')"), 't', 'and the next one finds the key');
$cancelled->quit;

# A rewrite of the table has committed and given its locks back, but the old file's buffers are still there
SKIP:
{
	my ($id, $victim) = create_key($node, 'victim');
	my (undef, $guide) = create_key($node, 'guide');
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$guide'), rk_apikeys.verify('$victim')") foreach 1 .. 3;
	my $backend = session($node, 'backend');
	is($backend->query_safe("SELECT rk_apikeys.verify('$guide')"), 't', 'a session that knows the file');

	$locker->query_safe('BEGIN; CLUSTER rk_apikeys.api_keys USING api_keys_pkey');
	my ($stop, $why) = stop_at($locker, 'smgrDoPendingDeletes');
	$locker->query_safe('ROLLBACK') unless $stop;
	skip $why, 4 unless $stop;
	run_until_stop($locker, $stop, 'COMMIT');
	$node->safe_psql('postgres', "SELECT rk_apikeys.revoke_key('$id')");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT;' AND state = 'active'"), '1',
		'a key is revoked while the rewrite is about to drop the old file');
	is($backend->query_safe("SELECT rk_apikeys.verify('$victim')"), 'f', 'and that is seen');
	release($locker, $stop);
	is($backend->query_safe("SELECT rk_apikeys.verify('$victim')"), 'f', 'then, too');
	is($backend->query_safe("SELECT rk_apikeys.verify('$guide')"), 't', 'and another key is good');
	$backend->quit;
}

# A flush comes to its end after a reader has looked at the time of the last one, before it looks at the entries
SKIP:
{
	my ($id, $used) = create_key($node, 'used');
	my $reader = session($node, 'postgres');
	# As the list has it.
	my $count = "SELECT greatest(u.use_count, l.use_count) FROM rk_apikeys.key_usage u LEFT JOIN rk_apikeys._live_usage() l USING (key_id)
		WHERE key_id = '$id'";
	$node->safe_psql('postgres', "SELECT rk_apikeys.verify('$used') FROM generate_series(1, 5)");
	$node->safe_psql('postgres', 'SELECT rk_apikeys.flush_usage()');
	$node->safe_psql('postgres', "SELECT rk_apikeys.verify('$used') FROM generate_series(1, 5)");
	is($reader->query_safe($count), '10', 'uses in table and memory');
	my ($stop, $why) = stop_at($reader, 'usage_hash_next');
	skip $why, 1 unless $stop;
	run_until_stop($reader, $stop, $count);
	$node->safe_psql('postgres', 'SELECT rk_apikeys.flush_usage()');
	is(release($reader, $stop), '10', 'a flush that ends meanwhile hides none of them');
	$reader->quit;
}

# A flush finds a key pending that another one is about to have written
SKIP:
{
	my ($id, $used) = create_key($node, 'used twice');
	my $other = session($node, 'postgres');
	$other->query_safe('SELECT rk_apikeys.flush_usage()');
	$locker->query_safe("SELECT rk_apikeys.verify('$used'); BEGIN; SELECT rk_apikeys.flush_usage()");
	my ($stop, $why) = stop_at($other, 'usage_hash_set_stamp');
	skip $why, 2 unless $stop;
	run_until_stop($other, $stop, 'BEGIN; SELECT rk_apikeys.flush_usage(); ROLLBACK');
	$locker->query_safe('COMMIT');
	is(release($other, $stop), '0', 'there is nothing left for it');
	$other->query_safe("SELECT rk_apikeys.verify('$used') FROM generate_series(1, 7); SELECT rk_apikeys.flush_usage()");
	is($node->safe_psql('postgres', "SELECT use_count FROM rk_apikeys.key_usage WHERE key_id = '$id'"), '8', 'and what comes later is written');
	$other->quit;
}
$locker->quit;
$node->stop;

# wal_level minimal: a transaction that gives the table a new file writes its changes to it without WAL, so the LSN of a page tells nothing
# of them. A copy of the page may get into the buffer that the page of the old file was in.
$node = PostgreSQL::Test::Cluster->new('minimal');
$node->init(extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, INTERVAL . " = '1h'", 'rk_apikeys.max_tracked_keys = 4096', 'autovacuum = off',
	'wal_level = minimal', 'max_wal_senders = 0', 'wal_skip_threshold = 0', 'shared_buffers = 2MB', 'allow_in_place_tablespaces = on');
$node->start;
rk_extend($node);
$node->safe_psql('postgres', q{
	CREATE EXTENSION pg_buffercache;
	CREATE EXTENSION pg_prewarm;
	CREATE TABLE junk AS SELECT repeat('x', 500) FROM generate_series(1, 8000);
	CREATE FUNCTION buffer_of(block bigint) RETURNS int LANGUAGE sql AS
	  $$SELECT bufferid FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('rk_apikeys.api_keys') AND relforknumber = 0
	    AND relblocknumber = block AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())$$;
	-- Reads a block, and others to push it out, until it is in that buffer. Returns how often.
	CREATE FUNCTION read_into(block bigint, buffer int, at_most int) RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
	  FOR tries IN 1..at_most LOOP
	    PERFORM pg_prewarm('rk_apikeys.api_keys', 'buffer', 'main', block, block);
	    IF buffer_of(block) = buffer THEN
	      RETURN tries;
	    END IF;
	    PERFORM pg_prewarm('junk', 'buffer', 'main', 0, 200 + tries * 37 % 200);
	  END LOOP;
	END$$});
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION ''");
make_keys($node, 8_000);
my (undef, $guide) = create_key($node, 'guide');
my ($id, $victim) = create_key($node, 'victim');
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$guide'), rk_apikeys.verify('$victim')") foreach 1 .. 3;
my $backend = session($node, 'backend');
my $changer = session($node, 'postgres');
my $block = $changer->query_safe("SELECT (ctid::text::point)[0] FROM rk_apikeys.api_keys WHERE key_id = '$id'");
$backend->query_safe("SELECT rk_apikeys.verify('$guide')");
my $buffer = $changer->query_safe("SELECT buffer_of($block)");
$changer->query_safe("BEGIN; ALTER TABLE rk_apikeys.api_keys SET TABLESPACE elsewhere;
	UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$id'; COMMIT");
my ($said, $tries, $now);
foreach (1 .. 5)
{
	$backend->query_safe("SELECT rk_apikeys.verify('$guide')");
	$tries += $changer->query_safe("SELECT read_into($block, $buffer, 3000)");
	$said = $backend->query_safe("SELECT rk_apikeys.verify('$victim')");
	$now = $changer->query_safe("SELECT buffer_of($block)");
	last if $now eq $buffer;
}
is($now, $buffer, "wal_level minimal: a page of the new file is in the old one's buffer, after $tries tries");
is($said, 'f', 'and what was changed in it is seen');
$backend->quit;

# Room is made in all of memory, for any number of keys that come one after the other: none of them goes without a record.
$node->append_conf('postgresql.conf', INTERVAL . " = '100ms'");
$node->reload;
my $steps = 0;
foreach my $step (1 .. 16)
{
	$steps += verify_keys($changer, 500 * $step - 499, 500 * $step);
	foreach (1 .. 50 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if $changer->query_safe('SELECT pending_keys = 0 AND tracked_keys < 4096 / 8 * 6 FROM rk_apikeys.stats') eq 't';
		usleep(20_000);
	}
}
is($steps, 8_000, '8000 keys verify');
is(stat_of($node, 'overflow'), '0', 'with room for 4096, all of them are tracked');
is($node->safe_psql('postgres', "SELECT count(*) FROM rk_apikeys.key_usage u JOIN rk_apikeys.api_keys k USING (key_id)
	WHERE k.name LIKE 'key %' AND u.use_count = 1"), '8000', 'and all are recorded');
$changer->quit;

done_testing();
