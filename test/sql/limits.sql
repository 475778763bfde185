-- Limits: what a tenant's keys may use. The rows, who may write and read them, and their events.
\set VERBOSITY terse
SET ROLE rk_test_admin;

-- What a limit may say. Nothing of a refused statement is stored.
INSERT INTO rk_apikeys.limits (name, units, period) VALUES ('x', 1, 'day'); -- fails: no tenant
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('', 'x', 1, 'day'); -- fails: no tenant
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES (repeat('t', 201), 'x', 1, 'day'); -- fails: too long
INSERT INTO rk_apikeys.limits (tenant, units, period) VALUES ('t', 1, 'day'); -- fails: no name
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', '', 1, 'day'); -- fails: no name
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'Calls', 1, 'day'); -- fails: no name
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', '9', 1, 'day'); -- fails: no name
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', E'calls\n', 1, 'day'); -- fails: no name
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'rate_limit', 1, 'day'); -- fails: a key's own limit
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', repeat('n', 64), 1, 'day'); -- fails: too long
INSERT INTO rk_apikeys.limits (tenant, name, units, period, owner) VALUES ('t', 'x', 1, 'day', ''); -- fails: no owner
INSERT INTO rk_apikeys.limits (tenant, name, units, period, owner) VALUES ('t', 'x', 1, 'day', repeat('o', 201)); -- fails: too long
INSERT INTO rk_apikeys.limits (tenant, name, units, period, environment) VALUES ('t', 'x', 1, 'day', 'Prod'); -- fails: no environment
INSERT INTO rk_apikeys.limits (tenant, name, units, period, family) VALUES ('t', 'x', 1, 'day', 'family'); -- fails: no key id
INSERT INTO rk_apikeys.limits (tenant, name, units, period, per_key) VALUES ('t', 'x', 1, 'day', NULL); -- fails: null
INSERT INTO rk_apikeys.limits (tenant, name, units, period, always) VALUES ('t', 'x', 1, 'day', NULL); -- fails: null
INSERT INTO rk_apikeys.limits (tenant, name, period) VALUES ('t', 'x', 'day'); -- fails: no units
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', 0, 'day'); -- fails: not positive
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', -1, 'day'); -- fails: negative
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', 1000000000000001, 'day'); -- fails: too many
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('t', 'x', 2147483648, '1 minute'); -- fails: too many
INSERT INTO rk_apikeys.limits (tenant, name, units) VALUES ('t', 'x', 1); -- fails: neither of rate_window and period
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window, period) VALUES ('t', 'x', 1, '1 minute', 'day'); -- fails: both
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('t', 'x', 1, '0'); -- fails: not positive
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('t', 'x', 1, '-1 minute'); -- fails: negative
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('t', 'x', 1, '367 days'); -- fails: too long
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', 1, 'hour'); -- fails: no period
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', 1, 'Day'); -- fails: no period
SELECT count(*) FROM rk_apikeys.limits;

-- A token in the wrong column is masked, also in a message.
RESET ROLE;
DO $$
DECLARE
  row_shown text;
BEGIN
  INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j', 1, 'day');
EXCEPTION WHEN check_violation THEN
  GET STACKED DIAGNOSTICS row_shown = PG_EXCEPTION_DETAIL;
  RAISE NOTICE '%', substring(row_shown FROM ', t, [^,]*,');
END $$;
SET ROLE rk_test_admin;
INSERT INTO rk_apikeys.limits (tenant, name, units, period, owner) VALUES ('t', 'masked', 1, 'day', 'jo rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j') RETURNING owner;
UPDATE rk_apikeys.limits SET owner = 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j' RETURNING owner;
DELETE FROM rk_apikeys.limits;

-- The limits of two tenants. Two limits may have one name.
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('rk_test_manager', 'burst', 2147483647, '366 days');
INSERT INTO rk_apikeys.limits (tenant, name, units, period, environment) VALUES ('rk_test_manager', 'monthly', 1000000000000000, 'month', 'prod'), ('rk_test_manager', 'monthly', 10, 'month', 'dev');
INSERT INTO rk_apikeys.limits (tenant, name, units, period, owner, always) VALUES ('rk_test_manager', 'export', 10, 'total', 'jo', false);
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window, per_key) VALUES ('rk_test_other', 'a:b_c.d-e', 5, '1 second', true);

