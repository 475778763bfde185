-- What a verdict tells, what a call may require, and what an HTTP server answers.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT key_id AS a_id, secret AS a FROM rk_apikeys.create_key('a', scopes => '{a:read,b:*}', environment => 'test') \gset
SELECT key_id AS all_id, secret AS all FROM rk_apikeys.create_key('all', scopes => '{*}') \gset
SELECT secret AS none FROM rk_apikeys.create_key('none', allowed_cidrs => '{10.0.0.0/8}') \gset
SELECT key_id AS gone_id, secret AS gone FROM rk_apikeys.create_key('gone', environment => 'test') \gset
SELECT count(rk_apikeys.rotate_key(:'gone_id', '0'));
RESET ROLE;
CREATE TABLE tokens AS SELECT :'a' AS a, :'all' AS "all", :'none' AS "none", :'gone' AS gone;
CREATE ROLE rk_test_stranger;
CREATE ROLE rk_test_trusting IN ROLE rk_apikeys_verifier, rk_apikeys_manager;
GRANT SELECT ON tokens TO rk_test_verifier, rk_test_trusting;
-- The SQLSTATE, DETAIL and HINT of a statement.
CREATE FUNCTION refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  detail text; hint text;
BEGIN
  EXECUTE statement;
  RETURN 'none';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' / ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, ''));
END $$;

-- A verdict with that code.
CREATE FUNCTION verdict_with(code text, retry_after_ms int DEFAULT NULL, limit_name text DEFAULT NULL, limit_units bigint DEFAULT NULL, limit_remaining bigint DEFAULT NULL)
  RETURNS rk_apikeys.verdict LANGUAGE sql
  AS $$SELECT jsonb_populate_record(NULL::rk_apikeys.verdict, jsonb_build_object('valid', code = 'valid', 'code', code, 'retry_after_ms', retry_after_ms,
    'limit_name', limit_name, 'limit_units', limit_units, 'limit_remaining', limit_remaining))$$;

-- A list of scopes: all words, of each word one alternative.
SET ROLE rk_test_verifier;
SELECT scope, (rk_apikeys.verify_key(a, scope)).code AS a, (rk_apikeys.verify_key("all", scope)).code AS "all", (rk_apikeys.verify_key("none", scope, '10.0.0.1')).code AS "none"
  FROM tokens, unnest(ARRAY['a:read', 'a:read b:x', 'b:x a:read', 'a:read c', 'c a:read', 'c|a:read', 'a:read|c', 'c|d', 'c|a:read b:x', 'a:read b:x|c',
    'c|d a:read', 'a:read c|d', 'c|d|b:x a:read|c', 'a:read a:read', 'a:rea', 'a:read:x', '* a:read', E'a:read\tb:x', E'a:read\nb:x', 'a:read,b:x', 'A:READ']) scope;
-- What is no list is refused, whatever the token.
SELECT refusal(format('SELECT rk_apikeys.verify_key(%L, %L)', token, scope)) COLLATE "C" AS refusal, count(*) AS tokens
  FROM tokens, unnest(ARRAY[a, "all", 'x', NULL]) token,
    unnest(ARRAY['', ' ', '|', 'a  b', ' a', 'a ', '|a', 'a|', 'a||b', 'a| b', 'a |b']) scope GROUP BY 1 ORDER BY 1;
SELECT refusal(format('SELECT rk_apikeys.verify_key(%L, repeat(''a:read '', 1500000))', token)) AS refusal FROM tokens, unnest(ARRAY[a, 'x', NULL]) token;
SELECT (rk_apikeys.verify_key(a, rtrim(repeat('a:read ', 1170)))).code AS long, (rk_apikeys.verify_key(a, rtrim(repeat('a:read ', 1170)) || '|c')).code AS alternative FROM tokens;
SELECT refusal(format('SELECT rk_apikeys.authenticate(%L, ''a  b'', raise => false)', a)) FROM tokens;

