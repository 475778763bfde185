# test/t/030_limiter_pace.pl: a rate limit lets a full window through at once, then an even pace; retry_after_ms tells when, to a millisecond.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

# The algorithm under a clock of the test's own
chomp(my $server = `pg_config --includedir-server`);
my ($tap) = run_command([ client('limiter', "-I$FindBin::Bin/../../src", '-isystem', $server) ]);
cmp_ok(scalar(() = $tap =~ /^ok /mg), '>', 40, 'the limiter was tested under a clock of its own');
is_deeply([ grep { /^not ok/ } split /\n/, $tap ], [], 'and did right');

my $node = rk_node('pace', PRELOAD);
my ($id, $token) = create_key($node, 'limited', "rate_limit => 10, rate_window => '1 hour'");
my $session = session($node, 'backend');

sub ask
{
	my ($cost) = @_;
	return $session->query_safe("SELECT code, retry_after_ms FROM rk_apikeys.verify_key('$token', cost => $cost)");
}

# Cost
is($session->query_safe("SELECT count(*) FILTER (WHERE rk_apikeys.verify('$token')) FROM generate_series(1, 4)"), '4', 'four at once');
is(ask(3), 'valid|', 'three more in one');
like(ask(4), qr/^rate_limited\|3[56]\d{4}$/, 'four are too many, and will be there in six minutes, a tenth of the hour each');
is(ask(3), 'valid|', 'three are there: the refusal has taken nothing');
like(ask(1), qr/^rate_limited\|3[56]\d{4}$/, 'now none is');
like(ask(10), qr/^rate_limited\|3(59\d{4}|600000)$/, 'a full window takes an hour');
is($session->query_safe("SELECT rk_apikeys.verify('$token')"), 'f', 'verify says no');
is(sql_as($node, 'acme', "SELECT use_count FROM rk_apikeys.keys WHERE key_id = '$id'"), '6', 'a refusal is not a use');
is(stat_of($node, 'rate_limited'), '4', 'it is counted as what it is');

# Costs that cannot be
foreach my $cost (0, -1, -2147483648, 11, 2147483647)
{
	my (undef, $err) = ('', '');
	$node->psql('postgres', "\\set VERBOSITY sqlstate\nSELECT rk_apikeys.verify_key('$token', cost => ($cost)::int)", stderr => \$err,
		extra_params => [ '-U', 'backend' ]);
	like($err, qr/ERROR:  22023/, "cost $cost: 22023");
}
my (undef, $free) = create_key($node, 'free');
is($session->query_safe("SELECT code FROM rk_apikeys.verify_key('$free', cost => 1000)"), 'valid', 'no limit, any cost');

# What a verdict tells of the limit: after each take, and when the limit refuses
(my $slow_id, my $slow) = create_key($node, 'slow', "rate_limit => 4, rate_window => '40 days', scopes => '{a}'");
my $limit = sub {
	my ($arguments) = @_;
	return $session->query_safe("SELECT code, limit_name, limit_units, limit_remaining, limit_resets_at FROM rk_apikeys.verify_key('$slow'$arguments)");
};
my ($first) = (split /\|/, $limit->(''))[4];
is($session->query_safe("SELECT '$first' - now() BETWEEN '239 h' AND '240 h'"), 't', 'a unit of four is back after a quarter of the window');
foreach my $case ([ '', 'valid|rate_limit|4|2', 1 ], [ ', cost => 3', 'rate_limited|rate_limit|4|2', 1 ], [ ', cost => 2', 'valid|rate_limit|4|0', 3 ],
	[ '', 'rate_limited|rate_limit|4|0', 3 ])
{
	my ($arguments, $expected, $units) = @$case;
	my $told = $limit->($arguments);
	my $resets = $session->query_safe("SELECT '$first'::timestamptz + $units * interval '240 h'");
	is($told, "$expected|$resets", "the limit after $arguments: $expected");
}
is($limit->(", 'b'"), 'scope_missing||||', 'another refusal tells nothing of it');
is($session->query_safe("BEGIN; SELECT code FROM rk_apikeys.authenticate('$slow', 'b', raise => false); COMMIT"), 'scope_missing', 'authenticate without an error');
ok($node->poll_query_until('postgres', "SELECT rk_apikeys.flush_usage() >= 0 AND EXISTS (SELECT FROM rk_apikeys.key_usage WHERE key_id = '$slow_id' AND use_count = 3 AND denied_count = 4)"),
	'counts the denial, as others do');
