-- Policies: what an administrator allows, by tenant and environment.
\set VERBOSITY default
SET ROLE rk_test_admin;

-- What a policy may say. Nothing of a refused statement is stored.
\set VERBOSITY terse
INSERT INTO rk_apikeys.policies (tenant) VALUES (''); -- fails: no tenant
INSERT INTO rk_apikeys.policies (tenant) VALUES (repeat('t', 201)); -- fails: too long
INSERT INTO rk_apikeys.policies (environment) VALUES ('Prod'); -- fails: no environment
INSERT INTO rk_apikeys.policies (max_lifetime) VALUES ('0'); -- fails: not positive
INSERT INTO rk_apikeys.policies (max_lifetime) VALUES ('-1 day'); -- fails: negative
INSERT INTO rk_apikeys.policies (max_lifetime) VALUES ('1001 years'); -- fails: too long
INSERT INTO rk_apikeys.policies (max_idle) VALUES ('0'); -- fails: not positive
INSERT INTO rk_apikeys.policies (max_idle) VALUES ('1 month -31 days'); -- fails: negative
INSERT INTO rk_apikeys.policies (max_keys) VALUES (-1); -- fails: negative
INSERT INTO rk_apikeys.policies (allowed_scopes) VALUES ('{}'); -- fails: allows nothing
INSERT INTO rk_apikeys.policies (allowed_scopes) VALUES ('{NULL}'); -- fails: allows nothing
INSERT INTO rk_apikeys.policies (allowed_scopes) VALUES ('{""}'); -- fails: no scope
INSERT INTO rk_apikeys.policies (allowed_scopes) VALUES ('{"a b"}'); -- fails: no scope
INSERT INTO rk_apikeys.policies (require_cidrs) VALUES (NULL); -- fails: null
INSERT INTO rk_apikeys.policies (max_keys, created_at) VALUES (1, now()); -- fails: cannot be given
SELECT count(*) FROM rk_apikeys.policies;

-- Two of the same tenant and environment, NULL included.
INSERT INTO rk_apikeys.policies (max_lifetime) VALUES ('10 years');
INSERT INTO rk_apikeys.policies (max_lifetime) VALUES ('1 year'); -- fails: every tenant has one
INSERT INTO rk_apikeys.policies (tenant, max_lifetime, allowed_scopes) VALUES ('rk_test_manager', '90 days', '{records:*,files:read,apikeys:manage}');
INSERT INTO rk_apikeys.policies (tenant, max_lifetime) VALUES ('rk_test_manager', '9 days'); -- fails: the tenant has one
INSERT INTO rk_apikeys.policies (environment, require_cidrs, require_owner) VALUES ('prod', true, true);
INSERT INTO rk_apikeys.policies (tenant, environment, max_lifetime) VALUES ('rk_test_manager', 'dev', '1 day'), ('nobody', 'dev', '1 hour');

-- Who reads which, and who writes.
SELECT tenant, environment, max_lifetime FROM rk_apikeys.policies ORDER BY tenant NULLS FIRST, environment NULLS FIRST;
SET ROLE rk_test_auditor;
SELECT count(*) FROM rk_apikeys.policies;
SET ROLE rk_test_other;
SELECT tenant, environment FROM rk_apikeys.policies ORDER BY tenant NULLS FIRST, environment NULLS FIRST;
SET ROLE rk_test_manager;
SELECT tenant, environment FROM rk_apikeys.policies ORDER BY tenant NULLS FIRST, environment NULLS FIRST;
INSERT INTO rk_apikeys.policies (tenant, max_keys) VALUES ('rk_test_manager', 1); -- fails: no right
UPDATE rk_apikeys.policies SET max_lifetime = '99 years'; -- fails: no right
DELETE FROM rk_apikeys.policies; -- fails: no right
SELECT rk_apikeys.disable_idle_keys(); -- fails: no right
SET ROLE rk_test_verifier;
SELECT count(*) FROM rk_apikeys.policies; -- fails: no right
SELECT count(*) FROM rk_apikeys.noncompliant_keys; -- fails: no right

-- New keys. A time differs at each run, so it is left out of the message.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  words text;
  more text;
BEGIN
  EXECUTE statement;
  RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS words = MESSAGE_TEXT, more = PG_EXCEPTION_HINT;
  RETURN SQLSTATE || ': ' || regexp_replace(regexp_replace(words, 'API key "\w{12}"', 'API key "ID"') || '. ' || more, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^ ,]*( [A-Z]{3}\M)?', 'TIME', 'g');