-- What cannot be given or changed. Column grants refuse it, and the trigger where a role has more than these grants.
INSERT INTO rk_apikeys.limits (tenant, name, units, period, limit_id) VALUES ('t', 'x', 1, 'day', gen_random_uuid()); -- fails: not granted
INSERT INTO rk_apikeys.limits (tenant, name, units, period, created_at) VALUES ('t', 'x', 1, 'day', now()); -- fails: not granted
INSERT INTO rk_apikeys.limits (tenant, name, units, period, reset_at) VALUES ('t', 'x', 1, 'day', now()); -- fails: not granted
UPDATE rk_apikeys.limits SET tenant = 'x'; -- fails: not granted
UPDATE rk_apikeys.limits SET limit_id = gen_random_uuid(); -- fails: not granted
UPDATE rk_apikeys.limits SET reset_at = now(); -- fails: not granted
UPDATE rk_apikeys.limits SET created_at = now(); -- fails: not granted
INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '-infinity', 1, tenant FROM rk_apikeys.limits; -- fails: not granted
UPDATE rk_apikeys.limit_usage SET units = 0; -- fails: not granted
DELETE FROM rk_apikeys.limit_usage; -- fails: not granted
TRUNCATE rk_apikeys.limits, rk_apikeys.limit_usage; -- fails: not granted
RESET ROLE;
GRANT pg_write_all_data TO rk_test_admin;
SET ROLE rk_test_admin;
\set VERBOSITY default
INSERT INTO rk_apikeys.limits (tenant, name, units, period, created_at) VALUES ('t', 'x', 1, 'day', '2000-01-01'); -- fails: cannot be given
INSERT INTO rk_apikeys.limits (tenant, name, units, period, created_at) VALUES ('t', 'x', 1, 'day', NULL); -- fails: cannot be given
INSERT INTO rk_apikeys.limits (tenant, name, units, period, reset_at) VALUES ('t', 'x', 1, 'day', '2000-01-01'); -- fails: cannot be given
UPDATE rk_apikeys.limits SET tenant = 'x'; -- fails: fixed
UPDATE rk_apikeys.limits SET limit_id = gen_random_uuid(); -- fails: fixed
UPDATE rk_apikeys.limits SET reset_at = '2000-01-01'; -- fails: by reset_limit
UPDATE rk_apikeys.limits SET created_at = '2000-01-01'; -- fails: fixed
\set VERBOSITY terse
INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '-infinity', 1, tenant FROM rk_apikeys.limits; -- fails: policy
RESET ROLE;
REVOKE pg_write_all_data FROM rk_test_admin;
SELECT count(*), count(reset_at) FROM rk_apikeys.limits;

-- What quotas have used, as a flush writes it.
INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '2026-11-01 00:00+00', 3, tenant FROM rk_apikeys.limits WHERE period = 'month';
INSERT INTO rk_apikeys.limit_usage SELECT limit_id, '', '-infinity', 4, tenant FROM rk_apikeys.limits WHERE period = 'total';
INSERT INTO rk_apikeys.limit_usage SELECT gen_random_uuid(), '', '-infinity', 4, tenant FROM rk_apikeys.limits WHERE period = 'total'; -- fails: no such limit

