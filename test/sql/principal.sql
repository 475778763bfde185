-- A key as the principal of a transaction, that policies on users' tables trust.
\set VERBOSITY sqlstate
CREATE ROLE rk_test_app IN ROLE rk_apikeys_verifier, rk_apikeys_manager;
CREATE TABLE records (tenant text, body text);
INSERT INTO records VALUES ('acme', 'acme''s'), ('globex', 'globex''s');
ALTER TABLE records ENABLE ROW LEVEL SECURITY;
CREATE POLICY reads ON records FOR SELECT USING (tenant = (SELECT rk_apikeys.current_key_tenant()) AND (SELECT rk_apikeys.has_scope('records:read')));
CREATE POLICY writes ON records FOR INSERT WITH CHECK (tenant = (SELECT rk_apikeys.current_key_tenant()) AND (SELECT rk_apikeys.has_scope('records:write')));
GRANT SELECT, INSERT ON records TO rk_test_app;
SET ROLE rk_test_admin;
SELECT key_id AS reader_id, secret AS reader FROM rk_apikeys.create_key('reader', tenant => 'acme', scopes => '{records:read}') \gset
SELECT secret AS writer FROM rk_apikeys.create_key('writer', tenant => 'globex', scopes => '{records:*}') \gset
SELECT key_id AS boss_id, secret AS boss FROM rk_apikeys.create_key('boss', tenant => 'acme', scopes => '{apikeys:manage,records:*}') \gset

SET ROLE rk_test_app;
SELECT * FROM records;
BEGIN;
SELECT v.code, v.tenant FROM rk_apikeys.authenticate(:'reader') v;
SELECT * FROM records;
SELECT rk_apikeys.current_key_id() = :'reader_id' AS it, rk_apikeys.current_key_tenant(), rk_apikeys.current_scopes(),
  rk_apikeys.has_scope('records:read') AS read, rk_apikeys.has_scope('records:write') AS write, rk_apikeys.has_scope(NULL) AS null;
INSERT INTO records VALUES ('acme', 'x'); -- fails: scope
ROLLBACK;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'writer', 'records:write') v;
INSERT INTO records VALUES ('globex', 'new');
SELECT * FROM records;
-- Savepoints undo it; the end of the transaction ends it.
SAVEPOINT s;
SELECT v.code FROM rk_apikeys.authenticate(:'reader') v;
SELECT rk_apikeys.current_key_tenant();
ROLLBACK TO s;
SELECT rk_apikeys.current_key_tenant();
INSERT INTO records VALUES ('acme', 'x'); -- fails: another tenant
ROLLBACK;
SELECT rk_apikeys.current_key_tenant(), rk_apikeys.current_key_id(), rk_apikeys.current_scopes(), rk_apikeys.has_scope('records:read');
SELECT count(*) FROM records;

-- What is no good raises, and nobody is authenticated.
SELECT rk_apikeys.authenticate('x'); -- fails: malformed
SELECT rk_apikeys.authenticate(NULL); -- fails: malformed
SELECT rk_apikeys.authenticate(rk_apikeys.generate_token()); -- fails: unknown
SELECT rk_apikeys.authenticate(:'reader', 'records:write'); -- fails: scope
SELECT rk_apikeys.current_key_id();
-- Outside a transaction block it does nothing for the next statement, and says so.
\set VERBOSITY terse
SELECT (rk_apikeys.authenticate(:'reader')).code;
SELECT rk_apikeys.authenticate('x'); -- fails: malformed
\set VERBOSITY sqlstate
SELECT rk_apikeys.current_key_id();

-- SQL cannot forge it.
SET rk_apikeys.principal = 'x'; -- fails: refused
SET LOCAL rk_apikeys.principal = ''; -- fails: refused
SELECT set_config('rk_apikeys.principal', 'x', false); -- fails: refused
RESET rk_apikeys.principal; -- fails: refused
UPDATE pg_settings SET setting = 'x' WHERE name = 'rk_apikeys.principal'; -- fails: refused, or not shown
ALTER ROLE rk_test_app SET rk_apikeys.principal = 'x'; -- fails: refused
CREATE FUNCTION pg_temp.forge() RETURNS text LANGUAGE sql SET rk_apikeys.principal = 'x' AS 'SELECT rk_apikeys.current_key_id()'; -- fails: refused
RESET ALL;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'reader') v;
RESET ALL;
SELECT rk_apikeys.current_key_id() = :'reader_id' AS still;
SAVEPOINT s;
RESET rk_apikeys.principal; -- fails: refused
ROLLBACK TO s;
SELECT set_config('rk_apikeys.tenant', 'globex', true); -- fails: not granted
ROLLBACK;
RESET ROLE;
SET rk_apikeys.principal = 'x'; -- fails: a superuser neither
SET ROLE rk_test_app;

