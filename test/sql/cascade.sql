-- A revocation that also ends the keys that a key has made.
\set VERBOSITY sqlstate
CREATE ROLE rk_test_app IN ROLE rk_apikeys_verifier, rk_apikeys_manager;
CREATE VIEW tree AS
  SELECT k.name, p.name AS parent, o.name AS replaces, k.revoked_at IS NOT NULL AS revoked, k.revoked_reason
    FROM rk_apikeys.api_keys k LEFT JOIN rk_apikeys.api_keys p ON p.key_id = k.parent
      LEFT JOIN rk_apikeys.api_keys o ON o.key_id = k.replaces
    ORDER BY k.created_at, k.name;
-- The keys of acme: boss made mid and twin, mid made leaf; one is nobody's.
SET ROLE rk_test_admin;
SELECT key_id AS boss_id, secret AS boss FROM rk_apikeys.create_key('boss', tenant => 'acme', scopes => '{apikeys:manage,records:*}') \gset
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.create_key('one', tenant => 'acme');
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT key_id AS mid_id, secret AS mid FROM rk_apikeys.create_key('mid', scopes => '{apikeys:manage}') \gset
COMMIT;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT key_id AS twin_id FROM rk_apikeys.create_key('twin', scopes => '{records:read}') \gset
COMMIT;
BEGIN;
SELECT (rk_apikeys.authenticate(:'mid')).code;
SELECT key_id AS leaf_id, secret AS leaf FROM rk_apikeys.create_key('leaf') \gset
COMMIT;
-- A rotation without a principal: the successor has the same parent. By a principal: the principal.
SET ROLE rk_test_admin;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'twin_id');
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'leaf_id');
COMMIT;
RESET ROLE;
SELECT * FROM tree;

-- Without cascade, one key. The tree goes on below an ended key.
SET ROLE rk_test_admin;
SELECT rk_apikeys.revoke_key(:'mid_id', 'one only'), rk_apikeys.revoke_key(:'mid_id', cascade => false) AS again, rk_apikeys.revoke_key(:'mid_id', NULL, NULL) AS no_cascade;
RESET ROLE;
SELECT * FROM tree;
BEGIN;
SET LOCAL ROLE rk_test_admin;
SELECT rk_apikeys.revoke_key(:'boss_id', 'leaked', true);
RESET ROLE;
SELECT * FROM tree;
SELECT event, count(*) FROM rk_apikeys.key_events WHERE changes -> 'revoked_reason' ->> 'new' = 'leaked' GROUP BY 1;
ROLLBACK;
SELECT count(*) FROM tree WHERE revoked;

-- The key itself may be revoked before. Other tenants' managers find no such key; an unknown one is nobody's.
SET ROLE rk_test_other;
SELECT rk_apikeys.revoke_key(:'boss_id', cascade => true); -- fails: another tenant's
SELECT rk_apikeys.revoke_key('000000000000', cascade => true); -- fails: no such key
SELECT rk_apikeys.revoke_key(NULL, cascade => true); -- fails: no such key
SET ROLE rk_test_admin;
BEGIN;
SELECT rk_apikeys.revoke_key(:'boss_id');
SELECT count(*) FROM rk_apikeys.keys WHERE status = 'revoked';
SELECT rk_apikeys.revoke_key(:'boss_id', 'children too', true) AS revoked_the_key_itself;
RESET ROLE;
SELECT * FROM tree;
ROLLBACK;

-- A principal ends itself with all that it made, and the key that made it.
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT rk_apikeys.revoke_key(:'boss_id', 'by itself', true);
RESET ROLE;
SELECT name FROM tree WHERE revoked_reason = 'by itself';
ROLLBACK;
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT key_id AS peer_id, secret AS peer FROM rk_apikeys.create_key('peer', scopes => '{apikeys:manage,records:*}') \gset
COMMIT;
BEGIN;
SELECT (rk_apikeys.authenticate(:'peer')).code;
SELECT rk_apikeys.revoke_key(:'boss_id', 'by a child', true);
RESET ROLE;
SELECT name FROM tree WHERE revoked_reason = 'by a child';
ROLLBACK;
-- Not where one of the keys can more than the principal: then none is ended.
SET ROLE rk_test_admin;
UPDATE rk_apikeys.keys SET scopes = '{billing:write}' WHERE key_id = :'twin_id';
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT rk_apikeys.revoke_key(:'boss_id', 'by itself', true); -- fails: twin's scopes
ROLLBACK;
-- The key that a token ends is one.
SET ROLE rk_test_verifier;
BEGIN;
SELECT rk_apikeys.revoke_token(:'peer');
RESET ROLE;
SELECT name FROM tree WHERE revoked;
ROLLBACK;

-- Keys stay while a key that they made is in the table.
SET ROLE rk_test_admin;
SELECT rk_apikeys.revoke_key(:'leaf_id', cascade => true);
SELECT rk_apikeys.purge_keys('0') AS leaf, rk_apikeys.purge_keys('0') AS mid;
SELECT name FROM rk_apikeys.keys ORDER BY created_at, name;
-- A circle, which only a table's owner can make.
RESET ROLE;
UPDATE rk_apikeys.api_keys SET parent = :'peer_id' WHERE key_id = :'boss_id';
SET ROLE rk_test_admin;
SELECT rk_apikeys.revoke_key(:'peer_id', 'circle', true);
RESET ROLE;
SELECT * FROM tree;
-- A DELETE cuts the chain.
SET ROLE rk_test_admin;
DELETE FROM rk_apikeys.keys WHERE key_id = :'boss_id';
SELECT rk_apikeys.revoke_key(:'boss_id', cascade => true); -- fails: no such key

-- At COMMIT the principal is still good, or has ended itself.
SELECT key_id AS boss_id, secret AS boss FROM rk_apikeys.create_key('boss', tenant => 'acme', scopes => '{apikeys:manage}') \gset
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.create_key('after me');
SELECT rk_apikeys.revoke_key(:'boss_id', 'succeeded');
COMMIT;
RESET ROLE;
SELECT name, parent, revoked_reason FROM tree WHERE name = 'after me';
SET ROLE rk_test_admin;
SELECT key_id AS boss_id, secret AS boss FROM rk_apikeys.create_key('boss', tenant => 'acme', scopes => '{apikeys:manage}') \gset
SET ROLE rk_test_app;
BEGIN;
SELECT (rk_apikeys.authenticate(:'boss')).code;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.create_key('orphan');
DELETE FROM rk_apikeys.keys WHERE key_id = :'boss_id';
COMMIT; -- fails: the principal is gone
RESET ROLE;
-- A restored row is stored as it is, whoever its parent.
BEGIN;
CREATE TEMPORARY TABLE saved AS SELECT * FROM rk_apikeys.api_keys WHERE name = 'after me';
DELETE FROM rk_apikeys.api_keys;
INSERT INTO rk_apikeys.api_keys SELECT * FROM saved;
DROP TABLE saved;
COMMIT;
SELECT name, parent FROM tree;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
DROP VIEW tree;
DROP ROLE rk_test_app;
