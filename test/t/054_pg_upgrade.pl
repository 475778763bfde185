# test/t/054_pg_upgrade.pl: pg_upgrade, or dump and restore, takes keys, usage and events to the next major, from this release and the first.
#
# RK_OLD_BINDIR: the programs of an older major that has this extension too; without it the old cluster is of the same major.
use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $new_bin = `pg_config --bindir`;
chomp $new_bin;
my $old_bin = $ENV{RK_OLD_BINDIR} || $new_bin;
my %first = install_release('0.1');
if ($old_bin ne $new_bin)
{
	my $dir = `$old_bin/pg_config --sharedir`;
	chomp $dir;
	append_to_file("$dir/extension/$_", $first{$_}) foreach sort keys %first;
}

# Checksums are the default from 18 on, and pg_upgrade wants them to be the same.
sub cluster
{
	my ($name, @params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @params);
	$node->init(extra => [ @{ INITDB() }, $node->pg_version >= 18 ? '--no-data-checksums' : () ]);
	$node->append_conf('postgresql.conf', PRELOAD . "\nrk_apikeys.usage_flush_interval = '1h'");
	return $node;
}

# A database with this release, one with the first
my $old = cluster('old', install_path => $old_bin =~ s{/bin$}{}r);
$old->start;
rk_extend($old);
my $token = keys_of_every_state($old);
my $expected = expected_verdicts();
$old->safe_psql('postgres', q{CREATE DATABASE "first"});
$old->safe_psql('first', q{CREATE EXTENSION rk_apikeys VERSION '0.1' CASCADE});
my (undef, $first_token) = create_key($old, 'first', undef, 'acme', 'first');
is_deeply(verdicts($old, $token), $expected, 'verdicts in the old cluster');
is($old->safe_psql('first', "SELECT rk_apikeys.verify('$first_token')"), 't', 'and with the SQL of 0.1');
sql_as($old, 'boss', 'SELECT rk_apikeys.flush_usage()', $_) foreach 'postgres', 'first';
isnt($old->safe_psql('postgres', 'SELECT sum(use_count) FROM rk_apikeys.key_usage'), '0', 'there is usage');

# A key with two uses in the table, and with three more that are pending when the old server stops
$old->safe_psql('postgres', 'CREATE DATABASE pending');
$old->safe_psql('pending', 'CREATE EXTENSION rk_apikeys CASCADE');
my ($pending_id, $pending_token) = create_key($old, 'pending', undef, 'acme', 'pending');
my $uses = q{SELECT (SELECT sum(use_count) FROM rk_apikeys.key_usage), (SELECT sum(uses) FROM rk_apikeys.key_usage_daily)};
sub use_pending
{
	my ($times) = @_;
	sql_as($old, 'backend', "SELECT rk_apikeys.verify('$pending_token') FROM generate_series(1, $times)", 'pending');
}
use_pending(2);
sql_as($old, 'boss', 'SELECT rk_apikeys.flush_usage()', 'pending');
my %columns = map { $_ => columns($old, $_) } 'postgres', 'first';
my %before = map { $_ => contents($old, $_) } 'postgres', 'first';

# What holds in the new cluster, however the keys came there
sub check
{
	my ($new, $how) = @_;
	is_deeply(contents($new, $_, $columns{$_}), $before{$_}, "$how: every row is there, and no other: $_") foreach sort keys %before;
	is_deeply(verdicts($new, $token), $expected, "$how: every token has the verdict it had");
	is($new->safe_psql('first', "SELECT rk_apikeys.verify('$first_token')"), 't', "$how: that of 0.1 too");
	is(sql_as($new, 'boss', 'SELECT rk_apikeys.flush_usage() > 0'), 't', "$how: usage is flushed");
	my ($id, $fresh) = create_key($new, 'after it');
	is(sql_as($new, 'backend', "SELECT rk_apikeys.verify('$fresh')"), 't', "$how: a new key");
	is(sql_as($new, 'acme', "SELECT string_agg(event, ' ') FROM rk_apikeys.key_events WHERE key_id = '$id'"), 'created',
		"$how: has its event, numbered on");

	# The catalog is that of a fresh install, after the update of 0.1 too
	$new->safe_psql('postgres', 'CREATE DATABASE fresh');
	$new->safe_psql('fresh', 'CREATE EXTENSION rk_apikeys CASCADE');
	$new->safe_psql('first', 'ALTER EXTENSION rk_apikeys UPDATE');
	my $catalog = catalog($new, 'fresh');
	same_catalog($catalog, catalog($new, $_), "$how: the catalog of a fresh install: $_") foreach 'postgres', 'first';
	is($new->safe_psql('first', "SELECT rk_apikeys.verify('$first_token')"), 't', "$how: the key of 0.1 verifies after the update");
	is(sql_as($new, 'boss', 'SELECT * FROM rk_apikeys.health', $_), '', "$how: nothing is to do: $_") foreach 'postgres', 'first';
	$new->stop;
}

