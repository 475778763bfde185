# test/t/042_drivers.pl: the example servers: each gives the same answers over HTTP to the same requests, whatever its language.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use IPC::Run qw(start);
use JSON::PP;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $examples = abs_path("$FindBin::Bin/../../examples");
my $dir = PostgreSQL::Test::Utils::tempdir;
my $jar = '/usr/share/java/postgresql.jar';
my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;

# Each example: what makes it ready, what runs it, and what is missing if that fails. Beside that, where an example differs:
#   env          more of its environment, as a hash
#   reads_first  it reads a body before it looks at the key
#   says         a pattern of lines that it may print beside SQLSTATEs and its access log
my %example = (
	go => {
		prepare => [ 'env', 'GO111MODULE=off', 'GOPATH=/usr/share/gocode', "GOCACHE=$dir/go/cache", 'go', 'build', '-o', "$dir/go/server", "$examples/go/server.go" ],
		run => ["$dir/go/server"],
		needs => 'golang-go and golang-github-jackc-pgx-v4-dev' },
	php => {
		prepare => [ 'php', '-l', "$examples/php/server.php" ],
		run => ["$examples/php/run"],
		says => qr/client intended to send too large body/,
		needs => 'php-fpm, php-pgsql and nginx' },
	ruby => {
		prepare => [ 'ruby', '-rpg', '-rwebrick', '-c', "$examples/ruby/server.rb" ],
		run => [ 'ruby', "$examples/ruby/server.rb" ],
		needs => 'ruby-pg and ruby-webrick' },
	django => {
		prepare => [ '/usr/bin/python3', '-c', 'import django, psycopg2' ],
		run => [ '/usr/bin/python3', '-B', "$examples/django/server.py" ],
		needs => 'python3-django and python3-psycopg2' },
	jdbc => {
		prepare => [ 'javac', '-d', "$dir/jdbc", '-cp', $jar, "$examples/jdbc/Server.java" ],
		run => [ 'java', '-XX:TieredStopAtLevel=1', '-cp', "$dir/jdbc:$jar", 'Server' ],
		needs => 'default-jdk-headless and libpostgresql-jdbc-java' },
	libpq => {
		prepare => [ 'cc', '-Wall', '-Wextra', '-Werror', '-o', "$dir/libpq/server", '-I/usr/include/postgresql', "$examples/libpq/server.c", '-lpq' ],
		run => ["$dir/libpq/server"],
		needs => 'libpq-dev' },
	node => {
		prepare => [ 'npm', 'ci', '--prefix', "$dir/node", '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1', '--fetch-timeout=30000' ],
		run => [ 'node', "$dir/node/server.js" ],
		needs => 'nodejs, npm and its registry' },
	psycopg => {
		prepare => [ '/usr/bin/python3', '-c', 'import psycopg, psycopg_pool' ],
		run => [ '/usr/bin/python3', '-B', "$examples/psycopg/server.py" ],
		needs => 'python3-psycopg and python3-psycopg-pool',
		says => qr/^(error connecting in 'pool|reconnection attempt in|discarding closed connection|rolling back returned|\s*Is the server running)/ },
	sqlalchemy => {
		prepare => [ '/usr/bin/python3', '-c', 'import sqlalchemy, psycopg2' ],
		run => [ '/usr/bin/python3', '-B', "$examples/sqlalchemy/server.py" ],
		needs => 'python3-sqlalchemy and python3-psycopg2' });

mkdir "$dir/$_" foreach keys %example;
# npm builds below the package's folder: not in the checkout
PostgreSQL::Test::Utils::system_or_bail('cp', (map { "$examples/node/$_" } qw(server.js listen.mjs package.json package-lock.json)), "$dir/node");

# JDBC speaks TCP only. Parameters are logged, which the library masks. The limiter has little room, so that one tenant can fill it.
my $node = rk_node('drivers', PRELOAD, "listen_addresses = '127.0.0.1'", 'log_statement = all', 'log_min_duration_statement = 0',
	'log_parameter_max_length = -1', 'log_parameter_max_length_on_error = -1', 'rk_apikeys.max_tracked_keys = 64',
	"rk_apikeys.usage_flush_interval = '100ms'");
$node->append_conf('pg_hba.conf', 'host all records_api 127.0.0.1/32 trust');
$node->reload;
$node->safe_psql('postgres', slurp_file("$examples/records.sql"));
is($node->psql('postgres', 'SELECT FROM records', extra_params => [ '-U', 'records_api' ]), 0, 'the backend may ask for records');

# The tokens of new keys by label: each example has its own, so that limits and verdicts do not depend on the order.
my @secrets;
sub keys_for
{
	my %token = token_of($node, 'boss', qq{
		SELECT 'acme', secret FROM rk_apikeys.create_key('acme', tenant => 'acme', scopes => '{records:read}');
		SELECT 'globex', secret FROM rk_apikeys.create_key('globex', tenant => 'globex', scopes => '{records:read}');
		SELECT 'writer', secret FROM rk_apikeys.create_key('writer', tenant => 'acme', scopes => '{records:write}');
		SELECT 'other', secret FROM rk_apikeys.create_key('other', tenant => 'acme', scopes => '{billing:read}');
		SELECT 'elsewhere', secret FROM rk_apikeys.create_key('elsewhere', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{10.0.0.0/8}');
		SELECT 'here', secret FROM rk_apikeys.create_key('here', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{127.0.0.0/8}');
		SELECT 'thrice', secret FROM rk_apikeys.create_key('thrice', tenant => 'acme', scopes => '{*}', rate_limit => 3, rate_window => '1 hour');
		SELECT 'disabled', secret FROM rk_apikeys.create_key('gone', tenant => 'acme', scopes => '{*}');
		SELECT 'unknown', rk_apikeys.generate_token();
		UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'gone'});
	$node->safe_psql('postgres', "TRUNCATE records; INSERT INTO records (tenant, body) VALUES ('acme', 'a1'), ('acme', 'a ü 2'), ('globex', 'g1')");
	push @secrets, values %token;
	return \%token;
}

# Lets keys of acme's, whose limits are used up, take all its room.
my @fillers;
sub take_all_room
{
	@fillers = split /\n/, sql_as($node, 'acme', "WITH k AS (INSERT INTO rk_apikeys.keys (name, rate_limit, rate_window)
		SELECT 'filler', 1, '366 days' FROM generate_series(1, 64) RETURNING secret) SELECT secret FROM k") unless @fillers;
	push @secrets, @fillers;
	my $list = join ',', map { "'$_'" } @fillers;
	# A verify looks at few places, so try until none was found several times
	for (my $in_vain = 0; $in_vain < 3; $in_vain++)
	{
		my $codes = sql_as($node, 'backend', "SELECT string_agg(DISTINCT v.code, ',') FROM unnest(ARRAY[$list]) t, rk_apikeys.verify_key(t) v");
		$in_vain = -1 if $codes =~ /valid/;
	}
}

# --- talking to an example ----------------------------------------------------------------------------------------------

# Starts an example; more of its environment may follow.
sub start_example
{
	my ($name, %env) = @_;
	my $it = $example{$name};
	$it->{port} = PostgreSQL::Test::Cluster::get_free_port();
	%env = (PORT => $it->{port}, PGHOST => '127.0.0.1', PGPORT => $node->port, PGUSER => 'records_api', PGDATABASE => 'postgres', %{ $it->{env} // {} }, %env);
	local @ENV{ keys %env } = values %env;
	$it->{server} = start($it->{run}, '<', \undef, '>>', "$dir/$name.log", '2>>', "$dir/$name.log");
}

# Asks until the answer is as wanted: at its start an example does not listen, and 599 is HTTP::Tiny's for no answer.
sub ask_until
{
	my ($name, $wanted, %request) = @_;
	my ($answer) = '';
	foreach (1 .. $tries)
	{
		($answer) = ask($name, %request);
		last if $answer =~ $wanted || !$example{$name}{server}->pumpable;
		usleep(100_000);
	}
	return $answer;
}

# What a request gets, as one line: the status, the body, or of a problem its code or title, and the headers that count. Then the
# other headers. The request: token or authorization, method, content, headers.
sub ask
{
	my ($name, %request) = @_;
	my %headers = %{ $request{headers} // {} };
	$headers{Authorization} = $request{authorization} // "Bearer $request{token}" if defined($request{authorization} // $request{token});
	my $reply = HTTP::Tiny->new(timeout => 30, keep_alive => 0)->request($request{method} // 'GET', "http://127.0.0.1:$example{$name}{port}/records",
		{ headers => \%headers, defined $request{content} ? (content => $request{content}) : () });
	my ($status, $body, $headers) = @{$reply}{qw(status content headers)};
	my @more = map { "$_: $headers->{$_}" } grep { defined $headers->{$_} } qw(www-authenticate retry-after ratelimit ratelimit-policy);
	my $type = $headers->{'content-type'} // '';
	if ($type =~ m{^application/problem\+json\b})
	{
		my $problem = eval { decode_json($body) } // {};
		my $whole = ($problem->{type} // '') eq 'about:blank' && ($problem->{status} // 0) == $status && $problem->{title} && $problem->{detail};
		$body = $whole ? $problem->{code} // $problem->{title} : "not a problem: $body";
		$body .= ' may be stored' if $problem->{code} && ($headers->{'cache-control'} // '') ne 'no-store';
	}
	else
	{
		$body = "$type: $body" unless $type =~ m{^application/json\b};
		$body = eval { my $json = JSON::PP->new->utf8->allow_nonref; $json->encode($json->decode($body)) } // $body;
	}
	return (join(' ', $status, $body, @more), $headers);
}

# The first line that comes back for what is sent as it is; nothing more is sent.
sub first_line
{
	my ($name, $text) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $example{$name}{port}, Timeout => 30) or return "cannot connect: $!";
	print $socket $text =~ s/\n/\r\n/gr;
	return IO::Select->new($socket)->can_read(30) ? <$socket> // 'closed' : 'no answer';
}

# What the example has printed, but for its access log.
sub complaints
{
	my ($name) = @_;
	my $says = $example{$name}{says};
	return grep { /\S/ && !/^127\.0\.0\.1 - - / && !($says && $_ =~ $says) } split /\n/, slurp_file("$dir/$name.log");
}

# --- what every example answers ------------------------------------------------------------------------------------------

my $none = '401 Unauthorized www-authenticate: Bearer';
my $denied = '403 address_denied';
my $scope = '403 scope_missing www-authenticate: Bearer error="insufficient_scope", scope';
my $unavailable = '503 Service Unavailable retry-after: 1';
sub not_accepted { return qq{401 $_[0] www-authenticate: Bearer error="invalid_token"}; }
sub limit { return qq{ratelimit: "rate_limit";r=$_[0] ratelimit-policy: "rate_limit";q=3}; }

sub fulfils_contract
{
	my ($name) = @_;
	my $token = keys_for();
	my $is = sub { my ($what, $expected, @request) = @_; is((ask($name, @request))[0], $expected, "$name: $what"); };
	my $own = '200 ["a1","a ü 2"]';

	$is->('own rows', $own, token => $token->{acme});
	$is->("another tenant's are another's", '200 ["g1"]', token => $token->{globex});
	$is->('no header', $none);
	$is->('another scheme', $none, authorization => "Basic $token->{acme}");
	$is->('a scheme that begins alike', $none, authorization => "BearerX $token->{acme}");
	$is->('no scheme', $none, authorization => $token->{acme});
	$is->('an empty token', $none, authorization => 'Bearer ');
	$is->('the scheme alone', $none, authorization => 'Bearer');
	$is->("the scheme in case $_", $own, authorization => "$_ $token->{acme}") foreach 'bearer', 'BEARER';
	$is->('blanks around the token', $own, authorization => "  Bearer   $token->{acme}  ");
	$is->('no token at all', not_accepted('malformed'), token => "' OR 1 = 1 --");
	$is->('an unknown token', not_accepted('unknown'), token => $token->{unknown});
	$is->('a disabled key', not_accepted('disabled'), token => $token->{disabled});
	$is->('a key without the scope', qq{$scope="records:read"}, token => $token->{other});
	$is->('a reader does not write', qq{$scope="records:write"}, token => $token->{acme}, method => 'POST', content => 'x');
	$is->('a writer does not read', qq{$scope="records:read"}, token => $token->{writer});
	$is->('a writer writes', '201 "added"', token => $token->{writer}, method => 'POST', content => q{a's "third"});
	$own = q{200 ["a1","a ü 2","a's \"third\""]};

	# Addresses: the peer's, or what the header of one's own proxy tells; other headers are nobody's.
	$is->('from another address', $denied, token => $token->{elsewhere});
	$is->('from this address', $own, token => $token->{here});
	$is->("from another address, says another header", $denied, token => $token->{elsewhere}, headers => { 'X-Forwarded-For' => '10.1.2.3' });
	$is->("from $_, says the proxy", $own, token => $token->{elsewhere}, headers => { 'X-Real-IP' => $_ }) foreach '10.1.2.3', '::ffff:10.1.2.3';
	foreach my $address ('nonsense', '10.1.2.3, 10.0.0.1')
	{
		my @told = (headers => { 'X-Real-IP' => $address });
		$is->("from $address: not told", $own, token => $token->{acme}, @told);
		$is->("from $address: not told, and the key of $_ asks", $denied, token => $token->{$_}, @told) foreach qw(elsewhere here);
	}

	# Bodies that are announced and never sent: refused before anybody reads them, and a long one before anybody looks at the key.
	my $post = "POST /records HTTP/1.1\nHost: 127.0.0.1\nContent-Length";
	my $statements = () = slurp_file($node->logfile) =~ /authenticate/g;
	like(first_line($name, "$post: $_\n\n"), qr{^HTTP/1\.[01] 413 }, "$name: a body of $_ bytes is refused") foreach 65537, 10_000_000;
	is(scalar(() = slurp_file($node->logfile) =~ /authenticate/g), $statements, "$name: nobody has asked the database");
	like(first_line($name, "$post: 5\nAuthorization: Bearer $token->{unknown}\n\n"), qr{^HTTP/1\.[01] 401 }, "$name: the key is looked at first")
	  unless $example{$name}{reads_first};
	$is->('a body of 65536 bytes', '201 "added"', token => $token->{writer}, method => 'POST', content => 'x' x 65536);
	$node->safe_psql('postgres', q{DELETE FROM records WHERE length(body) = 65536});

	# Limits: each request costs one, and the neighbour's go on.
	$is->('the limit is told', "200 " . substr($own, 4) . ' ' . limit(2), token => $token->{thrice});
	$is->('and what is left of it', '201 "added" ' . limit(2 - $_), token => $token->{thrice}, method => 'POST', content => "a4 $_") foreach 1, 2;
	my ($answer, $headers) = ask($name, token => $token->{thrice}, method => 'POST', content => 'a5');
	like($answer, qr/^429 rate_limited retry-after: \d+ ratelimit: "rate_limit";r=0;t=\d+ ratelimit-policy: "rate_limit";q=3$/, "$name: beyond the limit");
	my $retry = $headers->{'retry-after'} // 'none';
	ok($retry =~ /^\d+$/ && $retry > 0 && $retry <= 1200, "$name: Retry-After is the seconds until the next") or diag($retry);
	$is->("the neighbour's requests go on", '200 ["g1"]', token => $token->{globex});
	is($node->safe_psql('postgres', q{SELECT string_agg(tenant || ' ' || body, ', ' ORDER BY id) FROM records}),
		q{acme a1, acme a ü 2, globex g1, acme a's "third", acme a4 1, acme a4 2}, "$name: what was added is the tenant's");
	is(join("\n", complaints($name)), '', "$name: the server complained of nothing");

	# An error of ours: the client is told nothing, and the log has its SQLSTATE.
	$node->safe_psql('postgres', 'REVOKE SELECT ON records FROM records_api');
	like((ask($name, token => $token->{acme}))[0], qr/^500 /, "$name: an error of ours");
	$node->safe_psql('postgres', 'GRANT SELECT ON records TO records_api');
	is(join("\n", complaints($name)), '42501', "$name: the log has its SQLSTATE");
	$is->('the next request is well', '200 ["g1"]', token => $token->{globex});
	return $token;
}

# --- the examples ---------------------------------------------------------------------------------------------------------

foreach my $name (sort keys %example)
{
	my ($prepare, $needs) = @{ $example{$name} }{qw(prepare needs)};
	my $output = '';
	if (!eval { IPC::Run::run($prepare, '<', \undef, '>&', \$output) })
	{
		fail("$name: cannot be made ready; are $needs there?");
		diag($output || $@);
		delete $example{$name};
	}
}
start_example($_, CLIENT_ADDR_HEADER => 'X-Real-IP') foreach sort keys %example;
foreach my $name (sort keys %example)
{
	ask_until($name, qr/^(?!599)/);
	$example{$name}{token} = fulfils_contract($name);
}

# Without room for another limit, while no flush can make some.
my $holder = session($node, 'postgres');
$holder->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN EXCLUSIVE MODE');
foreach my $name (sort keys %example)
{
	my ($answer, $tries) = ('', 0);
	# A worker may free the place of a limit of another tenant in between. Then the key has its limit, so take another key.
	while ($answer !~ /^503/ && $tries++ < 20)
	{
		take_all_room();
		my $late = sql_as($node, 'acme', q{SELECT secret FROM rk_apikeys.create_key('late', scopes => '{*}', rate_limit => 3, rate_window => '1 hour')});
		push @secrets, $late;
		($answer) = ask($name, token => $late);
	}
	is($answer, '503 limiter_unavailable retry-after: 1', "$name: the limit cannot be checked");
}

# Without the database: all wait together.
$holder->quit;
$node->stop;
is(ask_until($_, qr/^503/, token => $example{$_}{token}{acme}), $unavailable, "$_: the database is gone") foreach sort keys %example;
is((ask($_, token => $example{$_}{token}{acme}))[0], $unavailable, "$_: and still gone") foreach sort keys %example;
$node->start;
foreach my $name (sort keys %example)
{
	is(ask_until($name, qr/^(?!503)/, token => $example{$name}{token}{globex}), '200 ["g1"]', "$name: the database is back");
	is((ask($name))[0], $none, "$name: for everybody");
}

# Without a proxy of one's own its header is nobody's.
$_->{server}->kill_kill(grace => 5) foreach values %example;
start_example($_) foreach sort keys %example;
foreach my $name (sort keys %example)
{
	is(ask_until($name, qr/^(?!599)/, token => $example{$name}{token}{elsewhere}, headers => { 'X-Real-IP' => '10.1.2.3' }), $denied,
		"$name: a header that no proxy sets");
}
$_->{server}->kill_kill(grace => 5) foreach values %example;

# The listener: what it prints of changes, and that it comes back.
SKIP:
{
	skip "node's packages are not there", 4 unless -d "$dir/node/node_modules";
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET rk_apikeys.notify = on');
	my ($output, $timer) = ('', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $listener = do
	{
		local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE CURSOR_FILE)} = ($node->host, $node->port, 'acme', 'postgres', "$dir/cursor");
		start([ 'node', "$dir/node/listen.mjs" ], '<', \undef, '>&', \$output, $timer);
	};
	my $prints = sub {
		my ($pattern, $name) = @_;
		eval { $listener->pump until $output =~ $pattern || !$listener->pumpable; };
		like($output, $pattern, "node: $name");
		$output = '';
	};
	my ($id, $secret) = create_key($node, 'told');
	push @secrets, $secret;
	$prints->(qr/^listening\n(.*\n)*created $id\n$/, 'the listener prints the events that there are');
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$id'");
	$prints->(qr/^disabled $id\n$/, 'and each that comes');
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'listen'});
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = '$id'");
	$prints->(qr/terminating connection(.*\n)+listening\nenabled $id\n$/, 'one of the time without a connection too');
	sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$id'");
	$prints->(qr/^deleted $id\n$/, 'and goes on');
	$listener->kill_kill(grace => 5);
}

# A token is in no log: 20 digits of a secret are enough to know it by.
my %secret = map { my $token = $_; map { (substr($token, -49 + $_, 20) => 1) } 0 .. 29 } @secrets;
sub with_secret
{
	return grep { my $line = $_; grep { my $word = $_; grep { $secret{ substr($word, $_, 20) } } 0 .. length($word) - 20 }
		  grep { !/^x+$/ } $line =~ /[0-9A-Za-z]{20,}/g } split /\n/, $_[0];
}
foreach my $name (sort keys %example)
{
	my $log = slurp_file("$dir/$name.log");
	is(join("\n", with_secret($log)), '', "$name: no token in what it prints");
	is(join("\n", grep { !/^[0-9A-Z]{5}$/ } complaints($name)), '', "$name: nor anything but SQLSTATEs");
}
my $log = slurp_file($node->logfile);
cmp_ok(scalar(() = $log =~ /_\*{8}.*records:/g), '>=', 20 * keys %example, "the server's log has the requests, with masks");
is(join("\n", with_secret($log)), '', 'and no token');

done_testing();
