# test/t/044_last_used_addr.pl: the views and list_keys() show the address of the last use at once, as a host, to whoever may see the key's
# use. A flush stores the address that is shown. A use that came late from another server does not replace a later address.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('primary');
$node->init(allows_streaming => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
$node->start;
rk_extend($node);
$node->safe_psql('postgres', 'CREATE ROLE audit LOGIN; GRANT rk_apikeys_auditor TO audit');
my ($id, $token) = create_key($node, 'used');
my ($quiet_id, $quiet) = create_key($node, 'without addresses');
$node->backup('base');

sub table { return $node->safe_psql('postgres', "SELECT last_used_addr FROM rk_apikeys.key_usage WHERE key_id = '$id'"); }
sub flush { return sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()'); }

sub use_from
{
	my ($address, $server) = @_;
	my $from = defined $address ? ", client_addr => '$address'" : '';
	is(sql_as($server // $node, 'backend', "SELECT code FROM rk_apikeys.verify_key('$token'$from)"), 'valid', 'used from ' . ($address // 'nowhere'));
}

sub shown
{
	my ($wanted, $name, $server) = @_;
	is(sql_as($server // $node, 'acme', "SELECT v.last_used_addr, l.last_used_addr
		FROM rk_apikeys.keys v, rk_apikeys.list_keys('used', sort_by => 'last_used_at') l WHERE v.key_id = '$id' AND l.key_id = '$id'"),
		"$wanted|$wanted", $name);
}

# At once, and as the flush stores it
shown('', 'never used');
use_from('::ffff:192.0.2.1');
shown('192.0.2.1', 'at once, as IPv4');
is(table(), '', 'nothing is in the table yet');
flush();
is(table(), '192.0.2.1', 'which a flush stores');
shown('192.0.2.1', 'and is shown');
use_from('2001:db8::2/64');
shown('2001:db8::2', 'a later one at once, without netmask');
use_from(undef);
shown('2001:db8::2', 'a use without an address leaves it');
flush();
is(table(), '2001:db8::2', 'in the table too');
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$quiet')");
flush();
is(sql_as($node, 'acme', "SELECT last_used_at IS NULL, last_used_addr IS NULL FROM rk_apikeys.list_keys('without')"), 'f|t',
	'a key that was used without one has none');

# For whom
my $live = "SELECT host(rk_apikeys._live_last_used_addr('$id'))";
is(sql_as($node, $_, $live), '2001:db8::2', "$_ may ask memory itself") foreach qw(acme audit boss);
is(sql_as($node, 'globex', $live), '', "another tenant's manager gets NULL");
isnt($node->psql('postgres', $live, extra_params => [ '-U', 'backend' ], stderr => \my $refusal), 0, 'a verifier may not ask at all');
like($refusal, qr/permission denied/, 'it has no right to');

# From another server
my $batch = 0;
my $report = sub {
	my ($time, $address) = @_;
	$batch++;
	sql_as($node, 'boss', "SELECT FROM rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', $batch, ARRAY['$id'], ARRAY['prod'],
		ARRAY[$time]::timestamptz[], ARRAY['$address'::inet], ARRAY[$batch + 50::bigint], ARRAY[0::bigint], ARRAY[0::bigint], ARRAY[0::bigint])");
};
$report->('clock_timestamp()', '198.51.100.3/24');
shown('198.51.100.3', 'a later use that another server reports');
$report->("clock_timestamp() - interval '1 hour'", '198.51.100.4');
is(table(), '198.51.100.3', 'an earlier one does not replace it');
$report->('NULL', '198.51.100.5');
is(table(), '198.51.100.3', 'nor one without a time');
use_from('203.0.113.6');
shown('203.0.113.6', 'a later one here does at once');
$report->('clock_timestamp()', '198.51.100.7');
use_from(undef);
my $now = sql_as($node, 'acme', "SELECT last_used_addr FROM rk_apikeys.keys WHERE key_id = '$id'");
flush();
is(table(), $now, 'what is shown is what is stored, whoever reported it');

# On a standby
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay');
shown($now, 'a standby shows what is stored', $standby);
use_from('192.0.2.99', $standby);
shown('192.0.2.99', 'and its own uses at once', $standby);
shown($now, 'which only it knows');

# Over a restart: 0.2 kept an address as it was given, in the file too
$node->restart;
shown($now, 'after a restart');
use_from('192.0.2.77');
$node->stop;
my $file = $node->data_dir . '/pg_stat/rk_apikeys.usage';
my $kept = slurp_file($file, 0);
is($kept =~ s/\x{20}(?=\xc0\x00\x02\x4d)/\x{18}/g, 1, 'the file has the address of a pending use');
open my $out, '>:raw', $file or die;
print $out $kept;
close $out;
$node->start;
shown('192.0.2.77', 'which is shown as a host');
flush();
is(table(), '192.0.2.77', 'and stored');

done_testing();
