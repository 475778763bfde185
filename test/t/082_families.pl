# test/t/082_families.pl: the use of a key and of its rotations counts as one family, in the views and in the days, and after the old keys are gone.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('families', 'rk_apikeys.usage_flush_interval = 600s', 'rk_apikeys.usage_resolution = 0');
my $by_family = q{SELECT family, sum(uses), count(*), count(DISTINCT key_id) FROM rk_apikeys.key_activity GROUP BY family ORDER BY sum(uses) DESC};
foreach my $preload (0, 1)
{
	my $mode = $preload ? 'preloaded' : 'not preloaded';
	if ($preload)
	{
		$node->append_conf('postgresql.conf', PRELOAD);
		$node->restart;
		$node->safe_psql('postgres', 'TRUNCATE rk_apikeys.api_keys, rk_apikeys.key_usage, rk_apikeys.key_usage_daily');
	}
	my @chain = [ create_key($node, 'chain') ];
	push @chain, [ split /\|/, sql_as($node, 'acme', "SELECT * FROM rk_apikeys.rotate_key('$chain[-1][0]', '1 day')") ] foreach 1 .. 2;
	my ($single, $single_token) = create_key($node, 'single');
	my $family = $chain[0][0];
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$_->[1]')") foreach $chain[0], ($chain[1]) x 2, ($chain[2]) x 3;
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$single_token')");
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	# And again, when the rows of the day are there
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$chain[2][1]')");
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is(sql_as($node, 'acme', 'SELECT family, sum(use_count), count(*) FROM rk_apikeys.keys GROUP BY family ORDER BY 2 DESC'), "$family|7|3\n$single|1|1", "$mode: the uses of a family");
	is(sql_as($node, 'acme', $by_family), "$family|7|3|3\n$single|1|1|1", "$mode: by the day");
	is($node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE family = key_id), count(family) FROM rk_apikeys.key_usage_daily'), '0|2', "$mode: only a rotated key needs the column");
	sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id IN ('$chain[0][0]', '$chain[1][0]')");
	is(sql_as($node, 'acme', $by_family), "$family|7|3|3\n$single|1|1|1", "$mode: the same without the old keys");
	my (undef, $last) = split /\|/, sql_as($node, 'acme', "SELECT * FROM rk_apikeys.rotate_key('$chain[2][0]', '0')");
	sql_as($node, 'backend', "SELECT rk_apikeys.verify('$last')");
	sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
	is(sql_as($node, 'acme', $by_family), "$family|8|4|4\n$single|1|1|1", "$mode: and with the next rotation");
}
done_testing();
