-- Every verdict, as the role that may verify and nothing more.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
CREATE TEMP TABLE tokens AS
  SELECT 'valid' AS label, key_id, secret FROM rk_apikeys.create_key('valid', scopes => '{records:read,billing:*}', metadata => '{"plan": "pro"}', expires_at => 'infinity')
  UNION ALL SELECT 'plain', key_id, secret FROM rk_apikeys.create_key('plain')
  UNION ALL SELECT 'revoked', key_id, secret FROM rk_apikeys.create_key('revoked')
  UNION ALL SELECT 'disabled', key_id, secret FROM rk_apikeys.create_key('disabled')
  UNION ALL SELECT 'rotated', key_id, secret FROM rk_apikeys.create_key('rotated')
  UNION ALL SELECT 'grace', key_id, secret FROM rk_apikeys.create_key('grace')
  UNION ALL SELECT 'deleted', key_id, secret FROM rk_apikeys.create_key('deleted')
  UNION ALL SELECT 'address', key_id, secret FROM rk_apikeys.create_key('address', scopes => '{*}', allowed_cidrs => '{10.1.0.0/16,2001:db8::/32}');
INSERT INTO tokens SELECT 'expired', * FROM rk_test_expired('expired');
GRANT SELECT ON tokens TO rk_test_verifier;
SELECT rk_apikeys.revoke_key(key_id, 'leaked') FROM tokens WHERE label = 'revoked';
UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'disabled';
SELECT count(rk_apikeys.rotate_key(key_id, '0')) FROM tokens WHERE label = 'rotated';
SELECT count(rk_apikeys.rotate_key(key_id, '1 hour')) FROM tokens WHERE label = 'grace';
DELETE FROM rk_apikeys.keys WHERE name = 'deleted';

SET ROLE rk_test_verifier;
SELECT label, rk_apikeys.verify(secret), (rk_apikeys.verify_key(secret)).code FROM tokens ORDER BY label COLLATE "C";
-- What a verdict tells.
SELECT v.valid, v.code, v.key_id = t.key_id AS key, v.tenant, v.name, v.environment, v.scopes, v.metadata, v.expires_at, v.retry_after_ms
  FROM tokens t, rk_apikeys.verify_key(secret) v WHERE label IN ('valid', 'plain', 'disabled') ORDER BY label COLLATE "C";
-- Of a token that is not genuine, nothing.
SELECT label, v.* FROM tokens t, rk_apikeys.verify_key(
    CASE label WHEN 'plain' THEN overlay(secret PLACING CASE right(secret, 1) WHEN 'x' THEN 'y' ELSE 'x' END FROM length(secret) FOR 1)
      WHEN 'valid' THEN rk_apikeys.generate_token() ELSE secret END) v
  WHERE label IN ('plain', 'valid', 'deleted') ORDER BY label COLLATE "C";
-- A key id that exists, with a secret that is not its own and check digits that are right.
RESET ROLE;
SELECT rk_apikeys.generate_token() AS other \gset
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind)
  VALUES (split_part(:'other', '_', 3), 'rk_test_manager', 'other', 'rk', 'prod', now(), 'x', now(), 'x', sha256('x'), 'native');
SET ROLE rk_test_verifier;
SELECT v.valid, v.code, v.key_id, v.tenant FROM rk_apikeys.verify_key(:'other') v;

-- Scopes: by itself, by a:*, by *.
SELECT scope, (rk_apikeys.verify_key(secret, scope)).code FROM tokens,
    unnest(ARRAY['records:read', 'records:write', 'records', 'records:read:all', 'billing:pay', 'billing:pay:now', 'billing', 'billing:', 'billin', '*', NULL]) scope
  WHERE label = 'valid';
SELECT (rk_apikeys.verify_key(secret, 'records:read')).code FROM tokens WHERE label = 'plain';

-- Addresses: in the list, mapped into IPv6, none given, a network.
SELECT addr, (rk_apikeys.verify_key(secret, NULL, addr)).code FROM tokens,
    unnest('{10.1.2.3,10.2.0.1,::ffff:10.1.2.3,::ffff:10.2.0.1,2001:db8::1,2001:db9::1,10.1.0.0/16,10.1.2.3/8,10.0.0.0/8,0.0.0.0/0}'::inet[]) addr
  WHERE label = 'address';
SELECT (rk_apikeys.verify_key(secret)).code FROM tokens WHERE label = 'address';
-- The order of the codes: the state of the key comes first.
SELECT (rk_apikeys.verify_key(secret, 'none', '10.9.9.9')).code FROM tokens WHERE label IN ('revoked', 'disabled', 'expired', 'rotated') ORDER BY label COLLATE "C";
SELECT (rk_apikeys.verify_key(secret, 'none', '10.9.9.9')).code FROM tokens WHERE label = 'address';