-- Without the scope apikeys:manage it sees no key, whatever its role may.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'reader') v;
SELECT count(*) FROM rk_apikeys.keys;
SELECT count(*) FROM rk_apikeys.key_events;
SELECT count(*) FROM rk_apikeys.list_keys();
SAVEPOINT s;
SELECT rk_apikeys.create_key('x'); -- fails: policy
ROLLBACK TO s;
SELECT rk_apikeys.revoke_key(:'reader_id'); -- fails: no such key
ROLLBACK;
-- With it, its own tenant's; and it cannot make a stronger key than itself.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT tenant, name FROM rk_apikeys.keys ORDER BY name;
SELECT rk_apikeys.current_tenant();
INSERT INTO rk_apikeys.keys (name, scopes) VALUES ('child', '{records:read,records:*}') RETURNING tenant, scopes;
SAVEPOINT s;
INSERT INTO rk_apikeys.keys (name, scopes) VALUES ('x', '{*}'); -- fails: stronger
ROLLBACK TO s;
INSERT INTO rk_apikeys.keys (name, scopes) VALUES ('x', '{billing:read}'); -- fails: not its own
ROLLBACK TO s;
INSERT INTO rk_apikeys.keys (name, environment) VALUES ('x', 'dev'); -- fails: another environment
ROLLBACK TO s;
INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('x', 'globex'); -- fails: another tenant
ROLLBACK TO s;
UPDATE rk_apikeys.keys SET scopes = '{billing:read}' WHERE name = 'reader'; -- fails: not its own
ROLLBACK TO s;
UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'reader' RETURNING status;
-- The events name it.
SELECT event, principal = :'boss_id' AS by_key FROM rk_apikeys.key_events WHERE key_id = :'reader_id' ORDER BY event_id;
-- It dies in the middle of its transaction: from then on it is nobody.
SELECT rk_apikeys.revoke_key(:'boss_id');
SELECT rk_apikeys.current_key_id(), rk_apikeys.current_key_tenant(), rk_apikeys.current_scopes(), rk_apikeys.has_scope('records:read'), rk_apikeys.current_tenant();
SELECT count(*) FROM records;
SELECT count(*) FROM rk_apikeys.keys;
ROLLBACK;