END $$;
SET ROLE rk_test_manager;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage', expires_at => now() + interval '91 days')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'dev', expires_at => now() + interval '25 hours')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage', expires_at => now() + interval '90 days', scopes => '{records:read,files:write}')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage', expires_at => now() + interval '90 days', scopes => '{*}')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage', expires_at => now() + interval '90 days', scopes => '{files:*}')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', expires_at => now() + interval '1 day')$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.orm_keys (name, expires_at, allowed_cidrs) VALUES ('p', now() + interval '1 day', '{10.0.0.0/8}')$$);
SELECT count(*) FROM rk_apikeys.keys;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, environment, expires_at, scopes) VALUES ('staged', 'stage', now() + interval '90 days', '{records:*,records:a:b,files:read}')$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, expires_at, allowed_cidrs, owner) VALUES ('prodded', now() + interval '90 days', '{10.0.0.0/8}', 'jo')$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, environment, expires_at) VALUES ('short', 'dev', now() + interval '1 day')$$);
-- An import is a new key too.
SET ROLE rk_test_admin;
SELECT pg_temp.try($$SELECT rk_apikeys.import_key('p', sha256('x'), 'sha256', environment => 'stage', tenant => 'rk_test_manager')$$);
-- The setting counts too, whichever is stricter.
RESET ROLE;
SET rk_apikeys.max_lifetime = '2 hours';
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'dev', tenant => 'rk_test_manager', expires_at => now() + interval '3 hours')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'dev', tenant => 'nobody', expires_at => now() + interval '90 minutes')$$);
RESET rk_apikeys.max_lifetime;
-- The owner of the tables is bound as well.
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', tenant => 'another')$$);

-- A policy that is taken back binds nobody, and one of the same transaction binds at once.
BEGIN;
SET ROLE rk_test_admin;
SAVEPOINT s;
INSERT INTO rk_apikeys.policies (tenant, require_owner) VALUES ('taken back', true);
INSERT INTO rk_apikeys.keys (name, tenant, environment, expires_at) VALUES ('p', 'taken back', 'stage', now() + interval '1 day'); -- fails: no owner
ROLLBACK TO s;
INSERT INTO rk_apikeys.keys (name, tenant, environment, expires_at) VALUES ('p', 'taken back', 'stage', now() + interval '1 day') RETURNING name;
ROLLBACK;

-- Changes: only what changes is checked.
SET ROLE rk_test_manager;
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = NULL WHERE name = 'staged'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = now() + interval '91 days' WHERE name = 'staged'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET scopes = scopes || '{files:write}' WHERE name = 'staged'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET allowed_cidrs = NULL WHERE name = 'prodded'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET owner = NULL WHERE name = 'prodded'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.orm_keys SET owner = NULL WHERE name = 'prodded'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = now() + interval '1 day', scopes = '{files:read}', allowed_cidrs = '{10.1.0.0/16}', owner = 'ann' WHERE name = 'prodded'$$);
-- The owner may move keys, as where a tenant gets another name.
RESET ROLE;
SELECT pg_temp.try($$UPDATE rk_apikeys.api_keys SET tenant = 'renamed' WHERE name = 'prodded'; UPDATE rk_apikeys.api_keys SET tenant = 'rk_test_manager' WHERE name = 'prodded'$$);
SET ROLE rk_test_admin;
UPDATE rk_apikeys.policies SET max_lifetime = '30 days', allowed_scopes = '{records:read,apikeys:manage}' WHERE tenant = 'rk_test_manager' AND environment IS NULL;
SET ROLE rk_test_manager;
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET description = 'still mine' WHERE name IN ('staged', 'prodded')$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'staged'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET enabled = true WHERE name = 'staged'$$);

-- What breaks a policy now.
SET DateStyle = 'ISO';
SELECT name, environment, status, owner, rule, regexp_replace(allowed, '^\d{4}-.*', 'TIME') AS allowed FROM rk_apikeys.noncompliant_keys ORDER BY name, rule;
SET ROLE rk_test_other;
SELECT count(*) FROM rk_apikeys.noncompliant_keys;

