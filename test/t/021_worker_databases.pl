# test/t/021_worker_databases.pl: whatever becomes of a database, the flush workers go on with the others, and run nothing of what its
# owner may have left there.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use RkApikeys;
use Test::More;

my $node = rk_node('databases', PRELOAD, "rk_apikeys.usage_flush_interval = '1h'");
my $launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'rk_apikeys launcher'";
my $pid = $node->safe_psql('postgres', $launcher);
like($pid, qr/^\d+$/, 'the launcher runs');

# A key in each database, with three uses that are pending
my @databases = qw(postgres gone closed without lookalike readonly hostile);
my (%id, %token);
$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN');
foreach my $db (@databases)
{
	$node->safe_psql('postgres', "CREATE DATABASE $db OWNER mallory") if $db ne 'postgres';
	$node->safe_psql($db, 'CREATE EXTENSION IF NOT EXISTS rk_apikeys CASCADE');
	($id{$db}, $token{$db}) = create_key($node, $db, undef, 'acme', $db);
	is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{$db}') FROM generate_series(1, 3)", $db), "t\nt\nt", "$db: three uses");
}
is(stat_of($node, 'pending_keys'), scalar @databases, 'all are pending');

# What becomes of them
$node->safe_psql('postgres', 'DROP DATABASE gone; ALTER DATABASE closed ALLOW_CONNECTIONS false');
$node->safe_psql($_, 'DROP EXTENSION rk_apikeys') foreach 'without', 'lookalike';
$node->safe_psql('postgres', 'ALTER DATABASE readonly SET default_transaction_read_only = on');
sql_as($node, 'mallory', q{
	CREATE SCHEMA evil;
	CREATE FUNCTION evil.hashtext(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'run by %', current_user; RETURN 1; END $$;
	CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'run by %', current_user; RETURN true; END $$;
	CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
}, 'hostile');
my $settings = q{SET search_path = evil, pg_catalog; SET default_transaction_isolation = serializable;
	SET default_transaction_deferrable = on; SET statement_timeout = '500ms'; SET lock_timeout = '1ms'; SET row_security = off;
	SET datestyle = 'SQL, DMY'; SET timezone = 'Pacific/Kiritimati'; SET bytea_output = escape; SET check_function_bodies = off};
$node->safe_psql('postgres', "ALTER DATABASE hostile $_") foreach split /;\s*/, $settings;
sql_as($node, 'mallory', qq{
	CREATE SCHEMA rk_apikeys;
	CREATE TABLE rk_apikeys.loot (who text);
	CREATE FUNCTION rk_apikeys.grab() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN RAISE LOG 'run by %', current_user; INSERT INTO rk_apikeys.loot VALUES (current_user); RETURN NEW; END \$\$;
	CREATE TABLE rk_apikeys.api_keys (key_id text PRIMARY KEY, tenant text, environment text);
	CREATE TABLE rk_apikeys.key_usage (key_id text PRIMARY KEY, tenant text, last_used_at timestamptz, last_used_addr inet,
		use_count bigint DEFAULT 0, denied_count bigint DEFAULT 0);
	CREATE TABLE rk_apikeys.key_usage_daily (key_id text, day date, environment text, tenant text, uses bigint DEFAULT 0,
		denials bigint DEFAULT 0, PRIMARY KEY (key_id, day));
	CREATE TRIGGER grab BEFORE INSERT OR UPDATE ON rk_apikeys.key_usage FOR EACH ROW EXECUTE FUNCTION rk_apikeys.grab();
	CREATE TRIGGER grab_all BEFORE INSERT OR UPDATE ON rk_apikeys.key_usage FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys.grab();
	CREATE TRIGGER grab BEFORE INSERT OR UPDATE ON rk_apikeys.key_usage_daily FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys.grab();
	INSERT INTO rk_apikeys.api_keys VALUES ('$id{lookalike}', 'acme', 'prod');
}, 'lookalike');

# The next round
$node->append_conf('postgresql.conf', "rk_apikeys.usage_flush_interval = '100ms'");
$node->reload;
foreach my $db ('postgres', 'readonly', 'hostile')
{
	ok($node->poll_query_until($db, 'SELECT max(use_count) = 3 FROM rk_apikeys.key_usage'), "$db: flushed");
	is($node->safe_psql($db, 'SELECT sum(uses), count(*) FROM rk_apikeys.key_usage_daily'), '3|1', "$db: the day, too");
}
ok($node->poll_query_until('postgres', 'SELECT pending_keys = 1 FROM rk_apikeys.stats'), 'only the use in the closed database stays pending');
is(stat_of($node, 'dropped'), '3', 'what nobody can have is dropped: gone, without and lookalike');
is($node->safe_psql('lookalike', 'SELECT (SELECT count(*) FROM rk_apikeys.loot), (SELECT count(*) FROM rk_apikeys.key_usage),
	(SELECT count(*) FROM rk_apikeys.key_usage_daily)'), '0|0|0', 'nothing of the look-alike was run or written');

# And on
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{postgres}')"), 't', 'verified again');
ok($node->poll_query_until('postgres', "SELECT use_count = 4 FROM rk_apikeys.key_usage WHERE key_id = '$id{postgres}'"), 'and flushed');
is($node->safe_psql('postgres', $launcher), $pid, 'by the same launcher');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
is(sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{closed}')", 'closed'), 't', 'the closed database is open again');
ok($node->poll_query_until('closed', "SELECT use_count = 4 FROM rk_apikeys.key_usage WHERE key_id = '$id{closed}'"), 'and flushed, with what was pending');
$node->safe_psql('without', 'CREATE EXTENSION rk_apikeys');
($id{without}, $token{without}) = create_key($node, 'again', undef, 'acme', 'without');
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{without}')", 'without');
ok($node->poll_query_until('without', "SELECT use_count = 1 FROM rk_apikeys.key_usage"), 'so is the one with the extension made anew');

# Tables that were given away: what their new owner has put off to the end of the transaction, where the worker's own rights are back
$node->safe_psql('without', "ALTER TABLE rk_apikeys.$_ OWNER TO mallory") foreach qw(api_keys key_usage key_usage_daily);
sql_as($node, 'mallory', q{
	CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'run by %', current_user; RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE ON rk_apikeys.key_usage DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION later();
}, 'without');
my $offset = -s $node->logfile;
sql_as($node, 'backend', "SELECT rk_apikeys.verify('$token{without}')", 'without');
$node->wait_for_log(qr/LOG:  run by|ERROR:  cannot fire deferred trigger within security-restricted operation/, $offset);
$node->safe_psql('without', 'ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.key_usage');
ok($node->poll_query_until('postgres', 'SELECT dropped = 4 AND pending_keys = 0 FROM rk_apikeys.stats'), 'a table that is no member any more is not written');
is_deeply([ logged($node, qr/LOG:  run by|FATAL:|PANIC:/) ], [], 'no worker failed or ran what is not ours');

done_testing();
