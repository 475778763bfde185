# test/t/027_standby_usage.pl: with primary_conninfo a standby's uses reach the primary, each once: by a role that may do nothing else, over
# outages, kills and lost answers, and over a promotion; and no password is told to anybody.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $password = 'correct-horse-battery';
my $dir = PostgreSQL::Test::Utils::tempdir;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'", 'log_statement = all',
	'log_connections = on', 'restart_after_crash = on');
$primary->start;
rk_extend($primary);
$primary->safe_psql('postgres', "SET password_encryption = 'scram-sha-256'; CREATE ROLE sender LOGIN PASSWORD '$password';
	GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender");
{
	my $hba = $primary->data_dir . '/pg_hba.conf';
	my $rest = slurp_file($hba);
	unlink $hba;
	append_to_file($hba, "local all sender scram-sha-256\n$rest");
	$primary->reload;
}
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);

sub passfile
{
	my ($text) = @_;
	unlink "$dir/passfile";
	append_to_file("$dir/passfile", "*:*:*:sender:$text\n");
	chmod 0600, "$dir/passfile" or die;
}

sub send_to
{
	my ($server, $host, $port, $more) = @_;
	my $conninfo = sprintf 'host=%s port=%s user=sender passfile=%s %s', $host, $port, "$dir/passfile", $more // '';
	$server->append_conf('postgresql.conf', "rk_apikeys.primary_conninfo = '$conninfo'");
}

# The same, now: the next worker sends to that port.
sub send_now_to
{
	my ($server, $host, $port) = @_;
	send_to($server, $host, $port);
	$server->reload;
	return $server->poll_query_until('postgres', "SELECT current_setting('rk_apikeys.primary_conninfo') LIKE '% port=$port %'
		AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'rk_apikeys flush')");
}

passfile($password);
send_to($standby, $primary->host, $primary->port);
$standby->start;

