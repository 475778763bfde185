# test/t/025_standby_full.pl: a standby, which flushes nothing, makes room for more keys than it can track, so that rate limits go on.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'\nrk_apikeys.max_tracked_keys = 16\n" . PRELOAD);
$primary->start;
rk_extend($primary);
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

my @tokens = map { my ($id, $token) = create_key($primary, "limited $_", "rate_limit => 1000, rate_window => '1 second'"); $token } 1 .. 40;
$primary->wait_for_catchup($standby, 'replay');
foreach my $token (@tokens)
{
	$standby->poll_query_until('postgres', "SELECT rk_apikeys.verify('$token')") or die 'the limiter has no room';
}
pass('40 keys with a rate limit are served by a standby that tracks 16');
cmp_ok(stat_of($standby, 'tracked_keys'), '<=', 16, 'which tracks no more than that');
cmp_ok(stat_of($standby, 'pending_keys + dropped + overflow'), '>=', 40, 'and each use is pending, made room or found none');

# Keys that are over on the primary keep no room on the standby
sub make_once
{
	my ($name) = @_;
	my @made = split /\n/, sql_as($primary, 'acme', "WITH k AS (INSERT INTO rk_apikeys.keys (name, rate_limit, rate_window)
		SELECT '$name', 1, '366 days' FROM generate_series(1, 14) RETURNING secret) SELECT secret FROM k");
	$primary->wait_for_catchup($standby, 'replay');
	return @made;
}
my @once = make_once('once');
$standby->poll_query_until('postgres', "SELECT (rk_apikeys.verify_key('$_')).code IN ('valid', 'rate_limited')") or die 'no room' foreach @once;
my ($refused) = make_once('refused');
is(sql_as($standby, 'backend', "SELECT code FROM rk_apikeys.verify_key('$refused')"), 'limiter_unavailable', 'keys that are used up take all the room that a tenant gets');
sql_as($primary, 'acme', "DELETE FROM rk_apikeys.keys WHERE name = 'once'");
ok($standby->poll_query_until('postgres', "SELECT rk_apikeys.verify('$refused')"), 'when they are deleted on the primary, there is room');

# The primary drops nothing: it flushes first.
foreach my $token (@tokens)
{
	$primary->poll_query_until('postgres', "SELECT rk_apikeys.verify('$token')") or die 'the limiter has no room';
}
is(stat_of($primary, 'dropped'), 0, 'the primary drops nothing');

done_testing();
