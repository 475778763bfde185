# test/t/024_worker_drop_database.pl: DROP DATABASE and CREATE DATABASE ... TEMPLATE succeed while uses of its keys are pending.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# The launcher is at it all the time.
my $node = rk_node('dropdb', PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
my $copies = 8;

$node->safe_psql('postgres', 'CREATE DATABASE template');
$node->safe_psql('template', 'CREATE EXTENSION rk_apikeys CASCADE');
my @token = split /\n/, sql_as($node, 'acme', q{WITH k AS (
	INSERT INTO rk_apikeys.keys (name) SELECT 'key ' || i FROM generate_series(1, 3000) i RETURNING secret) SELECT secret FROM k}, 'template');
my $verify = 'SELECT count(*) FILTER (WHERE rk_apikeys.verify(t)) FROM unnest(ARRAY[' . join(', ', map { "'$_'" } @token) . ']) t';

my $refusal;
foreach my $n (1 .. $copies)
{
	is(sql_as($node, 'backend', $verify, 'template'), '3000', "copy $n: 3000 keys have pending uses");
	is($node->psql('postgres', "CREATE DATABASE copy$n TEMPLATE template", stderr => \$refusal), 0, "copy $n: copied") or diag $refusal;
	is(sql_as($node, 'backend', $verify, "copy$n"), '3000', "copy $n: its keys verify");
	is($node->psql('postgres', "DROP DATABASE copy$n", stderr => \$refusal), 0, "copy $n: dropped") or diag $refusal;
}
# The copies' uses are theirs
ok($node->poll_query_until('template', "SELECT min(use_count) = $copies AND max(use_count) = $copies FROM rk_apikeys.key_usage"),
	'the template keeps count of its own');
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'nothing stays pending');
is($node->safe_psql('template', 'SELECT sum(uses) FROM rk_apikeys.key_usage_daily'), $copies * 3000, 'every use is counted once');

done_testing();
