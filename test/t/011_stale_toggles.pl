# test/t/011_stale_toggles.pl: 10,000 toggles of a key under load, each followed by a verify elsewhere: no answer is stale.
#
#   RK_TOGGLES  how many (default 10000)
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $toggles = $ENV{RK_TOGGLES} // 10000;
my $node = rk_node('toggles', PRELOAD);
my ($id, $token) = create_key($node, 'toggled');

my ($out, $err) = run_command(
	[ client('toggle'), map({ $node->connstr('postgres') . " user=$_" } 'acme', 'backend'), $id, $token, $toggles, 8 ]);
is($err, '', 'no session met an error');
my %count = $out =~ /(\w+) (\d+)/g;
is($count{checked}, $toggles, "$toggles toggles, each followed by a check in another session");
cmp_ok($count{judged}, '>', $toggles / 4, "beside $count{judged} verifies in 8 sessions");
is($count{stale}, 0, 'no answer was stale');
cmp_ok(stat_of($node, 'cache_hits'), '>', $count{judged} / 4, 'and the cache was in use');

done_testing();
