# test/cluster/Nodes.pm: three nodes n1, n2, n3, each with etcd, Patroni and PostgreSQL in a network namespace of its own.
package Nodes;

use strict;
use warnings;

use DBI;
use Exporter 'import';
use HTTP::Tiny;
use JSON::PP;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(NODES INTERVAL start_nodes start_patroni kill_node cut heal healthy until_true leader switchover socket_of connect_to ask rewinds
  writers_dsn postmaster_of);

use constant NODES => qw(n1 n2 n3);
use constant INTERVAL => 2;    # usage_flush_interval, in seconds

my $dir = $ENV{CLUSTER_DIR};
my $bin = $ENV{CLUSTER_BIN};
my $http = HTTP::Tiny->new(timeout => 30);
my (%namespace, %patroni);

sub address { my ($node) = @_; return '10.77.0.' . substr $node, 1; }
sub socket_of { my ($node) = @_; return "$dir/$node/socket"; }
sub addresses { return join ',', map { address($_) } NODES; }

# Runs a command or ends the test.
sub run
{
	my (@command) = @_;
	system(@command) == 0 or die "failed: @command\n";
	return;
}

# Starts a program in a node's namespace, as the server's user; its output is added to a file of the node.
sub in_node
{
	my ($node, $log, @command) = @_;
	my $pid = fork // die "could not fork: $!\n";
	return $pid if $pid;
	open STDOUT, '>>', "$dir/$node/$log" or die;
	open STDERR, '>&', \*STDOUT or die;
	open STDIN, '<', '/dev/null' or die;
	my ($uid, $gid) = (getpwnam $ENV{CLUSTER_USER})[ 2, 3 ];
	exec 'nsenter', '-t', $namespace{$node}, '-n', 'setpriv', "--reuid=$uid", "--regid=$gid", '--clear-groups', @command;
}

# Calls the code until it returns true, for at most so many seconds; returns what it returned.
sub until_true
{
	my ($seconds, $code) = @_;
	my $end = time + $seconds;
	while (1)
	{
		my $result = $code->();
		return $result if $result || time > $end;
		usleep 100_000;
	}
}

