-- A manager without the right to a column: calls that do not give the column go on working.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT key_id FROM rk_apikeys.create_key('full', 'described', scopes => '{a:read}', allowed_cidrs => '{10.0.0.0/8}', metadata => '{"n": 1}',
  environment => 'stage', expires_at => now() + interval '10 days') \gset
RESET ROLE;
SELECT set_config('rk_test.key', :'key_id', false) IS NOT NULL AS set;
-- What a call says to a manager without the right to insert or update these columns, through the view or in the table.
CREATE FUNCTION pg_temp.without(columns text, call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('REVOKE INSERT (%1$s), UPDATE (%1$s) ON rk_apikeys.keys, rk_apikeys.api_keys FROM rk_apikeys_manager', columns);
  SET LOCAL ROLE rk_test_manager;
  EXECUTE format(call, current_setting('rk_test.key'));
  RAISE EXCEPTION 'undo';
EXCEPTION WHEN OTHERS THEN
  RETURN CASE SQLERRM WHEN 'undo' THEN 'ok' ELSE SQLSTATE END;
END $$;
\a
SELECT c.column_name AS without,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.create_key('x')$q$) AS create_key,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.create_key('x', '', NULL, NULL, '{}', NULL, NULL, NULL, '{}', NULL)$q$) AS defaults,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.create_key('x', 'y', now() + interval '1 day', 'dev', '{b}', '{10.0.0.0/8}', NULL, NULL, '{"a": 1}', 'rk_test_manager')$q$) AS all_given,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.rotate_key('%s')$q$) AS rotate_key,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.rotate_key('%s', expires_at => now() + interval '1 day')$q$) AS rotate_expires,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.revoke_key('%s')$q$) AS revoke_key,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.revoke_key('%s', 'why')$q$) AS revoke_reason,
    pg_temp.without(quote_ident(c.column_name), $q$SELECT rk_apikeys.revoke_key('%s', cascade => true)$q$) AS revoke_cascade
  FROM (SELECT DISTINCT column_name::text COLLATE "C" FROM information_schema.column_privileges
    WHERE table_schema = 'rk_apikeys' AND table_name IN ('keys', 'api_keys') AND grantee = 'rk_apikeys_manager'
      AND privilege_type IN ('INSERT', 'UPDATE')) c ORDER BY 1;
\a
-- A limit needs the limiter: without preload it is refused for another reason, but only where the column may be given.
SELECT pg_temp.without('rate_limit', $q$SELECT rk_apikeys.create_key('x', rate_limit => 5, rate_window => '1 minute')$q$) AS rate_limit,
  pg_temp.without('rate_window', $q$SELECT rk_apikeys.create_key('x', rate_limit => 5, rate_window => '1 minute')$q$) AS rate_window;
-- Every setting comes along without a right to any of them, and the policies see the successor's tenant.
REVOKE INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled, expires_at),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled, expires_at, revoked_reason)
  ON rk_apikeys.keys, rk_apikeys.api_keys FROM rk_apikeys_manager;
SET ROLE rk_test_manager;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key(:'key_id');
SELECT rk_apikeys.create_key('x'); -- fails: name
RESET ROLE;
SELECT count(*), count(DISTINCT (to_jsonb(k) - '{key_id,replaces,grace_until,hint,digest,created_at,updated_at}'::text[])) AS different FROM rk_apikeys.api_keys k;
-- The old key's settings come only from rotate_key, not with its column.
GRANT INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled, expires_at),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled, expires_at, revoked_reason)
  ON rk_apikeys.keys, rk_apikeys.api_keys TO rk_apikeys_manager;
SET ROLE rk_test_manager;
BEGIN;
UPDATE rk_apikeys.keys SET grace_until = now() WHERE grace_until IS NULL RETURNING key_id \gset
INSERT INTO rk_apikeys.keys (replaces, name) VALUES (:'key_id', 'by hand') RETURNING name, description, environment, scopes, metadata, expires_at;
INSERT INTO rk_apikeys.keys (replaces) VALUES (:'key_id'); -- fails: no name
ROLLBACK;
-- An expiry that a DBA gives to new keys is not the successor's, and none is lost.
RESET ROLE;
ALTER TABLE rk_apikeys.api_keys ALTER expires_at SET DEFAULT now() + interval '1 day';
SET ROLE rk_test_manager;
SELECT round(extract(epoch FROM expires_in) / 86400) AS days FROM rk_apikeys.keys WHERE grace_until IS NULL;
SELECT secret IS NOT NULL AS shown FROM rk_apikeys.rotate_key((SELECT key_id FROM rk_apikeys.keys WHERE grace_until IS NULL));
SELECT round(extract(epoch FROM expires_in) / 86400) AS days FROM rk_apikeys.keys WHERE grace_until IS NULL;
RESET ROLE;
ALTER TABLE rk_apikeys.api_keys ALTER expires_at DROP DEFAULT;
-- A trigger of a DBA that refuses the successor keeps the old key as it is. A new key that it refuses is NULL, as an INSERT makes none.
CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER refuse BEFORE INSERT ON rk_apikeys.api_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse();
SET ROLE rk_test_manager;
SELECT rk_apikeys.create_key('x') IS NULL AS refused;
SELECT rk_apikeys.rotate_key((SELECT key_id FROM rk_apikeys.keys WHERE grace_until IS NULL)); -- fails: no successor
SELECT count(*) FROM rk_apikeys.keys WHERE grace_until IS NULL;
RESET ROLE;
DROP TRIGGER refuse ON rk_apikeys.api_keys;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
