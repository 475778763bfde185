# test/t/033_fallback_table.pl: without shared memory verify works the same, records use by itself once per usage_resolution, and rate
# limits are refused with a hint.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

# From 17 on a library has shared memory without preload, unless the server can give none: so its folder is closed.
my $node = rk_initdb('fallback', "dynamic_shared_memory_type = 'mmap'");
my $folder = $node->data_dir . '/pg_dynshmem';
sub restart
{
	$node->stop;
	chmod 0700, $folder or die "could not open $folder: $!";
	$node->start;
	chmod 0500, $folder or die "could not close $folder: $!";
}
restart();
rk_extend($node);
my $token = keys_of_every_state($node);
is_deeply(verdicts($node, $token), expected_verdicts(), 'every verdict as with preload');
is(sql_as($node, 'boss', 'SELECT preloaded, verified, pending_keys FROM rk_apikeys.stats'), 'f||', 'the server tells that it is not preloaded');
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '0', 'there is nothing to flush');

# The configuration file may keep the setting that sizes the memory of a preloaded library.
$node->append_conf('postgresql.conf', 'rk_apikeys.max_tracked_keys = 100000');
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('rk_apikeys.max_tracked_keys', true) = '100000'}) or die;
my $place = -s $node->logfile;
my $err;
is($node->psql('postgres', "LOAD 'rk_apikeys'; SHOW rk_apikeys.max_tracked_keys; SELECT count(*) FROM rk_apikeys.stats", stdout => \my $shown, stderr => \$err),
	0, 'a session loads the library');
is("$shown$err", "100000\n1", 'without a warning for the setting of a preloaded library');
unlike(slurp_file($node->logfile, $place), qr/WARNING/, 'in the log neither');
$node->psql('postgres', "\\set VERBOSITY sqlstate\nLOAD 'rk_apikeys';\nSET rk_apikeys.max_tracked_keys = 17", stderr => \$err);
like($err, qr/55P02/, 'no session can set it');

# Rate limits: every way to set one
my ($id, $plain) = create_key($node, 'plain');
my %refused = (
	create_key => [ 'acme', q{SELECT rk_apikeys.create_key('limited', rate_limit => 1, rate_window => '1 s')} ],
	INSERT => [ 'acme', q{INSERT INTO rk_apikeys.keys (name, rate_limit, rate_window) VALUES ('limited', 1, '1 s')} ],
	UPDATE => [ 'acme', qq{UPDATE rk_apikeys.keys SET rate_limit = 1, rate_window = '1 s' WHERE key_id = '$id'} ],
	import_key => [ 'boss', q{SELECT rk_apikeys.import_key('limited', sha256('x'), 'sha256', rate_limit => 1, rate_window => '1 s')} ]);
