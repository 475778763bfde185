# test/t/073_gateways.pl: what stands before a service: PostgREST with its pre-request function, and nginx with auth_request.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::Bin;
use HTTP::Tiny;
use IPC::Run qw(start);
use JSON::PP;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $examples = abs_path("$FindBin::Bin/../../examples");
my $dir = PostgreSQL::Test::Utils::tempdir;

my $node = rk_node('gateways', PRELOAD, 'log_statement = all', 'log_min_duration_statement = 0');
$node->safe_psql('postgres', slurp_file("$examples/$_")) foreach 'records.sql', 'postgrest/check_request.sql';
my %token = token_of($node, 'boss', qq{
	SELECT 'reader', secret FROM rk_apikeys.create_key('reader', tenant => 'acme', scopes => '{records:read}');
	SELECT 'writer', secret FROM rk_apikeys.create_key('writer', tenant => 'acme', scopes => '{records:write}');
	SELECT 'here', secret FROM rk_apikeys.create_key('here', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{127.0.0.0/8}');
	SELECT 'elsewhere', secret FROM rk_apikeys.create_key('elsewhere', tenant => 'acme', scopes => '{*}', allowed_cidrs => '{10.0.0.0/8}');
	SELECT 'twice', secret FROM rk_apikeys.create_key('twice', tenant => 'acme', scopes => '{*}', rate_limit => 2, rate_window => '1 hour');
	SELECT 'again', secret FROM rk_apikeys.create_key('again', tenant => 'acme', scopes => '{*}', rate_limit => 2, rate_window => '1 hour');
	SELECT 'unknown', rk_apikeys.generate_token()});
$node->safe_psql('postgres', "INSERT INTO records (tenant, body) VALUES ('acme', 'a1'), ('globex', 'g1')");

# The headers that count, in their order; one that is sent twice stands as a list.
sub line_of
{
	my ($status, $body, $headers) = @_;
	my %value = map { lc($_) => $headers->{$_} } keys %$headers;
	my @more = map { "$_: " . (ref $value{$_} ? "[@{ $value{$_} }]" : $value{$_}) } grep { defined $value{$_} }
	  qw(www-authenticate retry-after ratelimit ratelimit-policy);
	return join ' ', $status, $body, @more;
}

# --- PostgREST ------------------------------------------------------------------------------------------------------------

# Debian has no PostgREST, so this is its transaction for a request: the statements that PostgREST 12 runs, in their order. Returns what
# PostgREST would answer. It takes a PGRST for a response only if code and message are strings, and the headers are an object of strings;
# it adds a Content-Type of its own.
sub postgrest
{
	my ($method, $headers) = @_;
	my $text = encode_json($headers) =~ s/'/''/gr;
	my $get = $method eq 'GET';
	my $query = $get ? q{SELECT coalesce(json_agg(body), '[]') FROM records} : q{INSERT INTO records (body) VALUES ('new') RETURNING 1};
	my ($stdout, $stderr);
	my $failed = $node->psql('postgres', qq{
		BEGIN ISOLATION LEVEL READ COMMITTED } . ($get ? 'READ ONLY' : 'READ WRITE') . qq{;
		SELECT FROM (SELECT set_config('search_path', 'public', true), set_config('role', 'records_api', true),
			set_config('request.jwt.claims', '{"role":"records_api"}', true), set_config('request.method', '$method', true),
			set_config('request.path', '/records', true), set_config('request.headers', '$text', true), set_config('request.cookies', '{}', true)) s \\g /dev/null
		SELECT "public"."check_request"() \\g /dev/null
		$query;
		SELECT nullif(current_setting('response.headers', true), '');
		COMMIT}, stdout => \$stdout, stderr => \$stderr, extra_params => [ '-U', 'authenticator', '-v', 'VERBOSITY=verbose' ]);
	if (!$failed)
	{
		my ($body, $set) = split /\n/, $stdout;
		return line_of($get ? 200 : 201, $body =~ s/, /,/gr, { map { %$_ } @{ decode_json($set || '[]') } });
	}
	my ($message, $detail) = $stderr =~ /^(?:psql:\S+ )?ERROR:  PGRST: (\{.*\})\nDETAIL:  (\{.*\})$/m or return $stderr;
	($message, $detail) = map { decode_json($_) } $message, $detail;
	my @strings = ($message->{code}, $message->{message}, values %{ $detail->{headers} });
	return "PGRST121: $stderr" if grep { !defined || ref } @strings or $detail->{status} !~ /^\d+$/;
	return 'two Content-Types' if grep { lc eq 'content-type' } keys %{ $detail->{headers} };
	return line_of($detail->{status}, join(', ', map { $message->{$_} // () } qw(code message details)), $detail->{headers});
}

my $limit = sub { qq{ratelimit: "rate_limit";r=$_[0] ratelimit-policy: "rate_limit";q=2} };
is(postgrest('GET', { 'x-api-key' => $token{reader} }), '200 ["a1"]', 'PostgREST: own rows');
is(postgrest('POST', { 'x-api-key' => $token{writer} }), '201 1', 'PostgREST: a writer writes');
is(postgrest('GET', {}), '401 no_key, Unauthorized, The request has no API key. www-authenticate: Bearer', 'PostgREST: no token');
is(postgrest('GET', { 'x-api-key' => $token{unknown} }),
	'401 unknown, Unauthorized, The API key is not accepted. www-authenticate: Bearer error="invalid_token"', 'PostgREST: an unknown token');
is(postgrest('POST', { 'x-api-key' => $token{reader} }),
	'403 scope_missing, Forbidden, The API key lacks a scope that the request needs. www-authenticate: Bearer error="insufficient_scope", scope="records:write"',
	'PostgREST: a reader does not write');
my $denied = '403 address_denied, Forbidden, The API key is not accepted from this address.';
is(postgrest('GET', { 'x-api-key' => $token{elsewhere}, 'x-real-ip' => $_ }), $denied, "PostgREST: from $_") foreach '192.0.2.1', 'nonsense';
is(postgrest('GET', { 'x-api-key' => $token{elsewhere} }), $denied, 'PostgREST: from nowhere');
is(postgrest('GET', { 'x-api-key' => $token{elsewhere}, 'x-real-ip' => '10.1.2.3' }), '200 ["a1","new"]', 'PostgREST: from where the key may be used');
is(postgrest('GET', { 'x-api-key' => $token{twice} }), '200 ["a1","new"] ' . $limit->($_), "PostgREST: $_ left") foreach 1, 0;
like(postgrest('GET', { 'x-api-key' => $token{twice} }),
	qr/^429 rate_limited, Too Many Requests, .* retry-after: \d+ ratelimit: "rate_limit";r=0;t=\d+ ratelimit-policy: "rate_limit";q=2$/,
	'PostgREST: beyond the limit');
isnt($node->psql('postgres', 'SELECT public.check_request()', extra_params => [ '-U', 'backend' ]), 0, 'PostgREST: the function is for its role alone');

# --- nginx ----------------------------------------------------------------------------------------------------------------

my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(nginx auth service);
my $conf = slurp_file("$examples/nginx/server.conf");
$conf =~ s/127\.0\.0\.1:8080/127.0.0.1:$port{nginx}/;
$conf =~ s/127\.0\.0\.1:8081/127.0.0.1:$port{auth}/;
$conf =~ s/127\.0\.0\.1:8082/127.0.0.1:$port{service}/;
# Beside the example: a service that says what it was told.
PostgreSQL::Test::Utils::append_to_file("$dir/nginx.conf", join "\n", "daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log info; events {} http {",
	"access_log $dir/access.log;", (map { "${_}_temp_path $dir/$_;" } qw(client_body fastcgi proxy scgi uwsgi)), $conf,
	qq{server { listen 127.0.0.1:$port{service}; location / { return 200 "\$request_method by \$http_x_real_ip with '\$http_authorization'"; }
		location /broken { return 500 "broken"; } }},
	'}');

SKIP:
{
	my $output = '';
	local $ENV{GOCACHE} = "$dir/cache";
	local @ENV{qw(GO111MODULE GOPATH)} = ('off', '/usr/share/gocode');
	if (!eval { IPC::Run::run([ 'go', 'build', '-o', "$dir/auth", "$examples/go/server.go" ], '<', \undef, '>&', \$output) } || !-x '/usr/sbin/nginx')
	{
		fail('nginx: cannot be made ready; are nginx, golang-go and golang-github-jackc-pgx-v4-dev there?');
		diag($output || $@);
		skip 'nginx', 1;
	}
	my $start_auth = sub {
		local @ENV{qw(PORT PGHOST PGPORT PGUSER PGDATABASE CLIENT_ADDR_HEADER)} =
		  ($port{auth}, $node->host, $node->port, 'records_api', 'postgres', 'X-Real-IP');
		return start([ "$dir/auth" ], '<', \undef, '>>', "$dir/auth.log", '2>>', "$dir/auth.log");
	};
	my $auth = $start_auth->();
	my $nginx = start([ '/usr/sbin/nginx', '-e', "$dir/nginx.log", '-c', "$dir/nginx.conf" ], '<', \undef, '>&', "$dir/nginx.out");

	my $ask = sub {
		my ($path, $token, %headers) = @_;
		$headers{Authorization} = "Bearer $token" if defined $token;
		my $reply = HTTP::Tiny->new(timeout => 30, keep_alive => 0)->get("http://127.0.0.1:$port{nginx}$path", { headers => \%headers });
		my $body = $reply->{content};
		$body = decode_json($body)->{title} if ($reply->{headers}{'content-type'} // '') eq 'application/problem+json';
		return line_of($reply->{status}, $body, $reply->{headers});
	};
	my $until = sub {
		my ($wanted, @request) = @_;
		my $answer = '';
		foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			$answer = $ask->(@request);
			last if $answer =~ $wanted;
			usleep(100_000);
		}
		return $answer;
	};

	my $ok = q{200 GET by 127.0.0.1 with ''};
	is($until->(qr/^200/, '/records', $token{reader}), $ok, 'nginx: a valid key passes, and its token stays here');
	is($ask->('/records'), '401 Unauthorized www-authenticate: Bearer', 'nginx: no token');
	is($ask->('/records', $token{unknown}), '401 Unauthorized www-authenticate: Bearer error="invalid_token"', 'nginx: an unknown token');
	is($ask->('/records', $token{writer}), '403 Forbidden www-authenticate: Bearer error="insufficient_scope", scope="records:read"',
		'nginx: a key without the scope');
	is($ask->('/records', $token{here}, 'X-Real-IP' => '10.1.2.3'), $ok, 'nginx: from this address, whatever the client says');
	is($ask->('/records', $token{elsewhere}, 'X-Real-IP' => '10.1.2.3'), '403 Forbidden', 'nginx: not from another address, though the client says so');
	is($ask->('/records', $token{again}), "$ok " . $limit->($_), "nginx: $_ left") foreach 1, 0;
	like($ask->('/records', $token{again}),
		qr/^429 Too Many Requests retry-after: \d+ ratelimit: "rate_limit";r=0;t=\d+ ratelimit-policy: "rate_limit";q=2$/, 'nginx: beyond the limit');
	is($ask->('/broken', $token{reader}), '500 broken', "nginx: the service's errors are its own");
	like($ask->('/auth', $token{reader}), qr/^404 /, 'nginx: nobody asks /auth from outside');

	$node->stop;
	is($until->(qr/^503/, '/records', $token{reader}), '503 Service Unavailable retry-after: 1', 'nginx: without the database');
	$node->start;
	is($until->(qr/^200/, '/records', $token{reader}), $ok, 'nginx: the database is back');
	$auth->kill_kill(grace => 5);
	is($ask->('/records', $token{reader}), '500 Internal Server Error', 'nginx: without the auth server nobody passes');
	$auth = $start_auth->();
	is($until->(qr/^200/, '/records', $token{reader}), $ok, 'nginx: the auth server is back');
	$_->kill_kill(grace => 5) foreach $nginx, $auth;
	is(slurp_file("$dir/auth.log"), '', 'nginx: the auth server complained of nothing');
}

# A token is in no log: 20 digits of a secret are enough to know it by.
my $secret = join '|', map { my $token = $_; map { substr($token, -49 + $_, 20) } 0 .. 29 } values %token;
foreach my $log (grep { -e } $node->logfile, map { "$dir/$_" } qw(auth.log nginx.log access.log nginx.out))
{
	is(join("\n", grep { /$secret/ } split /\n/, slurp_file($log)), '', 'no token in ' . ($log =~ s{.*/}{}r));
}

done_testing();
