# test/t/099_limit_changes.pl: limits that change under load: what was used stays used, and each verify that starts after COMMIT goes by the
# new row, on every session.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = rk_node('changes', PRELOAD, 'max_connections = 60', 'max_prepared_transactions = 5');
my ($id, $token) = create_key($node, 'key');
my ($calm_id, $calm) = create_key($node, 'calm', "environment => 'stage'");
my $boss = session($node, 'boss');
my $backend = session($node, 'backend');

sub limit
{
	my ($columns, $values) = @_;
	return $boss->query_safe("INSERT INTO rk_apikeys.limits (tenant, $columns) VALUES ('acme', $values) RETURNING limit_id");
}

sub ask
{
	my ($cost, $which) = @_;
	return $backend->query_safe("SELECT concat_ws(' ', code, limit_units, limit_remaining) FROM rk_apikeys.verify_key('" . ($which // $token) . "', cost => $cost)");
}

# --- what was used stays used --------------------------------------------------------------------------------------------

foreach my $kind ('period', 'rate_window')
{
	my $limit = limit("name, units, $kind", $kind eq 'period' ? "'quota', 10, 'month'" : "'rate', 10, '60 days'");
	my $code = $kind eq 'period' ? 'quota_exceeded' : 'rate_limited';
	my $units = sub { $boss->query_safe("UPDATE rk_apikeys.limits SET units = $_[0] WHERE limit_id = '$limit'") };
	is(ask(10), 'valid 10 0', "$kind: ten of ten");
	is(ask(1), "$code 10 0", "$kind: used up");
	$units->(1000);
	is(ask(1), 'valid 1000 989', "$kind: raised to 1000, 990 remain at once");
	$units->(500);
	is(ask(1), 'valid 500 488', "$kind: lowered to 500");
	$units->(5);
	is(ask(1), "$code 5 0", "$kind: lowered below what was used, nothing remains");
	$units->(13);
	# A rate limit forgets what is beyond its units.
	is(ask(1), $kind eq 'period' ? 'valid 13 0' : 'valid 13 7', "$kind: and raised again, what was used is still known");
	$boss->query_safe("SELECT rk_apikeys.reset_limit('$limit')");
	is(ask(1), 'valid 13 12', "$kind: a reset forgets it");
	$boss->query_safe("BEGIN; UPDATE rk_apikeys.limits SET units = 100 WHERE limit_id = '$limit'");
	is(ask(1), 'valid 13 11', "$kind: a raise that is not committed is none");
	$boss->query_safe('ROLLBACK');
	is(ask(1), 'valid 13 10', "$kind: nor one that is rolled back");
	$boss->query_safe("BEGIN; SAVEPOINT s; UPDATE rk_apikeys.limits SET units = 100 WHERE limit_id = '$limit'; ROLLBACK TO s; COMMIT");
	is(ask(1), 'valid 13 9', "$kind: nor to a savepoint");
	$boss->query_safe("BEGIN; UPDATE rk_apikeys.limits SET units = 20 WHERE limit_id = '$limit'; PREPARE TRANSACTION 'raise'");
	is(ask(1), 'valid 13 8', "$kind: nor one that is prepared");
	$boss->query_safe("COMMIT PREPARED 'raise'");
	is(ask(1), 'valid 20 14', "$kind: until it is committed");
	$boss->query_safe("DELETE FROM rk_apikeys.limits WHERE limit_id = '$limit'");
	is(ask(1000), 'valid', "$kind: without the row nothing is limited");
}

# --- a race: N sessions, one change after the other ----------------------------------------------------------------------

my $limit = limit('name, units, period', "'quota', 1000000, 'total'");
my @sessions = map { session($node, 'backend') } 1 .. 20;
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/load.sql", "SELECT code FROM rk_apikeys.verify_key('$token');\n");
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-T', 3600, '-U', 'backend', '-f', "$dir/load.sql", '-h', $node->host, '-p', $node->port, 'postgres' ],
	'>', \my $printed, '2>', \my $warned);
my ($stale, $answers) = (0, 0);
foreach my $round (1 .. 100)
{
	my $units = 1000000 + $round;
	$boss->query_safe("UPDATE rk_apikeys.limits SET units = $units WHERE limit_id = '$limit'");
	foreach my $session (@sessions)
	{
		$answers++;
		$stale++ if $session->query_safe("SELECT limit_units FROM rk_apikeys.verify_key('$token')") ne $units;
	}
}
is("$stale of $answers", '0 of 2000', 'no verify that starts after COMMIT goes by an old row');
# A new limit, a limit that binds another key instead, and one that is gone
my ($unseen, $kept) = (0, 0);
foreach my $round (1 .. 20)
{
	my $new = limit('name, environment, units, period', "'stage', 'stage', $round, 'day'");
	foreach my $session (@sessions) { $unseen++ if $session->query_safe("SELECT limit_name FROM rk_apikeys.verify_key('$calm', environment => 'prod')") ne ''; }
	my $first = $sessions[ $round % 20 ]->query_safe("SELECT limit_name, limit_units FROM rk_apikeys.verify_key('$calm')");
	$unseen++ if $first ne "stage|$round";
	$boss->query_safe("DELETE FROM rk_apikeys.limits WHERE limit_id = '$new'");
	foreach my $session (@sessions) { $kept++ if $session->query_safe("SELECT limit_name FROM rk_apikeys.verify_key('$calm')") ne 'quota'; }
}
is("$unseen $kept", '0 0', 'a new row binds at once, and a deleted one at once no more');
# Resets under load: each begins anew at that moment
my $late = 0;
foreach my $round (1 .. 50)
{
	my $before = $boss->query_safe("SELECT rk_apikeys.reset_limit('$limit'); SELECT clock_timestamp()");
	my $remaining = $sessions[ $round % 20 ]->query_safe("SELECT limit_units - limit_remaining FROM rk_apikeys.verify_key('$token')");
	$late++ if $remaining > 20000;
}
is($late, 0, 'so does a reset');
$load->kill_kill;
eval { $load->finish };

# --- exact: many sessions take from one bucket ---------------------------------------------------------------------------

foreach my $kind ('period', 'rate_window')
{
	$boss->query_safe('DELETE FROM rk_apikeys.limits');
	limit("name, units, $kind", $kind eq 'period' ? "'shared', 5000, 'total'" : "'shared', 5000, '366 days'");
	unlink "$dir/take.sql";
	append_to_file("$dir/take.sql", "SELECT code = 'valid' AS taken FROM rk_apikeys.verify_key('$token') \\gset\n\\if :taken\nINSERT INTO taken VALUES (1);\n\\endif\n");
	$node->safe_psql('postgres', 'DROP TABLE IF EXISTS taken; CREATE UNLOGGED TABLE taken (n int); GRANT INSERT ON taken TO backend');
	$node->command_ok([ 'pgbench', '-n', '-c', 32, '-t', 250, '-U', 'backend', '-f', "$dir/take.sql", '-h', $node->host, '-p', $node->port, 'postgres' ],
		"$kind: 32 sessions ask 8,000 times for 5,000");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM taken'), '5000', "$kind: and get as many as there are");
}
$_->quit foreach @sessions, $boss, $backend;
done_testing();
