# test/t/081_members.pl: a member sees and manages the keys that its end user owns, and learns nothing of the keys of others.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

# web serves the people of acme; direct is a person with a role of its own, which cannot be anybody else.
my $node = rk_node('members', PRELOAD, 'rk_apikeys.usage_flush_interval = 600s', 'autovacuum = off');
$node->safe_psql('postgres', q{
	CREATE ROLE web LOGIN IN ROLE rk_apikeys_member;
	CREATE ROLE direct LOGIN IN ROLE rk_apikeys_member;
	GRANT SET ON PARAMETER rk_apikeys.end_user TO web, acme, boss;
	ALTER ROLE web SET rk_apikeys.tenant = 'acme';
	ALTER ROLE direct SET rk_apikeys.tenant = 'acme';
	ALTER ROLE direct SET rk_apikeys.end_user = 'ann';});

# What SQL prints for a role that acts for somebody (undef: nobody), and its errors with SQLSTATE. It goes on after an error.
sub try_sql
{
	my ($role, $user, $sql, @params) = @_;
	$sql = "SET rk_apikeys.end_user = '$user'; $sql" if defined $user;
	$node->psql('postgres', $sql, stdout => \my $out, stderr => \my $error, on_error_stop => 0,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose', @params ]);
	return wantarray ? ($out, $error) : $out;
}

sub ann { return scalar try_sql('web', 'ann', $_[0]) }

sub refused
{
	my ($user, $sql, $pattern, $name) = @_;
	my (undef, $error) = try_sql('web', $user, $sql);
	like($error, $pattern, $name // "refused: $sql");
}

# Keys of two people and of the tenant, in acme; and of the same name in globex. Each was used, in the table and in memory alone.
my (%id, %token, %name);
foreach ([ ann => 'acme', "'ann'" ], [ ann2 => 'acme', "'ann'" ], [ bob => 'acme', "'bob'" ], [ case => 'acme', "'Ann'" ], [ blank => 'acme', "'ann '" ],
	[ tenants => 'acme', 'NULL' ], [ globex => 'globex', "'ann'" ])
{
	my ($label, $tenant, $owner) = @$_;
	($id{$label}, $token{$label}) = split /\|/, sql_as($node, $tenant, "INSERT INTO rk_apikeys.keys (name, description, owner, expires_at, metadata, scopes)
		VALUES ('key of $label', 'secret plan of $label', $owner, now() + interval '3 days', '{\"of\": \"$label\"}', '{$label:read}') RETURNING key_id, secret");
}
$token{imported} = 'legacy-key-0123456789';
$id{imported} = sql_as($node, 'boss', "SELECT rk_apikeys.import_key('imported', sha256('$token{imported}'), 'sha256', tenant => 'acme')");
sql_as($node, 'boss', "UPDATE rk_apikeys.keys SET owner = 'bob' WHERE key_id = '$id{imported}'");
my $use = join ', ', map { "rk_apikeys.verify_key('$token{$_}', client_addr => '192.0.2.1')" } grep { $_ ne 'ann2' } sort keys %token;
sql_as($node, 'backend', "SELECT $use");
sql_as($node, 'boss', 'SELECT rk_apikeys.flush_usage()');
sql_as($node, 'backend', "SELECT $use; SELECT rk_apikeys.verify('$token{ann2}')");
my @ids = sort @id{qw(ann ann2)};
my $own = join ',', @ids;
my $set = 'coalesce(string_agg(DISTINCT key_id, \',\' ORDER BY key_id), \'none\')';

# What every place shows: the keys of the end user, and nothing without one.
my %place = map { ("rk_apikeys.$_" => $own) } qw(keys orm_keys active_keys expiring_keys api_keys key_events list_keys() _live_usage());
$place{"rk_apikeys.$_"} = $id{ann} foreach qw(key_usage key_usage_daily key_activity);
foreach my $sort (qw(name environment key_id created_at updated_at expires_at last_used_at use_count status))
{
	$place{"rk_apikeys.list_keys(sort_by => '$sort')"} = $own;
}
$place{"rk_apikeys.list_keys('e')"} = $own;
$place{"rk_apikeys.list_keys('$_')"} = 'none' foreach @token{qw(bob tenants imported)}, @id{qw(bob tenants)}, 'plan of bob';
$place{"rk_apikeys.list_keys(owner => 'bob')"} = 'none';
foreach my $place (sort keys %place)
{
	is(ann("SELECT $set FROM $place"), $place{$place}, "ann: $place");
	is(scalar try_sql('direct', undef, "SELECT $set FROM $place"), $place{$place}, "ann with her own role: $place");
	is(scalar try_sql('web', undef, "SELECT $set FROM $place"), 'none', "nobody: $place");
	is(scalar try_sql('web', 'eve', "SELECT $set FROM $place"), 'none', "a stranger: $place");
}
$node->safe_psql('postgres', q{ALTER ROLE web SET rk_apikeys.stale_after = '0'});
is(ann("SELECT $set FROM rk_apikeys.stale_keys"), $own, 'ann: stale_keys');
is(ann('SELECT rk_apikeys.count_keys(), (SELECT count(*) FROM rk_apikeys.keys)'), '2|2', 'counts');
is(ann("SELECT rk_apikeys.count_keys(owner => 'bob'), rk_apikeys.count_keys(tenant => 'globex'), rk_apikeys.count_keys('key of')"), '0|0|2', 'counts with filters');
is(scalar try_sql('web', undef, 'SELECT rk_apikeys.count_keys()'), '0', 'nobody counts nothing');
is(ann("SELECT last_used_addr, use_count FROM rk_apikeys.keys WHERE key_id = '$id{ann}'"), '192.0.2.1|2', 'the use of her key is exact');
my $live = join ', ', map { "rk_apikeys.$_" } map { ("_live_use_count('$_')", "_live_last_used_at('$_')::date", "_live_last_used_addr('$_')") } @id{qw(bob tenants imported globex case)};
is(ann("SELECT num_nonnulls($live)"), '0', 'the use of others in memory');
is(ann("SELECT rk_apikeys._live_use_count('$id{ann}')"), '2', 'and of her own');
is(ann("SELECT coalesce(rk_apikeys._searched_key_id('$token{imported}'), 'none')"), 'none', 'an imported token of another finds nothing');
is(scalar try_sql('web', 'bob', "SELECT rk_apikeys._searched_key_id('$token{imported}')"), $id{imported}, 'and its owner finds it');
# The same in a parallel worker.
my $parallel = 'SET force_parallel_mode = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0';
foreach my $place ('_live_usage()', 'keys WHERE use_count > 0', "keys WHERE last_used_addr = '192.0.2.1' OR rk_apikeys._live_use_count('$id{bob}') > 0 OR use_count > 0", 'key_activity', 'key_events')
{
	my $sql = "SELECT $set FROM rk_apikeys.$place";
	is(ann("$parallel; $sql"), ann($sql), "in a parallel worker: $place");
	like(ann("$parallel; $sql"), qr/^$id{ann}|$id{ann2}/, 'which finds something');
}
refused('ann', "SELECT * FROM rk_apikeys.$_", qr/42501/) foreach qw(stats health usage_senders key_events_event_id_seq);
refused('ann', "SELECT digest FROM rk_apikeys.api_keys", qr/42501/);
refused('ann', "SELECT rk_apikeys.$_", qr/42501/)
  foreach 'purge_keys($$1 day$$)', 'purge_events($$1 day$$)', 'flush_usage()', "verify('x')", "revoke_token('$token{bob}')", 'import_key($$x$$, sha256($$x$$), $$sha256$$)';

# A function that tells what it is called with sees only her rows, however cheap it is.
my $leak = q{CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'leaked %', $1; RETURN true; END $$;};
foreach my $from ('keys WHERE pg_temp.leak(name)', 'keys WHERE pg_temp.leak(metadata)', 'api_keys WHERE pg_temp.leak(description)', 'key_events WHERE pg_temp.leak(changes)',
	'key_usage WHERE pg_temp.leak(key_id)', 'key_usage_daily WHERE pg_temp.leak(key_id)', 'orm_keys WHERE pg_temp.leak(owner)')
{
	my (undef, $error) = try_sql('web', 'ann', "$leak SELECT count(*) FROM rk_apikeys.$from");
	my @leaked = $error =~ /leaked (.*)/g;
	cmp_ok(scalar @leaked, '>', 0, "$from: the function is called");
	is_deeply([ grep { /bob|tenants|globex|Ann|'ann '|legacy/ || /@{[ join '|', @id{qw(bob tenants globex imported case blank)} ]}/ } @leaked ], [], "$from: with her rows alone");
}

# She makes keys of her own alone.
foreach my $insert ("INSERT INTO rk_apikeys.keys (name, owner%s) VALUES ('new', %s%s) RETURNING owner", "INSERT INTO rk_apikeys.orm_keys (name, owner%s) VALUES ('new', %s%s) RETURNING owner",
	"INSERT INTO rk_apikeys.api_keys (name, owner%s) VALUES ('new', %s%s) RETURNING owner")
{
	is(ann(sprintf $insert, '', $_, ''), 'ann', sprintf $insert, '', $_, '') foreach 'NULL', "'ann'";
	refused('ann', (sprintf $insert, '', $_, ''), qr/42501.*row-level security/) foreach "'bob'", "'Ann'";
	refused('ann', (sprintf $insert, ', tenant', 'NULL', ", 'globex'"), qr/42501/);
	refused(undef, (sprintf $insert, '', $_, ''), qr/42501/, "without an end user: $_") foreach 'NULL', "'ann'";
}
is(ann(q{SELECT key_id FROM rk_apikeys.create_key('new') \gset
	SELECT owner, created_by_user FROM rk_apikeys.keys WHERE key_id = :'key_id'}), 'ann|ann', 'create_key');
refused(undef, q{SELECT rk_apikeys.create_key('new')}, qr/42501/, 'create_key without an end user');
is(ann("COPY rk_apikeys.orm_keys (name) FROM STDIN;\ncopied\n\\.\nSELECT owner FROM rk_apikeys.keys WHERE name = 'copied'"), 'ann', 'COPY');
refused('ann', "COPY rk_apikeys.orm_keys (name, owner) FROM STDIN;\ncopied\tbob\n\\.\n", qr/42501/, 'COPY of a key of another');
is(sql_as($node, 'acme', q{SELECT count(*), count(DISTINCT owner) FROM rk_apikeys.keys WHERE name IN ('new', 'copied')}), '8|1', 'nothing is half stored');

# What she manages: her keys, and no transfer and no deletion.
is(ann(q{BEGIN; INSERT INTO rk_apikeys.keys (name) VALUES ('mine') RETURNING key_id \gset
	SELECT secret IS NOT NULL, rk_apikeys.reveal(key_id) = secret FROM rk_apikeys.keys WHERE key_id = :'key_id';
	UPDATE rk_apikeys.keys SET name = 'renamed', enabled = false WHERE key_id = :'key_id' RETURNING name, status, updated_by_user;
	UPDATE rk_apikeys.orm_keys SET enabled = true, owner = 'ann' WHERE key_id = :'key_id' RETURNING status;
	SELECT key_id AS next FROM rk_apikeys.rotate_key(:'key_id') \gset
	SELECT owner, family = :'key_id' FROM rk_apikeys.keys WHERE key_id = :'next';
	SELECT rk_apikeys.revoke_key(:'key_id', 'over', true); COMMIT;
	SELECT string_agg(event, ' ' ORDER BY event_id) FROM rk_apikeys.key_events WHERE key_id IN (:'key_id', :'next')}),
	"t|t\nrenamed|disabled|ann\nactive\nann|t\nt\ncreated updated enabled rotated created revoked" =~ s/updated enabled/disabled enabled/r, 'her own key from creation to revocation');
foreach my $view (qw(keys api_keys orm_keys))
{
	refused('ann', "UPDATE rk_apikeys.$view SET owner = $_ WHERE key_id = '$id{ann}'", qr/42501/) foreach "'bob'", 'NULL';
	refused('ann', "DELETE FROM rk_apikeys.$view WHERE key_id = '$id{ann}'", qr/42501/);
}
$node->safe_psql('postgres', 'GRANT UPDATE (owner) ON rk_apikeys.api_keys, rk_apikeys.keys TO web');
refused('ann', "UPDATE rk_apikeys.$_ SET owner = 'bob' WHERE key_id = '$id{ann}'", qr/42501.*row-level security/, "$_: no transfer with a grant either") foreach qw(keys api_keys);
$node->safe_psql('postgres', 'REVOKE UPDATE (owner) ON rk_apikeys.api_keys, rk_apikeys.keys FROM web');
is(sql_as($node, 'acme', "SELECT owner FROM rk_apikeys.keys WHERE key_id = '$id{ann}'"), 'ann', 'the owner is as it was');

# The scope with which a principal would reach keys of others is not hers to give; she may rotate such a key.
refused('ann', "INSERT INTO rk_apikeys.keys (name, scopes) VALUES ('x', '{$_}')", qr/42501.*a member cannot give an API key the scope "apikeys:manage"/) foreach 'apikeys:manage', 'apikeys:*', '*';
refused('ann', "UPDATE rk_apikeys.keys SET scopes = '{a,*}' WHERE key_id = '$id{ann}'", qr/42501.*a member cannot give/);
my ($manager_key, $manager_token) = split /\|/, sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name, owner, scopes) VALUES ('manages', 'ann', '{apikeys:manage,a:read}') RETURNING key_id, secret});
is(ann("UPDATE rk_apikeys.keys SET description = 'x' WHERE key_id = '$manager_key' RETURNING scopes"), '{apikeys:manage,a:read}', 'a key with it can be renamed');
is(ann("SELECT key_id AS next FROM rk_apikeys.rotate_key('$manager_key', '0') \\gset\nSELECT scopes FROM rk_apikeys.keys WHERE key_id = :'next'"), '{apikeys:manage,a:read}', 'and rotated');

