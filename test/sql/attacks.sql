-- What an attacker with some rights tries, and does not get.
\set VERBOSITY sqlstate
CREATE ROLE rk_test_attacker IN ROLE rk_apikeys_manager, rk_apikeys_verifier;
CREATE SCHEMA rk_test_evil AUTHORIZATION rk_test_attacker;
SET ROLE rk_test_other;
SELECT key_id AS victim, secret AS victim_token FROM rk_apikeys.create_key('sentinel', 'sentinel', scopes => '{sentinel:read}', metadata => '{"x": "sentinel"}') \gset
SET ROLE rk_test_attacker;
SELECT key_id AS mine, secret AS token FROM rk_apikeys.create_key('mine', scopes => '{records:read}') \gset
RESET ROLE;

-- The code of the error that a statement gives; and whether any of its texts holds what only the victim's key has.
CREATE FUNCTION rk_test_told(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
  hint text;
  context text;
BEGIN
  EXECUTE statement;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
  RETURN SQLSTATE || CASE WHEN concat_ws(' ', message, detail, hint, replace(context, statement, ''))
    ~ 'sentinel|\\x[0-9a-f]{32}|_[0-9A-Za-z]{43}' THEN ' and tells' ELSE '' END;
END $$;

-- The settings: no way to set them for a role that was not granted it.
SET ROLE rk_test_attacker;
SET rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
SET SESSION rk_apikeys.tenant TO rk_test_other; -- fails: not granted
SELECT set_config('rk_apikeys.tenant', 'rk_test_other', false); -- fails: not granted
SELECT set_config('RK_APIKEYS.Tenant', 'rk_test_other', false); -- fails: not granted
UPDATE pg_settings SET setting = 'rk_test_other' WHERE name = 'rk_apikeys.tenant'; -- fails: not granted
ALTER ROLE rk_test_attacker SET rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
ALTER ROLE rk_test_attacker SET rk_apikeys.tenant FROM CURRENT; -- fails: not granted
ALTER SYSTEM SET rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
CREATE FUNCTION rk_test_evil.be() RETURNS text LANGUAGE sql SET rk_apikeys.tenant = 'rk_test_other' AS 'SELECT rk_apikeys.current_tenant()'; -- fails: not granted
CREATE FUNCTION rk_test_evil.be() RETURNS text LANGUAGE sql SET rk_apikeys.principal FROM CURRENT AS 'SELECT rk_apikeys.current_key_id()'; -- fails: refused
ALTER SYSTEM SET rk_apikeys.principal = 'x'; -- fails: not granted
BEGIN;
SET LOCAL rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
ROLLBACK;
BEGIN;
SET LOCAL rk_apikeys.principal = 'x'; -- fails: refused
ROLLBACK;
RESET ROLE;
SELECT set_config('rk_apikeys.principal', :'victim', false); -- fails: a superuser neither
ALTER SYSTEM SET rk_apikeys.principal = 'x'; -- fails: not in a file
ALTER ROLE rk_test_attacker SET rk_apikeys.principal = 'x'; -- fails: refused
ALTER DATABASE contrib_regression SET rk_apikeys.principal = 'x'; -- fails: refused
ALTER ROLE ALL SET rk_apikeys.principal = ''; -- fails: refused
-- The owner of a database neither.
CREATE DATABASE rk_test_trap OWNER rk_test_attacker;
SET ROLE rk_test_attacker;
ALTER DATABASE rk_test_trap SET rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
ALTER DATABASE rk_test_trap SET rk_apikeys.principal = 'x'; -- fails: refused
SET session_replication_role = replica; -- fails: would silence the triggers
SET row_security = off;
SELECT count(*) FROM rk_apikeys.keys; -- fails: it would be filtered
RESET row_security;
SELECT rk_apikeys.current_tenant(), rk_apikeys.current_key_id();

-- A principal lasts until its transaction ends, however that is reached, and not longer.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
COMMIT;
SELECT rk_apikeys.current_key_tenant();
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
COMMIT AND CHAIN;
SELECT rk_apikeys.current_key_tenant();
ROLLBACK AND CHAIN;
SELECT rk_apikeys.current_key_tenant();
ROLLBACK;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
SELECT 1 / 0; -- fails: and the transaction with it
COMMIT;
SELECT rk_apikeys.current_key_tenant();
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
DISCARD ALL; -- fails: not in a transaction
ROLLBACK;
DISCARD ALL;
SET ROLE rk_test_attacker; -- DISCARD ALL has reset it
SELECT rk_apikeys.current_key_tenant();
-- PREPARE TRANSACTION ends it too, for whoever goes on and for whoever commits it.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
SELECT rk_apikeys.current_key_tenant();
PREPARE TRANSACTION 'rk_test';
SELECT rk_apikeys.current_key_tenant();
COMMIT PREPARED 'rk_test';
SELECT rk_apikeys.current_key_tenant();
-- The COMMIT of a procedure.
CREATE TEMP TABLE seen (place text, tenant text);
CREATE PROCEDURE rk_test_evil.commits(token text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM rk_apikeys.authenticate(token);
  INSERT INTO seen VALUES ('before', rk_apikeys.current_key_tenant());
  COMMIT;
  INSERT INTO seen VALUES ('after COMMIT', rk_apikeys.current_key_tenant());
  COMMIT;
  PERFORM rk_apikeys.authenticate(token);
  ROLLBACK;
  INSERT INTO seen VALUES ('after ROLLBACK', rk_apikeys.current_key_tenant());
END $$;
CALL rk_test_evil.commits(:'token');
SELECT * FROM seen;
-- A function's settings end with it; the principal does not.
CREATE FUNCTION rk_test_evil.enter(token text) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog SET work_mem = '1MB' AS $$
BEGIN
  PERFORM rk_apikeys.authenticate(token);
  RETURN rk_apikeys.current_key_tenant();
END $$;
BEGIN;
SELECT rk_test_evil.enter(:'token');
SELECT rk_apikeys.current_key_tenant();
-- Another role, another session authorization: the same principal.
SET LOCAL ROLE rk_test_nobody;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read');
RESET ROLE;
SET LOCAL SESSION AUTHORIZATION rk_test_nobody;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read');
RESET rk_apikeys.principal; -- fails: refused
ROLLBACK;
SELECT rk_apikeys.current_key_tenant();

-- One that a rollback took is none, not the role's tenant.
SET ROLE rk_test_attacker;
BEGIN;
SAVEPOINT s;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
ROLLBACK TO s;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.current_key_id(), rk_apikeys.has_scope('records:read');
DO $$
BEGIN
  PERFORM rk_apikeys.authenticate((SELECT secret FROM rk_apikeys.create_key('lost')));
  RAISE NOTICE '%', rk_apikeys.current_key_tenant();
  RAISE EXCEPTION 'x';
EXCEPTION WHEN OTHERS THEN
  NULL;
END $$;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.current_key_id(), rk_apikeys.has_scope('records:read');
-- A refused one leaves the one before.
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
SAVEPOINT s;
SELECT rk_apikeys.authenticate(:'victim_token', 'records:read'); -- fails: scope
ROLLBACK TO s;
SELECT rk_apikeys.current_key_tenant();
-- A DO block, a trigger, a definer's function: the same principal, whoever owns them.
DO $$ BEGIN RAISE NOTICE '% %', rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read'); END $$;
RESET ROLE;
CREATE FUNCTION rk_test_definer() RETURNS text LANGUAGE sql SECURITY DEFINER
  AS $$ SELECT concat_ws(' ', current_user <> 'rk_test_attacker', rk_apikeys.current_key_tenant(), rk_apikeys.current_tenant()) $$;
SET ROLE rk_test_attacker;
SELECT rk_test_definer();
CREATE TEMP TABLE watched (tenant text);
CREATE FUNCTION pg_temp.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tenant := rk_apikeys.current_key_tenant(); RETURN NEW; END $$;
CREATE TRIGGER watch BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION pg_temp.watch();
INSERT INTO watched VALUES ('rk_test_other') RETURNING tenant;
ROLLBACK;
-- Parallel workers know it neither before nor after.
SELECT count(set_config(name, 'on', false)) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode');
SET min_parallel_table_scan_size = 0;
SET parallel_setup_cost = 0;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read'), rk_apikeys.current_tenant();
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read'), rk_apikeys.current_tenant();
SELECT rk_apikeys.revoke_token(:'token');
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.has_scope('records:read'), rk_apikeys.current_tenant();
ROLLBACK;
SELECT count(set_config(name, 'off', false)) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode');

-- Scopes are compared by their bytes; only the key's own stars are patterns.
SET ROLE rk_test_admin;
SELECT secret AS narrow FROM rk_apikeys.create_key('narrow', tenant => 't', scopes => '{records:*,a:b,rec*,*.x,x:*:y}') \gset
SELECT secret AS wide FROM rk_apikeys.create_key('wide', tenant => 't', scopes => '{*}') \gset
SET ROLE rk_test_attacker;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'narrow') v;
SELECT quote_literal(left(s, 20)) AS scope, rk_apikeys.has_scope(s) FROM unnest(ARRAY['records:read', 'records:a:b', 'records:*', 'a:b', 'rec*', 'x:*:y',
  '', '*', ':', 'records', 'records:', 'Records:read', ' records:read', 'record:read', 'a:b ', 'a:b:c', 'a:', 'a:*', 'a', 'rec', 'records2:read',
  'x:1:y', 'y.x', E'a:b\n', 'ａ:b', 'a%', '_:b', '%', 'a:b' || chr(1), repeat('records', 100000)]) WITH ORDINALITY u(s, n) ORDER BY n;
SELECT rk_apikeys.has_scope(NULL);
ROLLBACK;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'wide') v;
SELECT quote_literal(s) AS scope, rk_apikeys.has_scope(s) FROM unnest(ARRAY['', '*', 'x', E'\n']) s;
SELECT rk_apikeys.has_scope(NULL);
ROLLBACK;

