# test/t/084_promoted_flush.pl: a standby whose primary was away flushes whole batches as soon as it is promoted.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => INITDB);
$primary->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
$primary->start;
rk_extend($primary);
my $keys = 200;
my @token = split /\n/, sql_as($primary, 'acme', "SELECT secret FROM generate_series(1, $keys) n, LATERAL rk_apikeys.create_key('key ' || n)");
is(scalar @token, $keys, 'there are keys');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
# no server listens there
$standby->append_conf('postgresql.conf', "rk_apikeys.primary_conninfo = 'host=127.0.0.1 port=1 user=sender'");
$standby->start;
$primary->wait_for_catchup($standby, 'replay');

# Rounds fail: 20 of them and more
sql_as($standby, 'backend', "SELECT rk_apikeys.verify('$token[0]')");
ok($standby->poll_query_until('postgres', q(SELECT flush_lag_ms > 8000 FROM rk_apikeys.stats)), 'no use reaches the primary for many rounds');
sql_as($standby, 'backend', join ' ', map { "SELECT rk_apikeys.verify('$_');" } @token);
is(stat_of($standby, 'pending_keys'), $keys, 'use of all keys is pending');
my $flushes = stat_of($standby, 'flushes');
$standby->promote;
ok($standby->poll_query_until('postgres', "SELECT sum(use_count) = $keys + 1 FROM rk_apikeys.key_usage"), 'after the promotion all use is written');
my $more = stat_of($standby, 'flushes') - $flushes;
cmp_ok($more, '<', 10, "in few batches ($more)");
$_->stop foreach $standby, $primary;
done_testing();
