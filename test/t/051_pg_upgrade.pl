# test/t/051_pg_upgrade.pl: pg_upgrade takes keys, usage and events to the next major, from this release and from the first.
#
# RK_OLD_BINDIR: the programs of an older major that has this extension too; without it the old cluster is of the same major.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use File::Copy qw(copy);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $new_bin = `pg_config --bindir`;
chomp $new_bin;
my $old_bin = $ENV{RK_OLD_BINDIR} || $new_bin;
my $first = slurp_file("$FindBin::Bin/../upgrade/rk_apikeys--0.1.sql");
install_version('rk_apikeys--0.1.sql', $first);
if ($old_bin ne $new_bin)
{
	my $dir = `$old_bin/pg_config --sharedir`;
	chomp $dir;
	append_to_file("$dir/extension/rk_apikeys--0.1.sql", $first);
}

my @initdb = ('-U', 'postgres', '-E', 'UTF8', '--locale=C.UTF-8');
my $old = PostgreSQL::Test::Cluster->new('old', install_path => $old_bin =~ s{/bin$}{}r);
my $new = PostgreSQL::Test::Cluster->new('new');
note 'from ' . $old->pg_version . ' to ' . $new->pg_version;
# Checksums are the default from 18 on, and must be the same.
$_->init(extra => [ @initdb, $_->pg_version >= 18 ? '--no-data-checksums' : () ]) foreach $old, $new;
$_->append_conf('postgresql.conf', PRELOAD . "\nrk_apikeys.usage_flush_interval = '1h'") foreach $old, $new;

# A database with this release, one with the first
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
my %before = map { $_ => contents($old, $_) } 'postgres', 'first';
$old->stop;

my $dir = PostgreSQL::Test::Utils::tempdir;
chdir $dir;
command_ok([ 'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $old_bin, '-B', $new_bin, '-s', $new->host, '-p',
		$old->port, '-P', $new->port, '-U', 'postgres' ], 'pg_upgrade');
$new->start;

is_deeply(contents($new, $_), $before{$_}, "every row is there, and no other: $_") foreach sort keys %before;
is_deeply(verdicts($new, $token), $expected, 'every token has the verdict it had');
is($new->safe_psql('first', "SELECT rk_apikeys.verify('$first_token')"), 't', 'with the SQL of 0.1 too');
is(sql_as($new, 'boss', 'SELECT rk_apikeys.flush_usage() > 0'), 't', 'usage is flushed');
my ($id, $fresh) = create_key($new, 'after it');
is(sql_as($new, 'backend', "SELECT rk_apikeys.verify('$fresh')"), 't', 'a new key');
is(sql_as($new, 'acme', "SELECT string_agg(event, ' ') FROM rk_apikeys.key_events WHERE key_id = '$id'"), 'created', 'has its event, numbered on');

# The catalog is that of a fresh install, the update from 0.1 included
$new->safe_psql('postgres', 'CREATE DATABASE fresh');
$new->safe_psql('fresh', 'CREATE EXTENSION rk_apikeys CASCADE');
$new->safe_psql('first', 'ALTER EXTENSION rk_apikeys UPDATE');
my $catalog = catalog($new, 'fresh');
same_catalog($catalog, catalog($new, $_), "the catalog of a fresh install: $_") foreach 'postgres', 'first';
is($new->safe_psql('first', "SELECT rk_apikeys.verify('$first_token')"), 't', 'the key of 0.1 verifies after the update');

done_testing();