# A key of another is as one that does not exist: in errors, in what a write does, and in a cascade.
foreach my $other (@id{qw(bob tenants globex case blank imported)})
{
	my $same = sub {
		my ($sql) = @_;
		my ($out, $error) = try_sql('web', 'ann', sprintf($sql, $other), '-v', 'SHOW_CONTEXT=always');
		my ($out_none, $error_none) = try_sql('web', 'ann', sprintf($sql, '000000000000'), '-v', 'SHOW_CONTEXT=always');
		is("$out / $error" =~ s/$other/KEY/gr, "$out_none / $error_none" =~ s/000000000000/KEY/gr, sprintf $sql, $other);
	};
	$same->($_) foreach q{SELECT rk_apikeys.rotate_key('%s')}, q{SELECT rk_apikeys.revoke_key('%s')}, q{SELECT rk_apikeys.revoke_key('%s', cascade => true)},
	  q{INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', '%s')}, q{INSERT INTO rk_apikeys.keys (name, parent) VALUES ('x', '%s')},
	  q{INSERT INTO rk_apikeys.keys (name, key_id) VALUES ('x', '%s')}, q{INSERT INTO rk_apikeys.orm_keys (name, replaces) VALUES ('x', '%s')},
	  q{UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '%s' RETURNING 1}, q{UPDATE rk_apikeys.keys SET replaces = '%s'},
	  q{UPDATE rk_apikeys.api_keys SET revoked_at = now() WHERE key_id = '%s' RETURNING 1}, q{SELECT * FROM rk_apikeys.api_keys WHERE key_id = '%s' FOR UPDATE},
	  q{SELECT 1 FROM rk_apikeys.api_keys WHERE key_id = '%s' FOR KEY SHARE}, q{SELECT rk_apikeys.reveal('%s') IS NULL},
	  q{SELECT count(*) FROM rk_apikeys.list_keys(after => encode('created_at+%s=-infinity', 'hex'))},
	  q{SELECT count(*) FROM rk_apikeys.list_keys(before => encode('created_at+%s=infinity', 'hex'))};
}
is(sql_as($node, 'boss', q{SELECT count(*) FROM rk_apikeys.keys WHERE name LIKE 'key of %' AND (NOT enabled OR revoked_at IS NOT NULL OR grace_until IS NOT NULL)}), '0', 'and nothing has changed');

# In one transaction of one role, neither the secret nor a rotation of one person's key helps the next.
is((try_sql('web', 'bob', qq{BEGIN; SELECT key_id, secret FROM rk_apikeys.create_key('of bob') \\gset
	SELECT rk_apikeys.rotate_key('$id{bob}', '1 day') \\g /dev/null
	SET LOCAL rk_apikeys.end_user = 'ann';
	SELECT coalesce(rk_apikeys.reveal(:'key_id'), 'none'), count(*) FROM rk_apikeys.keys WHERE secret IS NOT NULL;
	SAVEPOINT s; INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', '$id{bob}'); ROLLBACK TO s;
	SET LOCAL rk_apikeys.end_user = 'bob'; SELECT rk_apikeys.reveal(:'key_id') = :'secret'; ROLLBACK}))[0], "none|0\nt", 'the secrets of a transaction are of one person');

$node->safe_psql('postgres', 'CREATE SCHEMA web AUTHORIZATION web');
refused('ann', 'CREATE TABLE web.probe (key_id text REFERENCES rk_apikeys.api_keys)', qr/42501/, 'no foreign key asks for keys');

# The locks that a member could stall others with are refused.
foreach my $table (qw(api_keys key_usage key_usage_daily key_events keys orm_keys))
{
	refused('ann', "BEGIN; LOCK TABLE rk_apikeys.$table IN $_ MODE", qr/42501/) foreach 'SHARE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE';
}

# Events: those of keys that were hers then, also after a deletion. A transfer is told to the new owner.
my ($passed) = split /\|/, sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name, owner) VALUES ('passed', 'bob') RETURNING key_id});
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'ann' WHERE key_id = '$passed'");
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET name = 'passed on' WHERE key_id = '$passed'");
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'bob' WHERE key_id = '$passed'");
sql_as($node, 'acme', "DELETE FROM rk_apikeys.keys WHERE key_id = '$passed'");
my $history = "SELECT string_agg(concat_ws(' ', event, CASE event WHEN 'updated' THEN changes -> 'owner' ->> 'new' END), ', ' ORDER BY event_id) FROM rk_apikeys.key_events WHERE key_id = '$passed'";
is(ann($history), 'updated ann, updated', 'the events of her time');
is(scalar try_sql('web', 'bob', $history), 'created, updated bob, deleted', 'the events of his');