foreach (sort keys %refused)
{
	my ($role, $sql) = @{ $refused{$_} };
	isnt($node->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', $role ], stderr => \$err), 0, "a rate limit by $_ is refused");
	like($err, qr/ERROR:  55000: .*\n(.*\n)*HINT:  .*shared_preload_libraries/, "$_: 55000, and the hint says what to do");
}
# A row that was made elsewhere keeps its limit, and fails closed
$node->safe_psql('postgres', "ALTER TABLE rk_apikeys.api_keys DISABLE TRIGGER api_keys_guard;
	UPDATE rk_apikeys.api_keys SET rate_limit = 5, rate_window = '1 s' WHERE key_id = '$id';
	ALTER TABLE rk_apikeys.api_keys ENABLE TRIGGER api_keys_guard");
is(sql_as($node, 'backend', "SELECT (rk_apikeys.verify_key('$plain')).code"), 'limiter_unavailable', 'a limit that came with a row: refused');
is(sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET name = 'renamed' WHERE key_id = '$id' RETURNING name"), 'renamed', 'it can be renamed');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = NULL, rate_window = NULL WHERE key_id = '$id'");
is(sql_as($node, 'backend', "SELECT (rk_apikeys.verify_key('$plain')).code"), 'valid', 'and freed of it');

# Use is recorded once per resolution
my ($used_id, $used) = create_key($node, 'used');
my $backend = session($node, 'backend');
my $table = "SELECT use_count, last_used_addr, (SELECT sum(uses) FROM rk_apikeys.key_usage_daily d WHERE d.key_id = u.key_id)
	FROM rk_apikeys.key_usage u WHERE key_id = '$used_id'";
my $verify = "SELECT rk_apikeys.verify('$used')";
my $before = $backend->query_safe('SELECT clock_timestamp()');
$backend->query_safe("SELECT code FROM rk_apikeys.verify_key('$used', client_addr => '192.0.2.1')");
my $after = $backend->query_safe('SELECT clock_timestamp()');
is($node->safe_psql('postgres', $table), '1|192.0.2.1|1', 'the first use is in the table at once');
is(sql_as($node, 'acme', "SELECT last_used_at BETWEEN '$before' AND '$after' FROM rk_apikeys.keys WHERE key_id = '$used_id'"), 't', 'with its moment');
is(use_count($node, $used_id), '1', 'and in the view');
$backend->query_safe("$verify FROM generate_series(1, 100)");
is($node->safe_psql('postgres', $table), '1|192.0.2.1|1', 'not again within the minute');
$node->safe_psql('postgres', "SET rk_apikeys.usage_resolution = 0; $verify; $verify");
is($node->safe_psql('postgres', $table), '3|192.0.2.1|3', 'each, if the resolution is 0');

# Where a write would be refused, or could make the transaction fail
$node->append_conf('postgresql.conf', 'rk_apikeys.usage_resolution = 0');
restart();
$backend = session($node, 'backend');
my ($quiet_id, $quiet) = create_key($node, 'quiet');
foreach my $how ('READ ONLY', 'ISOLATION LEVEL REPEATABLE READ', 'ISOLATION LEVEL SERIALIZABLE')
{
	$backend->query_safe("BEGIN $how");
	is(code($backend, $quiet), 'valid', "$how: verified");
	is($backend->query_safe('SELECT pg_current_xact_id_if_assigned() IS NULL'), 't', "$how: without a transaction id");
	$backend->query_safe('COMMIT');
}
is($node->safe_psql('postgres', "SELECT count(*) FROM rk_apikeys.key_usage WHERE key_id = '$quiet_id'"), '0', 'and not recorded');
$backend->query_safe("BEGIN; SELECT rk_apikeys.verify('$quiet'); ROLLBACK");
is($node->safe_psql('postgres', "SELECT count(*) FROM rk_apikeys.key_usage WHERE key_id = '$quiet_id'"), '0', 'nor is what was rolled back');
code($backend, $token->{disabled});
is($node->safe_psql('postgres', 'SELECT sum(denied_count) FROM rk_apikeys.key_usage'), '0', 'a denial is not recorded');
is($backend->query_safe("SELECT rk_apikeys.verify('$quiet'), rk_apikeys.verify('$quiet')"), 't|t', 'two in one statement');

# Eight sessions on the same new keys: nobody waits, nothing is raised
my @new = split /\n/, sql_as($node, 'acme', q{WITH k AS (
	INSERT INTO rk_apikeys.keys (name) SELECT 'new ' || i FROM generate_series(1, 100) i RETURNING secret) SELECT secret FROM k});
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT rk_apikeys.verify('$_');\n") foreach @new;
append_to_file("$dir/all.sql", 'SELECT 1 / (count(*) FILTER (WHERE rk_apikeys.verify(t)) = 100)::int FROM unnest(ARRAY['
	. join(', ', map { "'$_'" } reverse @new) . "]) t;\n");
$node->command_ok([ 'pgbench', '-n', '-c', 8, '-t', 3, '-U', 'backend', '-f', "$dir/verify.sql", '-f', "$dir/all.sql", '-h', $node->host,
		'-p', $node->port, 'postgres' ], '8 sessions verify 100 new keys, in both orders');
is($node->safe_psql('postgres', q{SELECT count(*), min(use_count) > 0, sum(use_count) = (SELECT sum(uses) FROM rk_apikeys.key_usage_daily
	WHERE key_id IN (SELECT key_id FROM rk_apikeys.api_keys WHERE name LIKE 'new %')) FROM rk_apikeys.key_usage
	WHERE key_id IN (SELECT key_id FROM rk_apikeys.api_keys WHERE name LIKE 'new %')}), '100|t|t', 'each has its row, and the days agree');
is_deeply([ logged($node, qr/could not record|deadlock/) ], [], 'nothing was raised behind their back');

# Loaded by the session only, it is no different
my $session = session($node, 'postgres');
$session->query_safe("LOAD 'rk_apikeys'");
is(code($session, $used), 'valid', 'a session that loads the library by itself');
is($session->query_safe('SELECT preloaded FROM rk_apikeys.stats'), 'f', 'is not preloaded');
$_->quit foreach $backend, $session;

# Where it was to be had, each session tells once why it was not
SKIP:
{
	skip 'PostgreSQL 15 and 16 have no shared memory without preload', 1 if $node->pg_version < 17;
	$session = session($node, 'backend');
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	code($session, $used) foreach 1 .. 3;
	$session->quit;
	is(scalar(logged($node, qr/\[$pid\] .*could not get shared memory for the use of API keys: .*Permission denied/)), 1,
		'a session tells once that it does without shared memory');
}
chmod 0700, $folder;

done_testing();
