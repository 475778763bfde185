-- Keys issued elsewhere, by the digest of their token.
\set VERBOSITY sqlstate
SET ROLE rk_test_verifier;
SELECT code FROM rk_apikeys.verify_key('sk_live_0123456789abcdef');
SET ROLE rk_test_admin;
SELECT rk_apikeys.import_key('old 256', sha256('sk_live_0123456789abcdef'), 'sha256', hint => 'cdef', tenant => 'rk_test_manager',
  scopes => '{a}', metadata => '{"from": "legacy"}') ~ '^[0-9A-Za-z]{12}$' AS imported;
SELECT rk_apikeys.import_key('old 512', sha512('Ünïcode – any bytes at all'), 'sha512', tenant => 'rk_test_manager') IS NOT NULL AS imported;
SELECT rk_apikeys.import_key('again', sha256('sk_live_0123456789abcdef'), 'sha256'); -- fails: there already
SELECT rk_apikeys.import_key('short', '\x00', 'sha256'); -- fails: not a SHA-256
SELECT rk_apikeys.import_key('wrong', sha256('x'), 'sha512'); -- fails: not a SHA-512
SELECT rk_apikeys.import_key('md5', '\x00', 'md5'); -- fails: no such kind
SELECT rk_apikeys.import_key('native', sha256('x'), 'native'); -- fails: no such kind
SELECT rk_apikeys.import_key('null', NULL, 'sha256'); -- fails: null
SELECT rk_apikeys.import_key('null', sha256('x'), NULL); -- fails: null
SELECT rk_apikeys.import_key('hint', sha256('x'), 'sha256', hint => 'abcde'); -- fails: five characters
SELECT rk_apikeys.import_key('', sha256('x'), 'sha256'); -- fails: name
SELECT rk_apikeys.import_key('past', sha256('x'), 'sha256', expires_at => now()); -- fails: past
\set VERBOSITY default
SELECT rk_apikeys.import_key('again', sha256('sk_live_0123456789abcdef'), 'sha256'); -- fails: there already, and no digest is shown
SELECT rk_apikeys.import_key('hint', sha256('x'), 'sha256', hint => 'sk_live_0123456789abcdef'); -- fails: no row and no value is shown
SELECT rk_apikeys.import_key('start', sha256('x'), 'sha256', start => 'sk_live_0123456789abcdef'); -- fails: no row and no value is shown
SELECT rk_apikeys.import_key('start', sha256('x'), 'sha256', start => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j'); -- fails: the same for a token of ours
SELECT rk_apikeys.import_key(NULL, sha256('x'), 'sha256'); -- fails: no row is shown
\set VERBOSITY sqlstate
SELECT name, tenant, scopes, metadata, created_by = session_user AS by_me, masked_key, secret FROM rk_apikeys.keys ORDER BY name;
-- The mask shows the start and the end that were given, and nothing else.
SELECT count(rk_apikeys.import_key('mask ' || n, sha256(('a long random token ' || n)::bytea), 'sha256', hint => hint, start => start, tenant => 'rk_test_manager'))
  FROM (VALUES (1, NULL, NULL), (2, '', ''), (3, 'sk_live_', NULL), (4, 'github_pat_1', 'cdef'), (5, 'Ünï', 'é')) v(n, start, hint);
SELECT rk_apikeys.import_key('start', sha256('x'), 'sha256', start => 'github_pat_11'); -- fails: thirteen characters
SELECT name, masked_key FROM rk_apikeys.keys WHERE name ~ 'mask' ORDER BY name;
SELECT name, masked_key FROM rk_apikeys.list_keys('mask', sort_by => 'name');
SELECT count(*) FROM rk_apikeys.keys WHERE name ~ 'mask' AND updated_at = created_at;
DELETE FROM rk_apikeys.keys WHERE name ~ 'mask';
SELECT tenant, event, role, changes #>> '{name,new}' AS name FROM rk_apikeys.key_events ORDER BY event_id;

SET ROLE rk_test_verifier;
SELECT v.code, v.name, v.scopes FROM rk_apikeys.verify_key('sk_live_0123456789abcdef', 'a') v;
SELECT v.code, v.name FROM rk_apikeys.verify_key('Ünïcode – any bytes at all') v;
SELECT t AS token, (rk_apikeys.verify_key(t)).code
  FROM unnest(ARRAY['sk_live_0123456789abcdee', 'short', '0123456789abcdef', repeat('x', 512), repeat('x', 513)]) t WHERE length(t) < 100;
SELECT (rk_apikeys.verify_key(repeat('x', 512))).code, (rk_apikeys.verify_key(repeat('x', 513))).code;
-- What is too short or too long is no token, whatever was imported.
SET ROLE rk_test_admin;
SELECT count(rk_apikeys.import_key('bounds', sha256(repeat('x', n)::bytea), 'sha256')) FROM unnest('{15,16,512,513}'::int[]) n;
SET ROLE rk_test_verifier;
SELECT n, (rk_apikeys.verify_key(repeat('x', n))).code FROM unnest('{15,16,512,513}'::int[]) n;
SET ROLE rk_test_admin;
DELETE FROM rk_apikeys.keys WHERE name = 'bounds';
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(rk_apikeys.generate_token());
-- It lives as the others do.
SET ROLE rk_test_manager;
SELECT key_id FROM rk_apikeys.keys WHERE name = 'old 256' \gset
UPDATE rk_apikeys.keys SET enabled = false WHERE key_id = :'key_id';
SET ROLE rk_test_verifier;
SELECT (rk_apikeys.verify_key('sk_live_0123456789abcdef')).code;
SET ROLE rk_test_manager;
UPDATE rk_apikeys.keys SET enabled = true WHERE key_id = :'key_id';
SELECT last_used_at IS NOT NULL AS used FROM rk_apikeys.keys WHERE key_id = :'key_id';
-- A rotation gives it a token of ours.
SELECT rk_apikeys.is_well_formed(secret) AS ours FROM rk_apikeys.rotate_key(:'key_id', '0');
SELECT masked_key ~ '^rk_prod_[0-9A-Za-z]{12}_[*]{8}[0-9A-Za-z]{4}$' AS masked FROM rk_apikeys.keys WHERE replaces = :'key_id';
SET ROLE rk_test_verifier;
SELECT (rk_apikeys.verify_key('sk_live_0123456789abcdef')).code;
SELECT rk_apikeys.revoke_token('Ünïcode – any bytes at all');
SELECT (rk_apikeys.verify_key('Ünïcode – any bytes at all')).code;
-- The owner's own rows: no message quotes the digest that is there already, or any digest of a refused row.
RESET ROLE;
\set VERBOSITY default
INSERT INTO rk_apikeys.api_keys (name, digest, digest_kind) VALUES ('again', sha256('sk_live_0123456789abcdef'), 'sha256'); -- fails: there already
UPDATE rk_apikeys.api_keys SET digest = sha256('sk_live_0123456789abcdef'), digest_kind = 'sha256' WHERE name = 'old 512'; -- fails: there already
COPY rk_apikeys.api_keys (name, digest_kind, digest) FROM STDIN; -- fails: there already
again	sha256	\\x4ab8bb1d0d1ef8ff5b3ee1bb1d4a0b94e46e3bb1a6a9a1e4ff4bb4d84d3b8b9a
again	sha256	\\x4ab8bb1d0d1ef8ff5b3ee1bb1d4a0b94e46e3bb1a6a9a1e4ff4bb4d84d3b8b9a
\.
INSERT INTO rk_apikeys.api_keys SELECT (jsonb_populate_record(k, '{"key_id": "no id"}')).* FROM rk_apikeys.api_keys k WHERE name = 'old 512'; -- fails: key_id
INSERT INTO rk_apikeys.api_keys SELECT (jsonb_populate_record(k, '{"key_id": "000000000000", "tenant": null}')).* FROM rk_apikeys.api_keys k WHERE name = 'old 512'; -- fails: null
\set VERBOSITY sqlstate
-- A complete row of an earlier release has no start: it gets the empty one, so that its mask invents nothing. A row of ours has none.
BEGIN;
CREATE TEMP TABLE dumped AS SELECT * FROM rk_apikeys.api_keys;
DELETE FROM rk_apikeys.api_keys;
UPDATE dumped SET start = NULL;
INSERT INTO rk_apikeys.api_keys SELECT * FROM dumped;
SELECT k.digest_kind, count(k.start), min(k.start) AS start, bool_and(to_jsonb(k) - 'start' = to_jsonb(d) - 'start') AS as_it_was
  FROM rk_apikeys.api_keys k JOIN dumped d USING (key_id) GROUP BY 1 ORDER BY 1;
ROLLBACK;
-- Without any, what has no shape is malformed again.
DELETE FROM rk_apikeys.api_keys;
SELECT (rk_apikeys.verify_key('sk_live_0123456789abcdef')).code;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