-- An environment: of the call, of the setting, of both.
SELECT environment, (rk_apikeys.verify_key(a, environment => environment)).code AS test, (rk_apikeys.verify_key("all", environment => environment)).code AS prod
  FROM tokens, unnest(ARRAY['test', 'prod', 'TEST', 'tes', 'test ', 'tests', '', repeat('x', 16), NULL]) environment;
SELECT (rk_apikeys.verify_key(a, environment => repeat('test', 2500000))).code AS long, (rk_apikeys.verify_key('x', environment => 'prod')).code AS malformed FROM tokens;
-- Its place in the order of the codes.
SELECT (rk_apikeys.verify_key(gone, environment => 'prod')).code AS rotated, (rk_apikeys.verify_key("none", 'x', '11.0.0.1', environment => 'test')).code AS mismatch,
  (rk_apikeys.verify_key("none", 'x', '11.0.0.1', environment => 'prod')).code AS address, (rk_apikeys.verify_key("none", 'x', '10.0.0.1', environment => 'prod')).code AS scope FROM tokens;
SELECT rk_apikeys.verify(a) AS test, rk_apikeys.verify("all") AS prod FROM tokens, generate_series(1, 3);
SET rk_apikeys.required_environment = 'test'; -- fails: a superuser may
SELECT set_config('rk_apikeys.required_environment', '', false); -- fails: a superuser may
RESET ROLE;
SET rk_apikeys.required_environment = 'Test'; -- fails: no environment
SET rk_apikeys.required_environment = 'test test'; -- fails: no environment
SET rk_apikeys.required_environment = 'test';
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(a) AS test, rk_apikeys.verify("all") AS prod FROM tokens, generate_series(1, 3);
SELECT environment, (rk_apikeys.verify_key(a, environment => environment)).code AS test, (rk_apikeys.verify_key("all", environment => environment)).code AS prod
  FROM tokens, unnest(ARRAY['test', 'prod', NULL]) environment;
SELECT refusal(format('SELECT rk_apikeys.authenticate(%L)', "all")) LIKE '28000 / API key is not accepted: environment_mismatch / code=environment_mismatch key_id=____________' AS refused FROM tokens;
RESET ROLE;
RESET rk_apikeys.required_environment;
SELECT rk_apikeys.verify(a) AS test, rk_apikeys.verify("all") AS prod FROM tokens, generate_series(1, 2);
SELECT format('ALTER DATABASE %I SET rk_apikeys.required_environment = test', current_database()) AS set, format('ALTER DATABASE %I RESET rk_apikeys.required_environment', current_database()) AS reset \gset
:set;
\c -
\set VERBOSITY sqlstate
SELECT rk_apikeys.verify(a) AS test, rk_apikeys.verify("all") AS prod FROM tokens, generate_series(1, 2);
:reset;
SET ROLE rk_test_verifier;
:set; -- fails: not the owner of the database
RESET ROLE;
\c -
\set VERBOSITY sqlstate
SELECT rk_apikeys.verify(a) AS test, rk_apikeys.verify("all") AS prod FROM tokens, generate_series(1, 2);

