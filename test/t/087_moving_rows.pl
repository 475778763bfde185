# test/t/087_moving_rows.pl: rows that move within their page, by pruning and vacuum and by the replay of both, while others read them there.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $KEYS = 200;
my $SECONDS = 12;

my $node = PostgreSQL::Test::Cluster->new('moving');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, 'autovacuum = off', 'max_standby_streaming_delay = -1');
$node->start;
rk_extend($node);
$node->safe_psql('postgres', qq{
	CREATE TABLE token (n int PRIMARY KEY, secret text);
	WITH made AS (INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'key ' || n, 't' || n % 7 FROM generate_series(1, $KEYS) n RETURNING name, secret)
	INSERT INTO token SELECT substr(name, 5)::int, secret FROM made;
	GRANT SELECT ON token TO backend});
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('moving_standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;

my $dir = PostgreSQL::Test::Utils::tempdir();
sub script
{
	my ($name, $sql) = @_;
	append_to_file("$dir/$name.sql", "$sql\n");
	return "$dir/$name.sql";
}

# Runs a script in a loop: where, clients, role, file.
sub loop
{
	my ($on, $clients, $role, $file) = @_;
	my %loop = (out => '', err => '');
	# cache_size 1: a session keeps few keys, and reads the others
	local $ENV{PGOPTIONS} = '-c rk_apikeys.cache_size=1';
	$loop{run} = IPC::Run::start([ 'pgbench', '-n', '-c', $clients, '-T', $SECONDS, '-U', $role, '-f', $file, '-h', $on->host, '-p', $on->port, 'postgres' ],
		'>', \$loop{out}, '2>', \$loop{err});
	return \%loop;
}

# Rows change their lengths in place, so that pages fill up and are pruned; a statement that finds other than all keys good divides by zero.
my $update = script('update', qq{\\set n random(1, $KEYS)
	UPDATE rk_apikeys.api_keys SET metadata = jsonb_build_object('a', repeat('x', (random() * 60)::int)) WHERE key_id = (SELECT split_part(secret, '_', 3) FROM token WHERE n = :n)}
	=~ s/\n\s+/\n/r);
my $vacuum = script('vacuum', 'VACUUM rk_apikeys.api_keys');
my $verify = script('verify', qq{SELECT 1 / (count(*) FILTER (WHERE (v).valid AND (v).key_id = split_part(secret, '_', 3) AND (v).name = 'key ' || n) / $KEYS)}
	  . ' FROM (SELECT rk_apikeys.verify_key(secret) AS v, secret, n FROM token OFFSET 0) t');

my @changes = (loop($node, 2, 'postgres', $update), loop($node, 1, 'postgres', $vacuum));
my %readers = (primary => loop($node, 4, 'backend', $verify), standby => loop($standby, 2, 'backend', $verify));
foreach my $where (sort keys %readers)
{
	my $loop = $readers{$where};
	IPC::Run::finish($loop->{run});
	my ($rounds) = $loop->{out} =~ /actually processed: (\d+)/;
	unlike($loop->{err}, qr/ERROR|FATAL|PANIC|aborted/, "$where: each verify of $KEYS moving rows is right");
	cmp_ok($rounds // 0, '>', 10, "$where: there were some ($rounds)");
}
IPC::Run::finish($_->{run}) foreach @changes;
foreach my $change (@changes)
{
	my ($rounds) = $change->{out} =~ /actually processed: (\d+)/;
	cmp_ok($rounds // 0, '>', 10, "and changes ($rounds)");
}
cmp_ok(stat_of($_, 'cache_hits'), '>', 1000, 'rows were read in unchanged pages') foreach $node, $standby;
is($node->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.api_keys'), $KEYS, 'nothing crashed');
$standby->stop;
$node->stop;

done_testing();
