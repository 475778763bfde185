# test/t/029_cache.pl: the cache of a connection keeps the keys that are used, and reads keep the pages of api_keys in shared buffers.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

# More keys than a connection keeps; autovacuum must not touch their pages.
my $node = rk_node('cache', PRELOAD, 'autovacuum = off', "rk_apikeys.usage_flush_interval = '1h'");
$node->safe_psql('postgres', 'CREATE EXTENSION pg_buffercache');
$node->safe_psql('postgres', 'CREATE TABLE token (n int, secret text)');
$node->safe_psql('postgres', q{
	WITH made AS (INSERT INTO rk_apikeys.keys (name) SELECT 'key ' || n FROM generate_series(1, 3300) n RETURNING name, secret)
	INSERT INTO token SELECT substr(name, 5)::int, secret FROM made});

# A connection that has verified 3,000 keys once keeps the 300 that it then verifies again and again.
my $misses = sub {
	my ($rounds, $call) = @_;
	return qq{
		SELECT cache_misses AS before FROM rk_apikeys.stats \\gset
		SELECT count(*) FROM (SELECT $call FROM generate_series(1, $rounds) g, LATERAL (SELECT * FROM token WHERE n > 3000 ORDER BY n) t) AS done;
		SELECT cache_misses - :before FROM rk_apikeys.stats;\n};
};
foreach my $call ('(rk_apikeys.verify_key(secret)).valid', 'rk_apikeys.verify(secret)')
{
	my $out = $node->safe_psql('postgres', qq{
		SELECT count(*) FROM (SELECT (rk_apikeys.verify_key(secret)).valid FROM token WHERE n <= 3000 OFFSET 0) AS cold;} . $misses->(20, $call) . $misses->(10, $call));
	my (undef, undef, $first, undef, $later) = split /\n/, $out;
	cmp_ok($later, '<=', 300, "$call: few verifies of 300 keys miss after 3,000 others ($later of 3,000; $first of the first 6,000)");
}

# A page that verifies read is as warm as one that other statements read: the usage count of its buffer rises. One key for each page, so that
# the look-ups by index, a single one for each key, raise no count.
$node->safe_psql('postgres', q{
	CREATE TABLE sample AS SELECT DISTINCT ON (block) block, secret
		FROM (SELECT (ctid::text::point)[0]::int AS block, key_id FROM rk_apikeys.api_keys) k
			JOIN token ON split_part(secret, '_', 3) = key_id ORDER BY block LIMIT 20});
foreach my $case ([ 0, 'rows that are read' ], [ 4, 'rows in unchanged pages' ])
{
	my ($cache_size, $what) = @$case;
	$node->restart;
	my ($count, $least) = split /\|/, $node->safe_psql('postgres', qq{
		SET rk_apikeys.cache_size = $cache_size;
		DO 'BEGIN PERFORM count(rk_apikeys.verify(secret)) FROM generate_series(1, 2000), sample; END';
		SELECT count(*), min(usagecount) FROM pg_buffercache JOIN sample ON relblocknumber = block
			WHERE relfilenode = pg_relation_filenode('rk_apikeys.api_keys') AND relforknumber = 0
				AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())});
	is($count, '20', "$what: the pages are in shared buffers");
	cmp_ok($least, '>=', 4, "$what: the usage count of each page has risen");
}

# So do verifies of sessions that are too short to keep a key.
$node->restart;
my $secret = $node->safe_psql('postgres', 'SELECT secret FROM sample ORDER BY block LIMIT 1');
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$secret')") foreach 1 .. 6;
cmp_ok($node->safe_psql('postgres', q{SELECT usagecount FROM pg_buffercache JOIN sample ON relblocknumber = block
	WHERE relfilenode = pg_relation_filenode('rk_apikeys.api_keys') AND relforknumber = 0
		AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY block LIMIT 1}),
	'>=', 4, 'sessions of one verify each raise the usage count too');

done_testing();