-- Family and owner.
SELECT v.family = :'all_id' AS own, v.owner FROM tokens, rk_apikeys.verify_key("all") v;
SET ROLE rk_test_manager;
SELECT key_id AS second_id FROM rk_apikeys.rotate_key(:'all_id') \gset
SELECT key_id AS third_id, secret AS third FROM rk_apikeys.rotate_key(:'second_id') \gset
RESET ROLE;
SELECT v.family = :'all_id' AS first, v.key_id = :'third_id' AS third FROM rk_apikeys.verify_key(:'third') v;
SELECT count(*), count(*) FILTER (WHERE key_id = :'all_id') AS first FROM rk_apikeys.api_keys WHERE family = :'all_id';
INSERT INTO rk_apikeys.keys (name, family) VALUES ('x', 'x'); -- fails: the insert sets it
INSERT INTO rk_apikeys.api_keys (name, tenant, family) VALUES ('x', 'x', 'x'); -- fails: the insert sets it
-- A row of an older dump has none.
UPDATE rk_apikeys.api_keys SET family = NULL, owner = 'ann' WHERE key_id = :'third_id';
SELECT v.family = :'third_id' AS own, v.owner FROM rk_apikeys.verify_key(:'third') v;
UPDATE rk_apikeys.api_keys SET owner = '' WHERE key_id = :'third_id'; -- fails: too short
UPDATE rk_apikeys.api_keys SET owner = repeat('x', 201) WHERE key_id = :'third_id'; -- fails: too long
UPDATE rk_apikeys.api_keys SET owner = 'the owner of ' || :'third' WHERE key_id = :'third_id';
SELECT position(:'third' IN owner) AS token FROM rk_apikeys.api_keys WHERE key_id = :'third_id';
UPDATE rk_apikeys.api_keys SET owner = 'ann' WHERE key_id = :'third_id';
-- A successor has the owner too.
SET ROLE rk_test_manager;
SELECT secret AS fourth FROM rk_apikeys.rotate_key(:'third_id', '1 hour') \gset
RESET ROLE;
SELECT v.family = :'third_id' AS of_third, v.owner FROM rk_apikeys.verify_key(:'fourth') v;

-- authenticate that need not raise.
SET ROLE rk_test_trusting;
SELECT rk_apikeys.current_key_id(), rk_apikeys.current_key_environment(), rk_apikeys.current_key_owner(), rk_apikeys.current_key_family();
BEGIN;
SELECT v.valid, v.code, v.name FROM rk_apikeys.authenticate(:'a', 'c', raise => false) v;
SELECT v.valid, v.code, v.key_id FROM rk_apikeys.authenticate('x', raise => false) v;
SELECT v.valid, v.code, v.key_id FROM rk_apikeys.authenticate(NULL, raise => false) v;
SELECT rk_apikeys.current_key_id(), rk_apikeys.current_tenant();
SELECT v.code FROM rk_apikeys.authenticate(:'third', 'x y|z', raise => false) v;
SELECT rk_apikeys.current_key_id() = :'third_id' AS third, rk_apikeys.current_key_environment(), rk_apikeys.current_key_owner(), rk_apikeys.current_key_family() = :'third_id' AS family;
SELECT scope, rk_apikeys.has_scope(scope) FROM unnest(ARRAY['x', 'x y|z', '', ' ', 'x ', 'x|', '|x', 'x  y', NULL]) scope;
SELECT count(*) FILTER (WHERE rk_apikeys.has_scope(scope)) FROM unnest(ARRAY[repeat('x ', 5000000) || 'x', repeat('x', 8193), NULL]) scope;
-- A refusal takes the principal away. The role does not get back what the principal has restricted.
SAVEPOINT s;
SELECT v.code FROM rk_apikeys.authenticate('x', raise => false) v;
SELECT rk_apikeys.current_key_id(), rk_apikeys.current_key_tenant(), rk_apikeys.current_key_environment(), rk_apikeys.current_key_owner(), rk_apikeys.current_key_family(),
  rk_apikeys.current_scopes(), rk_apikeys.has_scope('x'), rk_apikeys.current_tenant();