my ($id, $token) = create_key($primary, 'used');
my ($other_id, $other) = create_key($primary, 'other');
my $off_id;
($off_id, my $off) = create_key($primary, 'off');
sql_as($primary, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$off_id'");

sub replayed { $primary->wait_for_catchup($standby, 'replay'); }
sub table { my ($server, $key) = @_; return "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '" . ($key // $id) . "'"; }
sub failures { return scalar(() = logged($standby, qr/could not send the usage of API keys/)); }
sub recoveries { return scalar(() = logged($standby, qr/reaches the primary again/)); }

# Each use is one on this server; none waits for the other.
my $n = 0;
sub use_on
{
	my ($server, $times) = @_;
	sql_as($server, 'backend', join ';', ("SELECT rk_apikeys.verify('$token')") x $times);
	$n += $times;
}

# The table has each use, once, and stays so: another round has passed since.
sub arrives
{
	my ($server, $what) = @_;
	ok($server->poll_query_until('postgres', 'SELECT (' . table() . ") >= $n"), "$what: the uses arrive");
	foreach my $flushing ($standby, $server)
	{
		$flushing->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	}
	is($server->safe_psql('postgres', table()), $n, "$what: each once");
	is($server->safe_psql('postgres', "SELECT sum(uses) FROM rk_apikeys.key_usage_daily WHERE key_id = '$id'"), $n, "$what: by the day, too");
}

replayed();
my $before = $primary->safe_psql('postgres', 'SELECT clock_timestamp()');
use_on($standby, 3);
arrives($primary, 'from the standby');
is(sql_as($primary, 'acme', "SELECT last_used_at BETWEEN '$before' AND clock_timestamp() FROM rk_apikeys.keys WHERE key_id = '$id'"), 't',
	'and when');
sql_as($standby, 'backend', "SELECT FROM rk_apikeys.verify_key('$off', client_addr => '192.0.2.7') v, rk_apikeys.verify_key('$other', client_addr => '2001:db8::7')");
ok($primary->poll_query_until('postgres', "SELECT denied_count = 1 FROM rk_apikeys.key_usage WHERE key_id = '$off_id'"), 'denials arrive');
ok($primary->poll_query_until('postgres', "SELECT last_used_addr = '2001:db8::7' FROM rk_apikeys.key_usage WHERE key_id = '$other_id'"),
	'and from where');
is(sql_as($primary, 'boss', "SELECT count(*) = 1 AND min(application_name) = 'rk_apikeys' FROM rk_apikeys.usage_senders"), 't', 'the sender is known');

# Both count at once, and each tells what both know
foreach my $round (1 .. 5)
{
	use_on($_, 7) foreach $standby, $primary;
}
arrives($primary, 'from both');
replayed();
use_on($standby, 1);
ok($standby->poll_query_until('postgres', "SELECT use_count = $n FROM rk_apikeys.keys WHERE key_id = '$id'"),
	"the standby's view adds its own use to what it has had from there");
my @seen;
foreach (1 .. 25)
{
	use_on($standby, 1);
	push @seen, use_count($standby, $id) - $n,
	  sql_as($standby, 'acme', "SELECT use_count FROM rk_apikeys.list_keys(sort_by => 'use_count') WHERE key_id = '$id'") - $n;
}
is_deeply([ grep { $_ } @seen ], [], 'and neither dips nor doubles while it is sent and replayed');
arrives($primary, 'one by one');

# The role may do that, and no more
foreach my $sql ("SELECT rk_apikeys.verify('$token')", 'SELECT FROM rk_apikeys.keys', 'SELECT FROM rk_apikeys.usage_senders',
	'SELECT rk_apikeys.flush_usage()')
{
	local $ENV{PGPASSFILE} = "$dir/passfile";
	isnt($primary->psql('postgres', $sql, extra_params => [ '-U', 'sender' ], stderr => \my $refusal), 0, "refused: $sql");
	like($refusal, qr/permission denied/, 'for want of a right');
}

# A batch is a batch
my $received = sub {
	my ($batch, $key, $uses, $known, $at) = @_;
	return sql_as($primary, 'boss', "SELECT n, use_count FROM rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', $batch,
		ARRAY['$key'], '{prod}', ARRAY[$at]::timestamptz[], '{NULL}', '{$uses}', '{0}', '{$known}', '{0}')");
};
is($received->(1, $id, 12, 10, 'NULL'), '1|' . ($n += 2), 'an increment is added');
is($received->(1, $id, 12, 10, 'NULL'), "1|$n", 'once, though it comes twice');
is($received->(2, 'AAAAAAAAAAAA', 12, 10, 'NULL'), '1|', 'what is no key is told');
is($received->(3, $id, 12, 10, q{'infinity'}), '1|' . ($n += 2), 'a time to come');
is($primary->safe_psql('postgres', "SELECT last_used_at <= clock_timestamp() FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 't', 'is cut off');
my $locker = session($primary, 'postgres');
$locker->query_safe("BEGIN; SELECT FROM rk_apikeys.key_usage WHERE key_id = '$id' FOR UPDATE");
is($received->(4, $id, 12, 10, 'NULL'), '', 'a locked row is left out');
$locker->query_safe('COMMIT');
is($received->(4, $id, 12, 10, 'NULL'), '', 'and the same batch says so again');
is($received->(5, $id, 12, 10, 'NULL'), '1|' . ($n += 2), 'it comes with the next one');
# The greatest count is 2^62: beyond it there is room for what is counted here
my ($most, $most_token) = create_key($primary, 'most');
my $greatest = '4611686018427387904';
foreach my $batch (6, 7)
{
	is($received->($batch, $most, '9223372036854775807', 0, 'NULL'), "1|$greatest", 'a sender may claim any count, and the sum ends');
	is(sql_as($primary, 'backend', "SELECT rk_apikeys.verify('$most_token') FROM generate_series(1, 3)"), "t\nt\nt", 'a key that was used so often verifies');
	sql_as($primary, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is($primary->safe_psql('postgres', "SELECT use_count FROM rk_apikeys.key_usage WHERE key_id = '$most'"), $greatest, 'and its use is written');
	is($primary->safe_psql('postgres', "SELECT sum(uses) FROM rk_apikeys.key_usage_daily WHERE key_id = '$most'"), $greatest, "so is the day's");
}
foreach my $bad ("ARRAY['x'], '{prod}', '{NULL}', '{NULL}', '{1}', '{1}', '{1}', '{1}'", "ARRAY['$id'], '{prod}', '{NULL}', '{NULL}', '{1,2}', '{1}', '{1}', '{1}'",
	"ARRAY['$id'], '{PROD}', '{NULL}', '{NULL}', '{1}', '{1}', '{1}', '{1}'", "ARRAY['$id'], '{prod}', '{NULL}', '{NULL}', '{NULL}', '{1}', '{1}', '{1}'",
	"ARRAY['$id'], '{prod}', '{NULL}', '{NULL}', '{-1}', '{1}', '{1}', '{1}'", "ARRAY['$id'], '{prod}', '{NULL}', '{NULL}', '{1}', '{1}', '{-9}', '{1}'")
{
	isnt($primary->psql('postgres', "SELECT rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', 9, $bad)",
			extra_params => [ '-U', 'boss' ], stderr => \my $refusal), 0, "refused: $bad");
	like($refusal, qr/usage batch/, 'as no batch');
}
arrives($primary, 'after all that');

# The row is locked: it stays here, and what else there is goes
$locker->query_safe("BEGIN; SELECT FROM rk_apikeys.key_usage WHERE key_id = '$id' FOR UPDATE");
use_on($standby, 2);
my $others = $primary->safe_psql('postgres', table($primary, $other_id));
sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$other')");
ok($primary->poll_query_until('postgres', 'SELECT (' . table($primary, $other_id) . ") = $others + 1"), "a locked row is in no other key's way");
$locker->query_safe('COMMIT');
$locker->quit;
arrives($primary, 'unlocked');

# The primary is away
is(failures(), 0, 'nothing has failed so far');
$primary->stop('fast');
use_on($standby, 5);
is(use_count($standby, $id), $n, 'the standby goes on counting');
ok(wait_until(sub { failures() == 1 }), 'the log tells it');
usleep(500_000);
is(failures(), 1, 'once');
is(sql_as($standby, 'boss', 'SELECT flush_lag_ms > 400 FROM rk_apikeys.stats'), 't', 'and stats shows for how long');
$primary->start;
arrives($primary, 'after an outage');
is(recoveries(), 1, 'the log tells that it is over');

# The primary crashes
use_on($standby, 3);
arrives($primary, 'before the crash');
kill_server($primary);
use_on($standby, 4);
$primary->start;
arrives($primary, 'after a crash of the primary');

# The way there is cut: at any byte of the answers, among them the one after which the primary has committed
my $whole = cut_after(1_000_000);
send_now_to($standby, '127.0.0.1', $whole->{port}) or die 'the setting is not read';
use_on($standby, 1);
my $answer = $whole->{done}->();
cmp_ok($answer, '>', 50, "an answer has $answer bytes");
foreach my $bytes (0, 1, 5, 50, map { $answer - $_ } 30, 20, 10, 7, 6, 5, 1)
{
	my $cut = cut_after($bytes);
	send_now_to($standby, '127.0.0.1', $cut->{port}) or die 'the setting is not read';
	use_on($standby, 1);
	is($cut->{done}->(), $bytes, "cut after $bytes bytes");
	send_to($standby, $primary->host, $primary->port);
	$standby->reload;
	ok($primary->poll_query_until('postgres', 'SELECT (' . table() . ") >= $n"), 'sent again');
}
arrives($primary, 'cut here and there');

# The primary has written, but cannot say so: it waits for a replica that is not there. Meanwhile it refuses the batch, which says nothing.
my $refusals = () = logged($primary, qr/ERROR: .*lock timeout/);
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$primary->reload;
use_on($standby, 2);
ok(wait_until(sub { (() = logged($primary, qr/ERROR: .*lock timeout/)) > $refusals }), 'a batch that is under way is refused');
$primary->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$primary->reload;
arrives($primary, 'under way, and refused meanwhile');

# Workers and walsenders are told to end
foreach my $round (1 .. 10)
{
	use_on($standby, 2);
	$standby->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'rk_apikeys flush'");
	$primary->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender' OR usename = 'sender'");
}
arrives($primary, 'workers and walsenders ended');
$standby->restart;
arrives($primary, 'after a restart of the standby');

# Nobody answers: the worker gives up, and is in no way of a shutdown
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "no listener: $!";
my $told = failures();
send_to($standby, '127.0.0.1', $silent->sockport);
$standby->reload;
use_on($standby, 2);
ok(wait_until(sub { failures() > $told }), 'a primary that says nothing is given up');
like((logged($standby, qr/could not send the usage/))[-1], qr/did not answer in time/, 'the log says so');
ok($standby->poll_query_until('postgres', q{SELECT query = 'sending the usage of API keys' FROM pg_stat_activity
	WHERE backend_type = 'rk_apikeys flush' AND datname = 'postgres'}), 'another worker waits, and tells no more than what it does');
my $offset = -s $standby->logfile;
$standby->stop;
like(substr(slurp_file($standby->logfile), $offset), qr/FATAL: .*terminating background worker "rk_apikeys flush" due to administrator command/,
	'a shutdown ends it at once');
close $silent;
send_to($standby, $primary->host, $primary->port);
$standby->start;
arrives($primary, 'once somebody answers');

# A wrong password: told once, and nowhere what it was. One in the setting itself is refused.
$told = failures();
passfile('wrong-horse-battery');
use_on($standby, 2);
ok(wait_until(sub { failures() > $told }), 'a wrong password fails');
like((logged($standby, qr/could not send the usage/))[-1], qr/password authentication failed/, 'the log says why');
is($standby->psql('postgres', 'SHOW rk_apikeys.primary_conninfo', extra_params => [ '-U', 'acme' ], stderr => \my $hidden), 3,
	'no ordinary role may see the setting');
is(sql_as($standby, 'acme', "SELECT count(*) FROM pg_settings WHERE name = 'rk_apikeys.primary_conninfo'"), '0', 'in pg_settings neither');
passfile($password);
arrives($primary, 'with the right one');
$told = failures();
$standby->stop;
send_to($standby, $primary->host, $primary->port, 'password=in-the-setting');
$standby->start;
use_on($standby, 2);
ok(wait_until(sub { failures() > $told }), 'a password in the setting fails');
like((logged($standby, qr/could not send the usage/))[-1], qr/holds a password/, 'and the log says why');
$standby->stop;
send_to($standby, $primary->host, $primary->port);
$standby->append_conf('postgresql.conf', "rk_apikeys.primary_conninfo = 'this is = no setting = secret-in-it'");
$told = failures();
$standby->start;
use_on($standby, 2);
ok(wait_until(sub { failures() > $told }), 'what is no connection string fails');
send_to($standby, $primary->host, $primary->port);
$standby->reload;
arrives($primary, 'and all that was pending meanwhile');
foreach my $server ($primary, $standby)
{
	is($server->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '(passfile|-horse-)' AND pid <> pg_backend_pid()}), '0', 'pg_stat_activity shows no connection string');
	my $log = slurp_file($server->logfile);
	unlike($log, qr/(wrong-horse|in-the-setting|secret-in-it)/, 'no log shows what was wrong, either');
}
unlike(slurp_file($standby->logfile), qr/correct-horse/, 'nor what is right');

# A promotion while an answer is missing, of a server that has not got what the primary wrote since: a batch that was acknowledged, and one
# that was not. The primary's own count goes its own way from here.
arrives($primary, 'before the promotion of another standby');
my $second = PostgreSQL::Test::Cluster->new('second');
$primary->backup('later');
$second->init_from_backup($primary, 'later', has_streaming => 1);
send_to($second, $primary->host, $primary->port);
$second->start;
foreach my $replayed (1, 0)
{
	my $of_second = $replayed ? 'second' : 'third';
	if (!$replayed)
	{
		$second = PostgreSQL::Test::Cluster->new('third');
		$primary->backup('last');
		$second->init_from_backup($primary, 'last', has_streaming => 1);
		send_to($second, $primary->host, $primary->port);
		$second->start;
	}
	$primary->wait_for_catchup($second, 'replay');
	if (!$replayed)
	{
		$second->append_conf('postgresql.conf', "primary_conninfo = ''");
		$second->reload;
		$primary->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_replication WHERE application_name = 'third'") or die 'still streaming';
	}
	use_on($second, 5);
	my $others = $primary->safe_psql('postgres', table($primary, $other_id)) + 1;
	sql_as($second, 'backend', "SELECT rk_apikeys.verify('$other')");
	ok($primary->poll_query_until('postgres', 'SELECT (' . table() . ") = $n"), "$of_second: acknowledged");
	$second->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'not acknowledged';
	my $cut = cut_after(10);
	send_to($second, '127.0.0.1', $cut->{port});
	$second->reload;
	use_on($second, 3);
	is($cut->{done}->(), 10, "$of_second: and not");
	is($primary->safe_psql('postgres', table()), $n, "$of_second: though it is written");
	use_on($second, 2);
	$primary->wait_for_catchup($second, 'replay') if $replayed;
	is($second->safe_psql('postgres', table()), $replayed ? $n - 2 : $n - 10, "$of_second: what is replayed before the promotion");
	$second->promote;
	ok($second->poll_query_until('postgres', 'SELECT (' . table() . ") >= $n"), "$of_second: promoted, it has all of it");
	$second->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	is($second->safe_psql('postgres', table()), $n, "$of_second: each once");
	is($second->safe_psql('postgres', table($second, $other_id)), $others, "$of_second: those of a key that was not used since, too");
	is($second->safe_psql('postgres', "SELECT sum(uses) FROM rk_apikeys.key_usage_daily WHERE key_id = '$id'"), $n, "$of_second: by the day, too");
	$n -= 2;
	is($primary->safe_psql('postgres', table()), $n, "$of_second: of which the last two are its own");
	$second->stop;
}

# Promotion under load: what is on its way, what is pending, and what comes, is in the new primary's table, once; no key is lost.
my %kept = map { my ($key, $made) = create_key($primary, "kept $_"); ($key => $made) } 1 .. 20;
replayed();
append_to_file("$dir/load.sql", "SELECT rk_apikeys.verify('$token');\n");
my $load = IPC::Run::start([ 'pgbench', '-n', '-M', 'prepared', '-c', 2, '-t', 20000, '-U', 'backend', '-f', "$dir/load.sql", '-h', $standby->host,
		'-p', $standby->port, 'postgres' ], '>', \my $printed, '2>', \my $warned);
$n += 40000;
ok($primary->poll_query_until('postgres', 'SELECT (' . table() . ") > $n - 40000"), 'under load uses reach the primary');
replayed();
kill_server($primary);
$standby->promote;
ok(IPC::Run::finish($load), 'the load goes on over the promotion') or diag $warned;
use_on($standby, 5);
arrives($standby, 'promoted');
is(sql_as($standby, 'backend', 'SELECT bool_and(rk_apikeys.verify(t)) FROM unnest(ARRAY[' . join(',', map { "'$_'" } values %kept) . ']) t'), 't',
	'no key is lost');
sql_as($standby, 'acme', "SELECT rk_apikeys.revoke_key('$id')");
is(sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token')"), 'f', 'and it can end one');
is_deeply([ grep { !/authentication failed|terminating|could not (receive|connect|send)|requested WAL|recovery|must be superuser|permission denied to examine/ } logged($standby, qr/(ERROR|PANIC|TRAP):/) ], [],
	'nothing failed on the standby');
done_testing();

# Polls a condition of this test's own.
sub wait_until
{
	my ($condition) = @_;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $condition->();
		usleep(100_000);
	}
	return 0;
}

# A door to the primary, on a port of its own, for the first that connects: it closes after that many bytes of the primary's answers since
# the batch was sent. done() waits until then, and returns how many bytes came through.
sub cut_after
{
	my ($bytes) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1, ReuseAddr => 1,
		Timeout => $PostgreSQL::Test::Utils::timeout_default) or die "no listener: $!";
	pipe(my $told, my $tell) or die "no pipe: $!";
	my $pid = fork // die;
	if (!$pid)
	{
		my $client = $listener->accept or POSIX::_exit(1);
		close $listener;
		my $server = IO::Socket::UNIX->new(Peer => $primary->host . '/.s.PGSQL.' . $primary->port) or POSIX::_exit(1);
		my $select = IO::Select->new($client, $server);
		my $sent = 0;
		my $left = $bytes;
		my $open = 1;
		while ($open)
		{
			foreach my $from ($select->can_read)
			{
				sysread($from, my $data, 65536) or $open = 0, last;
				$sent = 1 if $from == $client && $data =~ /receive_usage/;
				if ($from == $server && $sent)
				{
					# by then it has written, and answered
					syswrite($client, substr($data, 0, $left)) if $left > 0;
					$left -= length $data;
					$open = 0 if $left <= 0;
				}
				else { syswrite($from == $client ? $server : $client, $data); }
			}
		}
		# what it let through
		syswrite($tell, $left < 0 ? $bytes : $bytes - $left);
		POSIX::_exit(0);
	}
	my $port = $listener->sockport;
	close $listener;
	close $tell;
	return { port => $port, done => sub { waitpid $pid, 0; return 0 + <$told> } };
}
