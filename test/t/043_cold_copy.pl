# test/t/043_cold_copy.pl: a cold copy of a stopped server's directory, started in recovery, leaves pending use to the server that counted it.
# A standby's own restart, a switchover and a copy that becomes a server of its own lose none.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, has_archiving => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', PRELOAD . "\nrk_apikeys.usage_flush_interval = '1h'");
$primary->start;
rk_extend($primary);
my ($id, $token) = create_key($primary, 'used');
my $table = 'SELECT (SELECT sum(use_count) FROM rk_apikeys.key_usage), (SELECT sum(uses) FROM rk_apikeys.key_usage_daily)';
my $ignored = qr/LOG: .*ignoring file "pg_stat\/rk_apikeys.usage" of another data directory/;

sub use_on
{
	my ($node, $times) = @_;
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token') FROM generate_series(1, $times)");
}

sub flush { sql_as($_[0], 'boss', 'SELECT rk_apikeys.flush_usage()'); }
sub file_of { return $_[0]->data_dir . '/pg_stat/rk_apikeys.usage'; }

sub interval
{
	my ($node, $interval) = @_;
	$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '$interval'");
	$node->reload;
}

# A server from a cold copy of another one.
sub copy_of
{
	my ($name, $node, $root, %params) = @_;
	$node->backup_fs_cold($name);
	# init_from_backup() looks for the copy below the server that it streams from
	rename $node->backup_dir . "/$name", $root->backup_dir . "/$name" or die $! if $node != $root;
	my $copy = PostgreSQL::Test::Cluster->new($name);
	$copy->init_from_backup($root, $name, %params);
	return $copy;
}

sub send_to
{
	my ($standby, $to) = @_;
	$standby->append_conf('postgresql.conf', sprintf "rk_apikeys.primary_conninfo = 'host=%s port=%s user=boss'", $to->host, $to->port);
}

# All that a standby holds has reached the table, where it is counted once.
sub arrives
{
	my ($standby, $expected, $what) = @_;
	$standby->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die "$what: something stays pending";
	is($primary->safe_psql('postgres', $table), "$expected|$expected", $what);
}

# Two uses are flushed, three are pending when the server stops
use_on($primary, 2);
flush($primary);
use_on($primary, 3);
$primary->stop;
ok(-s file_of($primary), 'a stopped server leaves a file of pending use');
my $standby = copy_of('standby', $primary, $primary, has_streaming => 1);
my $clone = copy_of('clone', $primary, $primary);
my $restored = copy_of('restored', $primary, $primary, has_restoring => 1, standby => 0);
unlink $clone->data_dir . '/standby.signal';
$primary->start;
is(use_count($primary, $id), 5, 'the server reads its own file');

send_to($standby, $primary);
$standby->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$standby->start;
is(scalar(() = logged($standby, $ignored)), 1, 'its cold copy, started as its standby, ignores the file, and logs that');
ok(!-e file_of($standby), 'and removes the file');
use_on($standby, 1);
$primary->poll_query_until('postgres', 'SELECT sum(use_count) > 2 FROM rk_apikeys.key_usage') or die 'nothing arrives';
arrives($standby, 3, "the standby sends only its own use");
flush($primary);
is($primary->safe_psql('postgres', $table), '6|6', 'the use that was pending counts once');

# A copy that becomes a server of its own
$clone->start;
is(use_count($clone, $id), 5, 'a copy that is started as a primary reads the file');
flush($clone);
is($clone->safe_psql('postgres', $table), '5|5', 'and writes the use');
$clone->stop;

# The archive has the flush already
my $last = $primary->safe_psql('postgres', 'SELECT pg_walfile_name(pg_current_wal_lsn())');
$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');
$primary->poll_query_until('postgres', "SELECT last_archived_wal >= '$last' FROM pg_stat_archiver") or die 'not archived';
$restored->start;
$restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'still in recovery';
flush($restored);
is($restored->safe_psql('postgres', $table), '6|6', 'a copy that is restored from an archive counts the use once');
$restored->stop;

# A standby that stops and starts
interval($standby, '1h');
use_on($standby, 3);
$standby->stop;
my $second = copy_of('second', $standby, $primary, has_streaming => 1);
send_to($second, $primary);
# The same inode, as in a snapshot of the file system that is mounted elsewhere
unlink file_of($second);
link file_of($standby), file_of($second) or die $!;
$standby->start;
is(scalar(() = logged($standby, $ignored)), 1, 'a standby reads its own file');
interval($standby, '100ms');
$primary->poll_query_until('postgres', 'SELECT sum(use_count) > 6 FROM rk_apikeys.key_usage') or die 'nothing arrives';
arrives($standby, 9, 'and sends the use');
$second->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$second->start;
use_on($second, 1);
$primary->poll_query_until('postgres', 'SELECT sum(use_count) > 9 FROM rk_apikeys.key_usage') or die 'nothing arrives';
arrives($second, 10, 'a copy of the standby sends only its own use');
$second->stop;

# The same file on another machine, as in an image of the disk; and a file that was copied back to the same place
interval($standby, '1h');
use_on($standby, 3);
$standby->stop;
my $log_end = -s $standby->logfile;
{
	local $ENV{HOST_NAME} = 'another.example';
	local $ENV{LD_PRELOAD} = join ' ', grep { defined } $ENV{LD_PRELOAD}, client('hostname', '-shared', '-fPIC');
	$standby->start;
}
like(substr(slurp_file($standby->logfile), $log_end), $ignored, 'on another machine the standby ignores the file');
$standby->stop;
$standby->start;
use_on($standby, 3);
$standby->stop;
$log_end = -s $standby->logfile;
rename file_of($standby), file_of($standby) . '.old' or die $!;
append_to_file(file_of($standby), slurp_file(file_of($standby) . '.old'));
$standby->start;
like(substr(slurp_file($standby->logfile), $log_end), $ignored, 'the standby ignores a copy of its own file');
interval($standby, '100ms');
arrives($standby, 10, 'nothing is sent of either');

# The file of 0.2 does not say whose it is
interval($standby, '1h');
use_on($standby, 2);
$standby->stop;
my $file = slurp_file(file_of($standby));
unlink file_of($standby);
# Without the home, and the end of the unrecorded uses
append_to_file(file_of($standby), pack('L', 0x524b5533) . substr($file, 12 + 16));
$standby->start;
interval($standby, '100ms');
$primary->poll_query_until('postgres', 'SELECT sum(use_count) > 10 FROM rk_apikeys.key_usage') or die 'nothing arrives';
arrives($standby, 12, 'a standby reads a file of 0.2');

# A switchover: what the old primary had pending goes to the new primary
use_on($primary, 4);
$primary->stop;
$standby->promote;
send_to($primary, $standby);
$primary->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$primary->enable_streaming($standby);
$primary->start;
ok($standby->poll_query_until('postgres', $table, '16|16'), 'a primary that becomes a standby sends what it had pending');
is_deeply([ logged($_, qr/(PANIC|TRAP):/) ], [], 'nothing crashed') foreach $primary, $standby;

done_testing();