-- Not even an administrator's role helps a key to what is of all tenants.
RESET ROLE;
GRANT rk_apikeys_admin TO rk_test_app;
SET ROLE rk_test_app;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SAVEPOINT s;
SELECT rk_apikeys.purge_events('0'); -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys.purge_keys('0'); -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys.flush_usage(); -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys.import_key('x', sha256('x'), 'sha256'); -- fails: of all tenants
ROLLBACK TO s;
SELECT * FROM rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', 1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'); -- fails: of all tenants
ROLLBACK TO s;
-- But whoever holds a token may end its key, whatever the principal is.
SELECT rk_apikeys.revoke_token(:'writer');
ROLLBACK;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'reader') v;
SELECT rk_apikeys._live_use_count(:'reader_id');
SAVEPOINT s;
SELECT verified FROM rk_apikeys.stats; -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys._server_stats(); -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys._health(); -- fails: of all tenants
ROLLBACK TO s;
SELECT rk_apikeys._missing_peppers(); -- fails: of all tenants
ROLLBACK;
SELECT count(*) FROM rk_apikeys.stats;
-- The secret of a new key is for the principal that made it, and for none if there was none.
BEGIN;
SELECT key_id AS plain_id FROM rk_apikeys.create_key('plain', tenant => 'acme', scopes => '{apikeys:manage,records:*}') \gset
SELECT rk_apikeys.reveal(:'plain_id') IS NOT NULL AS shown;
SAVEPOINT s;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT rk_apikeys.reveal(:'plain_id') IS NOT NULL AS shown;
SELECT count(secret) FROM rk_apikeys.keys;
INSERT INTO rk_apikeys.keys (name, scopes) VALUES ('second boss', '{apikeys:manage}') RETURNING key_id AS second_id, secret AS second \gset
SELECT rk_apikeys.reveal(:'second_id') = :'second' AS shown;
SELECT v.code FROM rk_apikeys.authenticate(:'second') v;
SELECT rk_apikeys.reveal(:'second_id') IS NOT NULL AS shown;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT rk_apikeys.reveal(:'second_id') = :'second' AS shown;
ROLLBACK TO s;
SELECT rk_apikeys.reveal(:'plain_id') IS NOT NULL AS shown, rk_apikeys.reveal(:'second_id') IS NOT NULL AS others;
ROLLBACK;
RESET ROLE;
REVOKE rk_apikeys_admin FROM rk_test_app;
-- Of each table that a role reads of all tenants a key sees its own tenant's rows; none without apikeys:manage, or when it is dead.
TRUNCATE rk_apikeys.key_usage_daily;
INSERT INTO rk_apikeys.key_usage (key_id, tenant) SELECT key_id, tenant FROM rk_apikeys.api_keys ON CONFLICT DO NOTHING;
INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant) SELECT key_id, '2026-01-01', environment, tenant FROM rk_apikeys.api_keys;
INSERT INTO rk_apikeys.usage_senders (sender, batch, received_at, left_out) VALUES ('00000000-0000-0000-0000-000000000001', 1, now(), '{}');
CREATE VIEW seen WITH (security_invoker) AS
  SELECT ARRAY(SELECT DISTINCT tenant FROM rk_apikeys.keys ORDER BY 1) AS keys, ARRAY(SELECT DISTINCT tenant FROM rk_apikeys.key_usage ORDER BY 1) AS usage,
    ARRAY(SELECT DISTINCT tenant FROM rk_apikeys.key_usage_daily ORDER BY 1) AS daily, ARRAY(SELECT DISTINCT tenant FROM rk_apikeys.key_events ORDER BY 1) AS events,
    (SELECT count(*) FROM rk_apikeys.usage_senders) AS senders;
CREATE ROLE rk_test_reads_all IN ROLE rk_apikeys_verifier, rk_apikeys_auditor;
GRANT SELECT ON seen TO rk_test_reads_all, rk_test_admin;
GRANT rk_apikeys_verifier TO rk_test_admin;
SET ROLE rk_test_reads_all;
SELECT * FROM seen;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT * FROM seen;
SET LOCAL ROLE rk_test_admin;
SELECT * FROM seen;
SELECT v.code FROM rk_apikeys.authenticate(:'reader') v;
SELECT * FROM seen;
SET LOCAL ROLE rk_test_reads_all;
SELECT * FROM seen;
ROLLBACK;
SET ROLE rk_test_admin;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT rk_apikeys.revoke_token(:'boss');
SELECT * FROM seen;
ROLLBACK;
-- Where no policy stands between, the trigger refuses as much.
RESET ROLE;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SAVEPOINT s;
INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('x', 'globex'); -- fails: another tenant
ROLLBACK TO s;
SELECT rk_apikeys.revoke_token(:'boss');
INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('x', 'acme'); -- fails: it is dead
ROLLBACK;
DROP VIEW seen;
DROP ROLE rk_test_reads_all;
REVOKE rk_apikeys_verifier FROM rk_test_admin;
DELETE FROM rk_apikeys.usage_senders;
-- Parallel workers follow it.
RESET ROLE;
INSERT INTO records SELECT 'acme', 'bulk' FROM generate_series(1, 5000);
ANALYZE records;
SET ROLE rk_test_app;
SELECT count(set_config(name, 'on', false)) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode');
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'boss') v;
SELECT count(*) FROM records;
SELECT count(*) FROM records WHERE rk_apikeys.has_scope('records:read') AND rk_apikeys.current_key_tenant() = 'acme';
COMMIT;
RESET ROLE;
DROP TABLE records;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
DROP ROLE rk_test_app;
