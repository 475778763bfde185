# test/t/074_events_since.pl: a follower gets each committed event once by events_since(): past slow, prepared and rolled-back transactions,
# on a standby, over a promotion that lost transactions, a restore, logical replication and a purge.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What a follower gets now, in calls of so many events, as the names of the keys that were made; the cursor moves on.
sub follow
{
	my ($node, $cursor, %how) = @_;
	my $max = $how{max} // 1000;
	my @names;
	for (;;)
	{
		my $since = defined $$cursor ? "'$$cursor'" : 'NULL';
		my @rows = split /\n/, sql_as($node, $how{role} // 'boss', "BEGIN READ ONLY;
			SELECT coalesce(changes -> 'name' ->> 'new', event), cursor FROM rk_apikeys.events_since($since, $max); COMMIT");
		push @names, map { (split /\|/)[0] } @rows;
		$$cursor = (split /\|/, $rows[-1])[1] if @rows;
		return "@names" if @rows < $max;
	}
}

sub refused
{
	my ($node, $arguments) = @_;
	my ($status, $out, $error) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT rk_apikeys.events_since($arguments)",
		extra_params => [ '-U', 'boss' ]);
	return join ' ', $error =~ /ERROR:  (\w+):/, $error =~ /(HINT)/;
}

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 'logical', extra => INITDB);
$primary->append_conf('postgresql.conf', PRELOAD . "\nmax_prepared_transactions = 5\nmax_wal_senders = 10");
$primary->start;
rk_extend($primary);
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
sub replayed { $primary->wait_for_catchup($standby, 'replay') }

# Open transactions
my ($mine, $theirs, $tenants);
create_key($primary, 'a1');
my $slow = session($primary, 'acme');
my $elsewhere = session($primary, 'postgres');
$elsewhere->query_safe('CREATE TABLE other (n int)');
$elsewhere->query_safe('BEGIN; INSERT INTO other VALUES (1)');
$slow->query_safe(q{BEGIN; SAVEPOINT one; SELECT FROM rk_apikeys.create_key('slow1'); SAVEPOINT two;
	SELECT FROM rk_apikeys.create_key('gone'); ROLLBACK TO two; SELECT FROM rk_apikeys.create_key('slow2')});
sql_as($primary, 'globex', q{BEGIN; SELECT FROM rk_apikeys.create_key('p1'); SELECT FROM rk_apikeys.create_key('p2'); PREPARE TRANSACTION 'p'});
create_key($primary, 'b1', undef, 'globex');
create_key($primary, 'a2');
sql_as($primary, 'acme', q{BEGIN; SELECT rk_apikeys.create_key('undone'); ROLLBACK});
replayed();
is(follow($primary, \$mine, max => 1), 'a1 b1 a2', 'no event waits for an open transaction');
is(follow($standby, \$theirs, max => 2), 'a1 b1 a2', 'nor on a standby');
is(follow($standby, \$tenants, role => 'acme'), 'a1 a2', 'a manager gets the events of its tenant');
is(follow($primary, \$mine), '', 'nothing new');
$slow->query_safe('COMMIT');
create_key($primary, 'a3');
replayed();
is(follow($primary, \$mine, max => 1), 'slow1 slow2 a3', 'the events of a slow transaction come once it has committed');
is(follow($standby, \$theirs, max => 1), 'slow1 slow2 a3', 'on a standby too');
is(follow($standby, \$tenants, role => 'acme', max => 1), 'slow1 slow2 a3', 'and to a manager');

# The standby and the primary are the same history.
sql_as($primary, 'globex', q{COMMIT PREPARED 'p'});
$elsewhere->query_safe(q{SET ROLE boss; SELECT FROM rk_apikeys.create_key('late', tenant => 'acme'); COMMIT; RESET ROLE});
replayed();
is(follow($primary, \$theirs, max => 1), 'late p1 p2', 'a transaction may write its first event late; a standby\'s cursor continues on the primary')
  or diag $theirs;
is(follow($standby, \$mine, max => 2), 'late p1 p2', 'and the other way round');
is(follow($primary, \$tenants, role => 'acme'), 'late', 'not of another tenant');

