# test/t/016_subscriber.pl: a change on a publisher, applied by logical replication, is seen by a session of the subscriber that has the
# key cached.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $publisher = rk_node('publisher', 'wal_level = logical', 'max_wal_senders = 5', PRELOAD);
my $subscriber = rk_node('subscriber', PRELOAD, 'rk_apikeys.notify = on');
my $token = keys_of_every_state($publisher);
my $expected = expected_verdicts();

$publisher->safe_psql('postgres', 'CREATE PUBLICATION keys FOR TABLE rk_apikeys.api_keys');
my $conninfo = $publisher->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION keys CONNECTION '$conninfo' PUBLICATION keys");
$subscriber->wait_for_subscription_sync($publisher, 'keys');

my $rows = 'SELECT string_agg(k::text, $$;$$ ORDER BY key_id) FROM rk_apikeys.api_keys k';
is($subscriber->safe_psql('postgres', $rows), $publisher->safe_psql('postgres', $rows), 'the rows are copied as they are');
is_deeply(verdicts($subscriber, $token), $expected, 'and verify the same');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM rk_apikeys.key_events'), '0', 'the copy adds no events');

my %session = map { $_ => session($subscriber, 'backend') } 'autocommit', 'repeatable read';
my ($id, $toggled) = create_key($publisher, 'toggled');

sub applied { $publisher->wait_for_catchup('keys'); }

# Changes on the publisher, and the code on the subscriber
my @changes = (
	[ q{UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = 'ID'}, 'disabled' ],
	[ q{UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = 'ID'}, 'valid' ],
	[ q{UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = 'ID'}, 'disabled' ],
	[ q{UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = 'ID'}, 'valid' ],
	[ q{SELECT FROM rk_apikeys.rotate_key('ID', '0')}, 'rotated' ],
	[ q{SELECT rk_apikeys.revoke_key('ID')}, 'revoked' ],
	[ q{DELETE FROM rk_apikeys.keys WHERE key_id = 'ID'}, 'unknown' ]);

applied();
my $listener = session($subscriber, 'acme');
$listener->query_safe('LISTEN rk_apikeys');
$session{'repeatable read'}->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
is(code($session{$_}, $toggled), 'valid', "valid after its creation, $_") foreach sort keys %session;
ok($subscriber->poll_query_until('postgres', 'SELECT pending_keys > 0 FROM rk_apikeys.stats'), 'its use is recorded there');
foreach my $change (@changes)
{
	my ($sql, $code) = @$change;
	$sql =~ s/ID/$id/;
	sql_as($publisher, 'acme', $sql);
	applied();
	is_deeply([ map { code($_, $toggled) } values %session, values %session ], [ ($code) x 4 ], "$code: $sql");
}
$session{'repeatable read'}->query_safe('COMMIT');
my $heard = $listener->query_safe("NOTIFY rk_apikeys, 'end'");
like($heard, qr/payload "end"/, 'a listener there hears');
# Of a use after a key's end a flush tells, on each server
unlike($heard, qr/"event": "(?!used_after_end)/, 'nothing of changes that are applied');

# A key that was used there goes with its usage.
my ($used_id, $used) = create_key($publisher, 'used');
applied();
sql_as($subscriber, 'backend', "SELECT rk_apikeys.verify('$used')");
sql_as($subscriber, 'boss', 'SELECT rk_apikeys.flush_usage()');
my $usage = "SELECT count(*) FROM rk_apikeys.key_usage WHERE key_id = '$used_id'";
is($subscriber->safe_psql('postgres', $usage), '1', 'a use is flushed to the table of the subscriber');
sql_as($publisher, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$used_id'");
applied();
is($subscriber->safe_psql('postgres', $usage), '0', 'and deleted with the key');

# The first imported key, and the end of all
$publisher->safe_psql('postgres', q{DELETE FROM rk_apikeys.api_keys WHERE digest_kind <> 'native'});
applied();
is(code($session{$_}, $token->{imported}), 'malformed', "no imported key, $_") foreach sort keys %session;
sql_as($publisher, 'boss', qq{SELECT rk_apikeys.import_key('again', sha256('$token->{imported}'), 'sha256', tenant => 'acme')});
applied();
is(code($session{$_}, $token->{imported}), 'valid', "an imported key, $_") foreach sort keys %session;
is(code($session{$_}, $token->{active}), 'valid', "before TRUNCATE, $_") foreach sort keys %session;
$publisher->safe_psql('postgres', 'TRUNCATE rk_apikeys.api_keys');
applied();
is(code($session{$_}, $token->{active}), 'unknown', "after TRUNCATE, $_") foreach sort keys %session;

is_deeply([ logged($subscriber, qr/ERROR/) ], [], 'nothing failed on the subscriber');
$_->quit foreach values %session;
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION keys');
done_testing();
