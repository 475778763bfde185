# test/t/034_notify.pl: what rk_apikeys.notify tells a session that listens, and what it does not.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use JSON::PP;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('notify', PRELOAD, 'max_prepared_transactions = 2');
my $json = JSON::PP->new->canonical;

# A role that may do nothing here but log in: whoever can connect can listen.
$node->safe_psql('postgres', 'CREATE ROLE bystander LOGIN');
my $listener = session($node, 'bystander');
$listener->query_safe('LISTEN rk_apikeys');

# The payloads that came since the last call. Notifications come in the order of their commits, so one that is sent now comes last.
sub heard
{
	my ($output, @payloads) = ('');
	$node->safe_psql('postgres', q{NOTIFY rk_apikeys, 'end'});
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$output .= $listener->query_safe('SELECT pg_sleep(0.1)') . "\n";
		last if $output =~ /payload "end"/;
	}
	push @payloads, $1 while $output =~ /Asynchronous notification "rk_apikeys" with payload "(.*)" received/g;
	is(pop @payloads, 'end', 'the listener is there');
	return @payloads;
}

# What the events since the last call look like as payloads.
my $last = 0;
sub told
{
	my @rows = split /\n/, $node->safe_psql('postgres', "SELECT event_id, event, key_id FROM rk_apikeys.key_events WHERE event_id > $last ORDER BY 1");
	my @payloads = map { my ($id, $event, $key) = split /\|/; $last = $id; qq({"event": "$event", "key_id": "$key"}) } @rows;
	return @payloads;
}

# --- off ----------------------------------------------------------------------------------------------------------------

my ($id) = create_key($node, 'before');
is(scalar(told()), 1, 'a key was made');
is_deeply([ heard() ], [], 'by default nothing is sent');

my ($status, $out, $error) = $node->psql('postgres', "\\set VERBOSITY verbose\nSET rk_apikeys.notify = on", extra_params => [ '-U', 'acme' ]);
like($error, qr/ERROR:  42501: permission denied to set parameter "rk_apikeys.notify"/, 'who is no superuser cannot set it');

# --- on -----------------------------------------------------------------------------------------------------------------

$node->safe_psql('postgres', 'ALTER DATABASE postgres SET rk_apikeys.notify = on');
my ($key, $token) = create_key($node, q{a "name" – with \ all}, "description => 'HubSpot', metadata => '{\"a\": 1}'");
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET $_ WHERE key_id = '$key'")
  foreach q{name = 'renamed'}, 'enabled = false', 'enabled = true', 'enabled = true';
sql_as($node, 'acme', "SELECT rk_apikeys.rotate_key('$key')");
sql_as($node, 'backend', "SELECT rk_apikeys.revoke_token('$token')");
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$key'");
sql_as($node, 'boss', "SELECT rk_apikeys.import_key('imported', sha256('legacy-key-0123456789'), 'sha256', tenant => 'acme')");
my @told = told();
my @heard = heard();
is_deeply(\@heard, \@told, 'each event is sent once, in order');
is(join(' ', map { $json->decode($_)->{event} } @heard), 'created updated disabled enabled rotated created revoked deleted imported', 'of every kind');
is_deeply([ grep { join(' ', sort keys %{ $json->decode($_) }) ne 'event key_id' } @heard ], [], 'with event and key_id and nothing else');
is(scalar(grep { $json->decode($_)->{key_id} eq $key } @heard), 7, 'and the key id that it is about');

sql_as($node, 'boss', q{SELECT rk_apikeys.purge_events('0')});
is_deeply([ heard() ], [], 'a purge of events is no change of a key');
told();

# --- transactions -------------------------------------------------------------------------------------------------------

my $acme = session($node, 'acme');
$acme->query_safe(q{BEGIN; INSERT INTO rk_apikeys.keys (name) VALUES ('a'), ('b'), ('c')});
is_deeply([ heard() ], [], 'before COMMIT nothing is sent');
$acme->query_safe('COMMIT');
@told = told();
is_deeply([ heard() ], \@told, 'after it a notification per key');
is(scalar(@told), 3, 'of three');

$acme->query_safe(q{BEGIN; UPDATE rk_apikeys.keys SET enabled = false; ROLLBACK});
is_deeply([ heard() ], [], 'what is rolled back sends nothing');