# A bridge here, and for each node a namespace with a link to it.
sub make_networks
{
	run('ip', 'link', 'set', 'lo', 'up');
	run('ip', 'link', 'add', 'rk0', 'type', 'bridge');
	run('ip', 'address', 'add', '10.77.0.254/24', 'dev', 'rk0');
	run('ip', 'link', 'set', 'rk0', 'up');
	foreach my $node (NODES)
	{
		my $pid = fork // die "could not fork: $!\n";
		if (!$pid) { exec 'unshare', '--net', 'sleep', 'infinity'; }
		$namespace{$node} = $pid;
		my $ours = readlink '/proc/self/ns/net';
		until_true(10, sub { return $ours ne (readlink "/proc/$pid/ns/net" // $ours) }) or die "no namespace for $node\n";
		run('ip', 'link', 'add', $node, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', $pid);
		run('ip', 'link', 'set', $node, 'master', 'rk0', 'up');
		my @inside = ('nsenter', '-t', $pid, '-n', 'ip');
		run(@inside, 'link', 'set', 'lo', 'up');
		run(@inside, 'address', 'add', address($node) . '/24', 'dev', 'eth0');
		run(@inside, 'link', 'set', 'eth0', 'up');
	}
	return;
}

sub write_file
{
	my ($file, $text, $mode) = @_;
	open my $out, '>', $file or die "could not write $file: $!\n";
	print $out $text;
	close $out or die;
	chmod $mode, $file;
	my ($uid, $gid) = (getpwnam $ENV{CLUSTER_USER})[ 2, 3 ];
	chown $uid, $gid, $file or die;
	return;
}

# doc/operations.md shows the parts of this file that matter. The API of etcd is v2: over v3, Patroni 3.0.2 overwrites the lock of a new
# leader when the old leader's node is back from a partition, and both lead for a while.
sub patroni_yaml
{
	my ($node, $sync) = @_;
	my ($me, $hosts) = (address($node), addresses());
	my $etcd = join ',', map { address($_) . ':2379' } NODES;
	my $interval = INTERVAL;
	return <<"YAML";
scope: keys
name: $node
restapi: {listen: '$me:8008', connect_address: '$me:8008'}
etcd: {hosts: '$etcd'}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 3
    retry_timeout: 6
    maximum_lag_on_failover: 1048576
    synchronous_mode: true
    synchronous_node_count: $sync
    postgresql:
      use_pg_rewind: true
      parameters:
        shared_preload_libraries: rk_apikeys
        synchronous_commit: remote_apply
        hot_standby_feedback: 'on'
        wal_keep_size: 512MB
        wal_sender_timeout: 10s
        wal_receiver_timeout: 10s
        max_connections: 60
        fsync: 'off'
        rk_apikeys.usage_flush_interval: ${interval}s
        rk_apikeys.primary_conninfo: host=$hosts user=usage_sender passfile=$dir/usage.pgpass target_session_attrs=read-write connect_timeout=2
  initdb: [{encoding: UTF8}, {locale: C.UTF-8}, data-checksums, no-sync]
postgresql:
  listen: '$me:5432'
  connect_address: '$me:5432'
  data_dir: $dir/$node/data
  bin_dir: $bin
  pgpass: $dir/$node/pgpass
  use_unix_socket: true
  authentication:
    superuser: {username: postgres, password: p-super}
    replication: {username: replicator, password: p-replicator}
  parameters: {unix_socket_directories: $dir/$node/socket, log_line_prefix: '%m [%p] %q%u@%d '}
  pg_hba:
    - local all all trust
    - host replication replicator 10.77.0.0/24 scram-sha-256
    - host all all 10.77.0.0/24 scram-sha-256
watchdog: {mode: 'off'}
YAML
}

sub start_etcd
{
	my ($node) = @_;
	my $me = address($node);
	return in_node($node, 'etcd.log', 'etcd', '--name', $node, '--data-dir', "$dir/$node/etcd",
		'--listen-client-urls', "http://$me:2379", '--advertise-client-urls', "http://$me:2379",
		'--listen-peer-urls', "http://$me:2380", '--initial-advertise-peer-urls', "http://$me:2380",
		'--initial-cluster', join(',', map { "$_=http://" . address($_) . ':2380' } NODES), '--initial-cluster-state', 'new',
		'--enable-v2', '--pre-vote', '--heartbeat-interval', '250', '--election-timeout', '2500');
}

sub start_patroni
{
	my ($node) = @_;
	$patroni{$node} = in_node($node, 'patroni.log', 'patroni', "$dir/$node/patroni.yml");
	return;
}

# Starts all and returns when one leads and the others follow.
sub start_nodes
{
	my ($sync) = @_;
	my ($uid, $gid) = (getpwnam $ENV{CLUSTER_USER})[ 2, 3 ];
	make_networks();
	write_file("$dir/usage.pgpass", "*:*:*:usage_sender:p-usage\n", 0600);
	foreach my $node (NODES)
	{
		foreach my $folder ("$dir/$node", socket_of($node), "$dir/$node/etcd") { mkdir $folder, 0700 or die; chown $uid, $gid, $folder or die; }
		write_file("$dir/$node/patroni.yml", patroni_yaml($node, $sync), 0600);
		start_etcd($node);
	}
	foreach my $node (NODES)
	{
		start_patroni($node);
		until_true(120, \&leader) or die "there is no leader; see $dir/n1/patroni.log\n";
	}
	healthy(180) or die "the standbys do not stream; see $dir/n2/patroni.log\n";
	return;
}

# The answer of a node's Patroni, or undef.
sub patroni_says
{
	my ($node, $path, $body) = @_;
	my $url = 'http://' . address($node) . ":8008/$path";
	my $answer = $body ? $http->post($url, { content => encode_json($body) }) : $http->get($url);
	return $answer->{content} =~ /^\{/ ? decode_json($answer->{content}) : $answer->{success} ? $answer->{content} : undef;
}

# The node that leads, as a server that takes writes and has the lock of the cluster; undef if there is none now.
sub leader
{
	foreach my $node (NODES)
	{
		next if !defined postmaster_of($node);
		my $says = HTTP::Tiny->new(timeout => 2)->get('http://' . address($node) . ':8008/leader');
		return $node if $says->{success} && (ask($node, 'SELECT NOT pg_is_in_recovery()') // 0);
	}
	return;
}

# Whether in time one node leads, both others stream from it, and as many of them as are asked for are synchronous; returns the leader.
sub healthy
{
	my ($seconds) = @_;
	return until_true($seconds, sub {
		my $leader = leader() or return;
		my $streaming = ask($leader, q(SELECT count(*) FROM pg_stat_replication WHERE application_name ~ '^n[123]$' AND state = 'streaming'));
		my $cluster = patroni_says($leader, 'cluster') or return;
		my $sync = grep { $_->{role} eq 'sync_standby' } @{ $cluster->{members} // [] };
		return ($streaming // 0) == 2 && $sync == sync_count($leader) ? $leader : undef;
	});
}

sub sync_count
{
	my ($leader) = @_;
	my $config = patroni_says($leader, 'config') or return 0;
	return $config->{synchronous_node_count};
}

# Asks Patroni to hand over the lead; returns what it answered.
sub switchover
{
	my ($leader) = @_;
	return patroni_says($leader, 'switchover', { leader => $leader });
}

# The processes of a node's PostgreSQL: all work in its data directory.
sub processes
{
	my ($node) = @_;
	return grep { (readlink("/proc/$_/cwd") // '') =~ m{^\Q$dir/$node/data\E} } map { m{(\d+)$} } glob '/proc/[0-9]*';
}

sub postmaster_of
{
	my ($node) = @_;
	open my $in, '<', "$dir/$node/data/postmaster.pid" or return;
	my $pid = <$in>;
	return if !defined $pid;
	chomp $pid;
	return (readlink("/proc/$pid/cwd") // '') eq "$dir/$node/data" ? $pid : undef;
}

sub kill_node
{
	my ($node) = @_;
	kill 'KILL', $patroni{$node}, processes($node);
	waitpid $patroni{$node}, 0;
	while (my @pids = processes($node)) { kill 'KILL', @pids; usleep 10_000; }
	return;
}

sub cut { my ($node) = @_; run('ip', 'link', 'set', $node, 'down'); return; }
sub heal { my ($node) = @_; run('ip', 'link', 'set', $node, 'up'); return; }

# How often Patroni ran pg_rewind on a node.
sub rewinds
{
	my ($node) = @_;
	open my $in, '<', "$dir/$node/patroni.log" or die;
	return scalar grep { /running pg_rewind/ } <$in>;
}

# --- SQL ----------------------------------------------------------------------------------------------------------------

# Whoever makes and revokes keys: libpq looks for the server that takes writes.
sub writers_dsn
{
	return 'dbi:Pg:dbname=postgres;host=' . addresses()
	  . ';target_session_attrs=read-write;connect_timeout=2;keepalives_idle=1;keepalives_interval=1;keepalives_count=3;tcp_user_timeout=4000';
}

# A session over a node's socket, or undef.
sub connect_to
{
	my ($node, $role) = @_;
	return DBI->connect('dbi:Pg:dbname=postgres;connect_timeout=3;host=' . socket_of($node), $role, '',
		{ PrintError => 0, RaiseError => 0, AutoInactiveDestroy => 1 });
}

# The first column of the first row, as superuser; undef if the node cannot be asked.
sub ask
{
	my ($node, $sql, @values) = @_;
	my $dbh = connect_to($node, 'postgres') or return;
	return scalar $dbh->selectrow_array($sql, undef, @values);
}

1;