-- An administrator's session that a key has entered is that key's: its tenant's keys, and no others.
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(:'victim_token'), rk_apikeys.verify(:'token');
SET ROLE rk_test_admin;
SELECT secret AS boss FROM rk_apikeys.create_key('boss', tenant => 'rk_test_attacker', scopes => '{*}') \gset
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT tenant, name FROM rk_apikeys.keys ORDER BY name;
SELECT DISTINCT tenant FROM rk_apikeys.key_events;
SELECT count(*) FROM rk_apikeys.list_keys(search => 'sentinel');
WITH x AS (UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'victim' RETURNING 1) SELECT count(*) FROM x;
WITH x AS (DELETE FROM rk_apikeys.keys WHERE key_id = :'victim' RETURNING 1) SELECT count(*) FROM x;
SELECT rk_apikeys._live_use_count(:'victim'), rk_apikeys._live_last_used_at(:'victim');
SELECT rk_test_told($$SELECT rk_apikeys.create_key('x', tenant => 'rk_test_other')$$);
SELECT rk_test_told($$SELECT rk_apikeys.import_key('x', sha256('x'), 'sha256', tenant => 'rk_test_other')$$);
SELECT rk_test_told(format('SELECT rk_apikeys.revoke_key(%L)', :'victim'));
SELECT rk_test_told(format('SELECT rk_apikeys.rotate_key(%L)', :'victim'));
-- One without the scope apikeys:manage learns nothing even of its own.
SAVEPOINT s;
SELECT v.code FROM rk_apikeys.authenticate(:'token') v;
SELECT count(*) FROM rk_apikeys.keys;
SELECT rk_apikeys._live_use_count(:'mine'), rk_apikeys._live_last_used_at(:'mine');
ROLLBACK TO s;
-- Whoever holds a token may end its key, though, whichever key it has entered with.
SELECT rk_apikeys.revoke_token(:'victim_token');
ROLLBACK;
SET ROLE rk_test_auditor;
SELECT count(*) FROM rk_apikeys.keys WHERE name = 'sentinel';

