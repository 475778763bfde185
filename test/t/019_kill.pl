# test/t/019_kill.pl: the server is killed under load, again and again: it starts, no key is lost, no verdict is wrong, and of the usage
# no more is missing than what came since the last flush.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $kills = 20;
# Seconds: the interval, and how late a flush may be; on a busy machine it may take ten times what a psql that connects and asks takes then.
my ($interval, $late) = (0.3, 1);

my $node = rk_node('killed', PRELOAD, "rk_apikeys.usage_flush_interval = '${interval}s'");
my $token = keys_of_every_state($node);
my $expected = expected_verdicts();
my ($id, $used) = create_key($node, 'used');
my $flushed = "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$id'";

# The load divides by zero if a verdict is wrong.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/verify.sql", "SELECT 1 / (rk_apikeys.verify('$used') AND NOT rk_apikeys.verify('$token->{disabled}'))::int;\n");
my @load = ('pgbench', '-n', '-M', 'prepared', '-c', 4, '-T', 600, '-U', 'backend', '-f', "$dir/verify.sql",
	'-h', $node->host, '-p', $node->port, 'postgres');

my ($slowest, $count) = (-$interval, 0);
foreach my $kill (1 .. $kills)
{
	my ($out, $err) = ('', '');
	my $load = IPC::Run::start(\@load, '>', \$out, '2>', \$err);

	ok($node->poll_query_until('postgres',
			"SELECT use_count > $count + 100 FROM rk_apikeys.keys WHERE key_id = '$id'"), "kill $kill: the load is counted")
	  or diag $err;

	# What was used before a flush began is in the table when it has ended.
	my $start = time;
	$count = use_count($node, $id);
	my $psql = time - $start;
	ok($node->poll_query_until('postgres', "SELECT ($flushed) >= $count"), "kill $kill: a flush writes $count uses");
	my $lateness = time - $start - $interval - 10 * $psql;
	$slowest = $lateness if $lateness > $slowest;

	# At some moment of the interval, with a change that was just committed
	usleep(rand $interval * 1e6);
	my (undef, $new) = create_key($node, "new $kill");
	my $keys = contents($node)->{api_keys};
	my $table = $node->safe_psql('postgres', $flushed);
	kill_server($node);
	$load->finish;
	unlike($err, qr/ERROR/, "kill $kill: no verdict was wrong before");

	$node->start;
	is(contents($node)->{api_keys}, $keys, "kill $kill: no key is lost");
	$count = use_count($node, $id);
	cmp_ok($count, '>=', $table, "kill $kill: use_count does not go back behind the table");
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used')");
	is(use_count($node, $id), ++$count, "kill $kill: and goes on from there");
	is_deeply(verdicts($node, { %$token, new => $new }), { %$expected, new => 'valid' }, "kill $kill: same verdicts");
}
cmp_ok($slowest, '<=', $late, 'every flush came in time');

done_testing();
