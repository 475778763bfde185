# test/t/041_pgbouncer.pl: behind PgBouncer in transaction mode, where clients take turns on a few connections, a principal is its transaction's.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use IPC::Run qw(start finish kill_kill);
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my ($clients, $connections, $transactions) = (50, 5, 20_000);
my @tenants = map { "tenant$_" } 1 .. 5;

my ($pgbouncer) = grep { -x } '/usr/sbin/pgbouncer', map { "$_/pgbouncer" } split /:/, $ENV{PATH};
unless (defined $pgbouncer)
{
	fail("pgbouncer is missing (apt-get install pgbouncer)");
	done_testing();
	exit 1;
}

my $node = rk_node('bouncer', "shared_preload_libraries = 'rk_apikeys'");
# each tenant has as many records as its number
$node->safe_psql('postgres', q{
	CREATE TABLE records AS SELECT 'tenant' || t AS tenant, n FROM generate_series(1, 5) t, generate_series(1, t) n;
	ALTER TABLE records ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own ON records USING (tenant = (SELECT rk_apikeys.current_key_tenant()) AND (SELECT rk_apikeys.has_scope('records:read')));
	GRANT SELECT ON records TO backend;});
my %token = token_of($node, 'boss',
	"SELECT tenant, k.secret FROM unnest('{@{[join ',', @tenants]}}'::text[]) tenant, rk_apikeys.create_key('k', scopes => '{records:read}', tenant => tenant) k");

# A socket of its own; the server's role is the pool's, whoever comes.
my $dir = PostgreSQL::Test::Utils::tempdir_short;
my $port = PostgreSQL::Test::Cluster::get_free_port();
append_to_file("$dir/pgbouncer.ini", join "\n",
	'[databases]', 'postgres = host=' . $node->host . ' port=' . $node->port . ' dbname=postgres user=backend',
	'[pgbouncer]', 'listen_addr =', "listen_port = $port", "unix_socket_dir = $dir", 'auth_type = any', 'pool_mode = transaction',
	"default_pool_size = $connections", 'max_client_conn = 200', "logfile = $dir/log", "pidfile = $dir/pid", 'ignore_startup_parameters = extra_float_digits', '');
my $bouncer = start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', "$dir/out", '2>&1');
END { local $?; $bouncer->kill_kill(grace => 5) if $bouncer; }

my @through = ('-h', $dir, '-p', $port, '-U', 'backend');
foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if -S "$dir/.s.PGSQL.$port" || !$bouncer->pumpable;
	usleep(100_000);
}
ok(-S "$dir/.s.PGSQL.$port", 'PgBouncer runs') or diag(slurp_file(-e "$dir/log" ? "$dir/log" : "$dir/out"));

# pgbench divides by zero, and ends, where a transaction sees other rows than it should. A client runs any of these each time:
my %script;
foreach my $i (1 .. 5)
{
	my $rows = "SELECT 1 / (count(*) = $i AND coalesce(min(tenant) = 'tenant$i' AND max(tenant) = 'tenant$i', false))::int FROM records;\n";
	my $enter = "SELECT 1 / (v.tenant = 'tenant$i')::int FROM rk_apikeys.authenticate(:tenant$i) v;\n";
	$script{"tenant$i"} = "BEGIN;\n$enter${rows}COMMIT;\n";
	$script{"undone$i"} = "BEGIN;\nSAVEPOINT s;\n${enter}ROLLBACK TO s;\nSELECT 1 / (count(*) = 0)::int FROM records;\n$enter${rows}ROLLBACK;\n";
}
$script{nobody} = "BEGIN;\nSELECT 1 / (rk_apikeys.current_key_tenant() IS NULL)::int;\nSELECT 1 / (count(*) = 0)::int FROM records;\nCOMMIT;\n";
append_to_file("$dir/$_.sql", $script{$_}) foreach keys %script;
my %weight = map { $_ => /^tenant/ ? 8 : 1 } keys %script;

my ($stdout, $stderr);
my $done = IPC::Run::run([ 'pgbench', '-n', '-M', 'extended', '-c', $clients, '-j', 2, '-t', $transactions / $clients,
		(map { ('-D', "$_=$token{$_}") } @tenants), (map { ('-f', "$dir/$_.sql\@$weight{$_}") } sort keys %script), @through, 'postgres' ],
	'<', \undef, '>', \$stdout, '2>', \$stderr);
ok($done, 'no transaction saw a row of another tenant') or diag($stderr);
like($stdout, qr{^number of transactions actually processed: $transactions/$transactions$}m, "$transactions transactions of $clients clients");
like($stdout, qr/$_\.sql.*?\n(?:.*\n)*? - (?:[5-9]\d\d|\d{4,}) transactions/, "many of them of $_") foreach @tenants;
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'backend'}), $connections,
	"over $connections connections");
is($node->safe_psql('postgres', q{SELECT sum(verified) > 20000, sum(unknown + malformed + revoked) FROM rk_apikeys.stats}), 't|0', 'every token was good');

$bouncer->signal('INT');
$bouncer->finish;
undef $bouncer;
done_testing();
