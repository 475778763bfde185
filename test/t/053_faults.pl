# test/t/053_faults.pl: a backend, a worker, the launcher and the server are killed within lifecycle calls, and calls are cancelled: nothing is
# lost and nothing is half done. script/faults has more faults, and hundreds of rounds.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_initdb('faults', PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'", 'restart_after_crash = on');

# What each program prints is a result.
foreach my $program ([ 'kill', 2 ], [ 'cancel', 1 ])
{
	my ($name, $rounds) = @$program;
	local @ENV{qw(PGHOST PGPORT PGDATABASE RK_DATA RK_LOG FAULTS_DIR)} =
	  ($node->host, $node->port, $name, $node->data_dir, $node->logfile, PostgreSQL::Test::Utils::tempdir);
	$node->safe_psql('postgres', "DROP ROLE IF EXISTS acme, backend, boss");
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	my $said = `$^X $FindBin::Bin/../faults/$name.pl $rounds 2>&1`;
	is($?, 0, "$name comes to its end");
	my @results = $said =~ /^((?:not )?ok .*\n(?:  .*\n)*)/mg;
	ok(@results > 0, "$name has results") or diag $said;
	foreach my $result (@results)
	{
		my ($text, @findings) = split /\n/, $result;
		is("@findings", '', $text =~ s/^(not )?ok //r);
	}
	$node->_update_pid(1);
	$node->safe_psql('postgres', "DROP DATABASE $name WITH (FORCE)");
}

done_testing();
