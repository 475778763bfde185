# test/t/051_dump_shapes.pl: after a restore of every shape, by a superuser and by a database's owner who is none, and after
# pg_basebackup and a recovery to a moment, the same tokens verify, and rows, grants and numbers are as they were.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('first');
$node->init(allows_streaming => 1, has_archiving => 1, extra => INITDB);
$node->append_conf('postgresql.conf', join "\n", PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
$node->start;
rk_extend($node);
my $token = keys_of_every_state($node);
my $expected = expected_verdicts();
is_deeply(verdicts($node, $token), $expected, 'verdicts in the first cluster');

# A role of one's own with less than a group role: its grants are part of the access policy.
$node->safe_psql('postgres', 'CREATE ROLE sender LOGIN; GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage TO sender;
	GRANT SELECT (name) ON rk_apikeys.api_keys TO sender; CREATE ROLE landlord LOGIN; CREATE ROLE lodger LOGIN');
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
$node->safe_psql('postgres', "SELECT rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000009', 3, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')");

my $usage = q{SELECT string_agg(format('%s %s %s', key_id, use_count, denied_count), ',' ORDER BY key_id) FROM rk_apikeys.key_usage};
my $grants = q{SELECT string_agg(format('%s: %s', what, acl), E'\n' ORDER BY what) FROM (
	SELECT oid::regclass::text, relacl::text FROM pg_class WHERE relnamespace = 'rk_apikeys'::regnamespace UNION ALL
	SELECT oid::regprocedure::text, proacl::text FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace UNION ALL
	SELECT attrelid::regclass || '.' || attname, attacl::text FROM pg_attribute
		WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'rk_apikeys'::regnamespace) UNION ALL
	SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname = 'rk_apikeys') AS t(what, acl) WHERE acl IS NOT NULL};
my $senders = 'SELECT string_agg(s::text, $$;$$) FROM rk_apikeys.usage_senders s';
my $before = contents($node);
my %was = (usage => $node->safe_psql('postgres', $usage), grants => $node->safe_psql('postgres', $grants),
	senders => $node->safe_psql('postgres', $senders));
like($was{usage}, qr/ [1-9]/, 'there is usage to keep');
like($was{grants}, qr/receive_usage\(.*sender=X/, 'and a grant');
my $last_event = $node->safe_psql('postgres', 'SELECT max(event_id) FROM rk_apikeys.key_events');

my $dir = PostgreSQL::Test::Utils::tempdir;
my $from = $node->connstr('postgres');
$node->command_ok([ 'pg_dump', @$_ ], "pg_dump @$_[0 .. $#$_ - 1]") foreach (
	[ '-Fp', '-f', "$dir/plain", $from ], [ '-Fp', '--clean', '--if-exists', '-f', "$dir/clean", $from ],
	[ '-Fc', '-f', "$dir/custom", $from ], [ '-Fd', '-j', '2', '-f', "$dir/directory", $from ],
	[ '-Fp', '--schema-only', '-f', "$dir/schema", $from ], [ '-Fp', '--data-only', '-f', "$dir/data", $from ],
	[ '-Fc', '--data-only', '-f', "$dir/data.custom", $from ],
	[ '-Fp', '--inserts', '-f', "$dir/inserts", $from ],
	[ '-Fp', '--data-only', '-t', 'rk_apikeys.api_keys', '-f', "$dir/table", $from ]);
is_deeply(contents($node), $before, 'a dump changes no row');

# The same cluster has the roles, as a cluster restored by pg_dumpall has.
sub database
{
	my ($name, $sql, $owner) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name" . ($owner ? " OWNER $owner" : ''));
	$node->safe_psql($name, $sql) if $sql;
	return $name;
}

sub psql_file
{
	my ($db, $file, @more) = @_;
	return ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', @more, '-d', $node->connstr($db), '-f', "$dir/$file");
}

sub pg_restore { my ($db, $file, @more) = @_; return ('pg_restore', '--exit-on-error', @more, '-d', $node->connstr($db), "$dir/$file"); }

# What holds of every whole restore
sub whole
{
	my ($db, %but) = @_;
	my $after = contents($node, $db);
	is($after->{$_}, $before->{$_}, "$db: $_ has the same rows") foreach sort keys %$before;
	is_deeply(verdicts($node, $token, $db), $expected, "$db: same verdicts");
	is($node->safe_psql($db, $usage), $was{usage}, "$db: usage is kept");
	is($node->safe_psql($db, $senders), $was{senders}, "$db: so is what came from other servers") unless $but{senders};
	is($node->safe_psql($db, $grants), $was{grants}, "$db: grants are as they were") unless $but{grants};
	goes_on($db);
}

sub goes_on
{
	my ($db) = @_;
	like(sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name) VALUES ('next') RETURNING secret}, $db), qr/^rk_prod_/,
		"$db: the next key is made");
	is($node->safe_psql($db, "SELECT count(*), min(event) FROM rk_apikeys.key_events WHERE event_id > $last_event"), '1|created',
		"$db: its event has a number of its own");
}

