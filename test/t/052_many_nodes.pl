# test/t/052_many_nodes.pl: one publisher and two subscribers, each of which verifies by itself: the first copy, revocations, use that comes
# back to the publisher from both, and what becomes of a key that is changed in two places.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/passfile", "*:*:*:sender:correct-horse-battery\n");
chmod 0600, "$dir/passfile" or die;

my $origin = rk_node('origin', 'wal_level = logical', 'max_wal_senders = 10', PRELOAD, "rk_apikeys.usage_flush_interval = '100ms'");
$origin->safe_psql('postgres', q{CREATE ROLE sender LOGIN PASSWORD 'correct-horse-battery'; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender;
	CREATE PUBLICATION keys FOR TABLE rk_apikeys.api_keys; CREATE PUBLICATION usage FOR TABLE rk_apikeys.key_usage});
{
	my $hba = $origin->data_dir . '/pg_hba.conf';
	my $rest = slurp_file($hba);
	unlink $hba;
	append_to_file($hba, "local all sender scram-sha-256\n$rest");
	$origin->reload;
}

# Keys and uses from before there was a node
my $token = keys_of_every_state($origin);
my $expected = expected_verdicts();
is_deeply(verdicts($origin, $token), $expected, 'verdicts at the origin');
my ($id, $used) = create_key($origin, 'used');
sql_as($origin, 'backend', "SELECT rk_apikeys.verify('$used')") foreach 1 .. 4;
my $n = 4;
my $table = "SELECT coalesce(max(use_count), 0) FROM rk_apikeys.key_usage WHERE key_id = '$id'";
ok($origin->poll_query_until('postgres', "SELECT ($table) = $n"), 'uses at the origin');

# Here has what others have used too, there knows what it has sent
my $conninfo = sprintf 'host=%s port=%s', $origin->host, $origin->port;
my %node = map { $_ => rk_node($_, PRELOAD, 'wal_retrieve_retry_interval = 100', "rk_apikeys.usage_flush_interval = '100ms'",
		"rk_apikeys.primary_conninfo = '$conninfo user=sender passfile=$dir/passfile'") } qw(here there);
my %publications = (here => 'keys, usage', there => 'keys');
foreach my $name (sort keys %node)
{
	$node{$name}->safe_psql('postgres', "CREATE SUBSCRIPTION $name CONNECTION '$conninfo dbname=postgres user=postgres' PUBLICATION $publications{$name}");
	$node{$name}->wait_for_subscription_sync($origin, $name);
}
sub applied { $origin->wait_for_catchup($_) foreach sort keys %node; }

