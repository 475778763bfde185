# test/t/085_rewound_node.pl: what a kill -9 of a primary loses whose node pg_rewind makes a standby: the use since its last flush, and the use
# that the node counted between its start and pg_rewind and did not send. All other use is counted once.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = PostgreSQL::Test::Cluster->new('old');
$old->init(allows_streaming => 1, extra => INITDB);
$old->append_conf('postgresql.conf', join "\n", PRELOAD, 'wal_log_hints = on', "wal_keep_size = '1GB'", 'autovacuum = off',
	"rk_apikeys.usage_flush_interval = '1h'");
$old->start;
rk_extend($old);
my $receive = 'FUNCTION rk_apikeys.receive_usage';
$old->safe_psql('postgres', "CREATE ROLE sender LOGIN; GRANT EXECUTE ON $receive TO sender");
my @names = qw(flushed unflushed sent unsent after);
my %key = map { $_ => [ create_key($old, $_) ] } @names;
$old->backup('base');
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init_from_backup($old, 'base', has_streaming => 1);
$new->start;

sub use_on { my ($node, @used) = @_; ok(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$key{$_}[1]')") eq 't', "a use: $_") foreach @used; return; }
sub written { my ($name) = @_; return "SELECT coalesce(sum(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$key{$name}[0]'"; }
# The primary: one use is flushed, another is not
use_on($old, 'flushed');
sql_as($old, 'boss', 'SELECT rk_apikeys.flush_usage()');
$old->wait_for_catchup($new, 'replay');
use_on($old, 'unflushed');

# It goes on alone for a moment, and is killed
$new->append_conf('postgresql.conf', "primary_conninfo = ''");
$new->reload;
$new->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)') or die 'still streaming';
create_key($old, 'lost');
kill_server($old);
$new->promote;

# Its node starts as a standby of the new primary, which it cannot follow; it verifies, and sends once
$old->append_conf('postgresql.conf', "primary_conninfo = '" . $new->connstr . "'\nrk_apikeys.usage_flush_interval = '100ms'\n"
	  . sprintf "rk_apikeys.primary_conninfo = 'host=%s port=%d user=sender'", $new->host, $new->port);
$old->set_standby_mode;
$old->start;
use_on($old, 'sent');
ok($new->poll_query_until('postgres', 'SELECT (' . written('sent') . ') = 1'), 'the new primary gets a use before pg_rewind');
ok($old->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and the node knows');
$new->safe_psql('postgres', "REVOKE EXECUTE ON $receive FROM sender");
use_on($old, 'unsent');
ok($old->poll_query_until('postgres', q(SELECT count(*) > 0 FROM rk_apikeys.health WHERE name = 'delivery')), 'then the new primary accepts no use');
is(stat_of($old, 'pending_keys'), '1', 'and a use is pending');
$old->stop('fast');
my $file = $old->data_dir . '/pg_stat/rk_apikeys.usage';
ok(-e $file, 'the shutdown keeps the use in a file');

# pg_rewind
$new->safe_psql('postgres', 'CHECKPOINT');
my $conf = slurp_file($old->data_dir . '/postgresql.conf');
command_ok([ 'pg_rewind', '--target-pgdata', $old->data_dir, '--source-server', $new->connstr('postgres'), '--no-sync' ], 'pg_rewind');
ok(!-e $file, 'pg_rewind removes the file');
unlink $old->data_dir . '/postgresql.conf';
append_to_file($old->data_dir . '/postgresql.conf', $conf);
$new->safe_psql('postgres', "GRANT EXECUTE ON $receive TO sender");
$old->set_standby_mode;
$old->start;
use_on($old, 'after');
ok($new->poll_query_until('postgres', 'SELECT (' . written('after') . ') = 1'), 'the rewound node sends its use again');
ok($old->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats'), 'and nothing is left');
my %expected = (flushed => 1, unflushed => 0, sent => 1, unsent => 0, after => 1);
is_deeply({ map { $_ => $new->safe_psql('postgres', written($_)) } @names }, \%expected, 'two uses are lost, and the others are counted once');
$_->stop foreach $old, $new;
done_testing();