$node->command_ok([ psql_file(database('plain'), 'plain') ], 'plain: restored');
whole('plain');
$node->command_ok([ psql_file(database('inserts'), 'inserts') ], 'inserts: restored');
whole('inserts');
$node->command_ok([ pg_restore(database('custom'), 'custom', '--single-transaction') ], 'custom: restored');
whole('custom');
$node->command_ok([ pg_restore(database('directory'), 'directory', '-j', '2') ], 'directory: restored by two');
whole('directory');
$node->command_ok([ psql_file(database('parted'), 'schema') ], 'parted: the schema');
is(join(',', map { length } values %{ contents($node, 'parted') }), '0,0,0,0', 'parted: has no rows yet');
$node->command_ok([ psql_file('parted', 'data') ], 'parted: then the data');
whole('parted');

# Over what is there: --clean makes it as it was, in a database that has gone on and in an empty one
foreach my $db ('plain', database('empty'))
{
	$node->command_ok([ psql_file($db, 'clean') ], "$db: restored with --clean");
	is($node->safe_psql($db, q{SELECT count(*) FROM rk_apikeys.keys WHERE name = 'next'}), '0', "$db: what was there is gone") if $db eq 'plain';
	whole($db);
}
$node->command_ok([ pg_restore('custom', 'custom', '--clean', '--if-exists') ], 'custom: with --clean');
whole('custom');

# Without rights, owners and comments of the dump: the extension makes its own
my $plain = catalog($node, database('fresh', 'CREATE EXTENSION rk_apikeys CASCADE'));
$node->command_ok([ pg_restore(database('bare'), 'custom', '-x', '-O', '--no-comments') ], 'bare: restored without rights and owners');
same_catalog($plain, catalog($node, 'bare'), 'bare: the extension of a fresh database');
whole('bare', grants => 1);

# Data alone, into an extension that is there
$node->command_ok([ psql_file(database('data', 'CREATE EXTENSION rk_apikeys CASCADE'), 'data') ], 'data: restored');
whole('data', grants => 1);
$node->command_ok([ pg_restore(database('archive', 'CREATE EXTENSION rk_apikeys CASCADE'), 'data.custom', '--disable-triggers') ],
	'archive: restored, without triggers');
whole('archive', grants => 1);
$node->command_fails_like([ psql_file('data', 'data') ], qr/duplicate key/, 'twice is an error');

# One table: the keys, without their use and their history
$node->command_ok([ psql_file(database('single', 'CREATE EXTENSION rk_apikeys CASCADE'), 'table') ], 'single: restored');
is(contents($node, 'single')->{api_keys}, $before->{api_keys}, 'single: api_keys has the same rows');
is(contents($node, 'single')->{key_events}, '', 'single: no event is made of them');
is_deeply(verdicts($node, $token, 'single'), $expected, 'single: same verdicts');
like(sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name) VALUES ('next') RETURNING secret}, 'single'), qr/^rk_prod_/, 'single: goes on');
$node->command_ok([ pg_restore(database('listed', 'CREATE EXTENSION rk_apikeys CASCADE'), 'data.custom', '-n', 'rk_apikeys', '-t', 'api_keys') ],
	'listed: one table out of an archive');
