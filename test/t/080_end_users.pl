# test/t/080_end_users.pl: rk_apikeys.end_user names who makes, changes and ends a key, as it was given; require_end_user demands it.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use PostgreSQL::Test::Utils;
use Test::More;

my $jose = "jos\xc3\xa9\@acme.example";
my $as = sub { "SET rk_apikeys.end_user = '$_[0]'" };

my $node = rk_node('end_users', PRELOAD, 'rk_apikeys.usage_flush_interval = 600s');
$node->safe_psql('postgres', q{GRANT SET ON PARAMETER rk_apikeys.end_user TO acme, boss, backend; GRANT SET ON PARAMETER rk_apikeys.tenant TO acme});

# What SQL prints as a role, and its errors: SQLSTATE, message, detail and hint. It goes on after an error.
sub try_sql
{
	my ($role, $sql, $database) = @_;
	$node->psql($database // 'postgres', $sql, stdout => \my $out, stderr => \my $error, on_error_stop => 0,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return ($out, $error);
}

sub refused
{
	my ($role, $sql, $pattern, $name) = @_;
	my (undef, $error) = try_sql($role, $sql);
	like($error, $pattern, $name);
}

# Who may set it.
is(sql_as($node, 'acme', $as->('ann') . '; SELECT rk_apikeys.current_end_user()'), 'ann', 'a role with GRANT SET may set it');
refused('globex', $as->('ann'), qr/42501/, 'another role may not');
refused('globex', "SELECT set_config('rk_apikeys.end_user', 'ann', true)", qr/42501/, 'nor by set_config');
is(sql_as($node, 'globex', "SELECT coalesce(rk_apikeys.current_end_user(), 'none')"), 'none', 'and has no end user');
{
	local $ENV{PGOPTIONS} = '-c rk_apikeys.end_user=ann';
	refused('globex', 'SELECT rk_apikeys.current_end_user()', qr/FATAL: +permission denied to set parameter/, 'nor by the options of a connection');
}
$node->safe_psql('postgres', q{ALTER ROLE globex SET rk_apikeys.end_user = 'gil'});
is(sql_as($node, 'globex', 'SELECT rk_apikeys.current_end_user()'), 'gil', 'a superuser gives a role one');
$node->safe_psql('postgres', q{ALTER ROLE globex RESET rk_apikeys.end_user});

# It dies with SET LOCAL, and a savepoint brings the old one back.
is(sql_as($node, 'acme', q{BEGIN; SET LOCAL rk_apikeys.end_user = 'ann'; SAVEPOINT s; SET LOCAL rk_apikeys.end_user = 'bob';
	SELECT rk_apikeys.current_end_user(); ROLLBACK TO s; SELECT rk_apikeys.current_end_user(); COMMIT;
	SELECT coalesce(rk_apikeys.current_end_user(), 'none')}), "bob\nann\nnone", 'SET LOCAL ends with the transaction, and a savepoint restores');

# What is written, as it was given: UTF-8, quotes, blanks and line breaks.
my $who = sub {
	my ($key) = @_;
	return sql_as($node, 'acme', qq{SELECT concat_ws(' ', coalesce(created_by_user, '-'), coalesce(updated_by_user, '-')) FROM rk_apikeys.keys WHERE key_id = '$key';
		SELECT string_agg(concat_ws(' ', event, coalesce(end_user, '-')), ', ' ORDER BY event_id) FROM rk_apikeys.key_events WHERE key_id = '$key'});
};
my ($key) = split /\|/, sql_as($node, 'acme', $as->($jose) . q{; SELECT * FROM rk_apikeys.create_key('first')});
is($who->($key), "$jose $jose\ncreated $jose", 'a new key, with the end user as it was given');
sql_as($node, 'acme', $as->('bob') . "; UPDATE rk_apikeys.keys SET name = 'second' WHERE key_id = '$key'");
is($who->($key), "$jose bob\ncreated $jose, updated bob", 'a change');
sql_as($node, 'acme', $as->('eve') . "; UPDATE rk_apikeys.keys SET name = 'second' WHERE key_id = '$key'");
is($who->($key), "$jose bob\ncreated $jose, updated bob", 'an update that changes nothing');
sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET name = 'third' WHERE key_id = '$key'");
is($who->($key), "$jose -\ncreated $jose, updated bob, updated -", 'a change without an end user');
my ($next) = split /\|/, sql_as($node, 'acme', $as->('cid') . "; SELECT * FROM rk_apikeys.rotate_key('$key')");
is($who->($key), "$jose cid\ncreated $jose, updated bob, updated -, rotated cid", 'a rotation: the old key');
is($who->($next), "cid cid\ncreated cid", 'and its successor');
sql_as($node, 'acme', q{SELECT set_config('rk_apikeys.end_user', E'o''neil\n \t', false); } . "SELECT rk_apikeys.revoke_key('$next')");
is(sql_as($node, 'acme', "SELECT quote_literal(end_user) FROM rk_apikeys.key_events WHERE key_id = '$next' AND event = 'revoked'"),
	"'o''neil\n \t'", 'quotes, blanks and line breaks');
sql_as($node, 'acme', $as->('dan') . "; DELETE FROM rk_apikeys.keys WHERE key_id = '$next'");
is(sql_as($node, 'acme', "SELECT end_user FROM rk_apikeys.key_events WHERE key_id = '$next' AND event = 'deleted'"), 'dan', 'a deletion');
is(sql_as($node, 'acme', "SELECT created_by_user, updated_by_user FROM rk_apikeys.list_keys(search => '$key')"), "$jose|cid", 'list_keys');
is(sql_as($node, 'acme', "SELECT created_by_user, updated_by_user FROM rk_apikeys.orm_keys WHERE key_id = '$key'"), "$jose|cid", 'orm_keys');

# Nobody sets the columns.
foreach my $column ('created_by_user', 'updated_by_user')
{
	refused('acme', "INSERT INTO rk_apikeys.keys (name, $column) VALUES ('x', 'eve')", qr/42501.*"$column" of a new API key cannot be given/, "$column cannot be given");
	refused('acme', "UPDATE rk_apikeys.keys SET $column = 'eve'", qr/42501/, "$column cannot be changed");
	$node->safe_psql('postgres', "GRANT UPDATE ($column) ON rk_apikeys.api_keys TO acme");
	refused('acme', "UPDATE rk_apikeys.api_keys SET $column = 'eve'", qr/42501.*$column/, "$column cannot be changed with a grant");
	$node->safe_psql('postgres', "REVOKE UPDATE ($column) ON rk_apikeys.api_keys FROM acme");
}
refused('acme', "UPDATE rk_apikeys.orm_keys SET created_by_user = 'eve' WHERE key_id = '$key'", qr/42501.*"created_by_user"/, 'orm_keys refuses another maker');
sql_as($node, 'acme', $as->('fay') . "; UPDATE rk_apikeys.orm_keys SET name = 'fourth', updated_by_user = 'eve', created_by_user = '$jose' WHERE key_id = '$key'");
is(sql_as($node, 'acme', "SELECT created_by_user, updated_by_user FROM rk_apikeys.keys WHERE key_id = '$key'"), "$jose|fay", 'and computes who changed');

# Bad input: too long, a token. Nothing is half stored.
my $long = 'x' x 201;
my ($out, $error) = try_sql('acme', "BEGIN; SET rk_apikeys.end_user = '$long'; INSERT INTO rk_apikeys.keys (name) VALUES ('none'); COMMIT;
	SELECT count(*) FROM rk_apikeys.keys WHERE name = 'none'");
like($error, qr/22023.*\nHINT: +Use at most 200 characters/, '201 characters');
unlike($error =~ s/^LINE.*//mgr, qr/x{50}/, 'and the message does not show them');
is($out, '0', 'and no key is made');
is((try_sql('acme', $as->('ann') . "; SET rk_apikeys.end_user = '$long'; SELECT rk_apikeys.current_end_user()"))[0], 'ann', 'the end user stays who it was');
my $wide = "\xc3\xa9" x 200;
is(sql_as($node, 'acme', $as->($wide) . "; INSERT INTO rk_apikeys.keys (name) VALUES ('wide') RETURNING created_by_user"), $wide, '200 characters of two bytes');
my (undef, $token) = create_key($node, 'token');
my $mask = sql_as($node, 'acme', "SELECT rk_apikeys.mask('$token')");
is(sql_as($node, 'acme', $as->($token) . "; SHOW rk_apikeys.end_user; SELECT rk_apikeys.current_end_user();
	INSERT INTO rk_apikeys.keys (name) VALUES ('masked') RETURNING created_by_user, updated_by_user;
	SELECT setting FROM pg_settings WHERE name = 'rk_apikeys.end_user';
	SELECT end_user FROM rk_apikeys.key_events ORDER BY event_id DESC LIMIT 1"), "$mask\n$mask\n$mask|$mask\n$mask\n$mask", 'a token is masked everywhere');

# An owner is any text of 1 to 200 characters; a token in it is masked.
is(sql_as($node, 'acme', qq{INSERT INTO rk_apikeys.keys (name, owner) VALUES ('owned', E'$jose\t 概要 "x"') RETURNING owner}), "$jose\t 概要 \"x\"", 'an owner as it was given');
refused('acme', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('none', '$_')", qr/23514.*owner of an API key is (empty|too long)/, 'an owner of ' . length . ' characters') foreach '', $long;
is(sql_as($node, 'acme', "INSERT INTO rk_apikeys.keys (name, owner) VALUES ('owned', '$token') RETURNING owner"), $mask, 'a token as an owner is masked');
is(sql_as($node, 'acme', q{SELECT count(*) FROM rk_apikeys.keys WHERE name = 'none'}), '0', 'nothing is half stored');

# The key of a token, a cascade, a worker, a purge.
my ($parent, $parent_token) = create_key($node, 'parent', "scopes => '{apikeys:manage}'");
$node->safe_psql('postgres', 'GRANT rk_apikeys_verifier TO acme');
my ($child, $child_token) = split /\|/, sql_as($node, 'acme', "BEGIN; SELECT FROM rk_apikeys.authenticate('$parent_token') \\g /dev/null
	SELECT * FROM rk_apikeys.create_key('child'); COMMIT");
sql_as($node, 'acme', $as->($jose) . "; SELECT rk_apikeys.revoke_key('$parent', cascade => true)");
like($who->($child), qr/, revoked $jose$/, 'a cascade');
my ($leaked, $leaked_token) = create_key($node, 'leaked');
sql_as($node, 'backend', $as->('scanner') . "; SELECT rk_apikeys.revoke_token('$leaked_token')");
like($who->($leaked), qr/, revoked scanner$/, 'revoke_token');
my ($used, $used_token) = split /\|/, sql_as($node, 'acme', $as->('ann') . q{; SELECT * FROM rk_apikeys.create_key('used')});
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used_token')");
sql_as($node, 'boss', $as->('flusher') . '; SELECT rk_apikeys.flush_usage()');
is($who->($used), "ann ann\ncreated ann", 'a flush changes no name');
is(sql_as($node, 'acme', "SELECT owner, created_by_user, family FROM rk_apikeys.key_activity WHERE key_id = '$used'"), "|ann|$used", 'key_activity');
$node->safe_psql('postgres', "UPDATE rk_apikeys.key_events SET occurred_at = occurred_at - interval '1 year' WHERE key_id = '$next'");
sql_as($node, 'boss', $as->($jose) . "; SELECT rk_apikeys.purge_events('1 day')");
is(sql_as($node, 'boss', "SELECT end_user FROM rk_apikeys.key_events WHERE event = 'purged'"), $jose, 'a purge of events');
is(sql_as($node, 'boss', $as->($jose) . "; SELECT rk_apikeys.import_key('imported', sha256('legacy-key-0123456789'), 'sha256', tenant => 'acme') \\g /dev/null
	SELECT created_by_user FROM rk_apikeys.keys WHERE name = 'imported'"), $jose, 'an import');

# A transfer of the owner is an event with the owner after it.
sql_as($node, 'acme', $as->($jose) . "; UPDATE rk_apikeys.keys SET owner = 'ann' WHERE key_id = '$used'; UPDATE rk_apikeys.keys SET owner = 'bob' WHERE key_id = '$used'");
is(sql_as($node, 'acme', "SELECT event, owner, changes, end_user FROM rk_apikeys.key_events WHERE key_id = '$used' AND event = 'updated' ORDER BY event_id"),
	qq{updated|ann|{"owner": {"new": "ann", "old": null}}|$jose\nupdated|bob|{"owner": {"new": "bob", "old": "ann"}}|$jose}, 'a transfer');

# A demand for an end user: by a superuser, for a role.
refused('acme', 'SET rk_apikeys.require_end_user = off', qr/42501/, 'a manager cannot set require_end_user');
$node->safe_psql('postgres', q{ALTER ROLE acme SET rk_apikeys.require_end_user = on; ALTER ROLE boss SET rk_apikeys.require_end_user = on;
	ALTER ROLE backend SET rk_apikeys.require_end_user = on});
my $before = sql_as($node, 'boss', 'SELECT count(*), sum(hashtext(k::text)) FROM rk_apikeys.keys k');
foreach my $change ("INSERT INTO rk_apikeys.keys (name) VALUES ('x')", "INSERT INTO rk_apikeys.orm_keys (name) VALUES ('x')",
	"INSERT INTO rk_apikeys.api_keys (name) VALUES ('x')", "COPY rk_apikeys.orm_keys (name) FROM STDIN;\nx\n\\.\n",
	"SELECT rk_apikeys.create_key('x')", "SELECT rk_apikeys.rotate_key('$used')", "SELECT rk_apikeys.revoke_key('$used')",
	"SELECT rk_apikeys.revoke_key('$used', cascade => true)",
	map { ("UPDATE rk_apikeys.$_ SET name = 'x' WHERE key_id = '$used'", "DELETE FROM rk_apikeys.$_ WHERE key_id = '$used'") } qw(keys orm_keys api_keys))
{
	refused('acme', $change, qr/22023.*needs an end user\nDETAIL.*\nHINT: +Set rk_apikeys\.end_user/, "without an end user: $change");
}
refused('boss', "SELECT rk_apikeys.import_key('x', sha256('legacy-key-9876543210'), 'sha256')", qr/22023.*needs an end user/, 'and an import');
is(sql_as($node, 'boss', 'SELECT count(*), sum(hashtext(k::text)) FROM rk_apikeys.keys k'), $before, 'nothing is half stored');
is(sql_as($node, 'acme', "UPDATE rk_apikeys.keys SET name = name WHERE key_id = '$used' RETURNING name"), 'used', 'an update that changes nothing is no change');
is(sql_as($node, 'acme', $as->('ann') . "; UPDATE rk_apikeys.keys SET name = 'named' WHERE key_id = '$used' RETURNING updated_by_user"), 'ann', 'with an end user');
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$used_token'), rk_apikeys.revoke_token('$used_token')"), 't|t', 'who holds a token ends its key');
$node->safe_psql('postgres', q{UPDATE rk_apikeys.api_keys SET revoked_at = revoked_at - interval '1 year' WHERE revoked_at IS NOT NULL});
cmp_ok(sql_as($node, 'boss', q{SELECT rk_apikeys.flush_usage() * 0 + rk_apikeys.purge_keys('1 day')}), '>', 0, 'a flush and a purge');

# A dump restores the names, where a change needs an end user too.
my $rows = contents($node);
$node->safe_psql('postgres', 'CREATE DATABASE restored');
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'a dump');
$node->safe_psql('postgres', 'ALTER DATABASE restored SET rk_apikeys.require_end_user = on');
$node->command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'and its restore');
is_deeply(contents($node, 'restored'), $rows, 'have the same keys and events');

# In a database of another encoding.
$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', 'CREATE EXTENSION rk_apikeys CASCADE');
is(sql_as($node, 'acme', "SET client_encoding = 'UTF8'; " . $as->($jose) . "; INSERT INTO rk_apikeys.keys (name) VALUES ('x') RETURNING created_by_user, octet_length(created_by_user)",
	'latin'), "$jose|" . (length($jose) - 1), 'LATIN1');

# Bytes that are no text: from the configuration file, which PostgreSQL does not check.
$node->append_conf('postgresql.conf', "rk_apikeys.end_user = 'a\xff'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_settings WHERE name = 'rk_apikeys.end_user' AND setting = ''});
refused('globex', q{INSERT INTO rk_apikeys.keys (name) VALUES ('x')}, qr/22023.*invalid value for parameter "rk_apikeys.end_user"/, 'bytes that are no text are refused');
is(sql_as($node, 'globex', q{SELECT count(*) FROM rk_apikeys.keys}), '0', 'and nothing is stored');
done_testing();
