-- How a key is made, and where its secret can be seen.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.keys (name) VALUES ('HubSpot Sync – Prod')
  RETURNING tenant, name, description, environment, status, enabled, scopes, allowed_cidrs, rate_limit, metadata,
    expires_at, expires_in, last_used_at, use_count, replaces,
    masked_key = rk_apikeys.mask(secret) AS masks_it, key_id = split_part(secret, '_', 3) AS names_it,
    rk_apikeys.is_well_formed(secret) AS well_formed, created_at = updated_at AS untouched;
SELECT name, secret FROM rk_apikeys.keys;

-- The secret is there until the transaction ends, for the role that made the key.
BEGIN;
SELECT key_id, secret FROM rk_apikeys.create_key('by call', 'a description', scopes => '{a:read,b:*}',
  environment => 'stage', metadata => '{"team": 1}', allowed_cidrs => '{10.0.0.0/8,::1/128}') \gset
SELECT rk_apikeys.reveal(:'key_id') = :'secret' AS revealed,
  (SELECT secret = :'secret' FROM rk_apikeys.keys WHERE key_id = :'key_id') AS in_view;
SELECT rk_apikeys.reveal('000000000000') AS unknown, rk_apikeys.reveal(NULL) AS none, rk_apikeys.reveal('x') AS short, rk_apikeys.reveal(:'key_id' || 'x') AS long;
SAVEPOINT s;
RESET ROLE;
SELECT rk_apikeys.reveal(:'key_id') AS to_another_role;
ROLLBACK TO s;
COMMIT;
SELECT rk_apikeys.reveal(:'key_id') AS after_commit;
SELECT name, description, environment, scopes, metadata, allowed_cidrs FROM rk_apikeys.keys WHERE key_id = :'key_id';

-- Many at once, as an ORM does it.
INSERT INTO rk_apikeys.keys (name, environment) VALUES ('one', DEFAULT), ('two', 'dev'), ('three', 'dev')
  RETURNING name, environment, secret IS NOT NULL AS shown;
INSERT INTO rk_apikeys.keys (name) VALUES ('four') ON CONFLICT DO NOTHING RETURNING name;
WITH made AS (INSERT INTO rk_apikeys.keys (name) SELECT 'bulk ' || g FROM generate_series(1, 10000) g RETURNING key_id, secret)
  SELECT count(DISTINCT key_id), count(DISTINCT secret), bool_and(rk_apikeys.is_well_formed(secret)) FROM made;
SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'created' AND changes #>> '{name,new}' LIKE 'bulk%';
PREPARE make(text) AS INSERT INTO rk_apikeys.keys (name) VALUES ($1) RETURNING name, secret IS NOT NULL AS shown;
EXECUTE make('prepared 1');
EXECUTE make('prepared 2');
DEALLOCATE make;
BEGIN;
DECLARE c CURSOR FOR SELECT name FROM rk_apikeys.keys WHERE name LIKE 'prepared%' ORDER BY name;
FETCH 1 FROM c;
FETCH 1 FROM c;
COMMIT;
DELETE FROM rk_apikeys.keys WHERE name LIKE 'bulk%';

-- Names are trimmed; settings of the administrator count.
SELECT name FROM rk_apikeys.keys WHERE key_id = (SELECT key_id FROM rk_apikeys.create_key(E' \t spaced \n')); -- not yet visible in one statement
SELECT '[' || name || ']' AS trimmed FROM rk_apikeys.keys WHERE name LIKE 'spaced%';
SET rk_apikeys.token_prefix = 'acme'; -- fails: not granted
SET rk_apikeys.default_environment = 'qa'; -- fails: not granted
RESET ROLE;
SET rk_apikeys.token_prefix = 'acme';
SET rk_apikeys.default_environment = 'qa';
SET rk_apikeys.token_prefix = 'ACME'; -- fails: capital letters
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.keys (name) VALUES ('prefixed') RETURNING environment, secret LIKE 'acme\_qa\_%' AS prefixed, masked_key LIKE 'acme\_qa\_%' AS masked;
RESET ROLE;
RESET rk_apikeys.token_prefix;
RESET rk_apikeys.default_environment;

-- By the owner, straight into the table.
COPY rk_apikeys.api_keys (name, tenant) FROM STDIN;
copied one	rk_test_manager
copied two	rk_test_manager
\.
SELECT name, created_by = session_user AS by_me, digest_kind, octet_length(digest) FROM rk_apikeys.api_keys WHERE name LIKE 'copied%' ORDER BY name;

-- What a new row may not bring.
INSERT INTO rk_apikeys.api_keys (name, key_id) VALUES ('x', '000000000000'); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, created_at) VALUES ('x', now()); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, revoked_at) VALUES ('x', now()); -- fails: a new key is not revoked
INSERT INTO rk_apikeys.api_keys (name, digest_kind) VALUES ('x', 'native'); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, prefix) VALUES ('x', 'x'); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, grace_until) VALUES ('x', now()); -- fails: a new key is not rotated
INSERT INTO rk_apikeys.api_keys (name, revoked_reason) VALUES ('x', 'x'); -- fails: a new key is not revoked
INSERT INTO rk_apikeys.api_keys (name, created_by) VALUES ('x', 'x'); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, updated_at) VALUES ('x', now()); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, updated_by) VALUES ('x', 'x'); -- fails: made by the trigger
INSERT INTO rk_apikeys.api_keys (name, pepper_id) VALUES ('x', 1); -- fails: made by the trigger

-- max_lifetime.
SET rk_apikeys.max_lifetime = '30 days';
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.keys (name) VALUES ('endless'); -- fails: no expiry
INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('long', now() + '31 days'); -- fails: too long
INSERT INTO rk_apikeys.keys (name, expires_at) VALUES ('short', now() + '30 days') RETURNING name, expires_in;
UPDATE rk_apikeys.keys SET expires_at = NULL WHERE name = 'short'; -- fails: endless
UPDATE rk_apikeys.keys SET expires_at = expires_at + '1 day' WHERE name = 'short'; -- fails: too long
UPDATE rk_apikeys.keys SET expires_at = expires_at - interval '1 day' WHERE name = 'short';
UPDATE rk_apikeys.keys SET description = 'endless, from before' WHERE name = 'one';
RESET ROLE;
RESET rk_apikeys.max_lifetime;
SET rk_apikeys.max_lifetime = '-1 day'; -- fails: negative
SET rk_apikeys.max_lifetime = 'soon'; -- fails: no interval

-- A vertical tab is trimmed as other blanks are; the letter v is a name.
INSERT INTO rk_apikeys.keys (name) VALUES ('v'), (E'\x0b v \x0b') RETURNING name = 'v' AS named_v;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
