# test/t/023_worker_restart.pl: a restart of the server loses no use.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('restart', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
my $saved = $node->data_dir . '/pg_stat/rk_apikeys.usage';
my ($id, $token) = create_key($node, 'used');
my ($off_id, $off) = create_key($node, 'disabled');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$off_id'");

sub use_both
{
	my ($times) = @_;
	sql_as($node, 'backend', "SELECT rk_apikeys.verify_key('$token', client_addr => '192.0.2.7'), rk_apikeys.verify('$off')
		FROM generate_series(1, $times)");
}

sub seen { return sql_as($node, 'acme', "SELECT use_count, last_used_at FROM rk_apikeys.keys WHERE key_id = '$id'"); }

# Twice without a flush in between, then once with usage that is flushed in part
my $total = 0;
foreach my $mode ('fast', 'fast', 'smart')
{
	use_both(1000);
	$total += 1000;
	my $before = seen();
	like($before, qr/^$total\|2/, "$mode: $total uses");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage'), '0', "$mode: none of them in the table");
	$node->stop($mode);
	ok(-s $saved, "$mode: the server has saved them");
	$node->start;
	is(seen(), $before, "$mode: the same after a restart");
	ok(!-e $saved, "$mode: and the file is gone");
}
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '2', 'the flush writes both keys');
is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '0', 'and leaves nothing pending');
is($node->safe_psql('postgres', "SELECT use_count, denied_count, last_used_addr FROM rk_apikeys.key_usage WHERE key_id = '$id'"),
	"$total|0|192.0.2.7", 'the uses, and where from');
is($node->safe_psql('postgres', "SELECT use_count, denied_count FROM rk_apikeys.key_usage WHERE key_id = '$off_id'"),
	"0|$total", 'the denials');
is($node->safe_psql('postgres', 'SELECT sum(uses), sum(denials) FROM rk_apikeys.key_usage_daily'), "$total|$total", 'once each, by the day');

use_both(10);
my $before = seen();
$node->restart;
is(seen(), $before, 'uses beside what is in the table: the same after a restart');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
ok($node->poll_query_until('postgres', "SELECT use_count = $total + 10 FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 'the worker flushes them');
is($node->safe_psql('postgres', 'SELECT sum(uses), sum(denials) FROM rk_apikeys.key_usage_daily'), ($total + 10) . '|' . ($total + 10),
	'once each');
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'nothing is pending');
is(seen(), $before, 'and nothing else has changed');

# The files of 0.2 and 0.1, which lack the first or last fields, in two records: 64 bytes of limits, and 16 of known counts
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '1h'");
$node->reload;
foreach my $old ([ '0.2', 0x524b5533, 64 ], [ '0.1', 0x524b5532, 80 ])
{
	my ($release, $magic, $missing) = @$old;
	use_both(10);
	$before = seen();
	$node->stop;
	my $records = substr(slurp_file($saved), 12 + 16); # without the home, and the end of the unrecorded uses
	my $size = length($records) / 2;
	unlink $saved;
	append_to_file($saved, join '', pack('L', $magic), map { substr($records, $_ * $size, $size - $missing) } 0, 1);
	$node->start;
	is(seen(), $before, "a file of $release is read");
	is(sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'), '2', 'and flushed');
}
is($node->safe_psql('postgres', 'SELECT sum(uses), sum(denials) FROM rk_apikeys.key_usage_daily'), ($total + 30) . '|' . ($total + 30),
	'once each');
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");

# A file that is not ours, or cut, does no harm
$node->stop;
foreach my $content ('', 'x' x 3, 'not of this version', pack('L', 0x524b5531) . 'cut', pack('L', 0x524b5531) . "\xff" x 300,
	pack('L', 0x524b5536), pack('L', 0x524b5536) . 'cut', pack('L', 0x524b5536) . "\x01" x 300)
{
	open my $fh, '>', $saved or die $!;
	print $fh $content;
	close $fh;
	$node->start;
	is(seen(), $before, 'a file of ' . length($content) . ' odd bytes: the server starts, with the same counts');
	ok(!-e $saved, 'and the file is gone');
	$node->stop;
}
$node->start;
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'nothing stays behind');
is_deeply([ logged($node, qr/PANIC|TRAP|terminated by signal/) ], [], 'nothing crashed');

done_testing();
