# test/t/042_drivers.pl: the example servers, each with its driver: what an HTTP client gets with which key.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use IPC::Run qw(start);
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $examples = abs_path("$FindBin::Bin/../../examples");
my $dir = PostgreSQL::Test::Utils::tempdir;
my $jar = '/usr/share/java/postgresql.jar';

# Each example: what makes it ready, what runs it, and what is missing if that fails.
my %example = (
	libpq => {
		prepare => [ 'cc', '-Wall', '-Wextra', '-Werror', '-o', "$dir/libpq/server", '-I/usr/include/postgresql', "$examples/libpq/server.c", '-lpq' ],
		run => ["$dir/libpq/server"],
		needs => 'libpq-dev' },
	node => {
		prepare => [ 'npm', 'ci', '--prefix', "$dir/node", '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1', '--fetch-timeout=30000' ],
		run => [ 'node', "$dir/node/server.js" ],
		needs => 'nodejs, npm and its registry' },
	psycopg => {
		prepare => [ '/usr/bin/python3', '-c', 'import psycopg2' ],
		run => [ '/usr/bin/python3', "$examples/psycopg/server.py" ],
		needs => 'python3-psycopg2' },
	jdbc => {
		prepare => [ 'javac', '-d', "$dir/jdbc", '-cp', $jar, "$examples/jdbc/Server.java" ],
		run => [ 'java', '-XX:TieredStopAtLevel=1', '-cp', "$dir/jdbc:$jar", 'Server' ],
		needs => 'default-jdk-headless and libpostgresql-jdbc-java' });

mkdir "$dir/$_" foreach keys %example;
# npm builds below the package's folder: not in the checkout
PostgreSQL::Test::Utils::system_or_bail('cp', (map { "$examples/node/$_" } qw(server.js listen.mjs package.json package-lock.json)), "$dir/node");

# JDBC speaks TCP only.
my $node = rk_node('drivers', "shared_preload_libraries = 'rk_apikeys'", "listen_addresses = '127.0.0.1'", "log_statement = 'none'");
$node->append_conf('pg_hba.conf', 'host all records_api 127.0.0.1/32 trust');
$node->reload;
$node->safe_psql('postgres', slurp_file("$examples/records.sql"));
is($node->psql('postgres', 'SELECT FROM records', extra_params => [ '-U', 'records_api' ]), 0, 'the backend may ask for records');

