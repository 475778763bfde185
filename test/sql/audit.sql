-- What the events tell.
\set VERBOSITY sqlstate
SET application_name = 'the audit test';
SET ROLE rk_test_manager;
SELECT key_id, secret FROM rk_apikeys.create_key('audited', environment => 'dev') \gset
UPDATE rk_apikeys.keys SET name = 'renamed', scopes = '{a}', metadata = '{"secret": "not a token"}';
UPDATE rk_apikeys.keys SET name = 'renamed', scopes = '{a}';
UPDATE rk_apikeys.keys SET enabled = false;
UPDATE rk_apikeys.keys SET enabled = true, name = 'renamed again';
SELECT count(*) FROM (SELECT * FROM rk_apikeys.rotate_key(:'key_id', '1 hour')) x;
UPDATE rk_apikeys.keys SET grace_until = now() WHERE key_id = :'key_id';
SELECT rk_apikeys.revoke_key(:'key_id', 'over');
DELETE FROM rk_apikeys.keys WHERE key_id = :'key_id';
SELECT event, key_id = :'key_id' AS the_old_one, role, principal, application_name, actor = session_user AS by_me,
    ARRAY(SELECT jsonb_object_keys(changes) ORDER BY 1) AS changed
  FROM rk_apikeys.key_events ORDER BY event_id;
SELECT event, changes - 'grace_until' - 'revoked_at' - 'replaces' AS changes FROM rk_apikeys.key_events ORDER BY event_id;
-- Never a digest, never a secret.
RESET ROLE;
SELECT count(*) FROM rk_apikeys.key_events WHERE to_jsonb(key_events)::text ~ 'digest|"hint"' OR to_jsonb(key_events)::text LIKE '%' || :'secret' || '%';

-- Under another role, the role is told, and who logged in.
SET ROLE rk_test_admin;
UPDATE rk_apikeys.keys SET description = 'by the admin';
SET ROLE rk_test_manager;
SELECT tenant, event, role FROM rk_apikeys.key_events ORDER BY event_id DESC LIMIT 1;
-- A change that is undone leaves no event; a statement that touches many writes one each.
BEGIN;
UPDATE rk_apikeys.keys SET description = 'undone';
ROLLBACK;
INSERT INTO rk_apikeys.keys (name) SELECT 'many ' || n FROM generate_series(1, 5) n;
UPDATE rk_apikeys.keys SET enabled = false WHERE name LIKE 'many%';
SELECT event, count(*) FROM rk_apikeys.key_events GROUP BY 1 ORDER BY 1;
-- An insert that ends in an update, and one that ends in nothing.
INSERT INTO rk_apikeys.keys (name) SELECT 'none' WHERE false;
SELECT count(*) FROM rk_apikeys.key_events;

-- Append-only; purged by the administrator alone, and that is told.
SET ROLE rk_test_admin;
UPDATE rk_apikeys.key_events SET event = 'created'; -- fails: not granted
DELETE FROM rk_apikeys.key_events; -- fails: not granted
INSERT INTO rk_apikeys.key_events (tenant, key_id, event, actor, role) VALUES ('x', 'x', 'created', 'x', 'x'); -- fails: not granted
SELECT rk_apikeys.purge_events('1 hour') AS none, rk_apikeys.purge_events(NULL) AS null;
SELECT rk_apikeys.purge_events('-1 hour'); -- fails: negative
RESET ROLE;
UPDATE rk_apikeys.key_events SET occurred_at = occurred_at - interval '2 years' WHERE event = 'updated';
SET ROLE rk_test_admin;
SELECT rk_apikeys.purge_events('1 year') AS purged;
SELECT tenant, key_id, event, role, changes FROM rk_apikeys.key_events WHERE event IN ('purged', 'updated');
-- A manager does not see that event: it is nobody's key.
SET ROLE rk_test_manager;
SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'purged';
-- A client that gives a token as its name, which is cut then, leaves its mask.
SET application_name = 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j';
INSERT INTO rk_apikeys.keys (name) VALUES ('by a token');
SELECT application_name FROM rk_apikeys.key_events WHERE changes -> 'name' ->> 'new' = 'by a token';
RESET ROLE;
UPDATE rk_apikeys.key_events SET occurred_at = occurred_at - interval '2 years' WHERE event = 'enabled';
SELECT rk_apikeys.purge_events('1 year') AS purged;
SELECT application_name FROM rk_apikeys.key_events WHERE event = 'purged' ORDER BY event_id DESC LIMIT 1;
SELECT count(*) FROM rk_apikeys.receive_usage('00000000-0000-0000-0000-000000000001', 1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}');
SELECT application_name FROM rk_apikeys.usage_senders;
TRUNCATE rk_apikeys.usage_senders;
RESET application_name;
-- A token in free text is masked before it is kept, a mistyped one and one that was cut too; a name that only resembles one is not.
\set token rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j
\pset format unaligned
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.keys (name, description, metadata)
  VALUES ('app_billing_subscription_reader', 'see ' || :'token', jsonb_build_object('was', :'token', :'token', ARRAY[left(:'token', 41), 'a"b\c']));