is($session->query_safe("SELECT limit_name IS NULL AND limit_units IS NULL AND limit_remaining IS NULL AND limit_resets_at IS NULL"
		. " FROM rk_apikeys.verify_key('$free')"), 't', 'nor a key without a limit');

# The response of a server, and what a refusal says when it raises
like($session->query_safe("SELECT r.status, r.headers->>'Retry-After', r.headers->>'RateLimit', r.headers->>'RateLimit-Policy'"
		. " FROM rk_apikeys.verify_key('$token') v, rk_apikeys.http_response(v) r"), qr/^429\|(3[56]\d)\|"rate_limit";r=0;t=\1\|"rate_limit";q=10$/, 'the response: 429');
like($session->query_safe("SELECT r.* FROM rk_apikeys.http_response((SELECT v FROM rk_apikeys.verify_key('$free') v)) r"), qr/^200\|\{\}\|$/, 'the response: 200');
(my $year_id, my $year) = create_key($node, 'year', "rate_limit => 1, rate_window => '366 days'");
is($session->query_safe("SELECT code, retry_after_ms FROM rk_apikeys.verify_key('$year')"), 'valid|', 'the longest window');
is($session->query_safe("SELECT code, retry_after_ms FROM rk_apikeys.verify_key('$year')"), 'rate_limited|2147483647', 'is longer than the milliseconds of an integer');
$node->psql('postgres', "SELECT rk_apikeys.authenticate('$year')", stderr => \my $raised, extra_params => [ '-U', 'backend' ]);
is($raised, "psql:<stdin>:1: ERROR:  API key is not accepted: rate_limited\nDETAIL:  code=rate_limited key_id=$year_id retry_after_ms=2147483647", 'DETAIL is words for a program');

# An order of checks: what is refused before takes nothing
my ($scoped_id, $scoped) = create_key($node, 'scoped', "rate_limit => 1, rate_window => '1 hour', scopes => '{a:read}', allowed_cidrs => '{10.0.0.0/8}'");
is(join(' ', map { $session->query_safe("SELECT code FROM rk_apikeys.verify_key('$scoped', $_)") } "'b:read', '10.0.0.1'",
		"'a:read', '11.0.0.1'", "'a:read', '10.0.0.1'", "'a:read', '10.0.0.1'", "'b:read', '10.0.0.1'"),
	'scope_missing address_denied valid rate_limited scope_missing', 'a denied verify takes nothing from the limit');

# A limit is changed, or lifted: at once
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET rate_limit = NULL, rate_window = NULL WHERE key_id = '$scoped_id'");
is($session->query_safe("SELECT code FROM rk_apikeys.verify_key('$scoped', 'a:read', '10.0.0.1')"), 'valid', 'a lifted limit counts at once');

# By the clock of the server: waits busily, and judges only what was asked at a moment that is sure.
(undef, my $fast) = create_key($node, 'fast', "rate_limit => 3, rate_window => '200 ms'");
my $outcome = $session->query_safe(<<"SQL");
CREATE TEMP TABLE outcome (too_early int, passed int, wrong text);
DO \$\$
DECLARE
  v rk_apikeys.verdict; asked timestamptz; answered timestamptz; due interval;
  early int := 0; passed int := 0;
BEGIN
  WHILE early < 10 OR passed < 10 LOOP
    LOOP
      asked := clock_timestamp();
      v := rk_apikeys.verify_key('$fast');
      answered := clock_timestamp();
      EXIT WHEN v.code = 'rate_limited';
    END LOOP;
    due := v.retry_after_ms * interval '1 ms';
    WHILE clock_timestamp() < asked + due - interval '3 ms' LOOP END LOOP;
    v := rk_apikeys.verify_key('$fast');
    IF clock_timestamp() < asked + due - interval '2 ms' THEN
      early := early + 1;
      IF v.code <> 'rate_limited' THEN
        INSERT INTO outcome VALUES (early, passed, 'passed too early'); RETURN;
      END IF;
    END IF;
    WHILE clock_timestamp() < answered + due LOOP END LOOP;
    IF v.code = 'rate_limited' THEN
      v := rk_apikeys.verify_key('$fast');
      passed := passed + 1;
      IF v.code <> 'valid' THEN
        INSERT INTO outcome VALUES (early, passed, 'did not pass: ' || v.retry_after_ms); RETURN;
      END IF;
    END IF;
  END LOOP;
  INSERT INTO outcome VALUES (early, passed, 'nothing');
END \$\$;
SELECT wrong FROM outcome;
SQL
is($outcome, 'nothing', 'after retry_after_ms it passes, a millisecond before it does not');
$session->quit;

done_testing();