SELECT count(*) FROM rk_apikeys.keys;
SELECT count(*) FROM rk_apikeys.list_keys();
SAVEPOINT t;
SELECT rk_apikeys.create_key('x'); -- fails: no tenant
ROLLBACK TO t;
SET LOCAL rk_apikeys.principal = ''; -- fails: refused
ROLLBACK TO t;
SELECT v.code FROM rk_apikeys.authenticate(:'a', raise => false) v;
SELECT rk_apikeys.current_key_id() = :'a_id' AS a;
ROLLBACK TO s;
SELECT rk_apikeys.current_key_id() = :'third_id' AS third;
-- NULL means true.
SELECT rk_apikeys.authenticate('x', raise => NULL); -- fails: malformed
ROLLBACK;
SELECT rk_apikeys.current_key_id(), rk_apikeys.current_tenant();
-- An event of such a transaction names no key.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'third') v;
SELECT v.code FROM rk_apikeys.authenticate('x', raise => false) v;
SELECT rk_apikeys.revoke_token(:'third');
RESET ROLE;
SELECT event, principal FROM rk_apikeys.key_events WHERE key_id = :'third_id' ORDER BY event_id DESC LIMIT 1;
SELECT rk_apikeys.flush_usage(); -- fails: of all tenants
ROLLBACK;
-- The trigger refuses as much, where no policy stands between.
BEGIN;
SELECT v.code FROM rk_apikeys.authenticate(:'third') v;
SELECT v.code FROM rk_apikeys.authenticate('x', raise => false) v;
SELECT refusal($$INSERT INTO rk_apikeys.api_keys (tenant, name) VALUES ('x', 'x')$$);
ROLLBACK;
SET ROLE rk_test_trusting;
-- What it raises has words for a program, and no token.
SELECT refusal(format('SELECT rk_apikeys.authenticate(%L)', token)) AS refusal FROM unnest(ARRAY['x', NULL, rk_apikeys.generate_token()]) token;
SELECT replace(refusal(format('SELECT rk_apikeys.authenticate(%L, ''c'')', :'a')), :'a_id', '<key_id>') AS refusal;
SELECT refusal(format('SELECT rk_apikeys.authenticate(%L, cost => 0)', :'a')), refusal('SELECT rk_apikeys.verify_key(NULL, cost => -1)');
RESET ROLE;

-- The address of a client, as a header tells it.
SET ROLE rk_test_stranger;
SELECT quote_literal(header) AS header, rk_apikeys.client_addr(header) FROM unnest(ARRAY['1.2.3.4', ' 1.2.3.4 ', E'\t1.2.3.4\t ', '1.2.3.4:80', '1.2.3.4:0', '1.2.3.4:65535', '::1', '[::1]', '[::1]:443',
  '[2001:db8::1]:443', ' [2001:db8::1] ', '2001:DB8::1', 'fe80::1%eth0', '[fe80::1%eth0.5]:80', '::ffff:1.2.3.4', '[::ffff:1.2.3.4]:80', '::ffff:102:304', '::1.2.3.4', '::', '0.0.0.0', '255.255.255.255',
  '2001:db8:0:0:0:0:0:1', '64:ff9b::1.2.3.4',
  '', ' ', '1.2.3.4, 5.6.7.8', '1.2.3.4,5.6.7.8', '1.2.3.4 5.6.7.8', '1.2.3.4:', '1.2.3.4:x', '1.2.3.4:65536', '1.2.3.4:000080', '1.2.3.4:+80', '1.2.3.4:80:80', '1.2.3.4/24', '1.2.3.4/32', '2001:db8::/32',
  '01.2.3.4', '1.2.3', '1.2.3.4.5', '1.2.3.256', '16909060', '0x1.2.3.4', '1.2.3.4%eth0', '[1.2.3.4]', '[1.2.3.4]:80', '[::1', '::1]', '[::1]x', '[::1]:', '[::1]:x', '[[::1]]', '[]', '[]:80', ':80', ':', ':::',
  '1::2::3', '::1%', '::1%eth0%1', '::1%a b', '%eth0', '12345::', '::1:2:3:4:5:6:7:8', 'unknown', '_hidden', 'for=1.2.3.4', '"1.2.3.4"', '''1.2.3.4''', E'1.2.3.4\n', E'1.2.3.4\r\nX: y', 'localhost', 'ä', '１.2.3.4',
  repeat(' ', 120) || '1.2.3.4', repeat(' ', 122) || '1.2.3.4']) WITH ORDINALITY h(header, n) WHERE length(header) < 100 ORDER BY n;
SELECT rk_apikeys.client_addr(repeat(' ', 120) || '1.2.3.4') AS blanks, rk_apikeys.client_addr(repeat(' ', 122) || '1.2.3.4') AS more, rk_apikeys.client_addr(repeat('1.2.3.4,', 1250000)) AS list,
  rk_apikeys.client_addr(NULL) AS null, masklen(rk_apikeys.client_addr('::ffff:1.2.3.4')) AS mapped;

