# test/t/037_verdict_counters.pl: each verdict has a code and a counter of its own in the view stats, whichever function gives it.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# What the view counts beside verdicts, or tells. A column that is neither here nor a code below fails the test.
my @others = qw(preloaded cache_hits cache_misses tracked_keys max_tracked_keys pending_keys overflow dropped flushes flushed_keys last_flush_at
  flush_lag_ms);

# Nothing is flushed, so that in the smallest table a tenant has no room for a 15th key
my $node = rk_node('counters', PRELOAD, 'rk_apikeys.max_tracked_keys = 16', "rk_apikeys.usage_flush_interval = '1h'");
my $tokens = keys_of_every_state($node);
my (undef, $bound) = create_key($node, 'bound', q{scopes => '{records:read}', allowed_cidrs => '{10.0.0.0/8}'});
my @limited = map { (create_key($node, "limited $_", q{rate_limit => 1, rate_window => '1 hour'}))[1] } 1, 2;
my ($spent_id, $spent) = create_key($node, 'spent');
$node->safe_psql('postgres', "INSERT INTO rk_apikeys.limits (tenant, name, family, units, period) VALUES ('acme', 'trial', '$spent_id', 1, 'total')");
my $session = session($node, 'backend');
is(code($session, $spent), 'valid', 'a quota of one lets one through');

# The first limited key uses its limit up and keeps its place; the others fill the table. No flush makes room meanwhile.
my $holder = session($node, 'postgres');
$holder->query_safe('BEGIN; LOCK TABLE rk_apikeys.key_usage IN EXCLUSIVE MODE');
is(code($session, $limited[0]), 'valid', 'a limited key passes once');
my @fill = map { (create_key($node, "fill $_"))[1] } 1 .. 10;
is(code($session, $_), 'valid', 'a key fills the table') foreach @fill;
is(stat_of($node, 'tracked_keys'), '14', 'the table has no room for another one');

# By code: the arguments of verify_key; then whether the verdict depends on the token alone, so that verify gives it too.
my %case = (
	valid => [ "'$tokens->{active}'", 1 ],
	malformed => [ "'$tokens->{garbled}'", 1 ],
	unknown => [ "'$tokens->{deleted}'", 1 ],
	revoked => [ "'$tokens->{revoked}'", 1 ],
	disabled => [ "'$tokens->{disabled}'", 1 ],
	expired => [ "'$tokens->{expired}'", 1 ],
	rotated => [ "'$tokens->{rotated}'", 1 ],
	environment_mismatch => [ "'$tokens->{active}', environment => 'stage'", 0 ],
	address_denied => [ "'$bound', 'records:read', '11.1.1.1'", 0 ],
	scope_missing => [ "'$bound', 'records:write', '10.1.1.1'", 0 ],
	rate_limited => [ "'$limited[0]'", 1 ],
	quota_exceeded => [ "'$spent'", 1 ],
	limiter_unavailable => [ "'$limited[1]'", 1 ]);

my %counter = map { $_ => $_ eq 'valid' ? 'verified' : $_ } keys %case;
is_deeply([ sort keys %{ stats() } ], [ sort values %counter ], 'each code has a counter, and no other counter is one of verdicts');

foreach my $code (sort keys %case)
{
	my ($arguments, $alone) = @{ $case{$code} };
	counts($code, 'verify_key', sub { $session->query_safe("SELECT code FROM rk_apikeys.verify_key($arguments)") }, $code);
	counts($code, 'authenticate', sub { authenticate($arguments) }, $code);
	counts($code, 'authenticate without an error', sub { $session->query_safe("BEGIN; SELECT code FROM rk_apikeys.authenticate($arguments, raise => false); COMMIT") }, $code);
	counts($code, 'verify', sub { $session->query_safe("SELECT rk_apikeys.verify($arguments)") }, $code eq 'valid' ? 't' : 'f') if $alone;
}
$session->quit;

# Shows that what is done gives an answer, and moves the counter of a code by one and no other.
sub counts
{
	my ($code, $function, $do, $answer) = @_;
	my $before = stats();
	is($do->(), $answer, "$code: $function says so");
	my $after = stats();
	is_deeply({ map { $after->{$_} == $before->{$_} ? () : ($_ => $after->{$_} - $before->{$_}) } keys %$after }, { $counter{$code} => 1 },
		"$code: $function moves $counter{$code} by one, and nothing else");
}

# The code that authenticate gives, or names when it refuses.
sub authenticate
{
	my ($arguments) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "BEGIN; SELECT code FROM rk_apikeys.authenticate($arguments)", extra_params => [ '-U', 'backend' ]);
	return $1 if $err =~ /API key is not accepted: (\w+)/;
	return $out =~ s/\s//gr . $err;
}

# The counters of verdicts by name.
sub stats
{
	my %value = map { split /\|/, $_, 2 } split /\n/, sql_as($node, 'boss', 'SELECT key, value FROM rk_apikeys.stats, jsonb_each_text(to_jsonb(stats))');
	delete @value{@others};
	return \%value;
}

done_testing();