$acme->query_safe(q{BEGIN; UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'a'; SAVEPOINT s;
	UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'b'; ROLLBACK TO s; UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'c'; COMMIT});
@told = told();
is_deeply([ heard() ], \@told, 'nor what is rolled back to a savepoint');
is(scalar(@told), 2, 'of two keys');

$acme->query_safe(q{BEGIN; UPDATE rk_apikeys.keys SET name = 'a1' WHERE name = 'a'; UPDATE rk_apikeys.keys SET name = 'a2' WHERE name = 'a1'; COMMIT});
@told = told();
is(scalar(@told), 2, 'two changes of one kind are two events');
is_deeply([ heard() ], [ $told[0] ], 'and one notification in a transaction, since they say the same');

# --- prepared transactions ----------------------------------------------------------------------------------------------

($status, $out, $error) = $node->psql('postgres', q{BEGIN; UPDATE rk_apikeys.keys SET name = 'p' WHERE name = 'b'; PREPARE TRANSACTION 'p'}, extra_params => [ '-U', 'acme' ]);
like($error, qr/cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY/, 'a change cannot be prepared');
is(sql_as($node, 'acme', q{SELECT count(*) FROM rk_apikeys.keys WHERE name = 'p'}), '0', 'and is not made');
$node->safe_psql('postgres', q{SET rk_apikeys.notify = off; BEGIN; UPDATE rk_apikeys.keys SET name = 'p' WHERE name = 'b'; PREPARE TRANSACTION 'p'});
$node->safe_psql('postgres', q{COMMIT PREPARED 'p'});
is_deeply([ map { $json->decode($_)->{event} } told() ], ['updated'], 'where a superuser turns it off, it can');
is_deeply([ heard() ], [], 'and sends nothing');

# --- many keys ----------------------------------------------------------------------------------------------------------

# A session hears its own notifications too, and psql prints them.
my $file = PostgreSQL::Test::Utils::tempdir . '/bulk';
my @psql = ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', $node->host, '-p', $node->port, '-U', 'globex', '-d', 'postgres');
PostgreSQL::Test::Utils::system_or_bail(@psql, '-o', $file, '-c', 'LISTEN rk_apikeys', '-c',
	q{INSERT INTO rk_apikeys.keys (name) SELECT 'bulk ' || n FROM generate_series(1, 100000) n});
my %seen;
$seen{$_}++ foreach slurp_file($file) =~ /payload "(\{"event": "created", "key_id": "[0-9A-Za-z]{12}"\})"/g;
is(scalar(keys %seen), 100000, 'a statement that makes 100,000 keys sends as many notifications');
is(scalar(heard()), 100000, 'to others too');

# --- a queue that is nearly full ----------------------------------------------------------------------------------------

# Before 17 it takes 8 GB.
SKIP:
{
	skip 'the size of the notification queue can be set from 17 on', 4 if $node->pg_version < 17;
	$listener->quit;
	$node->append_conf('postgresql.conf', 'max_notify_queue_pages = 64');
	$node->restart;
	my $idle = session($node, 'bystander');
	$idle->query_safe('LISTEN anything; BEGIN; SELECT 1');
	# each until one does not fit any more
	$node->psql('postgres', join("\n", ("SELECT pg_notify('anything', repeat('x', 7900));") x 70, ("NOTIFY anything, 'x';") x 200), on_error_stop => 0);
	($status, $out, $error) = $node->psql('postgres', q{NOTIFY anything, 'x'});
	like($error, qr/too many notifications in the NOTIFY queue/, 'a session that listens and does not read fills the queue');
	($status, $out, $error) = $node->psql('postgres', "SELECT rk_apikeys.revoke_key('$id')", extra_params => [ '-U', 'acme' ]);
	is($status, 0, 'whoever blocks the notification queue does not hinder a revocation');
	like($error, qr/WARNING:  skipping notifications of API key changes: the notification queue is \d+% full/, 'which warns');
	$idle->quit;
	($status, $out, $error) = $node->psql('postgres', q{UPDATE rk_apikeys.keys SET description = 'again'}, extra_params => [ '-U', 'acme' ]);
	is($error, '', 'and does no more when there is room');
}

done_testing();