-- A successor complies. Without an end of its own it ends within max_lifetime.
SET ROLE rk_test_manager;
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key(key_id) FROM rk_apikeys.keys WHERE name = 'staged'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET scopes = '{records:read}' WHERE name = 'staged'$$);
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key(key_id, expires_at => now() + interval '31 days') FROM rk_apikeys.keys WHERE name = 'staged'$$);
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key(key_id) FROM rk_apikeys.keys WHERE name = 'staged'$$);
SELECT status, expires_at = created_at + interval '30 days' AS within FROM rk_apikeys.keys WHERE name = 'staged' AND replaces IS NOT NULL;

-- A key that manages keys is bound like everybody, and writes no policy.
SET ROLE rk_test_admin;
DELETE FROM rk_apikeys.policies WHERE tenant IS NULL;
SELECT secret FROM rk_apikeys.create_key('boss', tenant => 'rk_test_manager', environment => 'stage', scopes => '{apikeys:manage,records:read}', expires_at => now() + interval '20 days') \gset
INSERT INTO rk_apikeys.policies (environment, require_owner) VALUES ('prod', true), ('stage', true);
BEGIN;
SELECT (rk_apikeys.authenticate(:'secret')).code;
SELECT tenant, environment FROM rk_apikeys.policies ORDER BY tenant NULLS FIRST, environment NULLS FIRST;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', expires_at => now() + interval '1 day')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('p', environment => 'stage', expires_at => now() + interval '1 day')$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, environment, expires_at, owner) VALUES ('p', 'stage', now() + interval '1 day', 'jo')$$);
UPDATE rk_apikeys.policies SET require_owner = false;
DELETE FROM rk_apikeys.policies;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.policies (tenant, max_keys) VALUES ('x', 1)$$);
SELECT pg_temp.try($$SELECT rk_apikeys.disable_idle_keys()$$);
COMMIT;
SELECT count(*) FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.keys;

-- The number of keys: of one tenant, in the policy's environment or in all.
INSERT INTO rk_apikeys.policies (tenant, environment, max_keys) VALUES (NULL, NULL, 5), (NULL, 'dev', 2), ('rk_test_other', NULL, 0);
SET ROLE rk_test_other;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n')$$);
SET ROLE rk_test_manager;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name) SELECT 'n' FROM generate_series(1, 6)$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.orm_keys (name) SELECT 'n' FROM generate_series(1, 6)$$);
SELECT count(*) FROM rk_apikeys.keys;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name) SELECT 'n' FROM generate_series(1, 3)$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, environment) SELECT 'n', 'dev' FROM generate_series(1, 3)$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, environment) SELECT 'n', 'dev' FROM generate_series(1, 2)$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n', environment => 'stage')$$);
COPY rk_apikeys.orm_keys (name, environment) FROM stdin; -- fails: one too many
n	stage
\.
RESET ROLE;
COPY rk_apikeys.api_keys (tenant, name, environment) FROM stdin; -- fails: one too many
rk_test_other	n	stage
\.
SET ROLE rk_test_manager;
-- A rotation is no new key, also in grace and of a full tenant; its old key does not count.
SELECT count(rk_apikeys.rotate_key(key_id, '1 hour')) FROM rk_apikeys.keys;
SELECT status, count(*) FROM rk_apikeys.keys GROUP BY 1 ORDER BY 1;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key((SELECT key_id FROM rk_apikeys.keys WHERE status = 'active' LIMIT 1), '1 hour', now() + interval '1 day')$$);
-- But no other key may claim to be a successor.
SELECT pg_temp.try($$WITH k AS (SELECT rk_apikeys.rotate_key(key_id) FROM rk_apikeys.keys WHERE status = 'active' LIMIT 1)
  INSERT INTO rk_apikeys.keys (name) SELECT 'n' FROM k$$);
-- What ends a key makes room: in the same statement, and in the same transaction.
SELECT pg_temp.try($$WITH gone AS (DELETE FROM rk_apikeys.keys WHERE key_id = (SELECT key_id FROM rk_apikeys.keys WHERE status = 'active' AND environment = 'prod' LIMIT 1) RETURNING name)
  INSERT INTO rk_apikeys.keys (name) SELECT name FROM gone$$);
SELECT pg_temp.try($$WITH gone AS (UPDATE rk_apikeys.keys SET revoked_at = now() WHERE key_id = (SELECT key_id FROM rk_apikeys.keys WHERE status = 'active' AND environment = 'prod' LIMIT 1) RETURNING name)
  INSERT INTO rk_apikeys.keys (name) SELECT name FROM gone, generate_series(1, 2)$$);
