-- Bad input: a token never raises; anything else gets its code, and stores nothing.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT secret FROM rk_apikeys.create_key('good') \gset
SET ROLE rk_test_verifier;
-- NULL, empty, one character, no token, half a token, one with something before or behind it.
SELECT what, rk_apikeys.verify(token), (rk_apikeys.verify_key(token)).code
  FROM (VALUES ('null', NULL), ('empty', ''), ('one', 'x'), ('underscores', '___'), ('cut', left(:'secret', -1)), ('longer', :'secret' || '0'),
    ('blank before', ' ' || :'secret'), ('newline behind', :'secret' || E'\n'), ('upper', upper(:'secret')),
    ('tampered', overlay(:'secret' PLACING CASE substr(:'secret', 30, 1) WHEN 'x' THEN 'y' ELSE 'x' END FROM 30 FOR 1)),
    ('bearer', 'Bearer ' || :'secret'), ('unicode', repeat('é', 40)), ('quote', '''; DROP TABLE x; --'),
    ('another prefix', regexp_replace(:'secret', '^rk', 'kr')), ('another environment', regexp_replace(:'secret', '_prod_', '_dev_')),
    ('unknown', rk_apikeys.generate_token()), ('unknown, another prefix', rk_apikeys.generate_token('dev', 'acme'))) t(what, token);
SELECT octet_length(t) AS bytes, rk_apikeys.verify(t), (rk_apikeys.verify_key(t)).code
  FROM (VALUES (repeat('x', 10000000)), (repeat(:'secret', 100000))) v(t);
-- Bytes that are no text in this encoding.
RESET ROLE;
CREATE DATABASE rk_test_bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0;
\c rk_test_bytes
SET client_min_messages = error;
CREATE EXTENSION rk_apikeys CASCADE;
SET ROLE rk_test_verifier;
SELECT DISTINCT (rk_apikeys.verify_key(t)).code
  FROM (SELECT encode(sha256(n::text::bytea), 'escape') FROM generate_series(1, 200) n
    UNION ALL SELECT convert_from(decode(replace(encode(sha512(n::text::bytea), 'hex'), '00', '01'), 'hex'), 'SQL_ASCII') FROM generate_series(1, 200) n) x(t);
SELECT count(rk_apikeys.redact(t)), bool_or(rk_apikeys.is_well_formed(t)), count(DISTINCT rk_apikeys.mask(t))
  FROM (SELECT convert_from(decode(replace(encode(sha512(n::text::bytea), 'hex'), '00', '01'), 'hex'), 'SQL_ASCII') FROM generate_series(1, 200) n) x(t);
\c contrib_regression
DROP DATABASE rk_test_bytes;

\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT rk_apikeys.create_key(NULL); -- fails: name
SELECT rk_apikeys.create_key(''); -- fails: name
SELECT rk_apikeys.create_key(E' \t\n'); -- fails: name
SELECT rk_apikeys.create_key(repeat('n', 201)); -- fails: name
SELECT rk_apikeys.create_key('x', repeat('d', 2001)); -- fails: description
SELECT rk_apikeys.create_key('x', environment => 'Prod'); -- fails: environment
SELECT rk_apikeys.create_key('x', environment => ''); -- fails: environment
SELECT rk_apikeys.create_key('x', environment => 'with space'); -- fails: environment
SELECT rk_apikeys.create_key('x', environment => 'a2345678901234567'); -- fails: environment
SELECT rk_apikeys.create_key('x', environment => 'prod_eu'); -- fails: environment
SELECT rk_apikeys.create_key('x', scopes => '{"a b"}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{A}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{a:}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{:a}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{""}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{NULL}'); -- fails: scope
SELECT rk_apikeys.create_key('x', scopes => '{a,b,a}'); -- fails: twice
SELECT rk_apikeys.create_key('x', scopes => ARRAY[['a'], ['b']]); -- fails: two dimensions
SELECT rk_apikeys.create_key('x', scopes => ARRAY(SELECT 's' || n FROM generate_series(1, 65) n)); -- fails: too many
SELECT rk_apikeys.create_key('x', scopes => ARRAY[repeat('s', 101)]); -- fails: too long
SELECT rk_apikeys.create_key('x', allowed_cidrs => '{}'); -- fails: no address at all
SELECT rk_apikeys.create_key('x', allowed_cidrs => '{NULL}'); -- fails: null
SELECT rk_apikeys.create_key('x', allowed_cidrs => '{10.0.0.1/8}'); -- fails: no network
SELECT rk_apikeys.create_key('x', allowed_cidrs => ARRAY(SELECT ('10.0.' || n || '.0/24')::cidr FROM generate_series(1, 65) n)); -- fails: too many
SELECT rk_apikeys.create_key('x', metadata => '[]'); -- fails: no object
SELECT rk_apikeys.create_key('x', metadata => '"x"'); -- fails: no object
SELECT rk_apikeys.create_key('x', metadata => jsonb_build_object('x', repeat('m', 9000))); -- fails: too large
SELECT rk_apikeys.create_key('x', expires_at => now()); -- fails: past
SELECT rk_apikeys.create_key('x', expires_at => '-infinity'); -- fails: past
SELECT rk_apikeys.create_key('x', expires_at => '1999-01-01'); -- fails: past
SELECT rk_apikeys.create_key('x', rate_limit => 10); -- fails: no window
SELECT rk_apikeys.create_key('x', rate_window => '1 s'); -- fails: no limit
SELECT rk_apikeys.create_key('x', rate_limit => 0, rate_window => '1 s'); -- fails: zero
SELECT rk_apikeys.create_key('x', rate_limit => 1, rate_window => '0'); -- fails: zero
SELECT rk_apikeys.create_key('x', rate_limit => 1, rate_window => '-1 s'); -- fails: negative
SELECT rk_apikeys.create_key('x', rate_limit => 1, rate_window => '2 years'); -- fails: too long
SELECT rk_apikeys.create_key('x', tenant => ''); -- fails: no tenant
SELECT rk_apikeys.create_key('x', tenant => 'rk_test_other'); -- fails: another tenant
UPDATE rk_apikeys.keys SET name = ''; -- fails: name
UPDATE rk_apikeys.keys SET scopes = '{a,a}'; -- fails: twice
UPDATE rk_apikeys.keys SET metadata = '[]'; -- fails: no object
UPDATE rk_apikeys.keys SET enabled = NULL; -- fails: null
UPDATE rk_apikeys.keys SET rate_limit = 1; -- fails: no window
SELECT name, updated_at = created_at AS untouched FROM rk_apikeys.keys;
SELECT event FROM rk_apikeys.key_events;
SET ROLE rk_test_admin;
SELECT rk_apikeys.create_key('x', tenant => ''); -- fails: no tenant
SELECT rk_apikeys.create_key('x', tenant => repeat('t', 201)); -- fails: too long
SET ROLE rk_test_manager;
SELECT rk_apikeys.revoke_key((SELECT key_id FROM rk_apikeys.keys), repeat('r', 501)); -- fails: too long

-- What the messages say: the value, and what to do.
-- No token, by the messages themselves: they are not logged here, which would mask them too.
RESET ROLE;
SET log_min_messages = fatal;
SET ROLE rk_test_manager;
\set SHOW_CONTEXT never
\set VERBOSITY default
SELECT rk_apikeys.create_key('x', scopes => '{a b}');
SELECT rk_apikeys.create_key('x', scopes => '{a,b,a}');
SELECT rk_apikeys.create_key('x', environment => 'Prod');
SELECT rk_apikeys.create_key('x', expires_at => '1999-01-01 00:00+00');
SELECT rk_apikeys.create_key(' ');
SELECT rk_apikeys.create_key('x', metadata => '[]');
SELECT rk_apikeys.create_key('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j', environment => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT rk_apikeys.create_key('x', tenant => 'rk_test_other');
SELECT * FROM rk_apikeys.list_keys(sort_by => 'digest');
\set VERBOSITY terse
SELECT rk_apikeys.create_key('x', repeat('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j ', 40));
SELECT rk_apikeys.create_key('x', scopes => '{rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j}');
SELECT rk_apikeys.revoke_key('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT rk_apikeys.rotate_key('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT * FROM rk_apikeys.list_keys(sort_by => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT * FROM rk_apikeys.list_keys(status => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT rk_apikeys.generate_token('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT rk_apikeys.generate_token(prefix => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SELECT rk_apikeys._setting_interval('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
SET ROLE rk_test_admin;
SELECT rk_apikeys.import_key('x', sha256('x'), 'r_p_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j');
RESET ROLE;
RESET log_min_messages;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