# What a statement of the superuser returns while the server runs as pg_upgrade runs it
sub in_upgrade_mode
{
	my ($node, $bin, $options, $sql) = @_;
	my @pg_ctl = ("$bin/pg_ctl", '-w', '-s', '-D', $node->data_dir, '-l', $node->logfile);
	PostgreSQL::Test::Utils::system_or_bail(@pg_ctl, '-o', "-b $options", 'start');
	my ($status, $result, $error) = $node->psql('pending', $sql);
	PostgreSQL::Test::Utils::system_or_bail(@pg_ctl, '-m', 'fast', 'stop');
	return $status == 0 ? $result : $error;
}

my $dir = PostgreSQL::Test::Utils::tempdir;
my $way = $old->pg_version . ' to ' . PostgreSQL::Test::Cluster->new('version')->pg_version;

# The old major's own pg_dump, which knows all that the old server keeps
my $restored = cluster('restored');
$restored->start;
command_ok([ "$old_bin/pg_dumpall", '--roles-only', '-f', "$dir/roles.sql", '-d', $old->connstr('postgres') ], "$way: dump of the roles");
# the one role that is there already is an error
$restored->psql('postgres', slurp_file("$dir/roles.sql"), on_error_stop => 0, stderr => \my $ignored);
foreach my $database (sort keys %before)
{
	command_ok([ "$old_bin/pg_dump", '-Fp', '-f', "$dir/$database.sql", $old->connstr($database) ], "$way: dump of $database");
	$restored->safe_psql('postgres', qq{CREATE DATABASE "$database"}) unless $database eq 'postgres';
	command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/$database.sql", '-d', $restored->connstr($database) ],
		"$way: restore of $database");
}
check($restored, "$way by dump and restore");

SKIP:
{
	# Minors of 2026 keep a version of each column, of every table, where a pg_dump that does not know it takes it for an option.
	$old->safe_psql('postgres', 'CREATE TABLE anybodys (a int)');
	command_ok([ 'pg_dump', '-t', 'anybodys', '-f', "$dir/anybodys.sql", $old->connstr('postgres') ], "$way: the new pg_dump dumps a table");
	skip "$way by pg_upgrade: pg_dump cannot dump any table of this minor (pg_attver)", 1 if slurp_file("$dir/anybodys.sql") =~ /pg_attver/;
	$old->safe_psql('postgres', 'DROP TABLE anybodys');
	use_pending(3);
	$old->stop;
	my $new = cluster('new');
	my ($old_file, $new_file) = map { $_->data_dir . '/pg_stat/rk_apikeys.usage' } $old, $new;
	my $saved = slurp_file($old_file);
	my $launchers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'";
	is(in_upgrade_mode($old, $old_bin, '-c rk_apikeys.usage_flush_interval=100ms',
			"SELECT rk_apikeys.verify('$pending_token'); SELECT rk_apikeys.flush_usage(); SELECT count(*) FROM pg_sleep(1); $launchers; $uses"), "t\n0\n1\n0\n2|2",
		'in pg_upgrade neither a launcher nor a flush by hand writes');
	# a launcher that ran in pg_upgrade would flush at once
	$_->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'") foreach $old, $new;
	chdir $dir;
	command_ok([ 'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $old_bin, '-B', $new_bin, '-s', $new->host,
			'-p', $old->port, '-P', $new->port, '-U', 'postgres' ], "$way by pg_upgrade");
	is(-e $old_file ? slurp_file($old_file) : undef, $saved, 'pg_upgrade leaves the file of pending use as it was');
	ok(!-e $new_file, 'and makes none in the new cluster');
	$new->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '1h'");
	copy($old_file, $new_file) or die $!;
	$new->start;
	is($new->safe_psql('pending', $uses), '2|2', 'the table has what was flushed');
	is(use_count($new, $pending_id, 'pending'), '5', 'the view has what was pending, too');
	sql_as($new, 'boss', 'SELECT rk_apikeys.flush_usage()', 'pending') foreach 1, 2;
	is($new->safe_psql('pending', $uses), '5|5', 'a flush writes it');
	$new->restart;
	sql_as($new, 'boss', 'SELECT rk_apikeys.flush_usage()', 'pending');
	is($new->safe_psql('pending', $uses), '5|5', 'once');
	check($new, "$way by pg_upgrade");
	is(in_upgrade_mode($new, $new_bin, "-c shared_preload_libraries= -c rk_apikeys.usage_resolution=0",
			"SELECT rk_apikeys.verify('$pending_token'); SELECT tracked_keys IS NULL FROM rk_apikeys.stats; $uses"), "t\nt\n5|5",
		'without preload, in pg_upgrade, no memory is made, and verify writes nothing');
}

done_testing();
