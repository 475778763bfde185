# test/t/012_stale_fill.pl: an old row that a verify reads while the change is being committed is not kept.
#
# A transaction that has reindexed holds the index that verify reads by, and not the table: a verify that has to read takes its
# snapshot and then waits for the index. The change is made and committed by that transaction, so the verify goes on with a
# snapshot from before it, and takes the message about it between its snapshot and the row.
#
# Usage is not tracked here: a verify that knows the row's place from the last one needs no index.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('fill', PRELOAD);
$node->safe_psql('postgres', 'ALTER ROLE backend SET rk_apikeys.track_usage = off');
my ($id, $token) = create_key($node, 'raced');
my $imported = sql_as($node, 'boss',
	q{SELECT rk_apikeys.import_key('imported', sha256('legacy-token-0001'), 'sha256', tenant => 'acme')});
my $changer = session($node, 'postgres');

foreach my $case ([ $id, $token, 'api_keys_pkey' ], [ $imported, 'legacy-token-0001', 'api_keys_imported_digest' ])
{
	my ($key, $presented, $index) = @$case;

	foreach my $level ('READ COMMITTED', 'REPEATABLE READ')
	{
		my $verifier = session($node, 'backend');
		# It knows the tables, and holds nothing but this.
		$verifier->query_safe("SELECT rk_apikeys.verify('no-token-of-anybody'); BEGIN ISOLATION LEVEL $level; SELECT 1");

		$changer->query_safe("BEGIN; REINDEX INDEX rk_apikeys.$index");
		$verifier->query_until(qr/begun/, "\\echo begun\nSELECT code FROM rk_apikeys.verify_key('$presented');\n");
		ok($node->poll_query_until('postgres',
				"SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'rk_apikeys.$index'::regclass"),
			"$index, $level: a verify waits behind its snapshot");
		$changer->query_safe("UPDATE rk_apikeys.api_keys SET enabled = false WHERE key_id = '$key'; COMMIT");
		# What the waiting one says may be either; what comes after it may not.
		my $said = $verifier->query_safe("SELECT code FROM rk_apikeys.verify_key('$presented')");
		is($said, "valid\ndisabled", "$index, $level: it saw the old row, and the next one the new");
		is(code($verifier, $presented), 'disabled', "$index, $level: and the next");
		$verifier->quit;
		$changer->query_safe("UPDATE rk_apikeys.api_keys SET enabled = true WHERE key_id = '$key'");
	}
}

$changer->quit;
done_testing();