-- What the search path finds first: none of it is ever called.
SET ROLE rk_test_attacker;
CREATE FUNCTION rk_test_evil.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'TRAPS'; END $$;
CREATE FUNCTION rk_test_evil.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT rk_test_evil.trap()';
CREATE OPERATOR rk_test_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = rk_test_evil.same);
CREATE OPERATOR rk_test_evil.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = rk_test_evil.same);
CREATE OPERATOR rk_test_evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = rk_test_evil.same);
CREATE FUNCTION rk_test_evil.join(text, text) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE OPERATOR rk_test_evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = rk_test_evil.join);
CREATE FUNCTION rk_test_evil.later(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT rk_test_evil.trap()';
CREATE OPERATOR rk_test_evil.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = rk_test_evil.later);
CREATE OPERATOR rk_test_evil.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = rk_test_evil.later);
CREATE FUNCTION rk_test_evil.lower(text) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil.strpos(text, text) RETURNS int LANGUAGE sql AS 'SELECT rk_test_evil.trap()::int';
CREATE FUNCTION rk_test_evil."left"(text, int) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text::timestamptz';
CREATE FUNCTION rk_test_evil.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text::jsonb';
CREATE FUNCTION rk_test_evil.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil.reveal(text) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil.current_tenant() RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE FUNCTION rk_test_evil._status(timestamptz, boolean, timestamptz, timestamptz) RETURNS text LANGUAGE sql AS 'SELECT rk_test_evil.trap()::text';
CREATE DOMAIN rk_test_evil.jsonb AS text CHECK (rk_test_evil.trap());
GRANT USAGE ON SCHEMA rk_test_evil TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rk_test_evil TO PUBLIC;
SET ROLE rk_test_admin;
CREATE TEMP TABLE api_keys (key_id text, tenant text, name text, digest bytea);
CREATE TEMP TABLE keys (key_id text, tenant text, name text, secret text);
CREATE TEMP TABLE key_events (event text);
CREATE TEMP TABLE key_usage (key_id text);
CREATE TEMP TABLE new_keys (key_id text);
CREATE TEMP TABLE old_keys (key_id text);
CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz '2000-01-01' $$;
CREATE TYPE pg_temp.new_key AS (wrong int);
CREATE TYPE pg_temp.text AS (wrong int);
SET search_path = pg_temp, rk_test_evil, pg_catalog, rk_apikeys;
SELECT 'x'::pg_catalog.text = 'x'::pg_catalog.text; -- fails: the traps are set
SELECT key_id AS walked, secret AS walked_token FROM rk_apikeys.create_key('walked', 'x', pg_catalog.now() OPERATOR(pg_catalog.+) '1 day', 'dev', '{a:b}',
  metadata => '{"a": 1}', tenant => 'trap') \gset
INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('walked', 'trap') RETURNING name, status;
SELECT name, status, use_count FROM rk_apikeys.list_keys('WALK', 'active', 'dev', 'status');
SELECT name, expires_in IS NOT NULL AS expires FROM rk_apikeys.expiring_keys;
SELECT pg_catalog.count(*) FROM rk_apikeys.stale_keys;
SELECT rk_apikeys.verify(:'walked_token');
SELECT v.code FROM rk_apikeys.verify_key(:'walked_token', 'a:b', '::1') v;
SELECT r.secret IS NOT NULL AS rotated FROM rk_apikeys.rotate_key(:'walked') r;
BEGIN;
SELECT key_id AS rotated FROM rk_apikeys.create_key('walked', tenant => 'trap') \gset
UPDATE rk_apikeys.keys SET grace_until = pg_catalog.now() WHERE key_id OPERATOR(pg_catalog.=) :'rotated';
INSERT INTO rk_apikeys.keys (name, tenant, replaces) VALUES ('walked', 'trap', :'rotated') RETURNING replaces IS NOT NULL AS replaces;
COMMIT;
UPDATE rk_apikeys.keys SET enabled = false, metadata = '{"b": 2}' WHERE name OPERATOR(pg_catalog.=) 'walked' RETURNING status;
SELECT rk_apikeys.revoke_key(:'walked');
SELECT rk_apikeys.revoke_key('000000000000'); -- fails: no such key
SELECT rk_apikeys.revoke_token(:'walked_token', 'x');
SELECT pg_catalog.length(rk_apikeys.import_key('walked', pg_catalog.sha256('walked'), 'sha256', tenant => 'trap'));
DELETE FROM rk_apikeys.keys WHERE tenant OPERATOR(pg_catalog.=) 'trap' RETURNING name;
SELECT rk_apikeys.purge_keys('1 day'), rk_apikeys.purge_events('1 day'), rk_apikeys.flush_usage() OPERATOR(pg_catalog.>=) 0 AS flushed;
RESET search_path;
SELECT event, count(*) FROM rk_apikeys.key_events WHERE tenant = 'trap' GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM pg_temp.key_events;
DISCARD TEMP;

