# test/t/049_event_numbers.pl: events that a restore of rows alone, logical replication or COPY brought do not make the next change fail.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $origin = rk_node('origin', 'wal_level = logical', 'max_wal_senders = 5', PRELOAD);
my @keys = map { [ create_key($origin, "key $_") ] } 1 .. 6;
$origin->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
my $dump = $PostgreSQL::Test::Utils::tmp_check . '/rows.sql';
command_ok([ 'pg_dump', '-d', $origin->connstr('postgres'), '-f', $dump, '--data-only',
	'-t', 'rk_apikeys.api_keys', '-t', 'rk_apikeys.key_events' ], 'the rows of two tables are dumped');

# How the rows come to another server
my %bring = (
	'a restore of rows alone' => sub {
		my ($node) = @_;
		$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', $dump ], 'restored');
	},
	'logical replication of all tables' => sub {
		my ($node) = @_;
		my $conninfo = $origin->connstr . ' dbname=postgres';
		$node->safe_psql('postgres', "CREATE SUBSCRIPTION everything CONNECTION '$conninfo' PUBLICATION everything");
		$node->wait_for_subscription_sync($origin, 'everything');
		$node->safe_psql('postgres', 'DROP SUBSCRIPTION everything');
	},
	'COPY' => sub {
		my ($node) = @_;
		foreach my $table ('api_keys', 'key_events')
		{
			my $file = $PostgreSQL::Test::Utils::tmp_check . "/$table.copy";
			$origin->safe_psql('postgres', "COPY rk_apikeys.$table TO '$file'");
			$node->safe_psql('postgres', "COPY rk_apikeys.$table FROM '$file'");
		}
	});

my $number = 0;
foreach my $how (sort keys %bring)
{
	my $node = rk_node('copy' . ++$number, PRELOAD);
	my $early = session($node, 'acme');
	$early->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$bring{$how}->($node);
	my $events = $node->safe_psql('postgres', 'SELECT max(event_id) FROM rk_apikeys.key_events');
	cmp_ok($events, '>=', 6, "$how: the events are there");

	# A snapshot from before the events does not see them.
	$early->query_safe(q{SELECT rk_apikeys.create_key('early')});
	$early->query_safe('COMMIT');
	is(sql_as($node, 'acme', "SELECT rk_apikeys.revoke_key('$keys[0][0]')"), 't', "$how: the first revoke_key works");
	is(sql_as($node, 'backend', "SELECT rk_apikeys.revoke_token('$keys[1][1]')"), 't', "$how: revoke_token too");
	is($node->safe_psql('postgres', 'SELECT count(*), min(event_id) FROM rk_apikeys.key_events WHERE event_id > ' . $events),
		'3|' . ($events + 1), "$how: their events follow the others");
	$early->quit;

	# The first to write an event may also be a purge.
	$node->safe_psql('postgres', q{SELECT setval('rk_apikeys.key_events_event_id_seq', 1, false)});
	$node->safe_psql('postgres', 'UPDATE rk_apikeys.key_events SET occurred_at = occurred_at - interval $$2 days$$ WHERE event_id < 3');
	is(sql_as($node, 'boss', q{SELECT rk_apikeys.purge_events('1 day')}), '2', "$how: purge_events works");

	# Sessions that find the sequence behind at the same moment
	$node->safe_psql('postgres', q{SELECT setval('rk_apikeys.key_events_event_id_seq', 1, false)});
	my @sessions = map { session($node, 'acme') } 1 .. 4;
	$_->query_safe('BEGIN') foreach @sessions;
	$sessions[$_]->query_safe("SELECT rk_apikeys.revoke_key('$keys[2 + $_][0]')") foreach 0 .. 3;
	$_->query_safe('COMMIT') foreach @sessions;
	$_->quit foreach @sessions;
	is($node->safe_psql('postgres', q{SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'revoked'}), '6',
		"$how: four sessions at once");
	$node->stop;
}

# The update sets the sequence.
install_release('0.2');
$origin->safe_psql('postgres', 'CREATE DATABASE old');
$origin->safe_psql('old', q{CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE});
create_key($origin, "key $_", undef, 'acme', 'old') foreach 1 .. 3;
my $last = 'SELECT last_value, is_called FROM rk_apikeys.key_events_event_id_seq';
my $was = $origin->safe_psql('old', $last);
$origin->safe_psql('old', q{SELECT setval('rk_apikeys.key_events_event_id_seq', 1, false)});
$origin->safe_psql('old', 'ALTER EXTENSION rk_apikeys UPDATE');
is($origin->safe_psql('old', $last), $was, 'the update sets the sequence after the last event');
done_testing();