# A change that waits for a transfer finds no such key, as if it had come later.
my ($racing) = split /\|/, sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name, owner) VALUES ('racing', 'ann') RETURNING key_id});
foreach ([ "UPDATE rk_apikeys.keys SET name = 'late' WHERE key_id = '$racing' RETURNING 'done'", qr/^$/ ], [ "SELECT rk_apikeys.revoke_key('$racing')", qr/42704.*does not exist/ ],
	[ "SELECT rk_apikeys.revoke_key('$racing', cascade => true)", qr/42704.*does not exist/ ], [ "SELECT rk_apikeys.rotate_key('$racing')", qr/42704.*does not exist/ ])
{
	my ($sql, $says) = @$_;
	my ($manager, $member) = (session($node, 'acme'), session($node, 'web', on_error_stop => 0));
	$member->query_safe("SET rk_apikeys.end_user = 'ann'; \\set VERBOSITY verbose");
	$manager->query_safe("BEGIN; UPDATE rk_apikeys.keys SET owner = 'bob' WHERE key_id = '$racing'");
	$member->query_until(qr/sent/, "\\echo sent\n$sql;\n");
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'web'}) or die;
	$manager->query_safe('COMMIT');
	my $out = $member->query('SELECT 1 WHERE false');
	my $error = $member->{stderr};
	like($out . $error, $says, "a transfer comes first: $sql");
	$member->quit;
	$manager->quit;
	sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET owner = 'ann' WHERE key_id = '$racing'");
}
is(sql_as($node, 'acme', "SELECT name, status FROM rk_apikeys.keys WHERE key_id = '$racing'"), 'racing|active', 'and nothing has changed');