-- The cost of a request.
SELECT (rk_apikeys.verify_key(secret, cost => 5)).code FROM tokens WHERE label = 'plain';
SELECT rk_apikeys.verify_key(secret, cost => 0) FROM tokens WHERE label = 'plain'; -- fails: below 1
SELECT rk_apikeys.verify_key('x', cost => -1); -- fails: below 1
SELECT (rk_apikeys.verify_key(secret, cost => NULL)).code FROM tokens WHERE label = 'plain';

-- No cache, and a small one.
SET rk_apikeys.cache_size = 0;
SELECT label, rk_apikeys.verify(secret) FROM tokens ORDER BY label COLLATE "C";
SET rk_apikeys.cache_size = 1;
SELECT label, rk_apikeys.verify(secret) FROM tokens ORDER BY label COLLATE "C";
SELECT label, rk_apikeys.verify(secret) FROM tokens ORDER BY label COLLATE "C" DESC;
RESET rk_apikeys.cache_size;

-- Where nothing can be written, it verifies all the same.
BEGIN READ ONLY;
SELECT rk_apikeys.verify(secret) FROM tokens WHERE label = 'plain';
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT rk_apikeys.verify(secret) FROM tokens WHERE label = 'plain';
COMMIT;
-- In a transaction that changes the key, it sees the change; if that is undone, it sees that too.
RESET ROLE;
BEGIN;
UPDATE rk_apikeys.api_keys SET enabled = false WHERE name = 'plain';
SELECT (rk_apikeys.verify_key(secret)).code FROM tokens WHERE label = 'plain';
SAVEPOINT s;
UPDATE rk_apikeys.api_keys SET enabled = true WHERE name = 'plain';
SELECT (rk_apikeys.verify_key(secret)).code FROM tokens WHERE label = 'plain';
ROLLBACK TO s;
SELECT (rk_apikeys.verify_key(secret)).code FROM tokens WHERE label = 'plain';
ROLLBACK;
SELECT (rk_apikeys.verify_key(secret)).code FROM tokens WHERE label = 'plain';
-- A key that is made and used in one transaction, and then never was.
BEGIN;
SELECT secret FROM rk_apikeys.create_key('never was') \gset
SELECT rk_apikeys.verify(:'secret');
ROLLBACK;
SELECT (rk_apikeys.verify_key(:'secret')).code;

-- Last used: once in a while without preload, exact with it; a denial does not count.
SET ROLE rk_test_manager;
SELECT name, last_used_at BETWEEN created_at AND clock_timestamp() AS used, use_count > 0 AS counted
  FROM rk_apikeys.keys WHERE name IN ('plain', 'disabled', 'revoked', 'expired', 'address') ORDER BY name;
RESET ROLE;
SET rk_apikeys.track_usage = off;
SET ROLE rk_test_manager;
SELECT key_id, secret FROM rk_apikeys.create_key('untracked') \gset
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(:'secret');
SET ROLE rk_test_manager;
SELECT last_used_at, use_count FROM rk_apikeys.keys WHERE name = 'untracked';
RESET ROLE;
RESET rk_apikeys.track_usage;

-- Whoever holds a token may end its key.
SET ROLE rk_test_verifier;
SELECT rk_apikeys.revoke_token(:'secret', 'found on the web') AS genuine, rk_apikeys.revoke_token(:'secret') AS again;
SELECT rk_apikeys.revoke_token(rk_apikeys.generate_token()) AS unknown, rk_apikeys.revoke_token('') AS empty, rk_apikeys.revoke_token(NULL) AS null;
SELECT (rk_apikeys.verify_key(:'secret')).code;
SET ROLE rk_test_manager;
SELECT name, status, revoked_reason FROM rk_apikeys.keys WHERE name = 'untracked';
SELECT event, actor = session_user AS by_me, role FROM rk_apikeys.key_events WHERE event = 'revoked' ORDER BY event_id DESC LIMIT 1;
RESET ROLE;

-- last_used_addr is a host: without a netmask, and as IPv4 where it is mapped.
SET rk_apikeys.usage_resolution = 0;
SET ROLE rk_test_manager;
SELECT key_id AS seen_id, secret AS seen FROM rk_apikeys.create_key('seen') \gset
RESET ROLE;
CREATE FUNCTION pg_temp.last_used_addr(id text, token text, client_addr inet) RETURNS inet LANGUAGE plpgsql AS $$
DECLARE
  addr inet;
BEGIN
  PERFORM rk_apikeys.verify_key(token, client_addr => client_addr);
  FOR i IN 1 .. 1000 LOOP
    PERFORM rk_apikeys.flush_usage();
    SELECT last_used_addr INTO addr FROM rk_apikeys.key_usage WHERE key_id = id;
    EXIT WHEN right(host(addr), 2) = right(host(client_addr), 2);
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN addr;
END $$;
SELECT addr, pg_temp.last_used_addr(:'seen_id', :'seen', addr) AS stored
  FROM unnest('{192.0.2.7, 192.0.2.17/24, ::ffff:192.0.2.27, ::ffff:192.0.2.37/64, 2001:db8::7/32}'::inet[]) AS addr;
RESET rk_apikeys.usage_resolution;
DROP TABLE tokens;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