is(contents($node, 'listed')->{api_keys}, $before->{api_keys}, 'listed: has the same rows');

# A database's owner who is no superuser cannot make the extension, and owns no table of it: a superuser does that first, and lends a role.
database('lodging', 'CREATE EXTENSION rk_apikeys CASCADE', 'landlord');
my $as_landlord = $node->connstr('lodging') . ' user=landlord';
$node->command_fails_like([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $as_landlord, '-f', "$dir/data" ], qr/permission denied/,
	'lodging: its owner may not write digests');
is(join(',', map { length } values %{ contents($node, 'lodging') }), '0,0,0,0', 'lodging: and has written nothing');
$node->command_fails_like([ 'pg_dump', '-f', "$dir/refused", $as_landlord ], qr/permission denied|lack SELECT privilege/, 'lodging: nor dump them');
$node->command_ok([ psql_file('lodging', 'data') ], 'lodging: a superuser restores the data');
whole('lodging', grants => 1);
$node->safe_psql('postgres', 'CREATE DATABASE own OWNER landlord');
$node->command_fails_like([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('own') . ' user=landlord', '-f', "$dir/plain" ],
	qr/permission denied to create extension "rk_apikeys"/, 'own: nor make the extension');
$node->command_ok([ pg_restore('own', 'custom') ], 'own: a superuser restores all of it into his database');
whole('own');
is($node->psql('own', 'SELECT digest FROM rk_apikeys.api_keys', extra_params => [ '-U', 'landlord' ], stderr => \my $ignored), 3,
	'own: he reads no digest');

# A base backup, and a moment. Two keys: one is revoked before it, one after.
my ($early_id, $early) = create_key($node, 'revoked early');
my ($late_id, $late) = create_key($node, 'revoked late');
$node->backup('base');
sql_as($node, 'acme', "SELECT rk_apikeys.revoke_key('$early_id')");
my $moment = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
sql_as($node, 'acme', "SELECT rk_apikeys.revoke_key('$late_id', 'leaked')");
my ($lost_id, $lost) = create_key($node, 'made later');
is_deeply([ verdict_of($node, $early, $late, $lost) ], [ 'revoked', 'revoked', 'valid' ], 'before the recovery');
my $switched = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
$node->poll_query_until('postgres', "SELECT last_archived_wal >= '$switched' FROM pg_stat_archiver") or die 'not archived';

my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'base');
$copy->start;
is_deeply(verdicts($copy, $token), $expected, 'pg_basebackup: same verdicts');
is($copy->safe_psql('postgres', $usage), $was{usage}, 'pg_basebackup: usage is kept');
is($copy->safe_psql('postgres', $grants), $was{grants}, 'pg_basebackup: grants are as they were');
is_deeply([ verdict_of($copy, $early, $late) ], [ 'valid', 'valid' ], 'pg_basebackup: a key that was revoked later verifies');

my $past = PostgreSQL::Test::Cluster->new('past');
$past->init_from_backup($node, 'base', has_restoring => 1);
$past->append_conf('postgresql.conf', "recovery_target_time = '$moment'\nrecovery_target_action = promote");
$past->start;
$past->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'still in recovery';
is_deeply([ verdict_of($past, $early, $late, $lost) ], [ 'revoked', 'valid', 'unknown' ],
	'recovery to a moment: the key that was revoked after it is back, and the one that was made after it is gone');
# end again what was ended since, by the old server's events
my (undef, $ended) = documented('A failover or a recovery lost revocations', '2026-11-25 09:00:00+00' => $moment);
sql_as($past, 'boss', $node->safe_psql('postgres', $ended));
is_deeply([ verdict_of($past, $early, $late) ], [ 'revoked', 'revoked' ], 'and is ended again by the old events');
like(sql_as($past, 'acme', q{INSERT INTO rk_apikeys.keys (name) VALUES ('next') RETURNING secret}), qr/^rk_prod_/, 'and the server goes on');

done_testing();

# The codes of tokens
sub verdict_of
{
	my ($server, @tokens) = @_;
	return map { sql_as($server, 'backend', "SELECT code FROM rk_apikeys.verify_key('$_')") } @tokens;
}