UPDATE rk_apikeys.keys SET name = 'app_billing_subscription_readers, not ' || :'token' WHERE name = 'app_billing_subscription_reader';
SELECT rk_apikeys.revoke_key(key_id, :'token' || ' was found') FROM rk_apikeys.keys WHERE name LIKE 'app%';
SELECT name, description, metadata, revoked_reason FROM rk_apikeys.keys WHERE name LIKE 'app%';
SELECT event, changes - 'revoked_at' FROM rk_apikeys.key_events e JOIN rk_apikeys.keys k USING (key_id) WHERE name LIKE 'app%' ORDER BY event_id;
RESET ROLE;
\pset format aligned
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;

-- A column that a DBA adds stands in the events as a setting does. The ROLLBACK removes the columns again.
BEGIN;
CREATE TYPE place AS (street text, number integer);
ALTER TABLE rk_apikeys.api_keys ADD COLUMN note text DEFAULT 'none', ADD COLUMN place place, ADD COLUMN gone text;
CREATE FUNCTION long(seed text) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(md5(seed || n), '') FROM generate_series(1, 200) n $$;
SET ROLE rk_test_manager;
SELECT count(*) FROM (SELECT * FROM rk_apikeys.create_key('annotated')) x;
RESET ROLE;
UPDATE rk_apikeys.api_keys SET note = 'none';
UPDATE rk_apikeys.api_keys SET note = 'first';
UPDATE rk_apikeys.api_keys SET note = 'first';
UPDATE rk_apikeys.api_keys SET note = NULL, name = 'renamed';
UPDATE rk_apikeys.api_keys SET place = ROW('High Street', 1);
UPDATE rk_apikeys.api_keys SET place = ROW('High Street', 1);
UPDATE rk_apikeys.api_keys SET place = ROW('High Street', 2), gone = 'x';
ALTER TABLE rk_apikeys.api_keys DROP COLUMN gone;
UPDATE rk_apikeys.api_keys SET note = NULL;
UPDATE rk_apikeys.api_keys SET note = 'last';
SELECT event, changes FROM rk_apikeys.key_events ORDER BY event_id;
-- A value that is stored out of line, in whole.
UPDATE rk_apikeys.api_keys SET note = long('a');
UPDATE rk_apikeys.api_keys SET note = long('a');
UPDATE rk_apikeys.api_keys SET note = long('b');
SELECT event, changes #>> '{note,old}' = long('a') AS old, changes #>> '{note,new}' = long('b') AS new, count(*) OVER ()
  FROM rk_apikeys.key_events WHERE length(changes::text) > 5000 ORDER BY event_id;
UPDATE rk_apikeys.api_keys SET note = 'last';
DELETE FROM rk_apikeys.api_keys;
SELECT event, changes FROM rk_apikeys.key_events ORDER BY event_id DESC LIMIT 1;
ROLLBACK;

