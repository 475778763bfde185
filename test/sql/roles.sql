-- What each role may, and what it may not.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT count(*) FROM (SELECT * FROM rk_apikeys.create_key('mine')) x;
SET ROLE rk_test_other;
SELECT count(*) FROM (SELECT * FROM rk_apikeys.create_key('theirs')) x;

-- A manager: its own tenant.
SET ROLE rk_test_manager;
SELECT tenant, name FROM rk_apikeys.keys;
SELECT tenant, event FROM rk_apikeys.key_events;
SELECT digest FROM rk_apikeys.api_keys; -- fails: not granted
SELECT digest_kind FROM rk_apikeys.api_keys; -- fails: not granted
SELECT pepper_id FROM rk_apikeys.api_keys; -- fails: not granted
SELECT * FROM rk_apikeys.api_keys; -- fails: not granted
SELECT to_jsonb(k) FROM rk_apikeys.api_keys k; -- fails: not granted
COPY rk_apikeys.api_keys TO STDOUT; -- fails: not granted
INSERT INTO rk_apikeys.api_keys (name, digest) VALUES ('x', '\x00'); -- fails: not granted
INSERT INTO rk_apikeys.keys (key_id, name) VALUES ('000000000000', 'x'); -- fails: not granted
INSERT INTO rk_apikeys.keys (name, created_at) VALUES ('x', now()); -- fails: not granted
INSERT INTO rk_apikeys.keys (name, tenant) VALUES ('x', 'rk_test_other'); -- fails: policy
UPDATE rk_apikeys.keys SET key_id = '000000000000'; -- fails: not granted
UPDATE rk_apikeys.keys SET tenant = 'rk_test_other'; -- fails: not granted
UPDATE rk_apikeys.api_keys SET digest = '\x00'; -- fails: not granted
UPDATE rk_apikeys.keys SET created_at = now(); -- fails: not granted
UPDATE rk_apikeys.keys SET updated_at = now(); -- fails: not granted
UPDATE rk_apikeys.keys SET environment = 'dev'; -- fails: not granted
TRUNCATE rk_apikeys.api_keys; -- fails: not granted
DELETE FROM rk_apikeys.key_events; -- fails: not granted
UPDATE rk_apikeys.key_events SET event = 'deleted'; -- fails: not granted
INSERT INTO rk_apikeys.key_events (event, actor, role) VALUES ('purged', 'x', 'x'); -- fails: not granted
TRUNCATE rk_apikeys.key_events; -- fails: not granted
UPDATE rk_apikeys.key_usage SET use_count = 0; -- fails: not granted
SELECT rk_apikeys.verify('x'); -- fails: a manager does not verify
SELECT rk_apikeys.purge_events('1 day'); -- fails: admin's
SELECT rk_apikeys.purge_keys('1 day'); -- fails: admin's
SELECT rk_apikeys.flush_usage(); -- fails: admin's
SELECT rk_apikeys.import_key('x', sha256('x'), 'sha256'); -- fails: admin's
SELECT * FROM rk_apikeys.stats; -- fails: tells of every tenant
SET rk_apikeys.tenant = 'rk_test_other'; -- fails: not granted
SELECT set_config('rk_apikeys.tenant', 'rk_test_other', true); -- fails: not granted
-- Updates and deletes without a WHERE reach its own keys only.
UPDATE rk_apikeys.keys SET description = 'touched';
DELETE FROM rk_apikeys.keys WHERE name = 'theirs';
-- Statistics tell nothing of rows that it cannot see.
SELECT count(*) FROM pg_stats WHERE schemaname = 'rk_apikeys' AND tablename = 'api_keys';

-- An auditor reads all tenants and changes nothing.
SET ROLE rk_test_auditor;
SELECT tenant, name, description, secret FROM rk_apikeys.keys ORDER BY tenant;
SELECT tenant, event FROM rk_apikeys.key_events WHERE tenant LIKE 'rk_test%' ORDER BY event_id;
SELECT count(*) FROM rk_apikeys.stats;
UPDATE rk_apikeys.keys SET enabled = false; -- fails: not granted
DELETE FROM rk_apikeys.keys; -- fails: not granted
INSERT INTO rk_apikeys.keys (name) VALUES ('x'); -- fails: not granted
SELECT rk_apikeys.create_key('x'); -- fails: not granted
SELECT digest FROM rk_apikeys.api_keys; -- fails: not granted

-- A verifier reads no table.
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify('x');
SELECT count(*) FROM rk_apikeys.keys; -- fails: not granted
SELECT count(*) FROM rk_apikeys.api_keys; -- fails: not granted
SELECT count(*) FROM rk_apikeys.key_usage; -- fails: not granted
SELECT count(*) FROM rk_apikeys.key_events; -- fails: not granted
SELECT rk_apikeys.create_key('x'); -- fails: not granted
SELECT count(*) FROM rk_apikeys.list_keys(); -- fails: not granted

-- Nobody.
SET ROLE rk_test_nobody;
SELECT rk_apikeys.verify('x'); -- fails: not granted
SELECT rk_apikeys.verify_key('x'); -- fails: not granted
SELECT rk_apikeys.authenticate('x'); -- fails: not granted
SELECT rk_apikeys.revoke_token('x'); -- fails: not granted
SELECT count(*) FROM rk_apikeys.keys; -- fails: not granted
SELECT rk_apikeys.reveal('x'); -- fails: not granted
SELECT rk_apikeys.current_tenant(), rk_apikeys.current_key_id(), rk_apikeys.current_key_tenant(),
  rk_apikeys.current_scopes(), rk_apikeys.has_scope('x'), rk_apikeys.has_scope(NULL);

-- An admin: all tenants.
SET ROLE rk_test_admin;
SELECT tenant, name FROM rk_apikeys.keys ORDER BY tenant;
INSERT INTO rk_apikeys.keys (tenant, name) VALUES ('third', 'made for them') RETURNING tenant, name, secret IS NOT NULL AS shown;
TRUNCATE rk_apikeys.api_keys; -- fails: not granted
DELETE FROM rk_apikeys.key_events; -- fails: not granted
SELECT digest FROM rk_apikeys.api_keys; -- fails: not granted

-- The tenant of a session is the setting, for those who were granted it.
RESET ROLE;
SET rk_apikeys.tenant = 'third';
SET ROLE rk_test_manager;
SELECT tenant, name FROM rk_apikeys.keys;
RESET ROLE;
RESET rk_apikeys.tenant;

-- pg_read_all_data and pg_write_all_data bypass grants, but not the triggers.
CREATE ROLE rk_test_writer IN ROLE pg_read_all_data, pg_write_all_data, rk_apikeys_admin;
SET ROLE rk_test_writer;
INSERT INTO rk_apikeys.api_keys (tenant, name, digest, digest_kind) VALUES ('t', 'x', sha256('x'), 'sha256'); -- fails: a digest is the owner's
RESET ROLE;
DROP ROLE rk_test_writer;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