-- Who reads which.
SET ROLE rk_test_auditor;
SELECT count(*), (SELECT count(*) FROM rk_apikeys.limit_usage) FROM rk_apikeys.limits;
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('t', 'x', 1, 'day'); -- fails: no right
SET ROLE rk_test_manager;
SELECT name, environment, l.units, u.units AS used FROM rk_apikeys.limits l LEFT JOIN rk_apikeys.limit_usage u USING (limit_id) ORDER BY name, environment;
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('rk_test_manager', 'x', 1, 'day'); -- fails: no right
UPDATE rk_apikeys.limits SET units = 99; -- fails: no right
DELETE FROM rk_apikeys.limits; -- fails: no right
SET ROLE rk_test_other;
SELECT name, (SELECT count(*) FROM rk_apikeys.limit_usage) AS usage FROM rk_apikeys.limits;
SET ROLE rk_test_verifier;
SELECT count(*) FROM rk_apikeys.limits; -- fails: no right
SELECT count(*) FROM rk_apikeys.limit_usage; -- fails: no right
SET ROLE rk_test_nobody;
SELECT count(*) FROM rk_apikeys.limits; -- fails: no right

-- A member: what binds its end user's keys.
RESET ROLE;
CREATE ROLE rk_test_member IN ROLE rk_apikeys_member;
ALTER ROLE rk_test_member SET rk_apikeys.tenant = 'rk_test_manager';
SET rk_apikeys.tenant = 'rk_test_manager';
SET rk_apikeys.end_user = 'jo';
SET ROLE rk_test_member;
SELECT count(*) FROM rk_apikeys.limits;
RESET ROLE;
INSERT INTO rk_apikeys.keys (name, environment, tenant, owner) VALUES ('jo''s', 'dev', 'rk_test_manager', 'jo') RETURNING key_id AS family \gset
INSERT INTO rk_apikeys.keys (name, environment, tenant, owner) VALUES ('ann''s', 'prod', 'rk_test_manager', 'ann') RETURNING key_id AS another \gset
INSERT INTO rk_apikeys.limits (tenant, name, units, period, family) VALUES ('rk_test_manager', 'family', 1, 'week', :'family'), ('rk_test_manager', 'another', 1, 'week', :'another');
INSERT INTO rk_apikeys.limits (tenant, name, units, period, owner, environment) VALUES ('rk_test_manager', 'ann', 1, 'week', 'ann', NULL), ('rk_test_manager', 'jo_prod', 1, 'week', 'jo', 'prod');
INSERT INTO rk_apikeys.limits (tenant, name, units, period, per_key) VALUES ('rk_test_manager', 'each', 9, 'year', true);
INSERT INTO rk_apikeys.limit_usage SELECT limit_id, f, '2026-01-01 00:00+00', 7, tenant FROM rk_apikeys.limits, unnest(ARRAY[:'family', :'another']) f WHERE name = 'each';
SET ROLE rk_test_member;
SELECT name, environment, u.units AS used FROM rk_apikeys.limits l LEFT JOIN rk_apikeys.limit_usage u USING (limit_id) ORDER BY name, environment;
UPDATE rk_apikeys.limits SET units = 99; -- fails: no right
RESET ROLE;
RESET rk_apikeys.end_user;
RESET rk_apikeys.tenant;

-- A key that manages keys sees the limits of its environment and of every environment, and writes none.
SET ROLE rk_test_admin;
SELECT secret FROM rk_apikeys.create_key('boss', tenant => 'rk_test_manager', environment => 'dev', scopes => '{apikeys:manage}') \gset
SELECT secret AS plain FROM rk_apikeys.create_key('plain', tenant => 'rk_test_manager', environment => 'dev', scopes => '{records:read}') \gset
-- The limits take nothing here, because the library may not be preloaded.
UPDATE rk_apikeys.limits SET always = false;
BEGIN;
SELECT (rk_apikeys.authenticate(:'secret')).code;
SELECT name, environment, u.units AS used FROM rk_apikeys.limits l LEFT JOIN rk_apikeys.limit_usage u USING (limit_id) ORDER BY name, environment;
UPDATE rk_apikeys.limits SET units = 99;
DELETE FROM rk_apikeys.limits;
SELECT count(*), count(*) FILTER (WHERE units = 99) AS changed FROM rk_apikeys.limits;
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('rk_test_manager', 'x', 1, 'day'); -- fails: a principal
ROLLBACK;
BEGIN;
SELECT (rk_apikeys.authenticate(:'plain')).code;
SELECT count(*), (SELECT count(*) FROM rk_apikeys.limit_usage) AS usage FROM rk_apikeys.limits;
ROLLBACK;