# A cascade of a member ends only keys of the same person.
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN IN ROLE rk_apikeys_verifier, rk_apikeys_manager; GRANT SET ON PARAMETER rk_apikeys.end_user TO app');
my ($parent, $parent_token) = split /\|/, sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name, owner, scopes) VALUES ('parent', 'ann', '{apikeys:manage}') RETURNING key_id, secret});
sql_as($node, 'app', qq{BEGIN; SELECT rk_apikeys.authenticate('$parent_token') \\g /dev/null
	INSERT INTO rk_apikeys.keys (name, owner) VALUES ('child', 'ann'), ('child', 'bob'), ('child', NULL); COMMIT});
is(ann("SELECT rk_apikeys.revoke_key('$parent', cascade => true)"), 't', 'a cascade');
is(sql_as($node, 'acme', q{SELECT string_agg(concat_ws(' ', coalesce(owner, 'none'), status), ', ' ORDER BY owner) FROM rk_apikeys.keys WHERE name = 'child'}),
	'ann revoked, bob active, none active', 'ends her keys alone');

# With another role too, the wider right counts. A role that does not inherit is nobody.
$node->safe_psql('postgres', q{
	CREATE ROLE lead LOGIN IN ROLE rk_apikeys_member, rk_apikeys_manager; ALTER ROLE lead SET rk_apikeys.tenant = 'acme';
	CREATE ROLE reads LOGIN IN ROLE rk_apikeys_member, rk_apikeys_auditor; ALTER ROLE reads SET rk_apikeys.tenant = 'acme';
	CREATE ROLE dry LOGIN NOINHERIT IN ROLE rk_apikeys_member; ALTER ROLE dry SET rk_apikeys.tenant = 'acme';
	CREATE ROLE verifies LOGIN IN ROLE rk_apikeys_member, rk_apikeys_verifier; ALTER ROLE verifies SET rk_apikeys.tenant = 'acme';
	GRANT SET ON PARAMETER rk_apikeys.end_user TO lead, reads, dry, verifies});