-- Nor what lies in wait, in the schema of pgcrypto, for the administrator who creates the extension.
\c rk_test_trap
\set VERBOSITY sqlstate
SET client_min_messages = warning;
CREATE SCHEMA crypto;
GRANT CREATE, USAGE ON SCHEMA crypto TO PUBLIC;
CREATE EXTENSION pgcrypto SCHEMA crypto;
SET ROLE rk_test_attacker;
CREATE FUNCTION crypto.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'TRAPS'; END $$;
CREATE FUNCTION crypto.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT crypto.trap()::text';
CREATE FUNCTION crypto.format(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT crypto.trap()::text';
CREATE FUNCTION crypto.quote_ident(name) RETURNS text LANGUAGE sql AS 'SELECT crypto.trap()::text';
CREATE FUNCTION crypto.cardinality(text[]) RETURNS int LANGUAGE sql AS 'SELECT crypto.trap()::int';
CREATE FUNCTION crypto.cardinality(cidr[]) RETURNS int LANGUAGE sql AS 'SELECT crypto.trap()::int';
CREATE FUNCTION crypto.array_to_string(text[], text) RETURNS text LANGUAGE sql AS 'SELECT crypto.trap()::text';
CREATE FUNCTION crypto.array_position(text[], text) RETURNS int LANGUAGE sql AS 'SELECT crypto.trap()::int';
RESET ROLE;
CREATE EXTENSION rk_apikeys;
SELECT p.proname FROM pg_depend d JOIN pg_proc p ON p.oid = d.refobjid AND d.refclassid = 'pg_proc'::regclass
  WHERE p.pronamespace = 'crypto'::regnamespace AND d.classid <> 'pg_type'::regclass AND p.proowner = 'rk_test_attacker'::regrole AND d.objid <> p.oid;
SELECT count(*) FROM rk_apikeys.create_key('x', scopes => '{a:b}');
\c contrib_regression
\set VERBOSITY sqlstate
DROP DATABASE rk_test_trap;

-- A leaky function is given the caller's rows only, by the view and by the table.
SET ROLE rk_test_attacker;
CREATE TEMP TABLE leaked (value text);
CREATE FUNCTION rk_test_evil.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
  AS $$ BEGIN INSERT INTO leaked VALUES ($1); RETURN true; END $$;
SELECT count(*) FROM rk_apikeys.keys WHERE rk_test_evil.leak(name);
SELECT count(*) FROM rk_apikeys.keys WHERE rk_test_evil.leak(secret);
SELECT count(*) FROM rk_apikeys.api_keys WHERE rk_test_evil.leak(name);
SELECT count(*) FROM rk_apikeys.key_events WHERE rk_test_evil.leak(tenant);
SELECT count(*) FROM rk_apikeys.active_keys a JOIN rk_apikeys.keys k ON rk_test_evil.leak(a.tenant) AND rk_test_evil.leak(k.name);
UPDATE rk_apikeys.keys SET description = 'x' WHERE rk_test_evil.leak(tenant);
DELETE FROM rk_apikeys.keys WHERE rk_test_evil.leak(tenant) AND false;
SELECT name FROM rk_apikeys.keys WHERE key_id::int > 0 OR name > ''; -- fails: on a row of its own
SELECT DISTINCT value FROM leaked ORDER BY 1;
SELECT rk_test_told('SELECT FROM rk_apikeys.keys WHERE name::int > 0');
SELECT rk_test_told('SELECT FROM rk_apikeys.api_keys WHERE name::int > 0 AND tenant <> current_user');

-- Plans and statistics.
RESET ROLE;
ANALYZE rk_apikeys.api_keys;
SELECT count(*) > 0 AS gathered FROM pg_stats WHERE schemaname = 'rk_apikeys';
SET ROLE rk_test_attacker;
SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys';
SELECT count(*) FROM pg_statistic; -- fails: not granted
EXPLAIN SELECT digest FROM rk_apikeys.api_keys; -- fails: not granted
EXPLAIN UPDATE rk_apikeys.keys SET tenant = 'x'; -- fails: not granted
ANALYZE rk_apikeys.api_keys;
SET ROLE rk_test_nobody;
SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys';
EXPLAIN SELECT name FROM rk_apikeys.keys; -- fails: not granted
EXPLAIN SELECT name FROM rk_apikeys.api_keys; -- fails: not granted
EXPLAIN SELECT * FROM rk_apikeys.list_keys(); -- fails: not granted
SET ROLE rk_test_verifier;
EXPLAIN SELECT name FROM rk_apikeys.api_keys; -- fails: not granted
EXPLAIN SELECT count(*) FROM rk_apikeys.key_usage; -- fails: not granted

-- Errors tell nothing of another tenant's key: neither that it is there, nor what it holds.
SET ROLE rk_test_attacker;
CREATE TABLE rk_test_evil.oracle (key_id text REFERENCES rk_apikeys.api_keys); -- fails: not granted
CREATE TABLE rk_test_evil.oracle (key_id text);
ALTER TABLE rk_test_evil.oracle ADD FOREIGN KEY (key_id) REFERENCES rk_apikeys.api_keys; -- fails: not granted
SELECT rk_test_told(s) FROM unnest(ARRAY[
  format($$SELECT rk_apikeys.revoke_key(%L)$$, :'victim'),
  format($$SELECT rk_apikeys.revoke_key(%L)$$, reverse(:'victim')),
  format($$SELECT rk_apikeys.rotate_key(%L)$$, :'victim'),
  format($$INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', %L)$$, :'victim'),
  format($$INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', %L)$$, reverse(:'victim')),
  format($$INSERT INTO rk_apikeys.keys (name, replaces, tenant) VALUES ('x', %L, 'rk_test_other')$$, :'victim'),
  format($$INSERT INTO rk_apikeys.keys (key_id, name) VALUES (%L, 'x')$$, :'victim'),
  $$INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('x', 'rk_test_other')$$,
  $$UPDATE rk_apikeys.keys SET name = ''$$,
  $$UPDATE rk_apikeys.keys SET name = repeat('x', 201)$$,
  $$UPDATE rk_apikeys.keys SET scopes = NULL$$,
  $$UPDATE rk_apikeys.api_keys SET scopes = '{{a}}'$$,
  $$UPDATE rk_apikeys.keys SET metadata = '[]'$$,
  $$UPDATE rk_apikeys.keys SET allowed_cidrs = '{}'$$,
  $$INSERT INTO rk_apikeys.keys (name, environment) VALUES ('x', NULL)$$,
  $$SELECT rk_apikeys.list_keys(after => 'x')$$]) WITH ORDINALITY u(s, n) ORDER BY n;
WITH x AS (UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'victim' RETURNING 1) SELECT count(*) FROM x;
WITH x AS (DELETE FROM rk_apikeys.keys WHERE key_id = :'victim' RETURNING 1) SELECT count(*) FROM x;
-- With the right to write every table, which passes grants by: the triggers and policies are still there.
RESET ROLE;
CREATE ROLE rk_test_writer IN ROLE pg_write_all_data, pg_read_all_data, rk_apikeys_manager;
SET ROLE rk_test_writer;
SELECT count(*) FROM rk_apikeys.api_keys;
SELECT rk_test_told(s) FROM unnest(ARRAY[
  format($$INSERT INTO rk_apikeys.api_keys (key_id, name) VALUES (%L, 'x')$$, :'victim'),
  $$INSERT INTO rk_apikeys.api_keys (name, digest_kind) VALUES ('x', 'sha256')$$,
  $$INSERT INTO rk_apikeys.api_keys (name, digest, digest_kind) VALUES ('x', sha256('x'), 'sha256')$$,
  format($$INSERT INTO rk_apikeys.api_keys VALUES (%L, 'rk_test_writer', 'x', '', 'rk', 'prod', '{}', NULL, NULL, NULL, '{}', true, NULL, NULL, NULL, NULL, NULL,
    now(), 'x', now(), 'x', NULL, sha256('x'), 'native', NULL)$$, :'victim'),
  format($$INSERT INTO rk_apikeys.api_keys VALUES (%L, 'rk_test_writer', 'x', '', 'rk', 'prod', '{}', NULL, NULL, NULL, '{}', true, NULL, NULL, NULL, NULL, NULL,
    now(), 'x', now(), 'x', NULL, sha256('x'), 'native', NULL)$$, reverse(:'victim')),
  $$INSERT INTO rk_apikeys.api_keys (name, hint) VALUES ('x', 'xxxx')$$,
  $$INSERT INTO rk_apikeys.api_keys (name, revoked_at) VALUES ('x', now())$$,
  $$INSERT INTO rk_apikeys.api_keys (name, created_at) VALUES ('x', now())$$,
  $$INSERT INTO rk_apikeys.api_keys (name, tenant) VALUES ('x', 'rk_test_other')$$,
  $$INSERT INTO rk_apikeys.key_events (event, actor, role, key_id, tenant) VALUES ('deleted', 'x', 'x', 'x', 'rk_test_writer')$$,
  $$INSERT INTO rk_apikeys.key_usage (key_id, tenant) VALUES ('x', 'rk_test_writer')$$,
  $$SELECT rk_apikeys.create_key('mine')$$,
  $$UPDATE rk_apikeys.api_keys SET tenant = 'rk_test_other'$$,
  format($$UPDATE rk_apikeys.api_keys SET key_id = %L$$, :'victim'),
  $$UPDATE rk_apikeys.api_keys SET digest = sha256('x')$$,
  $$UPDATE rk_apikeys.api_keys SET digest_kind = 'sha256'$$,
  $$UPDATE rk_apikeys.api_keys SET created_by = 'x'$$,
  $$UPDATE rk_apikeys.api_keys SET updated_by = 'x'$$,
  $$UPDATE rk_apikeys.api_keys SET revoked_at = now() - interval '1 day'$$]) WITH ORDINALITY u(s, n) ORDER BY n;
WITH x AS (UPDATE rk_apikeys.key_events SET actor = 'x' RETURNING 1) SELECT count(*) FROM x;
WITH x AS (DELETE FROM rk_apikeys.key_events RETURNING 1) SELECT count(*) FROM x;
WITH x AS (UPDATE rk_apikeys.key_usage SET use_count = 0 RETURNING 1) SELECT count(*) FROM x;
DELETE FROM rk_apikeys.api_keys;
RESET ROLE;
DROP ROLE rk_test_writer;

-- A definer's function answers for its owner; what reveal() tells is the maker's alone.
SET ROLE rk_test_attacker;
CREATE FUNCTION rk_test_evil.steal(id text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT rk_apikeys.reveal(id) $$;
CREATE FUNCTION rk_test_evil.steal_by_view(id text) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$ SELECT count(secret) FROM rk_apikeys.keys WHERE key_id = id $$;
CREATE FUNCTION rk_test_evil.whose() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT rk_apikeys.current_tenant() $$;
CREATE FUNCTION rk_test_evil.list() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS $$ SELECT tenant || ' ' || name FROM rk_apikeys.list_keys() ORDER BY 1 $$;
CREATE FUNCTION rk_test_evil.make() RETURNS rk_apikeys.new_key LANGUAGE sql SECURITY DEFINER AS $$ SELECT rk_apikeys.create_key('by definer') $$;
CREATE VIEW rk_test_evil.window AS SELECT tenant, name, secret IS NOT NULL AS shown FROM rk_apikeys.keys;
CREATE VIEW rk_test_evil.window_invoker WITH (security_invoker) AS SELECT tenant, name, secret IS NOT NULL AS shown FROM rk_apikeys.keys;
GRANT SELECT ON rk_test_evil.window, rk_test_evil.window_invoker TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rk_test_evil TO PUBLIC;
SET ROLE rk_test_other;
BEGIN;
SELECT key_id AS fresh FROM rk_apikeys.create_key('fresh') \gset
SELECT rk_apikeys.reveal(:'fresh') IS NOT NULL AS mine, rk_test_evil.steal(:'fresh'), rk_test_evil.steal_by_view(:'fresh');
SELECT rk_test_evil.whose(), rk_apikeys.current_tenant();
SELECT rk_test_evil.list();
-- A view's owner lends its rights, and not its name.
SELECT * FROM rk_test_evil.window WHERE name = 'fresh';
SELECT * FROM rk_test_evil.window_invoker WHERE name = 'fresh';
SELECT n.key_id AS lent, n.secret IS NOT NULL AS shown FROM rk_test_evil.make() n \gset
SELECT :'shown' AS told_by_its_maker, rk_apikeys.reveal(:'lent');
ROLLBACK;
SET ROLE rk_test_nobody;
SELECT count(*) FROM rk_test_evil.window;
SELECT count(*) FROM rk_test_evil.window_invoker; -- fails: not granted
-- The same of an administrator's.
SET ROLE rk_test_admin;
CREATE FUNCTION pg_temp.admins(id text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT concat(name, secret, rk_apikeys.reveal(id)) FROM rk_apikeys.keys WHERE key_id = id $$;
SET ROLE rk_test_other;
BEGIN;
SELECT key_id AS fresh FROM rk_apikeys.create_key('fresh') \gset
SELECT pg_temp.admins(:'fresh');
ROLLBACK;

-- Trigger functions on a table of the attacker's: not granted; and to the superuser, not callable there.
SET ROLE rk_test_attacker;
CREATE TABLE rk_test_evil.api_keys (LIKE rk_apikeys.api_keys); -- fails: not granted
CREATE TABLE rk_test_evil.api_keys (key_id text);
CREATE TRIGGER api_keys_make BEFORE INSERT ON rk_test_evil.api_keys FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make(); -- fails: not granted
CREATE TRIGGER api_keys_settle AFTER DELETE ON rk_test_evil.api_keys FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_settle(); -- fails: not granted
SELECT rk_apikeys._keys_make(); -- fails: not granted
RESET ROLE;
SELECT rk_apikeys._keys_make(); -- fails: a trigger's
CREATE TABLE rk_test_copy AS SELECT * FROM rk_apikeys.api_keys WHERE key_id = :'victim';
CREATE TRIGGER api_keys_make BEFORE INSERT ON rk_test_copy FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make();
INSERT INTO rk_test_copy (name) VALUES ('x'); -- fails: not its table
DROP TRIGGER api_keys_make ON rk_test_copy;
CREATE TRIGGER api_keys_guard BEFORE UPDATE ON rk_test_copy FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_guard();
UPDATE rk_test_copy SET name = 'y'; -- fails: not its table
DROP TRIGGER api_keys_guard ON rk_test_copy;
CREATE TRIGGER api_keys_audit_update AFTER UPDATE ON rk_test_copy REFERENCING OLD TABLE AS old_keys NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_update();
UPDATE rk_test_copy SET name = 'y'; -- fails: not its table
CREATE TRIGGER api_keys_audit_insert AFTER INSERT ON rk_test_copy REFERENCING NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_insert();
INSERT INTO rk_test_copy (name) VALUES ('x'); -- fails: not its table
DROP TRIGGER api_keys_audit_insert ON rk_test_copy;
CREATE TRIGGER api_keys_audit_delete AFTER DELETE ON rk_test_copy REFERENCING OLD TABLE AS old_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_delete();
DELETE FROM rk_test_copy; -- fails: not its table
DROP TRIGGER api_keys_audit_delete ON rk_test_copy;
CREATE TRIGGER api_keys_settle AFTER DELETE ON rk_test_copy FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_settle();
DELETE FROM rk_test_copy; -- fails: not its table
CREATE TRIGGER api_keys_settle_imported AFTER INSERT ON rk_test_copy FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_settle_imported();
INSERT INTO rk_test_copy (name) VALUES ('x'); -- fails: not its table
DROP TABLE rk_test_copy;

-- Our objects stay as they are: a manager and an administrator use them, and own none.
CREATE FUNCTION rk_test_evil.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TABLE rk_test_evil.attempts (n int GENERATED ALWAYS AS IDENTITY, statement text);
GRANT SELECT ON rk_test_evil.attempts TO rk_test_attacker, rk_test_admin;
INSERT INTO rk_test_evil.attempts (statement) VALUES
  ($s$CREATE TRIGGER t BEFORE INSERT ON rk_apikeys.api_keys FOR EACH ROW EXECUTE FUNCTION rk_test_evil.nothing()$s$),
  ($s$CREATE TRIGGER t INSTEAD OF INSERT ON rk_apikeys.keys FOR EACH ROW EXECUTE FUNCTION rk_test_evil.nothing()$s$),
  ($s$CREATE RULE r AS ON UPDATE TO rk_apikeys.api_keys DO INSTEAD NOTHING$s$),
  ($s$CREATE RULE r AS ON DELETE TO rk_apikeys.keys DO INSTEAD NOTHING$s$),
  ($s$CREATE POLICY p ON rk_apikeys.api_keys USING (true)$s$),
  ($s$DROP POLICY principal ON rk_apikeys.api_keys$s$),
  ($s$ALTER POLICY own_tenant ON rk_apikeys.api_keys USING (true)$s$),
  ($s$ALTER TABLE rk_apikeys.api_keys DISABLE ROW LEVEL SECURITY$s$),
  ($s$ALTER TABLE rk_apikeys.api_keys DISABLE TRIGGER ALL$s$),
  ($s$ALTER TABLE rk_apikeys.api_keys ALTER tenant SET DEFAULT 'x'$s$),
  ($s$ALTER VIEW rk_apikeys.keys RESET (security_invoker)$s$),
  ($s$ALTER VIEW rk_apikeys.keys ALTER name SET DEFAULT 'x'$s$),
  ($s$CREATE OR REPLACE VIEW rk_apikeys.stats AS SELECT 1$s$),
  ($s$ALTER FUNCTION rk_apikeys.verify(text) SECURITY DEFINER$s$),
  ($s$CREATE OR REPLACE FUNCTION rk_apikeys.has_scope(scope text) RETURNS boolean LANGUAGE sql AS 'SELECT true'$s$),
  ($s$DROP FUNCTION rk_apikeys.verify(text)$s$),
  ($s$CREATE TABLE rk_apikeys.mine (x int)$s$),
  ($s$CREATE FUNCTION rk_apikeys.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'$s$),
  ($s$CREATE INDEX ON rk_apikeys.api_keys (name)$s$),
  ($s$CREATE STATISTICS rk_test_evil.s ON tenant, name FROM rk_apikeys.api_keys$s$),
  ($s$CREATE TABLE rk_test_evil.child () INHERITS (rk_apikeys.api_keys)$s$),
  ($s$CREATE TEMP TABLE child () INHERITS (rk_apikeys.api_keys)$s$),
  ($s$DROP TABLE rk_apikeys.key_events$s$),
  ($s$DROP SCHEMA rk_apikeys CASCADE$s$),
  ($s$ALTER SCHEMA rk_apikeys RENAME TO mine$s$),
  ($s$ALTER EXTENSION rk_apikeys UPDATE$s$),
  ($s$ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.api_keys$s$),
  ($s$ALTER EXTENSION rk_apikeys ADD SCHEMA rk_test_evil$s$),
  ($s$DROP EXTENSION rk_apikeys CASCADE$s$),
  ($s$COMMENT ON TABLE rk_apikeys.api_keys IS 'x'$s$),
  ($s$COMMENT ON EXTENSION rk_apikeys IS 'x'$s$),
  ($s$COMMENT ON FUNCTION rk_apikeys.verify(text) IS 'x'$s$),
  ($s$GRANT SELECT ON rk_apikeys.api_keys TO PUBLIC$s$),
  ($s$GRANT rk_apikeys_admin TO rk_test_attacker$s$),
  ($s$ALTER TABLE rk_apikeys.api_keys OWNER TO rk_test_attacker$s$),
  ($s$TRUNCATE rk_apikeys.api_keys$s$),
  ($s$TRUNCATE rk_apikeys.keys$s$),
  ($s$LOCK TABLE rk_apikeys.key_usage IN ROW EXCLUSIVE MODE$s$),
  ($s$LOCK TABLE rk_apikeys.key_events IN EXCLUSIVE MODE$s$),
  ($s$REFRESH MATERIALIZED VIEW rk_apikeys.keys$s$),
  ($s$CLUSTER rk_apikeys.api_keys USING api_keys_pkey$s$),
  ($s$REINDEX TABLE rk_apikeys.api_keys$s$);
SET ROLE rk_test_attacker;
SELECT rk_test_told(statement), left(statement, 80) AS statement FROM rk_test_evil.attempts ORDER BY n;
SET ROLE rk_test_admin;
SELECT rk_test_told(statement), left(statement, 80) AS statement FROM rk_test_evil.attempts WHERE statement !~ 'evil|TO rk_test_attacker' ORDER BY n;

SELECT has_table_privilege('rk_test_nobody', 'rk_apikeys.api_keys', 'SELECT') AS granted;
-- A limit: PostgreSQL lets whoever may DELETE from a table lock it, the neighbours' rows with it.
SET ROLE rk_test_attacker;
BEGIN;
LOCK TABLE rk_apikeys.api_keys;
ROLLBACK;
SET ROLE rk_test_auditor;
BEGIN;
LOCK TABLE rk_apikeys.api_keys IN ROW EXCLUSIVE MODE; -- fails: not granted
ROLLBACK;

-- The less usual ways to write to the view and the table end at the same rows.
SET ROLE rk_test_attacker;
COPY rk_apikeys.keys TO STDOUT; -- fails: a view
COPY (SELECT name, secret FROM rk_apikeys.keys ORDER BY name) TO STDOUT;
\copy rk_apikeys.keys (name) FROM /dev/null -- fails: a view
\copy rk_apikeys.api_keys (name) FROM /dev/null -- fails: row-level security
COPY rk_apikeys.api_keys (name) TO PROGRAM 'cat'; -- fails: not granted
INSERT INTO rk_apikeys.keys (name) VALUES ('conflict') ON CONFLICT (key_id) DO UPDATE SET name = 'sentinel' RETURNING name;
INSERT INTO rk_apikeys.keys (name) VALUES ('conflict') ON CONFLICT (key_id) DO UPDATE SET tenant = 'rk_test_other'; -- fails: not granted
INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'x', tenant FROM (VALUES ('rk_test_attacker'), ('rk_test_other')) t(tenant) ON CONFLICT DO NOTHING; -- fails: policy
DO $$
BEGIN
  MERGE INTO rk_apikeys.keys k USING (SELECT 1) s ON k.name > '' WHEN MATCHED THEN UPDATE SET description = 'merged';
EXCEPTION WHEN feature_not_supported THEN
  NULL;  -- before 17
END $$;
MERGE INTO rk_apikeys.api_keys k USING (SELECT 1) s ON k.name > '' WHEN MATCHED THEN UPDATE SET description = 'merged';
MERGE INTO rk_apikeys.api_keys k USING (SELECT 1) s ON k.name = 'sentinel' WHEN MATCHED THEN UPDATE SET tenant = 'rk_test_attacker'; -- fails: not granted
MERGE INTO rk_apikeys.api_keys k USING (SELECT 1) s ON k.name = 'sentinel' WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (name) VALUES ('not matched');
MERGE INTO rk_apikeys.api_keys k USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT (name, tenant) VALUES ('x', 'rk_test_other'); -- fails: policy
SELECT name, description FROM rk_apikeys.keys ORDER BY name;
BEGIN;
DECLARE c CURSOR FOR SELECT name FROM rk_apikeys.keys WHERE name = 'mine';
FETCH 1 FROM c;
SAVEPOINT s;
UPDATE rk_apikeys.keys SET description = 'cursor' WHERE CURRENT OF c; -- fails: a view
ROLLBACK TO s;
DECLARE d CURSOR FOR SELECT name FROM rk_apikeys.api_keys WHERE name = 'mine' FOR UPDATE;
FETCH 1 FROM d;
UPDATE rk_apikeys.api_keys SET description = 'cursor' WHERE CURRENT OF d RETURNING name;
SAVEPOINT s;
UPDATE rk_apikeys.api_keys SET tenant = 'rk_test_other' WHERE CURRENT OF d; -- fails: not granted
ROLLBACK;
SELECT name FROM rk_apikeys.api_keys WHERE tenant = 'rk_test_other' FOR UPDATE;
SELECT event FROM rk_apikeys.key_events FOR UPDATE; -- fails: not granted
PREPARE plan AS SELECT DISTINCT tenant FROM rk_apikeys.keys;
EXECUTE plan;
SET ROLE rk_test_other;
EXECUTE plan;
-- The victim's key is as it was.
SELECT name, description, enabled, scopes, metadata, tenant FROM rk_apikeys.keys;
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(:'victim_token');

RESET ROLE;
DROP FUNCTION rk_test_told(text);
DROP SCHEMA rk_test_evil CASCADE;
DROP TABLE leaked;
DROP ROLE rk_test_attacker;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
