# test/t/076_follow_soak.pl: three followers, one of them on a standby, get each committed event once while writers wait, roll back, use
# savepoints and prepared transactions, and the server is killed. RK_SOAK=100000 writes so many events, and kills the server ten times.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $wanted = $ENV{RK_SOAK} // 2000;
my $kills = $ENV{RK_SOAK} ? 10 : 1;
my $tmp = $PostgreSQL::Test::Utils::tmp_check;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', PRELOAD . "\nmax_prepared_transactions = 20\nrk_apikeys.usage_flush_interval = '1h'\nwal_keep_size = '4GB'");
$primary->start;
rk_extend($primary);
$primary->safe_psql('postgres', 'CREATE TABLE other (n int); GRANT INSERT ON other TO acme');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# What a writer does: \r and \n are numbers by chance.
my $insert = q{INSERT INTO rk_apikeys.keys (name) SELECT 'soak' FROM generate_series(1, :n);};
my %script = (
	plain => $insert,
	update => q{UPDATE rk_apikeys.keys SET description = description || 'x' WHERE key_id IN (SELECT key_id FROM rk_apikeys.keys LIMIT :n);},
	slow => "BEGIN; $insert\n\\sleep :r ms\n$insert COMMIT;",
	late => "BEGIN; INSERT INTO other VALUES (1);\n\\sleep :r ms\n$insert COMMIT;",
	undone => "BEGIN; $insert\n\\sleep :r ms\nROLLBACK;",
	savepoint => "BEGIN; SAVEPOINT a; $insert SAVEPOINT b; $insert ROLLBACK TO b;\n\\sleep :r ms\n$insert RELEASE a; COMMIT;",
	prepared => "BEGIN; $insert PREPARE TRANSACTION 'soak :name';\n\\sleep :r ms\nCOMMIT PREPARED 'soak :name';",
	forgotten => "BEGIN; $insert PREPARE TRANSACTION 'soak :name';\n\\sleep :r ms\nROLLBACK PREPARED 'soak :name';");
my @scripts;
foreach my $name (sort keys %script)
{
	push @scripts, '-f', "$tmp/$name.sql";
	append_to_file("$tmp/$name.sql", "\\set n random(1, 8)\n\\set r random(0, 60)\n\\set name random(1, 1000000000000)\n$script{$name}\n");
}

# A follower: a process that keeps the cursor of the last row, and appends the numbers of the events to its file.
sub follower
{
	my ($name, $node) = @_;
	my $parent = $$;
	my $pid = fork // die "no fork: $!";
	return $pid if $pid > 0;
	my $ended = eval {
		srand;
		my ($cursor, $empty) = ('NULL', 0);
		while ($empty < 2)
		{
			die 'the test has ended' if getppid != $parent;
			my $stop = -e "$tmp/stop";
			my $max = 1 + int rand(rand() < 0.5 ? 10 : 2000);
			# IPC::Run dies if psql has ended before it reads.
			my ($status, $out) = eval { $node->psql('postgres', "SELECT event_id, cursor FROM rk_apikeys.events_since($cursor, $max)",
				extra_params => [ '-U', 'boss' ], on_error_die => 0) };
			if (!defined $status || $status != 0)
			{
				usleep(100_000);
				next;
			}
			my @rows = split /\n/, $out // '';
			append_to_file("$tmp/$name.seen", join '', map { (split /\|/)[0] . "\n" } @rows);
			$cursor = "'" . (split /\|/, $rows[-1])[1] . "'" if @rows;
			$empty = $stop && !@rows ? $empty + 1 : 0;
			usleep(20_000) unless @rows;
		}
		1;
	};
	append_to_file("$tmp/$name.failed", $@) unless $ended;
	POSIX::_exit($ended ? 0 : 1);
}

my %node = (one => $primary, two => $primary, three => $standby);
my %pid = map { $_ => follower($_, $node{$_}) } sort keys %node;

# Writers, until there are events enough; each time they end, the server is killed, until that was often enough.
my $began = time;
my $count = 0;
for (my $round = 0; $count < $wanted || $round <= $kills; $round++)
{
	my $writers = fork // die "no fork: $!";
	if ($writers == 0)
	{
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', '/dev/null';
		exec('pgbench', '-n', '-c', 6, '-j', 1, '-T', $ENV{RK_SOAK} ? 600 : 120, @scripts, '-U', 'acme', '-h', $primary->host, '-p', $primary->port,
			'postgres') or POSIX::_exit(1);
	}
	my $goal = $wanted * ($round + 1) / ($kills + 1);
	while ($count < $goal && waitpid($writers, POSIX::WNOHANG()) == 0)
	{
		$count = $primary->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_events');
		usleep(200_000);
	}
	if ($round < $kills)
	{
		kill_server($primary);
		$primary->start;
	}
	kill 'TERM', $writers;
	waitpid $writers, 0;
	# What a writer left prepared is decided later.
	if ($round % 2)
	{
		my $decide = $round % 4 == 1 ? 'COMMIT' : 'ROLLBACK';
		$primary->safe_psql('postgres', "$decide PREPARED '$_'")
		  foreach split /\n/, $primary->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts');
	}
	die 'too slow' if time - $began > 60 * $PostgreSQL::Test::Utils::timeout_default;
}
ok($primary->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'acme'}), 'the writers have ended');
$primary->safe_psql('postgres', "COMMIT PREPARED '$_'") foreach split /\n/, $primary->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts');
$primary->wait_for_catchup($standby, 'replay');
append_to_file("$tmp/stop", '');

my @events = split /\n/, $primary->safe_psql('postgres', 'SELECT event_id FROM rk_apikeys.key_events');
cmp_ok(scalar @events, '>=', $wanted, 'there are events enough');
foreach my $name (sort keys %pid)
{
	waitpid $pid{$name}, 0;
	is($?, 0, "follower $name ended") or diag slurp_file("$tmp/$name.failed");
	my %seen;
	$seen{$_}++ foreach split /\n/, slurp_file("$tmp/$name.seen");
	my $lost = grep { !$seen{$_} } @events;
	my $doubled = grep { $_ > 1 } values %seen;
	delete @seen{@events};
	is("$lost lost, $doubled doubled, " . keys(%seen) . ' not committed', '0 lost, 0 doubled, 0 not committed', "follower $name");
}
diag sprintf '%d events, %d kills, %.0f s', scalar @events, $kills, time - $began;

done_testing();