my $all = sql_as($node, 'acme', "SELECT $set FROM rk_apikeys.keys");
is(scalar try_sql('lead', 'ann', "SELECT $set FROM rk_apikeys.keys"), $all, 'a manager that is a member too sees all of the tenant');
is(scalar try_sql('lead', undef, "SELECT (SELECT rk_apikeys._live_use_count('$id{bob}')), (SELECT count(*) FROM rk_apikeys._live_usage() WHERE key_id = '$id{bob}')"), '2|1', 'and their use');
is(scalar try_sql('lead', 'ann', q{INSERT INTO rk_apikeys.keys (name) VALUES ('x') RETURNING coalesce(owner, 'none');
	DELETE FROM rk_apikeys.keys WHERE name = 'x'; INSERT INTO rk_apikeys.keys (name, owner, scopes) VALUES ('x', 'bob', '{*}') RETURNING owner}), "none\nbob", 'and makes keys of anybody');
is(scalar try_sql('reads', 'ann', "SELECT count(*) FILTER (WHERE key_id = '$id{bob}'), count(*) FILTER (WHERE key_id = '$id{globex}') FROM rk_apikeys.keys"), '1|1', 'an auditor that is a member reads all');
is(scalar try_sql('reads', 'ann', "SELECT rk_apikeys._live_use_count('$id{bob}')"), '2', 'and their use');
is(scalar try_sql('reads', 'ann', "INSERT INTO rk_apikeys.keys (name) VALUES ('by a reader') RETURNING owner; UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = '$id{bob}' RETURNING 1"), 'ann', 'and changes its own keys');
like((try_sql('dry', 'ann', 'SELECT count(*) FROM rk_apikeys.keys'))[1], qr/42501/, 'without inheritance nothing');
is(scalar try_sql('dry', 'ann', "SET ROLE rk_apikeys_member; SELECT count(*) > 0 FROM rk_apikeys.keys WHERE key_id = '$id{ann}'"), 't', 'and with SET ROLE a member');

