-- A key's life by DML on the view, as a manager; the neighbour sees nothing of it.
\set VERBOSITY sqlstate
SET ROLE rk_test_other;
SELECT key_id AS neighbour FROM rk_apikeys.create_key('neighbour') \gset
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.keys (name, description, environment, expires_at)
  VALUES ('HubSpot Sync – Prod', 'contacts, both ways', 'prod', NULL),
    ('Form intake – stage', 'landing pages', 'stage', now() + interval '30 days')
  RETURNING name, environment, status, expires_in, secret IS NOT NULL AS shown;
SELECT name, environment, status, date_trunc('day', expires_in + '1 hour') AS expires_in, secret FROM rk_apikeys.keys ORDER BY name;
-- An end at infinity is none.
INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('endless', 'infinity') RETURNING expires_at, expires_in;
DELETE FROM rk_apikeys.keys WHERE name = 'endless';

-- Edit, toggle.
UPDATE rk_apikeys.keys SET name = 'HubSpot', description = '', scopes = '{contacts:read,contacts:write}',
    allowed_cidrs = '{192.0.2.0/24}', metadata = '{"owner": "ops"}'
  WHERE name LIKE 'HubSpot%'
  RETURNING name, description, scopes, allowed_cidrs, metadata;
UPDATE rk_apikeys.keys SET enabled = NOT enabled WHERE name = 'HubSpot' RETURNING enabled, status;
UPDATE rk_apikeys.keys SET enabled = NOT enabled WHERE name = 'HubSpot' RETURNING enabled, status;
UPDATE rk_apikeys.keys SET scopes = DEFAULT, metadata = DEFAULT, allowed_cidrs = DEFAULT, description = DEFAULT WHERE name = 'HubSpot'
  RETURNING scopes, metadata, allowed_cidrs, description;

-- Revoke by call: true for the call that did it.
SELECT key_id FROM rk_apikeys.keys WHERE name = 'HubSpot' \gset
SELECT rk_apikeys.revoke_key(:'key_id', 'contractor left') AS ended, rk_apikeys.revoke_key(:'key_id') AS again;
SELECT status, revoked_reason, revoked_at IS NOT NULL AS dated FROM rk_apikeys.keys WHERE name = 'HubSpot';

-- A neighbour's key is no key.
\set VERBOSITY terse
SELECT rk_apikeys.revoke_key('000000000000'); -- fails: no such key
SELECT rk_apikeys.revoke_key(NULL); -- fails: no such key
SELECT rk_apikeys.rotate_key('000000000000'); -- fails: no such key
SELECT rk_apikeys.revoke_key('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j'); -- fails: shown masked
SELECT set_config('rk_test.neighbour', :'neighbour', false) IS NOT NULL AS set;
DO $$
DECLARE
  it text := current_setting('rk_test.neighbour');
BEGIN
  BEGIN
    PERFORM rk_apikeys.revoke_key(it);
  EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'revoke: %', replace(SQLERRM, it, '…');
  END;
  BEGIN
    PERFORM rk_apikeys.rotate_key(it);
  EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'rotate: %', replace(SQLERRM, it, '…');
  END;
END $$;
\set VERBOSITY sqlstate
UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'neighbour' RETURNING name;
DELETE FROM rk_apikeys.keys WHERE key_id = :'neighbour' RETURNING name;
SELECT name FROM rk_apikeys.keys WHERE key_id = :'neighbour';
SELECT name FROM rk_apikeys.list_keys('neighbour');

-- Delete: gone, and its history still there.
DELETE FROM rk_apikeys.keys WHERE key_id = :'key_id' RETURNING name, status;
SELECT event, changes FROM rk_apikeys.key_events WHERE key_id = :'key_id' AND event NOT IN ('created', 'revoked', 'deleted') ORDER BY event_id;
SELECT event, changes - 'revoked_at' AS changes FROM rk_apikeys.key_events WHERE key_id = :'key_id' AND event IN ('created', 'revoked', 'deleted') ORDER BY event_id;

-- Statements that undo themselves leave nothing.
BEGIN;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.create_key('undone');
SAVEPOINT s;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.create_key('undone too');
ROLLBACK TO s;
SELECT name FROM rk_apikeys.keys ORDER BY name;
ROLLBACK;
SELECT name FROM rk_apikeys.keys ORDER BY name;
SELECT count(*) FROM rk_apikeys.key_events WHERE changes #>> '{name,new}' LIKE 'undone%';

-- purge_keys: the long dead, by the administrator.
RESET ROLE;
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind, expires_at, revoked_at, grace_until)
  SELECT '00000000000' || n, 'rk_test_manager', 'dead ' || n, 'rk', 'prod', now() - interval '9 days', 'x', now(), 'x', sha256(n::text::bytea), 'native',
      CASE n WHEN 1 THEN now() - interval '8 days' END, CASE n WHEN 2 THEN now() - interval '8 days' END, CASE n WHEN 3 THEN now() - interval '8 days' END
    FROM generate_series(1, 4) n;
SET ROLE rk_test_admin;
SELECT rk_apikeys.purge_keys('30 days') AS none, rk_apikeys.purge_keys(NULL) AS null;
SELECT rk_apikeys.purge_keys('7 days') AS purged;
SELECT rk_apikeys.purge_keys('-1 day'); -- fails: negative
SELECT name FROM rk_apikeys.keys WHERE name LIKE 'dead%';
SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'deleted' AND key_id LIKE '0000%';

-- seal: only the recipient can read it.
SET ROLE rk_test_nobody;
SELECT rk_apikeys.seal('x', 'no key'); -- fails: no key
RESET ROLE;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