# The tokens of keys by label: each driver has its own, so that limits and verdicts do not depend on the order.
sub keys_for
{
	my ($driver) = @_;
	my %token = token_of($node, 'boss', qq{
		SELECT 'acme', secret FROM rk_apikeys.create_key('acme', tenant => 'acme', scopes => '{records:read}');
		SELECT 'globex', secret FROM rk_apikeys.create_key('globex', tenant => 'globex', scopes => '{records:read}');
		SELECT 'writer', secret FROM rk_apikeys.create_key('writer', tenant => 'acme', scopes => '{records:write}');
		SELECT 'other', secret FROM rk_apikeys.create_key('other', tenant => 'acme', scopes => '{billing:read}');
		SELECT 'elsewhere', secret FROM rk_apikeys.create_key('elsewhere', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{10.0.0.0/8}');
		SELECT 'here', secret FROM rk_apikeys.create_key('here', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{127.0.0.0/8}');
		SELECT 'twice', secret FROM rk_apikeys.create_key('twice', tenant => 'acme', scopes => '{*}', rate_limit => 2, rate_window => '1 hour');
		SELECT 'disabled', secret FROM rk_apikeys.create_key('gone', tenant => 'acme', scopes => '{*}');
		SELECT 'unknown', rk_apikeys.generate_token();
		UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'gone'});
	$node->safe_psql('postgres', "TRUNCATE records; INSERT INTO records (tenant, body) VALUES ('acme', 'a1'), ('acme', 'a ü 2'), ('globex', 'g1')");
	return \%token;
}

foreach my $driver (sort keys %example)
{
	my ($prepare, $run, $needs) = @{ $example{$driver} }{qw(prepare run needs)};
	my $output = '';
	if (!eval { IPC::Run::run($prepare, '<', \undef, '>&', \$output) })
	{
		fail("$driver: cannot be made ready; are $needs there?");
		diag($output || $@);
		next;
	}

	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my %env = (PORT => $port, PGHOST => '127.0.0.1', PGPORT => $node->port, PGUSER => 'records_api', PGDATABASE => 'postgres');
	my $server = do
	{
		local @ENV{ keys %env } = values %env;
		start($run, '<', \undef, '>&', "$dir/$driver.log");
	};
	my $http = HTTP::Tiny->new(timeout => 30, keep_alive => 0);

	# What a request answers: status, body, and the headers that count.
	my $ask = sub {
		my ($method, $authorization, $content) = @_;
		my $reply = $http->request($method, "http://127.0.0.1:$port/records",
			{ headers => { defined $authorization ? (Authorization => $authorization) : () }, defined $content ? (content => $content) : () });
		my $body = $reply->{content};
		$body =~ s/, /,/g;
		return ($reply->{status}, $body, $reply->{headers});
	};
	my $answers = sub {
		my ($name, $expected, @request) = @_;
		my ($status, $body, $headers) = $ask->(@request);
		my @more = map { "$_: $headers->{$_}" } grep { defined $headers->{$_} } 'www-authenticate';
		is(join(' ', $status, $body, @more), $expected, "$driver: $name");
	};

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if ($ask->('GET'))[0] != 599 || !$server->pumpable;
		usleep(100_000);
	}
	my $token = keys_for($driver);
	$answers->('own rows', '200 ["a1","a ü 2"]', 'GET', "Bearer $token->{acme}");
	$answers->("another tenant's are another's", '200 ["g1"]', 'GET', "Bearer $token->{globex}");
	$answers->('no header', '401 "malformed" www-authenticate: Bearer', 'GET');
	$answers->('another scheme', '401 "malformed" www-authenticate: Bearer', 'GET', "Basic $token->{acme}");
	$answers->('an empty token', '401 "malformed" www-authenticate: Bearer', 'GET', 'Bearer ');
	$answers->('no token at all', '401 "malformed" www-authenticate: Bearer', 'GET', "Bearer ' OR 1 = 1 --");
	$answers->('an unknown token', '401 "unknown" www-authenticate: Bearer', 'GET', "Bearer $token->{unknown}");
	$answers->('a disabled key', '401 "disabled" www-authenticate: Bearer', 'GET', "Bearer $token->{disabled}");
	$answers->('a key without the scope', '403 "scope_missing"', 'GET', "Bearer $token->{other}");
	$answers->('a reader does not write', '403 "scope_missing"', 'POST', "Bearer $token->{acme}", 'x');
	$answers->('a writer does not read', '403 "scope_missing"', 'GET', "Bearer $token->{writer}");
	$answers->('a writer writes', '201 "added"', 'POST', "Bearer $token->{writer}", q{a's "third"});
	$answers->('from another address', '403 "address_denied"', 'GET', "Bearer $token->{elsewhere}");
	$answers->('from this address', '200 ["a1","a ü 2","a\'s \"third\""]', 'GET', "Bearer $token->{here}");
	# A body that is announced and never sent: it is refused before anybody reads it, or looks at the key.
	my $long = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 30) or die "cannot connect: $!";
	print $long "POST /records HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000\r\n\r\n";
	my $first = IO::Select->new($long)->can_read(30) ? <$long> : 'no answer';
	like($first // 'closed', qr{^HTTP/1\.[01] 413 }, "$driver: a body of any length is refused");
	close $long;
	$answers->('within the limit', '201 "added"', 'POST', "Bearer $token->{twice}", "a4 $_") foreach 1, 2;
	my ($status, $body, $headers) = $ask->('POST', "Bearer $token->{twice}", 'a5');
	is("$status $body", '429 "rate_limited"', "$driver: beyond the limit");
	my $retry = $headers->{'retry-after'} // 'none';
	ok($retry =~ /^\d+$/ && $retry > 0 && $retry <= 1800, "$driver: Retry-After is the seconds until the next") or diag($retry);
	$answers->("the neighbour's requests go on", '200 ["g1"]', 'GET', "Bearer $token->{globex}");
	is($node->safe_psql('postgres', q{SELECT string_agg(tenant || ' ' || body, ', ' ORDER BY id) FROM records}),
		q{acme a1, acme a ü 2, globex g1, acme a's "third", acme a4 1, acme a4 2}, "$driver: what was added is the tenant's");
	$server->kill_kill(grace => 5);
	my @failed = grep { /\S/ && !/^127\.0\.0\.1 - - / } split /\n/, slurp_file("$dir/$driver.log");
	is(join("\n", @failed), '', "$driver: the server complained of nothing");
}

# The listener: what it prints of changes, and that it comes back.
SKIP:
{
	skip "node's packages are not there", 4 unless -d "$dir/node/node_modules";
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET rk_apikeys.notify = on');
	my ($output, $timer) = ('', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $listener = do
	{
		local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = ('127.0.0.1', $node->port, 'records_api', 'postgres');
		start([ 'node', "$dir/node/listen.mjs" ], '<', \undef, '>&', \$output, $timer);
	};
	my $prints = sub {
		my ($pattern, $name) = @_;
		eval { $listener->pump until $output =~ $pattern || !$listener->pumpable; };
		like($output, $pattern, "node: $name");
		$output = '';
	};
	$prints->(qr/^listening\n$/, 'the listener is there');
	my ($id) = create_key($node, 'told');
	$prints->(qr/^created $id\n$/, 'and prints what changes');
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'listen'});
	$prints->(qr/terminating connection.*^listening\n/ms, 'when the connection is lost it comes back');
	sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$id'");
	$prints->(qr/^deleted $id\n$/, 'and goes on');
	$listener->kill_kill(grace => 5);
}

# Refused statements are errors, which the server logs with the statement unless it is hidden.
my @lines = grep { /rk_prod_|API key is not accepted/ } split /\n/, slurp_file($node->logfile);
cmp_ok(scalar(grep { /not accepted/ } @lines), '>', 20, 'the log tells of the refusals');
is(join("\n", grep { /rk_prod_/ } @lines), '', 'and has no token');

done_testing();