my $rows = 'SELECT string_agg(k::text, $$;$$ ORDER BY key_id) FROM rk_apikeys.api_keys k';
my $all = $origin->safe_psql('postgres', $rows);
my %session = map { $_ => session($node{$_}, 'backend') } sort keys %node;
foreach my $name (sort keys %node)
{
	is($node{$name}->safe_psql('postgres', $rows), $all, "$name: the rows are copied as they are");
	is_deeply(verdicts($node{$name}, $token), $expected, "$name: and verify the same");
	is($node{$name}->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_events'), '0', "$name: without events");
	is(code($session{$name}, $used), 'valid', "$name: and the one to be used");
	$n++;
}

# Uses come back, each once, also those of a key that is used everywhere
foreach my $round (1 .. 5)
{
	foreach my $server ($origin, values %node)
	{
		sql_as($server, 'backend', join ';', ("SELECT rk_apikeys.verify('$used')") x 10);
		$n += 10;
	}
}

sub settled
{
	my ($what) = @_;
	foreach my $server (values %node, $origin)
	{
		$server->poll_query_until('postgres', 'SELECT pending_keys = 0 FROM rk_apikeys.stats') or die 'something stays pending';
	}
	is($origin->safe_psql('postgres', $table), $n, "$what: the origin has every use, once");
	is(use_count($origin, $id), $n, "$what: its view says so");
	is($origin->safe_psql('postgres', "SELECT sum(uses) FROM rk_apikeys.key_usage_daily WHERE key_id = '$id'"), $n, "$what: by the day, too");
}
settled('from three servers');
is($origin->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.usage_senders'), '2', 'of whom two have sent it');
applied();
is(use_count($node{here}, $id), $n, 'here: the view has what others have used');
cmp_ok(use_count($node{there}, $id), '<=', $n, 'there: not more than that');
is($node{there}->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_usage'), '0', 'there: the table is empty');
is(sql_as($node{there}, 'boss', 'SELECT rk_apikeys.flush_usage()'), '0', 'there: and flush_usage() leaves it so');
sql_as($node{there}, 'backend', "SELECT rk_apikeys.verify('$used')");
$n++;
settled('one more');
is(use_count($node{there}, $id), $n, 'there: what it has sent came back with what all have used');

# A change arrives, at sessions that have the key cached
foreach my $change (
	[ "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$id'", 'disabled' ],
	[ "UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = '$id'", 'valid' ],
	[ "SELECT rk_apikeys.revoke_key('$id')", 'revoked' ])
{
	my ($sql, $code) = @$change;
	sql_as($origin, 'acme', $sql);
	applied();
	is_deeply([ map { code($session{$_}, $used) } sort keys %node ], [ ($code) x 2 ], "$code everywhere: $sql");
	$n += 2 if $code eq 'valid';
}
settled('revoked');
ok($origin->poll_query_until('postgres', "SELECT denied_count = 4 FROM rk_apikeys.key_usage WHERE key_id = '$id'"), 'denials come back too');

# Until it is applied a node goes on as it was
my ($late_id, $late) = create_key($origin, 'late');
applied();
$node{there}->safe_psql('postgres', 'ALTER SUBSCRIPTION there DISABLE');
$node{there}->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL") or die 'still applying';
sql_as($origin, 'acme', "SELECT rk_apikeys.revoke_key('$late_id')");
$origin->wait_for_catchup('here');
is(code($session{here}, $late), 'revoked', 'here: revoked');
is(code($session{there}, $late), 'valid', 'there: cut off, and valid');
$node{there}->safe_psql('postgres', 'ALTER SUBSCRIPTION there ENABLE');
$node{there}->poll_query_until('postgres', "SELECT revoked_at IS NOT NULL FROM rk_apikeys.api_keys WHERE key_id = '$late_id'") or die 'not applied';
is(code($session{there}, $late), 'revoked', 'there: revoked once that is applied');

# A key that is changed on a node: the origin's next change of it takes its place, whole, a revocation on the node included
my ($both_id, $both) = create_key($origin, 'changed in two places');
applied();
sql_as($node{there}, 'acme', "SELECT rk_apikeys.revoke_key('$both_id', 'on the node')");
is(code($session{there}, $both), 'revoked', 'there: revoked on the node');
is(code($session{here}, $both), 'valid', 'here: nobody knows');
sql_as($origin, 'acme', "UPDATE rk_apikeys.keys SET name = 'renamed' WHERE key_id = '$both_id'");
applied();
is(code($session{there}, $both), 'valid', 'there: the row of the origin is back');
is($node{there}->safe_psql('postgres', "SELECT name, revoked_at IS NULL FROM rk_apikeys.api_keys WHERE key_id = '$both_id'"), 'renamed|t', 'whole');

# One that is deleted on a node stays so, and the rest goes on
sql_as($node{there}, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$both_id'");
sql_as($origin, 'acme', "UPDATE rk_apikeys.keys SET name = 'again' WHERE key_id = '$both_id'");
applied();
is(code($session{there}, $both), 'unknown', 'there: deleted on the node');
is(code($session{here}, $both), 'valid', 'here: not');

# A key that is made on a node is the node's alone, and its use nobody's
my ($own_id, $own) = create_key($node{there}, 'own to the node');
is(code($session{there}, $own), 'valid', 'there: a key of its own');
is(sql_as($origin, 'backend', "SELECT code FROM rk_apikeys.verify_key('$own')"), 'unknown', 'the origin does not know it');

# The same key id on both sides stops what is applied there, until the node's row goes
my $twin = "SELECT row_to_json(k)::text FROM rk_apikeys.api_keys k WHERE key_id = '$own_id'";
my $row = $node{there}->safe_psql('postgres', $twin);
my $offset = -s $node{there}->logfile;
# 18 has words of its own for it
my $duplicate = qr/(duplicate key value violates unique constraint "api_keys_pkey"|conflict=insert_exists)/;
$origin->safe_psql('postgres', "INSERT INTO rk_apikeys.api_keys SELECT (json_populate_record(NULL::rk_apikeys.api_keys, \$json\$$row\$json\$)).*");
$node{there}->wait_for_log(qr/ERROR: .*$duplicate/, $offset);
pass('there: a duplicate key id is an error of the subscription');
my ($behind_id, $behind) = create_key($origin, 'behind it');
$origin->wait_for_catchup('here');
is(code($session{there}, $behind), 'unknown', 'there: what comes behind it waits');
is(code($session{here}, $behind), 'valid', 'here: it does not');
is($node{there}->safe_psql('postgres', "SELECT apply_error_count > 0 FROM pg_stat_subscription_stats WHERE subname = 'there'"), 't',
	'there: pg_stat_subscription_stats counts it');
$node{there}->safe_psql('postgres', "DELETE FROM rk_apikeys.api_keys WHERE key_id = '$own_id'");
applied();
is(code($session{there}, $behind), 'valid', 'there: applied once the row of the node is gone');
is(code($session{there}, $own), 'valid', 'there: with the row of the origin');

is_deeply([ grep { $_ !~ $duplicate } logged($node{$_}, qr/ERROR/) ], [], "$_: nothing else failed") foreach sort keys %node;
$_->quit foreach values %session;
$node{$_}->safe_psql('postgres', "DROP SUBSCRIPTION $_") foreach sort keys %node;

# Without a subscription a server writes its own use again, whatever the setting says
sql_as($node{there}, 'backend', "SELECT rk_apikeys.verify('$own')");
ok($node{there}->poll_query_until('postgres', "SELECT use_count > 0 FROM rk_apikeys.key_usage WHERE key_id = '$own_id'"),
	'there: no subscriber any more, and on its own');

done_testing();