# A cursor is ahead of a standby that lags.
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
ok($standby->poll_query_until('postgres', q{SELECT pg_get_wal_replay_pause_state() = 'paused'}), 'replay is paused');
$slow->query_safe(q{BEGIN; SELECT FROM rk_apikeys.create_key('slow3'); SELECT FROM rk_apikeys.create_key('slow4')});
create_key($primary, 'a4');
is(follow($primary, \$mine), 'a4', 'the cursor is ahead of the standby');
$slow->query_safe('COMMIT');
is(follow($standby, \$mine), '', 'which has nothing new');
my $cut = $mine;
is((split / /, follow($primary, \$cut, max => 1))[0], 'slow3', 'the cursor after one of two');
$cut = sql_as($primary, 'boss', "SELECT cursor FROM rk_apikeys.events_since('$mine', 1)");
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
replayed();
is(follow($standby, \$cut), 'slow4', 'a call ends within a transaction, and the standby continues');
is(follow($standby, \$mine), 'slow3 slow4', 'which another follower gets whole');
is(follow($standby, \$theirs), 'slow3 slow4 a4', 'as a third one, in the order of the transactions');

# Events of the caller's own transaction are not committed.
is(sql_as($primary, 'acme', qq{BEGIN; SELECT FROM rk_apikeys.create_key('own');
	SELECT count(*) FROM rk_apikeys.events_since('$mine'); COMMIT}), '0', 'the own transaction is not committed');
$slow->query_safe(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT});
create_key($primary, 'a5');
like($slow->query_safe("SELECT count(*) FROM rk_apikeys.events_since('$mine')"), qr/^1$/, 'an older snapshot has less');
$slow->query_safe('COMMIT');
is(follow($primary, \$mine), 'own a5', 'and all comes after');

# A purge between two calls
sql_as($primary, 'boss', q{SELECT rk_apikeys.purge_events('0', 'globex'), rk_apikeys.purge_events('0')});
is(follow($primary, \$mine), 'purged purged', 'what was purged is gone');
create_key($primary, 'a6');
my $after_purge;
is(follow($primary, \$after_purge), 'purged purged a6', 'the first events may be those of purges');

# Bad input
is(refused($primary, $_), '22023 HINT', "refused: $_")
  foreach 'NULL, NULL', 'NULL, 0', 'NULL, -1', 'NULL, 10001', q{''}, q{'1'}, q{'1:'}, q{'2:/0.1/'}, q{'1:/0.1'}, q{'1:/0/'}, q{'1:/0.1/;'},
  q{'1:/0.1/;/0.2/'}, q{'1:x/0.1/'}, q{'1:1-1/5.1/5'}, q{'1:1-1/5.1/4,4'}, q{'1:1-1/5.1/4,3'}, q{'1:1-1/5.1/4,'}, q{'1:1-1/5.1/4 '},
  q{'1:1-1/99999999999999999999.1/'}, q{'1:1-1/1.9223372036854775808/'}, q{'1:1-1/-1.1/'}, q{repeat('1', 10000000)},
  q{'1:' || repeat('1-1/1.1/;', 20000)}, qq{'1:' || repeat('1-1/5.1/', 1) || repeat('4', 200000)}, qq{'$mine' || ';'};
my ($id, $secret) = create_key($primary, 'leaked');
my (undef, undef, $error) = $primary->psql('postgres', "SELECT rk_apikeys.events_since('$secret')", extra_params => [ '-U', 'boss' ]);
unlike($error, qr/$secret/, 'a token as a cursor is masked');
isnt($primary->psql('postgres', 'SELECT rk_apikeys.events_since()', extra_params => [ '-U', 'backend' ]), 0, 'a verifier has no events');

# A crash: what was running is gone, and its transaction ids may be given again.
follow($primary, \$mine);
$slow->query_safe(q{BEGIN; SELECT FROM rk_apikeys.create_key('lost')});
sql_as($primary, 'acme', q{BEGIN; SELECT FROM rk_apikeys.create_key('p3'); PREPARE TRANSACTION 'p3'});
create_key($primary, 'a7');
is(follow($primary, \$mine), 'a7', 'before the crash');
kill_server($primary);
$primary->start;
create_key($primary, "a8");
sql_as($primary, 'acme', q{COMMIT PREPARED 'p3'});
is(join(' ', sort split / /, follow($primary, \$mine)), 'a8 p3', 'after a crash');
eval { $slow->quit };
eval { $elsewhere->quit };