BEGIN;
SELECT rk_apikeys.revoke_key(key_id) FROM rk_apikeys.keys WHERE status = 'active' AND environment = 'dev' LIMIT 1;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n', environment => 'stage')$$);
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n', environment => 'stage')$$);
ROLLBACK;
-- A disabled key counts. The key that expired does not, until it gets a later end.
UPDATE rk_apikeys.keys SET enabled = false WHERE environment = 'dev';
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n')$$);
UPDATE rk_apikeys.keys SET enabled = true WHERE environment = 'dev';
DELETE FROM rk_apikeys.keys WHERE key_id = (SELECT key_id FROM rk_apikeys.keys WHERE status = 'active' AND environment = 'prod' LIMIT 1);
SELECT key_id AS expired FROM rk_test_expired('expired') \gset
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('ends', now() + interval '1 hour')$$);
SELECT pg_temp.try(format($$UPDATE rk_apikeys.keys SET expires_at = now() + interval '1 hour' WHERE key_id = %L$$, :'expired'));
SELECT pg_temp.try(format($$UPDATE rk_apikeys.keys SET expires_at = NULL WHERE key_id = %L$$, :'expired'));
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = NULL WHERE name = 'ends'$$);
SELECT pg_temp.try($$DELETE FROM rk_apikeys.keys WHERE name = 'ends'$$);
SELECT pg_temp.try(format($$UPDATE rk_apikeys.keys SET expires_at = NULL WHERE key_id = %L$$, :'expired'));
-- The owner's own changes count as well, such as a revocation that is undone, but not a move to another tenant.
SELECT rk_apikeys.revoke_key(key_id) FROM rk_apikeys.keys WHERE status = 'active' AND environment = 'dev' LIMIT 1;
SELECT pg_temp.try($$SELECT rk_apikeys.create_key('n')$$);
RESET ROLE;
SELECT pg_temp.try($$UPDATE rk_apikeys.api_keys SET revoked_at = NULL WHERE revoked_at IS NOT NULL$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.api_keys SET tenant = 'rk_test_other' WHERE name = 'expired'; UPDATE rk_apikeys.api_keys SET tenant = 'rk_test_manager' WHERE name = 'expired'$$);
-- The old key of a rotation ends while the rotation runs, and another key has taken its place: then the successor is a key more.
BEGIN;
DELETE FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.api_keys;
INSERT INTO rk_apikeys.policies (max_keys) VALUES (1);
INSERT INTO rk_apikeys.keys (name, tenant, expires_at) VALUES ('old', 'rotating', now() + interval '1 hour');
CREATE TEMP TABLE another AS SELECT * FROM rk_apikeys.api_keys;
CREATE FUNCTION pg_temp.meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  SET LOCAL session_replication_role = replica;
  UPDATE rk_apikeys.api_keys SET expires_at = now() - interval '1 s';
  INSERT INTO rk_apikeys.api_keys SELECT (jsonb_populate_record(a, '{"key_id": "anotherKey01", "created_at": "2001-01-01"}')).* FROM another a;
  SET LOCAL session_replication_role = origin;
  RETURN NEW;
END $$;
CREATE TRIGGER aa_meanwhile BEFORE INSERT ON rk_apikeys.api_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.meanwhile();
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key(key_id, '1 hour', now() + interval '1 day') FROM rk_apikeys.keys WHERE name = 'old'$$);
ROLLBACK;
-- A policy that was made stricter ends no key. The newest keys are too many.
SET ROLE rk_test_admin;
UPDATE rk_apikeys.policies SET max_keys = 3 WHERE tenant IS NULL AND environment IS NULL;
SET ROLE rk_test_manager;
SELECT rule, allowed, count(*), min(k.created_at) >= max(o.created_at) AS newest FROM rk_apikeys.noncompliant_keys n JOIN rk_apikeys.keys k USING (key_id),
  (SELECT created_at FROM rk_apikeys.keys WHERE revoked_at IS NULL AND grace_until IS NULL ORDER BY created_at, key_id LIMIT 1 OFFSET 2) o GROUP BY 1, 2;