-- What a change of each column does. The settings stand in the event, and nothing else does.
BEGIN;
-- Makes a key with a value in every column, and changes it.
CREATE FUNCTION change(assignment text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM rk_apikeys.api_keys;
  INSERT INTO rk_apikeys.api_keys VALUES ('000000000001', 'rk_test_manager', 'a', 'a', 'rk', 'prod', '{a}', '{10.0.0.0/8}', 5, '1 minute',
    '{"a": 1}', true, now() + interval '1 day', '000000000002', now() + interval '1 hour', NULL, NULL, now() - interval '1 day', 'a',
    now() - interval '1 day', 'a', 'aaaa', sha256('a'), 'native', NULL);
  DELETE FROM rk_apikeys.key_events;
  EXECUTE 'UPDATE rk_apikeys.api_keys SET ' || assignment;
END $$;
CREATE FUNCTION effect(assignment text, col name, OUT moved boolean, OUT told boolean) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM change(assignment);
  SELECT updated_at = now() AND updated_by = session_user INTO moved FROM rk_apikeys.api_keys;
  told := EXISTS (SELECT FROM rk_apikeys.key_events WHERE changes ? col::text);
END $$;
SELECT attname AS "column", moved AS moves_updated_at, told AS in_event
  FROM pg_attribute LEFT JOIN (VALUES
      ('key_id', $$key_id = '000000000003'$$), ('tenant', $$tenant = 'rk_test_other'$$), ('name', $$name = 'b'$$),
      ('description', $$description = 'b'$$), ('prefix', $$prefix = 'b'$$), ('environment', $$environment = 'dev'$$),
      ('scopes', $$scopes = '{b}'$$), ('allowed_cidrs', $$allowed_cidrs = '{10.1.0.0/16}'$$),
      ('rate_limit', 'rate_limit = NULL, rate_window = NULL'), ('rate_window', 'rate_limit = NULL, rate_window = NULL'),
      ('metadata', $$metadata = '{"b": 1}'$$), ('enabled', 'enabled = false'), ('expires_at', $$expires_at = now() + interval '2 days'$$),
      ('replaces', $$replaces = '000000000003'$$), ('grace_until', 'grace_until = now()'), ('revoked_at', 'revoked_at = now()'),
      ('revoked_reason', $$revoked_at = now(), revoked_reason = 'b'$$), ('created_at', $$created_at = now() - interval '2 days'$$),
      ('created_by', $$created_by = 'b'$$), ('updated_at', $$updated_at = now() - interval '2 days'$$), ('updated_by', $$updated_by = 'b'$$),
      ('hint', $$hint = 'bbbb'$$), ('digest', $$digest = sha256('b')$$), ('digest_kind', $$digest_kind = 'sha256'$$),
      ('pepper_id', 'pepper_id = 1'), ('parent', 'parent = ''b'''), ('start', 'start = ''b'''), ('family', 'family = ''b'''), ('owner', 'owner = ''b'''),
      ('created_by_user', 'created_by_user = ''b'''), ('updated_by_user', 'updated_by_user = ''b'''),
      ('limits_reset_at', 'limits_reset_at = now()')) a(col, assignment) ON attname = col, effect(assignment, attname)
  WHERE attrelid = 'rk_apikeys.api_keys'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;
-- All columns that are not settings at once, with a setting and without; and what a deleted key had in them.
SELECT change($$name = 'b', created_at = now(), created_by = 'b', updated_by = 'b', hint = 'bbbb', digest = sha256('b'), pepper_id = 1, tenant = 'b'$$);
SELECT event, changes FROM rk_apikeys.key_events;
SELECT change($$created_at = now(), created_by = 'b', updated_by = 'b', hint = 'bbbb', digest = sha256('b'), pepper_id = 1, tenant = 'b'$$);
SELECT count(*) FROM rk_apikeys.key_events;
SELECT change($$revoked_at = now(), revoked_reason = 'b', pepper_id = 1$$);
DELETE FROM rk_apikeys.api_keys;
SELECT string_agg(col, ' ' ORDER BY col COLLATE "C") AS deleted
  FROM rk_apikeys.key_events, jsonb_object_keys(changes) col WHERE event = 'deleted';
ROLLBACK;