# A principal restricts a member as any role.
my ($stage) = split /\|/, ann(q{SELECT * FROM rk_apikeys.create_key('staged', environment => 'stage')});
my (undef, $principal) = split /\|/, sql_as($node, 'acme', q{INSERT INTO rk_apikeys.keys (name, owner, environment, scopes) VALUES ('principal', 'bob', 'stage', '{apikeys:manage,ann:read}') RETURNING key_id, secret});
foreach ([ $principal, $stage ], [ $token{bob}, 'none' ], [ 'nonsense', 'none' ])
{
	my ($token, $sees) = @$_;
	is(scalar try_sql('verifies', 'ann', "BEGIN; SELECT rk_apikeys.authenticate('$principal') \\g /dev/null
		SELECT rk_apikeys.authenticate('$token', raise => false) \\g /dev/null
		SELECT $set FROM rk_apikeys.keys; SELECT $set FROM rk_apikeys.key_events; SELECT count(*) FROM rk_apikeys._live_usage(); COMMIT"), "$sees\n$sees\n0", "as a principal ann sees: $sees");
}

# Estimates and statistics tell nothing of others. The known limit: EXPLAIN ANALYZE tells how many rows a scan removed.
sql_as($node, 'acme', q{SET rk_apikeys.end_user = 'bob'; INSERT INTO rk_apikeys.keys (name, owner) SELECT 'many', 'bob' FROM generate_series(1, 2000)});
$node->safe_psql('postgres', 'VACUUM ANALYZE');
foreach ([ 'api_keys', 'owner', 'bob' ], [ 'api_keys', 'created_by_user', 'bob' ], [ 'api_keys', 'updated_by_user', 'bob' ], [ 'key_events', 'owner', 'bob' ], [ 'key_events', 'end_user', 'bob' ])
{
	my ($table, $column, $value) = @$_;
	is(ann("EXPLAIN SELECT FROM rk_apikeys.$table WHERE $column = '$value'") =~ s/'$value'/VALUE/gr, ann("EXPLAIN SELECT FROM rk_apikeys.$table WHERE $column = 'unused'") =~ s/'unused'/VALUE/gr,
		"estimates of $table.$column");
}
is(ann(q{SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys'}), '0', 'pg_stats shows nothing');
like(ann(q{SET enable_indexscan = off; SET enable_bitmapscan = off; EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT FROM rk_apikeys.keys}), qr/Rows Removed by Filter/,
	'limit: the number of all rows, by EXPLAIN ANALYZE');

# Nobody becomes another person, not before the library is loaded either.
my $claim = q{SET rk_apikeys.end_user = 'bob'; SELECT rk_apikeys.current_end_user(), count(*) FROM rk_apikeys.keys WHERE owner = 'bob'};
is(scalar try_sql('direct', undef, $claim), 'ann|0', 'preloaded');
is(scalar try_sql('direct', undef, q{SET ROLE rk_apikeys_member; RESET ALL; SELECT rk_apikeys.current_end_user()}), 'ann', 'RESET ALL');
is(scalar try_sql('web', 'ann', "RESET ALL; SELECT count(*) FROM rk_apikeys.keys"), '0', 'after RESET ALL web is nobody');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is(scalar try_sql('direct', undef, $claim), 'ann|0', 'not preloaded');
is(ann("SELECT count(*) > 0 FROM rk_apikeys.keys WHERE key_id = '$id{ann}'"), 't', 'a role that may set it is whom it says');
is(ann("SELECT $set FROM rk_apikeys._live_usage() WHERE key_id <> ALL (ARRAY(SELECT key_id FROM rk_apikeys.keys))"), 'none', 'the use in memory');
done_testing();