SELECT pg_temp.try($$SELECT rk_apikeys.rotate_key((SELECT key_id FROM rk_apikeys.keys WHERE status = 'active' LIMIT 1))$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET description = 'one too many', enabled = false WHERE key_id = (SELECT max(key_id) FROM rk_apikeys.noncompliant_keys)$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET enabled = true WHERE NOT enabled$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = now() + interval '1 hour' WHERE status = 'active'$$);
SELECT pg_temp.try($$UPDATE rk_apikeys.keys SET expires_at = now() + interval '2 hours' WHERE status = 'active'$$);
-- Many tenants in one statement.
SET ROLE rk_test_admin;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant, environment) SELECT 'n', 'tenant ' || g % 10, CASE WHEN g < 20 THEN 'dev' ELSE 'prod' END FROM generate_series(0, 29) g$$);
SELECT left(pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'n', 'tenant ' || g FROM generate_series(0, 20) g$$), 41);
SELECT count(*) FROM rk_apikeys.keys WHERE tenant LIKE 'tenant %';
-- No room at all.
UPDATE rk_apikeys.policies SET max_keys = 2147483647 WHERE tenant IS NULL AND environment IS NULL;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'n', 'tenant ' || g FROM generate_series(0, 20) g$$);

-- A restore of keys that break a policy passes, and so does a replica's change.
RESET ROLE;
CREATE TEMP TABLE saved AS SELECT * FROM rk_apikeys.api_keys;
CREATE TEMP TABLE saved_policies AS SELECT * FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.api_keys;
UPDATE rk_apikeys.policies SET max_keys = 0, max_lifetime = '1 s', allowed_scopes = '{x}', require_cidrs = true, require_owner = true;
INSERT INTO rk_apikeys.api_keys SELECT * FROM saved;
SELECT count(*) = (SELECT count(*) FROM saved) AS all_back FROM rk_apikeys.api_keys;
SET session_replication_role = replica;
UPDATE rk_apikeys.api_keys SET scopes = '{y}', expires_at = NULL;
RESET session_replication_role;
SET ROLE rk_test_admin;
SELECT rule, count(*) > 0 AS found FROM rk_apikeys.noncompliant_keys GROUP BY 1 ORDER BY 1;
-- Each list has to grant a scope.
UPDATE rk_apikeys.policies SET max_keys = NULL, max_lifetime = NULL, require_cidrs = false, require_owner = false, allowed_scopes = '{a:*,b}';
UPDATE rk_apikeys.policies SET allowed_scopes = '{a:b,b:*}' WHERE environment = 'dev';
SELECT scope, pg_temp.try(format('SELECT rk_apikeys.create_key(''s'', tenant => ''x'', environment => ''dev'', scopes => %L)', ARRAY[scope]))
  FROM unnest('{a:b,a:b:c,b,b:c,a:*,*}'::text[]) scope;
RESET ROLE;
SET session_replication_role = replica;
UPDATE rk_apikeys.api_keys SET scopes = s FROM (SELECT key_id AS id, ARRAY[(ARRAY['a:b', 'a:b:c', 'b', 'b:c', 'a:*', '*'])[row_number() OVER ()]] AS s FROM rk_apikeys.api_keys WHERE environment = 'dev' AND revoked_at IS NULL AND grace_until IS NULL LIMIT 6) n
  WHERE key_id = id;
RESET session_replication_role;
SET ROLE rk_test_admin;
SELECT k.scopes, n.allowed FROM rk_apikeys.keys k LEFT JOIN rk_apikeys.noncompliant_keys n USING (key_id) WHERE k.environment = 'dev' AND k.scopes <> '{y}' ORDER BY 1;

-- Idle keys. The time of a key that was never used counts from its creation.
DELETE FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.keys;
SELECT secret FROM rk_apikeys.create_key('used', tenant => 'idle') \gset
INSERT INTO rk_apikeys.keys (name, tenant, environment) VALUES ('never', 'idle', 'prod'), ('young', 'idle', 'prod'), ('other', 'idle', 'dev'), ('off', 'idle', 'prod'), ('theirs', 'busy', 'prod');
RESET ROLE;
SET session_replication_role = replica;
UPDATE rk_apikeys.api_keys SET created_at = now() - interval '31 days' WHERE name <> 'young';
RESET session_replication_role;
SET ROLE rk_test_admin;
UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'off';
SELECT rk_apikeys.disable_idle_keys();
INSERT INTO rk_apikeys.policies (tenant, environment, max_idle) VALUES (NULL, NULL, '40 days'), ('idle', 'prod', '30 days');
SELECT rk_apikeys.verify(:'secret');
SELECT name, rule, allowed FROM rk_apikeys.noncompliant_keys ORDER BY 1;
RESET ROLE;
SET rk_apikeys.track_usage = off;
SET ROLE rk_test_admin;
SELECT pg_temp.try($$SELECT rk_apikeys.disable_idle_keys()$$);
RESET ROLE;
RESET rk_apikeys.track_usage;
SET ROLE rk_test_admin;
SELECT rk_apikeys.disable_idle_keys();
SELECT name, status FROM rk_apikeys.keys ORDER BY name;
SELECT rk_apikeys.disable_idle_keys();
SELECT count(*) FROM rk_apikeys.noncompliant_keys;
SELECT event, actor = session_user AS by_me, role, changes FROM rk_apikeys.key_events WHERE event = 'disabled' ORDER BY event_id DESC LIMIT 1;