# Logical replication: a subscriber has an order of its own, and a publisher's cursor continues there.
$primary->safe_psql('postgres', 'CREATE PUBLICATION events FOR TABLE rk_apikeys.api_keys, rk_apikeys.key_events');
my $subscriber = rk_node('subscriber', PRELOAD);
$subscriber->safe_psql('postgres', q{CREATE SUBSCRIPTION events CONNECTION '} . $primary->connstr . q{ dbname=postgres' PUBLICATION events});
$subscriber->wait_for_subscription_sync($primary, 'events');
my ($there, $here) = (undef, $mine);
my $all = follow($subscriber, \$there);
is(follow($subscriber, \$here), '', 'the publisher\'s cursor has had all');
my $first;
is(join(' ', sort split / /, $all), join(' ', sort split / /, follow($primary, \$first)), 'a new follower gets all from the subscriber');
$slow = session($primary, 'acme');
$slow->query_safe(q{BEGIN; SELECT FROM rk_apikeys.create_key('slow5'); SELECT FROM rk_apikeys.create_key('slow6')});
create_key($primary, 'a9');
is(follow($primary, \$mine), 'a9', 'a transaction is open at the publisher');
$primary->wait_for_catchup('events');
is(follow($subscriber, \$there), 'a9', 'also for the subscriber');
my $moves = $mine;
$slow->query_safe('COMMIT');
$slow->quit;
create_key($primary, 'a10');
$primary->wait_for_catchup('events');
is(follow($subscriber, \$there, max => 1), 'slow5 slow6 a10', 'the subscriber\'s follower loses none');
is(follow($subscriber, \$moves, max => 1), 'slow5 slow6 a10', 'nor does the publisher\'s follower that moves there');
is(follow($subscriber, \$moves), '', 'once');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION events');
create_key($subscriber, 's1');
is(follow($subscriber, \$moves), 's1', 'and it continues with the subscriber\'s own');
is(follow($subscriber, \$there), 's1', 'as the other');
is(follow($primary, \$mine), 'slow5 slow6 a10', 'and the publisher\'s own follower');

# A restore into another cluster: transaction ids begin anew.
$slow = session($primary, 'acme');
$slow->query_safe(q{BEGIN; SELECT FROM rk_apikeys.create_key('slow7')});
create_key($primary, 'a11');
is(follow($primary, \$mine), 'a11', 'before a dump');
my $before = $mine;
$slow->query_safe('COMMIT');
$slow->quit;
create_key($primary, 'a12');
my $dump = $PostgreSQL::Test::Utils::tmp_check . '/dump.sql';
command_ok([ 'pg_dump', '-d', $primary->connstr('postgres'), '--exclude-table', 'other', '--no-publications', '--no-subscriptions', '-f', $dump ],
	'a dump');
my $copy = rk_initdb('copy', PRELOAD);
$copy->safe_psql('postgres', "CREATE ROLE $_ LOGIN") foreach qw(acme globex boss backend);
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=0', '-d', $copy->connstr('postgres'), '-f', $dump ], 'restored');
$copy->safe_psql('postgres', 'GRANT rk_apikeys_manager TO acme; GRANT rk_apikeys_admin TO boss');
create_key($copy, 'c1');
my $new;
is(follow($copy, \$before, max => 1), 'slow7 a12 c1', 'a cursor of the old cluster continues in the new one');
like(follow($copy, \$new), qr/ slow7 a11 a12 c1$/, 'and a new follower gets the old events first');
create_key($copy, 'c2');
is(follow($copy, \$_), 'c2', 'and then the new ones') foreach $before, $new;

# Promotion of a standby that lags: what it lacks is lost, and its transaction ids are given again.
replayed();
follow($primary, \$mine);
$theirs = $mine;
$standby->stop;
create_key($primary, "x$_") foreach 1 .. 5;
is(follow($primary, \$mine), 'x1 x2 x3 x4 x5', 'events that the standby does not get');
$primary->stop('immediate');
$standby->start;
$standby->promote;
create_key($standby, "y$_") foreach 1 .. 5;
is(follow($standby, \$mine, max => 2), 'y1 y2 y3 y4 y5', 'after the promotion a follower of the old primary loses none');
is(follow($standby, \$theirs), 'y1 y2 y3 y4 y5', 'nor does the standby\'s');

# SQL and library of 0.2, then the update: the old events come first, in the order of their numbers.
{
	my $old = rk_initdb('old', PRELOAD);
	install_release('0.2');
	$old->safe_psql('postgres', "CREATE EXTENSION rk_apikeys VERSION '0.2' CASCADE; CREATE ROLE acme LOGIN; CREATE ROLE boss LOGIN;
		GRANT rk_apikeys_manager TO acme; GRANT rk_apikeys_admin TO boss");
	sql_as($old, 'acme', "SELECT FROM rk_apikeys.create_key('o$_')") foreach 1 .. 3;
	$old->safe_psql('postgres', 'ALTER EXTENSION rk_apikeys UPDATE');
	my $oldest;
	is(follow($old, \$oldest, max => 2), 'o1 o2 o3', 'events of 0.2');
	create_key($old, 'n1');
	is(follow($old, \$oldest, max => 1), 'n1', 'and then those of 0.3');
}

done_testing();