-- What is used and left: a limit has one row, or one for each family of live keys, and a key's own limit one.
RESET ROLE;
INSERT INTO rk_apikeys.limits (tenant, name, units, period, per_key, owner) VALUES ('rk_test_manager', 'nobody', 5, 'day', true, 'nobody');
SELECT name, environment, family = :'family' AS jo, per_key, units, rate_window, period, always, limit_id IS NULL AS own FROM rk_apikeys.limit_status
  WHERE tenant = 'rk_test_manager' ORDER BY name, environment, family = :'family';
SET ROLE rk_test_auditor;
SELECT tenant, count(*) FROM rk_apikeys.limit_status GROUP BY 1 ORDER BY 1;
SET ROLE rk_test_manager;
SELECT tenant, count(*) FROM rk_apikeys.limit_status GROUP BY 1 ORDER BY 1;
SELECT name, resets_at - date_trunc('day', now(), 'UTC') AS in FROM rk_apikeys.limit_status WHERE name IN ('nobody', 'export');
SELECT name FROM rk_apikeys.limit_status WHERE family = :'family' ORDER BY name;
RESET ROLE;
SET rk_apikeys.tenant = 'rk_test_manager';
SET rk_apikeys.end_user = 'jo';
SET ROLE rk_test_member;
SELECT name, family = :'family' AS jo FROM rk_apikeys.limit_status ORDER BY name;
RESET ROLE;
RESET rk_apikeys.end_user;
RESET rk_apikeys.tenant;
SET ROLE rk_test_verifier;
SELECT count(*) FROM rk_apikeys.limit_status; -- fails: no right
SELECT * FROM rk_apikeys._limit_state('rk_test_manager', NULL, :'family', 1, '1 s', NULL, NULL); -- fails: no right
-- A manager learns nothing of another tenant by the function behind the view.
SET ROLE rk_test_other;
SELECT * FROM rk_apikeys._limit_state('rk_test_manager', NULL, :'family', 1, '1 s', NULL, NULL);

-- A reset: of a limit, or of a family of keys.
SET ROLE rk_test_admin;
SELECT limit_id FROM rk_apikeys.limits WHERE name = 'each' \gset
SELECT key_id AS successor FROM rk_apikeys.rotate_key(:'family', '1 hour') \gset
SELECT rk_apikeys.reset_limit(); -- fails: neither
SELECT rk_apikeys.reset_limit(:'limit_id', :'family'); -- fails: both
SELECT rk_apikeys.reset_limit(gen_random_uuid()), rk_apikeys.reset_limit(family => 'nobody'), rk_apikeys.reset_limit(family => :'successor');
SELECT rk_apikeys.reset_limit(:'limit_id'), rk_apikeys.reset_limit(family => :'family');
SELECT count(*), count(reset_at) FROM rk_apikeys.limits;
SELECT count(*), count(limits_reset_at), count(DISTINCT limits_reset_at) FROM rk_apikeys.api_keys;
SELECT event, count(*) FROM rk_apikeys.key_events WHERE changes ?| '{reset_at,limits_reset_at}' GROUP BY 1 ORDER BY 1;
BEGIN;
SELECT (rk_apikeys.authenticate(:'secret')).code;
\set VERBOSITY sqlstate
SELECT rk_apikeys.reset_limit(:'limit_id'); -- fails: a principal
\set VERBOSITY terse
ROLLBACK;
SET ROLE rk_test_manager;
SELECT rk_apikeys.reset_limit(:'limit_id'); -- fails: no right
SET ROLE rk_test_verifier;
SELECT rk_apikeys.reset_limit(:'limit_id'); -- fails: no right