-- Events. Nobody is told of a change that changes nothing, or of a restored row.
RESET ROLE;
DELETE FROM rk_apikeys.policies;
TRUNCATE rk_apikeys.key_events;
SET rk_apikeys.notify = on;
SET ROLE rk_test_admin;
INSERT INTO rk_apikeys.policies (tenant, environment, max_lifetime, max_keys, allowed_scopes) VALUES ('rk_test_manager', 'prod', '90 days', 10, '{a,b}'), (NULL, NULL, NULL, NULL, NULL);
UPDATE rk_apikeys.policies SET max_keys = 10;
UPDATE rk_apikeys.policies SET max_keys = 20, require_owner = true WHERE tenant IS NULL;
UPDATE rk_apikeys.policies SET environment = 'dev' WHERE tenant IS NULL;
INSERT INTO rk_apikeys.policies (tenant, max_keys) VALUES ('brief', 10) ON CONFLICT DO NOTHING;
DELETE FROM rk_apikeys.policies WHERE tenant = 'brief';
DELETE FROM rk_apikeys.policies WHERE tenant IS NULL;
RESET ROLE;
RESET rk_apikeys.notify;
INSERT INTO rk_apikeys.policies SELECT * FROM saved_policies;
SELECT tenant, key_id, event, role, changes FROM rk_apikeys.key_events ORDER BY event_id;
-- pg_write_all_data reaches created_at, and cannot hide from the events.
CREATE ROLE rk_test_writer IN ROLE pg_write_all_data, rk_apikeys_admin;
SET ROLE rk_test_writer;
INSERT INTO rk_apikeys.policies (tenant, created_at) VALUES ('hidden', '2001-01-01');
RESET ROLE;
SELECT tenant, event, role FROM rk_apikeys.key_events ORDER BY event_id DESC LIMIT 1;
DROP ROLE rk_test_writer;
SET ROLE rk_test_manager;
SELECT event FROM rk_apikeys.key_events;
-- The trigger functions serve only their triggers.
RESET ROLE;
CREATE TABLE rk_test_copy (LIKE rk_apikeys.policies INCLUDING DEFAULTS);
CREATE TRIGGER policies_audit_insert AFTER INSERT ON rk_test_copy REFERENCING NEW TABLE AS new_policies FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._policies_audit();
CREATE TRIGGER api_keys_max_keys_insert AFTER INSERT ON rk_test_copy REFERENCING NEW TABLE AS new_keys FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_max_keys();
INSERT INTO rk_test_copy DEFAULT VALUES; -- fails: not its table
ALTER TABLE rk_test_copy DISABLE TRIGGER policies_audit_insert;
INSERT INTO rk_test_copy DEFAULT VALUES; -- fails: not its table
DROP TABLE rk_test_copy;

-- Without its index the table is read as a whole.
BEGIN;
ALTER EXTENSION rk_apikeys DROP TABLE rk_apikeys.policies;
ALTER TABLE rk_apikeys.policies DROP CONSTRAINT policies_tenant_environment_key;
DELETE FROM rk_apikeys.policies;
INSERT INTO rk_apikeys.policies (tenant, environment, max_keys) VALUES ('no index', 'prod', 1), (NULL, 'prod', 2), ('x', NULL, 0);
SET ROLE rk_test_admin;
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'n', 'no index' FROM generate_series(1, 2)$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'n', 'index' FROM generate_series(1, 3)$$);
SELECT pg_temp.try($$INSERT INTO rk_apikeys.keys (name, tenant) SELECT 'n', 'index' FROM generate_series(1, 2)$$);
ROLLBACK;
RESET ROLE;
DELETE FROM rk_apikeys.policies;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
