-- Rotation: two keys for a time, then one.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT key_id, secret FROM rk_apikeys.create_key('sync', 'with everything', environment => 'stage', scopes => '{a:read}',
  allowed_cidrs => '{0.0.0.0/0}', metadata => '{"n": 1}', expires_at => now() + interval '10 days') \gset
SELECT key_id AS new_id, secret AS new_secret FROM rk_apikeys.rotate_key(:'key_id', '1 hour') \gset
SELECT name, status, replaces = :'key_id' AS replaces_it, description, environment, scopes, allowed_cidrs, metadata, expires_in > '9 days' AS expires,
    grace_until - now() < '1 hour' AS in_grace
  FROM rk_apikeys.keys ORDER BY created_at;
SELECT name, status FROM rk_apikeys.active_keys ORDER BY created_at;
SET ROLE rk_test_verifier;
SELECT (rk_apikeys.verify_key(:'secret', NULL, '10.0.0.1')).code AS old, (rk_apikeys.verify_key(:'new_secret', NULL, '10.0.0.1')).code AS new;
SET ROLE rk_test_manager;
SELECT rk_apikeys.rotate_key(:'key_id'); -- fails: rotated already

-- The end of grace: the old one is ended.
UPDATE rk_apikeys.keys SET grace_until = now() WHERE key_id = :'key_id' RETURNING status;
SET ROLE rk_test_verifier;
SELECT (rk_apikeys.verify_key(:'secret', NULL, '10.0.0.1')).code AS old, (rk_apikeys.verify_key(:'new_secret', NULL, '10.0.0.1')).code AS new;
SET ROLE rk_test_manager;

-- At once; with another expiry; a chain.
SELECT key_id AS third FROM rk_apikeys.rotate_key(:'new_id', '0', now() + interval '20 days') \gset
SELECT status, date_trunc('day', expires_in + '1 hour') AS expires_in FROM rk_apikeys.keys WHERE key_id IN (:'new_id', :'third') ORDER BY created_at;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'third', '1 year');
-- Grace is never longer than the key's own life.
SELECT grace_until = expires_at AS capped FROM rk_apikeys.keys WHERE key_id = :'third';

-- Not of the dead.
SELECT key_id FROM rk_apikeys.create_key('dead') \gset
SELECT rk_apikeys.rotate_key(:'key_id', '-1 second'); -- fails: negative
SELECT rk_apikeys.rotate_key(:'key_id', NULL); -- fails: null
SELECT rk_apikeys.rotate_key(:'key_id', '1 hour', now() - interval '1 day'); -- fails: past
SELECT status FROM rk_apikeys.keys WHERE key_id = :'key_id';
SELECT rk_apikeys.revoke_key(:'key_id');
SELECT rk_apikeys.rotate_key(:'key_id'); -- fails: revoked
SELECT key_id FROM rk_test_expired('brief') \gset
SELECT rk_apikeys.rotate_key(:'key_id'); -- fails: expired
-- A disabled key's successor is disabled too.
SELECT key_id FROM rk_apikeys.create_key('paused') \gset
UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'key_id';
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'key_id');
SELECT enabled, status FROM rk_apikeys.keys WHERE name = 'paused';

-- replaces is not for anybody to claim.
SELECT key_id FROM rk_apikeys.create_key('claimed') \gset
INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', :'key_id'); -- fails: it was not rotated
INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', '000000000000'); -- fails: no such key
INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', ''); -- fails: no such key
SET ROLE rk_test_admin;
BEGIN;
UPDATE rk_apikeys.keys SET grace_until = now() WHERE key_id = :'key_id';
INSERT INTO rk_apikeys.keys (name, tenant, replaces) VALUES ('x', 'another', :'key_id'); -- fails: another tenant's
ROLLBACK;
-- Not what an earlier transaction rotated.
INSERT INTO rk_apikeys.keys (name, tenant, replaces) VALUES ('x', 'rk_test_manager', :'third'); -- fails: rotated before
-- Not even within one transaction that took the rotation back.
SET ROLE rk_test_manager;
BEGIN;
SAVEPOINT s;
UPDATE rk_apikeys.keys SET grace_until = now() WHERE key_id = :'key_id';
ROLLBACK TO s;
INSERT INTO rk_apikeys.keys (name, replaces) VALUES ('x', :'key_id'); -- fails: the rotation was undone
ROLLBACK;

-- An administrator rotates within the key's tenant; max_lifetime caps the successor.
RESET ROLE;
SET rk_apikeys.max_lifetime = '2 days';
SET ROLE rk_test_admin;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'key_id');
SELECT tenant, status, round(extract(epoch FROM expires_in) / 86400) AS days FROM rk_apikeys.keys WHERE name = 'claimed' ORDER BY created_at;
RESET ROLE;
RESET rk_apikeys.max_lifetime;
SELECT event, count(*) FROM rk_apikeys.key_events GROUP BY 1 ORDER BY 1;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