-- The response of an HTTP server.
\pset format unaligned
SELECT code, r.* FROM unnest(ARRAY['valid', 'malformed', 'unknown', 'revoked', 'disabled', 'expired', 'rotated', 'environment_mismatch', 'address_denied', 'scope_missing', 'rate_limited',
  'quota_exceeded', 'limiter_unavailable', 'of a release to come']) code, rk_apikeys.http_response(verdict_with(code), 'a:read b:x|c') r;
SELECT * FROM rk_apikeys.http_response(NULL);
SELECT * FROM rk_apikeys.http_response(NULL, 'a');
-- Each code of a verdict has its row above.
SELECT regexp_replace(obj_description('rk_apikeys.verdict'::regtype, 'pg_type'), '.*one of: (.*limiter_unavailable).*', '\1') AS codes;
-- A limit; seconds are whole, and rounded up.
SELECT headers FROM rk_apikeys.http_response(verdict_with('valid', NULL, 'rate_limit', 10, 9));
SELECT ms, headers - '{Content-Type,Cache-Control}'::text[] AS headers FROM unnest(ARRAY[0, 1, 999, 1000, 1001, 2147483647, -1, NULL]) ms, rk_apikeys.http_response(verdict_with('rate_limited', ms, 'rate_limit', 10, 0));
-- A quota: the longest wait that a verdict holds, and none for a quota without end. What cannot be checked may be asked again at once.
SELECT status, ms, headers - '{Content-Type,Cache-Control}'::text[] AS headers, body->>'detail' AS detail FROM unnest(ARRAY[2147483647, 86400000, NULL]) ms,
  rk_apikeys.http_response(verdict_with('quota_exceeded', ms, 'monthly', 1000000000000000, 0));
SELECT status, ms, headers - '{Content-Type,Cache-Control}'::text[] AS headers FROM unnest(ARRAY[2500, NULL]) ms, rk_apikeys.http_response(verdict_with('limiter_unavailable', ms));
SELECT headers FROM rk_apikeys.http_response(verdict_with('valid', NULL, 'monthly', 100000, 99188));
-- No name and no number breaks a header.
SELECT headers FROM unnest(ARRAY['a"b', 'a\b', 'a b', '', E'a\r\nX: y', 'ä', E'a\x7f', repeat('a', 201)]) name, rk_apikeys.http_response(verdict_with('valid', NULL, name, 9223372036854775807, 9223372036854775807));
SELECT headers FROM rk_apikeys.http_response(verdict_with('valid', NULL, 'a', -1, -1)) UNION ALL SELECT headers FROM rk_apikeys.http_response(verdict_with('valid', NULL, 'a', 1, NULL));
SELECT quote_literal(scope) AS scope, headers->>'WWW-Authenticate' AS header
  FROM unnest(ARRAY['a', 'a:read b:x', 'a|b', 'a"', 'a", error="x', E'a\\', E'a\r\nX: y', E'a\n', E'a\tb', '', ' ', 'a  b', ' a', 'a ', 'ä', E'a\x7f', E'a\x1f', E'\u00a0', '*']) scope, rk_apikeys.http_response(verdict_with('scope_missing'), scope);
SELECT headers->>'WWW-Authenticate' AS header FROM rk_apikeys.http_response(verdict_with('scope_missing'), repeat('a ', 5000000));
\pset format aligned
-- Of a verdict as verify_key gives it, to a role that may verify.
SET ROLE rk_test_verifier;
SELECT r.status, r.headers->>'WWW-Authenticate' AS header, r.body->>'code' AS code FROM tokens, rk_apikeys.verify_key(a, 'c') v, rk_apikeys.http_response(v, 'c') r;
SELECT r.* FROM tokens, rk_apikeys.verify_key(a, 'a:read') v, rk_apikeys.http_response(v, 'a:read') r;

RESET ROLE;
DROP FUNCTION refusal, verdict_with;
DROP TABLE tokens;
DROP ROLE rk_test_stranger, rk_test_trusting;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
