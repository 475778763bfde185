# test/t/018_standby.pl: verify runs on a hot standby with the same verdicts, and a session there that has a key cached sees its end once that
# is replayed.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use Test::More;

foreach my $preloaded (0, 1)
{
	my $with = $preloaded ? 'preloaded' : 'not preloaded';
	my $primary = PostgreSQL::Test::Cluster->new("primary$preloaded");
	$primary->init(allows_streaming => 1, extra => INITDB);
	$primary->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'\n" . ($preloaded ? PRELOAD : ''));
	$primary->start;
	# PostgreSQL 17 gives a library shared memory without preload.
	my $shared = $preloaded || $primary->pg_version >= 17;
	rk_extend($primary);
	my $token = keys_of_every_state($primary);
	my $expected = expected_verdicts();

	$primary->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new("standby$preloaded");
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->start;
	my $replayed = sub { $primary->wait_for_catchup($standby, 'replay') };
	$replayed->();

	is_deeply(verdicts($standby, $token), $expected, "$with: same verdicts on the standby");
	my %session = map { $_ => session($standby, 'backend') } 'autocommit', 'repeatable read';
	my ($id, $toggled) = create_key($primary, 'toggled');
	# The primary removes no row that the session below may see: its removal would cancel that session.
	my $holder = session($primary, 'backend');
	$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$replayed->();
	$session{'repeatable read'}->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	is_deeply([ map { code($_, $toggled) } (values %session) x 2 ], [ ('valid') x 4 ], "$with: a new key");

	foreach my $change (
		[ q{UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = 'ID'}, 'disabled' ],
		[ q{UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = 'ID'}, 'valid' ],
		[ q{SELECT FROM rk_apikeys.rotate_key('ID', '0')}, 'rotated' ],
		[ q{SELECT rk_apikeys.revoke_key('ID')}, 'revoked' ],
		[ q{DELETE FROM rk_apikeys.keys WHERE key_id = 'ID'}, 'unknown' ])
	{
		my ($sql, $code) = @$change;
		$sql =~ s/ID/$id/;
		sql_as($primary, 'acme', $sql);
		$replayed->();
		is_deeply([ map { code($_, $toggled) } (values %session) x 2 ], [ ($code) x 4 ], "$with: $code on the standby: $sql");
	}
	$_->query_safe('COMMIT') foreach $session{'repeatable read'}, $holder;

	# Use on the standby is told there, if it is in shared memory, and flushed by nobody while it is one
	my ($used_id, $used) = create_key($primary, 'used');
	$replayed->();
	is(code($session{autocommit}, $used), 'valid', "$with: another new key") foreach 1 .. 3;
	is(use_count($standby, $used_id), $shared ? 3 : 0, "$with: its uses on the standby");
	is(use_count($primary, $used_id), 0, "$with: are not known to the primary");
	is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'rk_apikeys flush'"), '0',
		"$with: no flush worker runs in recovery");
	is_deeply([ logged($standby, qr/ERROR/) ], [], "$with: nothing failed on the standby");

	# Promoted, it flushes what it has
	$standby->promote;
	is(code($session{autocommit}, $used), 'valid', "$with: verified after the promotion");
	ok($standby->poll_query_until('postgres', "SELECT use_count = " . ($shared ? 4 : 1) .
			" FROM rk_apikeys.key_usage WHERE key_id = '$used_id'"), "$with: and the uses are in the table");
	sql_as($standby, 'acme', "UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$used_id'");
	is(code($session{autocommit}, $used), 'disabled', "$with: disabled after the promotion");

	$_->quit foreach values %session, $holder;
	$_->stop foreach $standby, $primary;
}

done_testing();