-- The events tell what changed. A rollback leaves none.
RESET ROLE;
DELETE FROM rk_apikeys.keys WHERE name IN ('boss', 'plain', 'jo''s', 'ann''s');
DELETE FROM rk_apikeys.limits;
SELECT count(*) FROM rk_apikeys.limit_usage;
TRUNCATE rk_apikeys.key_events;
SET ROLE rk_test_admin;
INSERT INTO rk_apikeys.limits (tenant, name, units, rate_window) VALUES ('rk_test_manager', 'burst', 10, '1 minute');
INSERT INTO rk_apikeys.limits (tenant, name, units, period, environment, always) VALUES ('rk_test_other', 'daily', 10, 'day', 'prod', false);
UPDATE rk_apikeys.limits SET units = 20;
UPDATE rk_apikeys.limits SET units = 20;
UPDATE rk_apikeys.limits SET name = 'hourly', rate_window = '1 hour', per_key = true WHERE name = 'burst';
BEGIN;
UPDATE rk_apikeys.limits SET units = 30;
ROLLBACK;
DELETE FROM rk_apikeys.limits WHERE name = 'daily';
SELECT tenant, event, key_id, owner, role, changes - 'limit_id' AS changes FROM rk_apikeys.key_events ORDER BY event_id;
SELECT count(DISTINCT (changes -> 'limit_id')::text) FROM rk_apikeys.key_events WHERE tenant = 'rk_test_manager' AND changes -> 'limit_id' ->> 'new' = changes -> 'limit_id' ->> 'old';
SET ROLE rk_test_manager;
SELECT DISTINCT tenant FROM rk_apikeys.key_events;
SET ROLE rk_test_admin;
DELETE FROM rk_apikeys.limits;

-- At most 100 limits of a tenant.
INSERT INTO rk_apikeys.limits (tenant, name, units, period) SELECT 'rk_test_manager', 'n', 1, 'day' FROM generate_series(1, 101); -- fails: too many
INSERT INTO rk_apikeys.limits (tenant, name, units, period) SELECT t, 'n', 1, 'day' FROM generate_series(1, 100), unnest('{rk_test_manager,rk_test_other}'::text[]) t;
\set VERBOSITY default
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('rk_test_manager', 'n', 1, 'day'); -- fails: the 101st
\set VERBOSITY terse
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('another', 'n', 1, 'day'), ('rk_test_other', 'n', 1, 'day'); -- fails: the 101st
UPDATE rk_apikeys.limits SET units = 2 WHERE tenant = 'rk_test_other';
WITH gone AS (DELETE FROM rk_apikeys.limits WHERE limit_id = (SELECT limit_id FROM rk_apikeys.limits WHERE tenant = 'rk_test_other' LIMIT 1) RETURNING tenant)
INSERT INTO rk_apikeys.limits (tenant, name, units, period) SELECT tenant, 'n', 1, 'day' FROM gone;
-- The owner may restore or move any number, without an event.
RESET ROLE;
INSERT INTO rk_apikeys.limits (tenant, name, units, period) VALUES ('rk_test_manager', 'n', 1, 'day'); -- fails: the 101st
SELECT max(event_id) AS last FROM rk_apikeys.key_events \gset
INSERT INTO rk_apikeys.limits (tenant, name, units, period, created_at, reset_at) VALUES ('rk_test_manager', 'restored', 1, 'day', '2000-01-01', '2001-01-01');
SELECT count(*) FROM rk_apikeys.key_events WHERE event_id > :last;
UPDATE rk_apikeys.limits SET tenant = 'rk_test_manager' WHERE tenant = 'rk_test_other';
SELECT tenant, count(*) FROM rk_apikeys.limits GROUP BY 1;

-- Nobody else may use the functions of the triggers.
CREATE TABLE rk_test_limits (limit_id uuid, tenant text, created_at timestamptz, reset_at timestamptz);
CREATE TRIGGER limits_guard BEFORE INSERT ON rk_test_limits FOR EACH ROW EXECUTE FUNCTION rk_apikeys._limits_guard();
INSERT INTO rk_test_limits DEFAULT VALUES; -- fails: another table
DROP TABLE rk_test_limits;
TRUNCATE rk_apikeys.limits, rk_apikeys.limit_usage;
TRUNCATE rk_apikeys.key_events;
DROP ROLE rk_test_member;
