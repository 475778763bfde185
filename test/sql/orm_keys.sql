-- orm_keys takes rows as tools that map objects send them: every column, in INSERT, COPY and UPDATE.
\set VERBOSITY sqlstate
SET client_min_messages = warning;
SET ROLE rk_test_manager;

-- Every column, as a tool sends a new object and reads it back.
INSERT INTO rk_apikeys.orm_keys (key_id, tenant, name, description, environment, masked_key, status, enabled, scopes, allowed_cidrs,
    rate_limit, rate_window, metadata, expires_at, expires_in, last_used_at, use_count, replaces, grace_until, revoked_at, revoked_reason,
    created_at, created_by, updated_at, updated_by, secret, parent, last_used_addr, family, owner)
  VALUES (NULL, NULL, 'orm all', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL)
  RETURNING tenant, name, description, environment, status, enabled, scopes, allowed_cidrs, rate_limit, metadata, expires_at, use_count,
    replaces, owner, masked_key = rk_apikeys.mask(secret) AS masks_it, key_id = split_part(secret, '_', 3) AS names_it,
    family = key_id AS first_of_family, created_at = now() AS now, created_by = session_user AS by_me;
INSERT INTO rk_apikeys.orm_keys (name, description, scopes, environment, metadata, enabled, owner, allowed_cidrs, expires_at)
  VALUES ('orm given', 'text', '{a:read}', 'dev', '{"a": 1}', false, 'jo', '{10.0.0.0/8}', 'infinity')
  RETURNING name, description, scopes, environment, metadata, enabled, owner, allowed_cidrs, expires_at;
INSERT INTO rk_apikeys.orm_keys (name, description) VALUES ('orm one', DEFAULT), ('orm two', 'b'), ('orm three', NULL)
  RETURNING name, description, secret IS NOT NULL AS shown;
INSERT INTO rk_apikeys.orm_keys (name, description) SELECT 'orm select ' || g, 'from a query' FROM generate_series(1, 3) g RETURNING name, description;
WITH made AS (INSERT INTO rk_apikeys.orm_keys (name) SELECT 'orm bulk' FROM generate_series(1, 100) RETURNING *)
  SELECT count(*), count(DISTINCT key_id), count(DISTINCT secret) FROM made;
PREPARE make(text, text[], timestamptz) AS
  INSERT INTO rk_apikeys.orm_keys (name, scopes, created_at) VALUES ($1, $2, $3) RETURNING name, scopes, secret IS NOT NULL AS shown;
EXECUTE make('orm prepared', '{a}', now());
EXECUTE make('orm prepared', NULL, NULL);
DELETE FROM rk_apikeys.orm_keys WHERE name = 'orm bulk' AND key_id <> (SELECT max(key_id) FROM rk_apikeys.orm_keys WHERE name = 'orm bulk');
SELECT count(*) FROM rk_apikeys.keys WHERE name = 'orm bulk';

-- The time that a tool sets by its own clock does not count. Another one is refused.
INSERT INTO rk_apikeys.orm_keys (name, created_at, updated_at, updated_by) VALUES ('orm clock', now() - interval '23 hours', now() + interval '1 year', 'me')
  RETURNING created_at = now() AS created, updated_at = now() AS updated, updated_by = session_user AS by_me;
INSERT INTO rk_apikeys.orm_keys (name, created_at) VALUES ('orm clock', now() + interval '24 hours') RETURNING created_at = now() AS created;
INSERT INTO rk_apikeys.orm_keys (name, created_at) VALUES ('orm clock', now() - interval '25 hours'); -- fails: not the time of now
INSERT INTO rk_apikeys.orm_keys (name, created_at) VALUES ('orm clock', '-infinity'); -- fails: not the time of now
INSERT INTO rk_apikeys.orm_keys (name, created_at) SELECT 'orm clock', '2001-01-01' FROM generate_series(1, 2); -- fails: not the time of now

-- An expression runs once.
CREATE TEMP SEQUENCE ticks;
INSERT INTO rk_apikeys.orm_keys (name, created_at) VALUES ('orm tick', now() + nextval('ticks') * interval '1 us');
INSERT INTO rk_apikeys.orm_keys (name, created_at)
  VALUES ('orm tick ' || nextval('ticks'), NULL), ('orm tick', now() + nextval('ticks') * interval '1 us');
SELECT currval('ticks');

-- The words for each column, through the two views and the table: what a new key takes.
RESET ROLE;
CREATE FUNCTION pg_temp.sample(name text, type text) RETURNS text LANGUAGE sql AS $$
  SELECT CASE WHEN name = 'created_at' THEN '''2001-01-01''' WHEN name = 'environment' THEN '''qa''' WHEN name = 'tenant' THEN 'current_user' ELSE
    CASE type WHEN 'text' THEN '''x''' WHEN 'text[]' THEN '''{x}''' WHEN 'cidr[]' THEN '''{10.0.0.0/8}''' WHEN 'integer' THEN '7' WHEN 'bigint' THEN '7'
      WHEN 'interval' THEN '''2 min''' WHEN 'jsonb' THEN '''{"x": 1}''' WHEN 'boolean' THEN 'false' WHEN 'inet' THEN '''192.0.2.1'''
      WHEN 'timestamp with time zone' THEN CASE name WHEN 'revoked_at' THEN 'now()' ELSE 'now() + interval ''1 hour''' END END END $$;
-- What a statement answers, or its error: the words where a right lacks. Then the statement is undone.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  answer text;
BEGIN
  EXECUTE statement INTO answer;
  RAISE SQLSTATE 'RK000' USING MESSAGE = coalesce(answer, 'nothing');
EXCEPTION
  WHEN SQLSTATE 'RK000' THEN RETURN SQLERRM;
  WHEN insufficient_privilege THEN RETURN SQLERRM;
  -- A rate limit without its window, or without preload.
  WHEN check_violation OR object_not_in_prerequisite_state THEN RETURN 'passed on';
  WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
CREATE FUNCTION pg_temp.insert(target text, name text, type text) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.try(format('INSERT INTO rk_apikeys.%s (%s) VALUES (%s) RETURNING CASE WHEN (%s)::text = ((%s)::%s)::text THEN ''stored'' ELSE ''not stored'' END',
    target, concat_ws(', ', nullif('name', name), name), concat_ws(', ', CASE WHEN name <> 'name' THEN '''orm column''' END, pg_temp.sample(name, type)),
    name, pg_temp.sample(name, type), type)) $$;
CREATE TEMP TABLE of_view AS SELECT attnum AS number, attname::text AS name, format_type(atttypid, NULL) AS type
  FROM pg_attribute WHERE attrelid = 'rk_apikeys.keys'::regclass AND attnum > 0;
GRANT SELECT ON of_view TO PUBLIC;
SET ROLE rk_test_manager;
\pset format unaligned
SELECT name, pg_temp.insert('orm_keys', name, type) AS orm_keys, pg_temp.insert('keys', name, type) AS keys,
    pg_temp.insert('api_keys', name, type) AS api_keys
  FROM of_view ORDER BY number;
-- NULL is the default, where there is one.
SELECT name, pg_temp.try(format(statement, 'orm_keys', name)) AS orm_keys, pg_temp.try(format(statement, 'keys', name)) AS keys,
    pg_temp.try(format(statement, 'api_keys', name)) AS api_keys
  FROM of_view, (VALUES ('INSERT INTO rk_apikeys.%s (name, %s) VALUES (''orm null'', NULL) RETURNING coalesce(%2$s::text, ''null'')')) s(statement)
  WHERE name IN ('tenant', 'description', 'environment', 'scopes', 'metadata', 'enabled', 'owner', 'rate_limit', 'created_by')
  ORDER BY number;
SELECT pg_temp.try('INSERT INTO rk_apikeys.keys (name) VALUES (NULL)') AS no_name;
-- The views tell every default of the table.
RESET ROLE;
SELECT t.column_name, t.column_default, k.column_default = t.column_default AS keys, o.column_default = t.column_default AS orm_keys
  FROM information_schema.columns t JOIN information_schema.columns k USING (table_schema, column_name) JOIN information_schema.columns o USING (table_schema, column_name)
  WHERE table_schema = 'rk_apikeys' AND t.table_name = 'api_keys' AND k.table_name = 'keys' AND o.table_name = 'orm_keys'
    AND (t.column_default IS NOT NULL OR k.column_default IS NOT NULL OR o.column_default IS NOT NULL) ORDER BY t.ordinal_position;
-- orm_keys has the columns of keys. The rule passes on each that keys takes, except three that a tool keeps.
SELECT count(*) FILTER (WHERE k.attname IS DISTINCT FROM o.attname OR k.atttypid IS DISTINCT FROM o.atttypid) AS differ
  FROM (SELECT * FROM pg_attribute WHERE attrelid = 'rk_apikeys.keys'::regclass AND attnum > 0) k
  FULL JOIN (SELECT * FROM pg_attribute WHERE attrelid = 'rk_apikeys.orm_keys'::regclass AND attnum > 0) o USING (attnum);
SELECT string_agg(name, ', ' ORDER BY number) AS not_passed FROM of_view
  WHERE pg_column_is_updatable('rk_apikeys.keys'::regclass, number, false) AND name <> ALL (
    SELECT unnest(string_to_array(substring(pg_get_ruledef(oid) FROM 'INSERT INTO rk_apikeys\.keys \(([^)]*)\)'), ', '))
      FROM pg_rewrite WHERE rulename = 'orm_keys_insert');

-- UPDATE: a value that differs, for each column.
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.orm_keys (name) VALUES ('orm update');
CREATE FUNCTION pg_temp.update(target text, name text, type text) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.try(format('UPDATE rk_apikeys.%s SET %s = %s%s WHERE name = ''orm update'' RETURNING CASE WHEN (%2$s)::text = ((%3$s)::%5$s)::text THEN ''changed'' ELSE ''kept'' END',
    target, name, pg_temp.sample(name, type), CASE name WHEN 'revoked_reason' THEN ', revoked_at = now()' END, type)) $$;
SELECT name, pg_temp.update('orm_keys', name, type) AS orm_keys FROM of_view ORDER BY number;
UPDATE rk_apikeys.orm_keys SET tenant = 'x' WHERE name = 'orm update'; -- fails: never changes
-- NULL keeps what cannot change, and is refused where a setting needs a value.
SELECT name, pg_temp.try(format('UPDATE rk_apikeys.orm_keys SET %s = NULL WHERE name = ''orm update'' RETURNING coalesce(%1$s::text <> '''', false)', name)) AS kept
  FROM of_view WHERE name NOT IN ('expires_in', 'last_used_at') ORDER BY number;
\pset format aligned
-- A whole object that nobody changed is no change: no event, and updated_at stays.
SELECT updated_at AS before FROM rk_apikeys.orm_keys WHERE name = 'orm update' \gset
UPDATE rk_apikeys.orm_keys SET key_id = key_id, name = name, scopes = scopes, metadata = metadata, rate_limit = rate_limit,
    created_at = date_trunc('milliseconds', created_at), updated_at = now(), secret = 'x', status = 'x'
  WHERE name = 'orm update' RETURNING updated_at = :'before' AS same, status, secret;
UPDATE rk_apikeys.orm_keys SET created_at = date_trunc('second', created_at), expires_at = NULL WHERE name = 'orm update' RETURNING updated_at = :'before' AS same;
UPDATE rk_apikeys.orm_keys SET created_at = date_trunc('second', created_at) - interval '1 us' WHERE name = 'orm update'; -- fails: another time
UPDATE rk_apikeys.orm_keys SET created_at = created_at + interval '1 us' WHERE name = 'orm update'; -- fails: another time
SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'updated' AND key_id = (SELECT key_id FROM rk_apikeys.keys WHERE name = 'orm update');
UPDATE rk_apikeys.orm_keys SET expires_at = 'infinity' WHERE name = 'orm update' RETURNING expires_at;
UPDATE rk_apikeys.orm_keys SET expires_at = expires_at WHERE name = 'orm update' RETURNING expires_at;
UPDATE rk_apikeys.orm_keys SET expires_at = NULL, rate_limit = NULL WHERE name = 'orm update' RETURNING expires_at, rate_limit;
UPDATE rk_apikeys.orm_keys SET enabled = false, description = 'set' WHERE name = 'orm update' RETURNING status;
UPDATE rk_apikeys.orm_keys SET enabled = DEFAULT, description = DEFAULT WHERE name = 'orm update' RETURNING status, description;
WITH changed AS (UPDATE rk_apikeys.orm_keys o SET description = v.d FROM (VALUES ('orm one', '1'), ('orm two', '2')) v(n, d) WHERE o.name = v.n RETURNING o.name, o.description) SELECT * FROM changed ORDER BY name;
UPDATE rk_apikeys.orm_keys SET revoked_at = now(), revoked_reason = 'why' WHERE name = 'orm update' RETURNING status, revoked_reason;
UPDATE rk_apikeys.orm_keys SET revoked_at = date_trunc('milliseconds', revoked_at), description = 'late' WHERE name = 'orm update' RETURNING status, description;
UPDATE rk_apikeys.orm_keys SET revoked_at = NULL WHERE name = 'orm update'; -- fails: a revocation is final
SELECT event, changes - 'created_at' - 'revoked_at' AS changes FROM rk_apikeys.key_events
  WHERE key_id = (SELECT key_id FROM rk_apikeys.keys WHERE name = 'orm update') AND event <> 'created' ORDER BY event_id;
WITH deleted AS (DELETE FROM rk_apikeys.orm_keys WHERE name IN ('orm update', 'orm one') RETURNING name, secret) SELECT * FROM deleted ORDER BY name;
SELECT count(*) FROM rk_apikeys.key_events WHERE event = 'deleted' AND changes #>> '{name,old}' IN ('orm update', 'orm one');

-- COPY
COPY rk_apikeys.orm_keys (name, description, scopes, enabled, key_id, created_at, status, masked_key) FROM STDIN;
orm copy 1	text	{a,b}	f	\N	\N	x	x
orm copy 2	\N	\N	\N	\N	\N	\N	\N
\.
COPY rk_apikeys.orm_keys FROM STDIN;
\N	\N	orm copy 3	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N	\N
\.
SELECT name, description, scopes, enabled, status FROM rk_apikeys.orm_keys WHERE name LIKE 'orm copy%' ORDER BY name;
COPY rk_apikeys.orm_keys (name, created_by) FROM STDIN; -- fails: a column that may not be given
orm copy 4	me
\.
COPY rk_apikeys.orm_keys (name, scopes) FROM STDIN; -- fails: not a scope
orm copy 4	{"a b"}
\.
COPY rk_apikeys.orm_keys (name, tenant) FROM STDIN; -- fails: another tenant
orm copy 4	rk_test_other
\.
SELECT count(*) FROM rk_apikeys.orm_keys WHERE name = 'orm copy 4';

-- What PostgreSQL refuses for a view with a rule; keys does it.
INSERT INTO rk_apikeys.orm_keys (name) VALUES ('orm conflict') ON CONFLICT DO NOTHING; -- fails: a rule

-- Rights. Another tenant sees and changes nothing.
INSERT INTO rk_apikeys.orm_keys (name, tenant) VALUES ('orm theirs', 'rk_test_other'); -- fails: another tenant
SET ROLE rk_test_other;
SELECT count(*) FROM rk_apikeys.orm_keys WHERE tenant <> 'rk_test_other';
UPDATE rk_apikeys.orm_keys SET description = 'mine' WHERE name LIKE 'orm%' AND tenant <> 'rk_test_other' RETURNING name;
DELETE FROM rk_apikeys.orm_keys WHERE name LIKE 'orm%' RETURNING name;
RESET ROLE;
CREATE FUNCTION pg_temp.rights() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT pg_temp.try('SELECT count(*) > 0 FROM rk_apikeys.orm_keys') UNION ALL
  SELECT pg_temp.try('INSERT INTO rk_apikeys.orm_keys (name) VALUES (''orm right'') RETURNING name') UNION ALL
  SELECT pg_temp.try('UPDATE rk_apikeys.orm_keys SET description = ''right'' WHERE name = ''orm two'' RETURNING name') UNION ALL
  SELECT pg_temp.try('DELETE FROM rk_apikeys.orm_keys WHERE name = ''orm two'' RETURNING name') $$;
SET ROLE rk_test_auditor;
SELECT pg_temp.rights();
SET ROLE rk_test_verifier;
SELECT pg_temp.rights();
SET ROLE rk_test_nobody;
SELECT pg_temp.rights();
SET ROLE rk_test_admin;
SELECT pg_temp.rights();
-- The rights of api_keys count, because both views read and write as the caller.
RESET ROLE;
BEGIN;
REVOKE INSERT (owner), UPDATE (owner, description), DELETE ON rk_apikeys.api_keys FROM rk_apikeys_manager;
SET LOCAL ROLE rk_test_manager;
SELECT pg_temp.rights();
SELECT pg_temp.try('INSERT INTO rk_apikeys.keys (name) VALUES (''orm right'') RETURNING name') AS keys;
SELECT pg_temp.try('UPDATE rk_apikeys.orm_keys SET name = ''orm 2'', owner = owner WHERE name = ''orm two'' RETURNING name') AS another_column;
ROLLBACK;
BEGIN;
REVOKE SELECT (metadata) ON rk_apikeys.api_keys FROM rk_apikeys_manager;
SET LOCAL ROLE rk_test_manager;
SELECT pg_temp.try('INSERT INTO rk_apikeys.orm_keys (name) VALUES (''orm right'') RETURNING metadata') AS returning_metadata;
ROLLBACK;
GRANT SELECT, INSERT, UPDATE, DELETE ON rk_apikeys.orm_keys TO rk_test_nobody;
GRANT USAGE ON SCHEMA rk_apikeys TO rk_test_nobody;
SET ROLE rk_test_nobody;
SELECT pg_temp.rights();
RESET ROLE;
REVOKE ALL ON rk_apikeys.orm_keys FROM rk_test_nobody;
REVOKE ALL ON SCHEMA rk_apikeys FROM rk_test_nobody;

-- The trigger function serves only its own view.
CREATE VIEW pg_temp.fake AS SELECT * FROM rk_apikeys.keys;
CREATE TRIGGER fake INSTEAD OF INSERT ON pg_temp.fake FOR EACH ROW EXECUTE FUNCTION rk_apikeys._orm_keys();
INSERT INTO pg_temp.fake (name) VALUES ('fake'); -- fails: another view
DROP VIEW pg_temp.fake;

-- A key that manages keys is bound as with keys.
SET ROLE rk_test_manager;
INSERT INTO rk_apikeys.orm_keys (name, scopes, environment) VALUES ('orm parent', '{apikeys:manage,a:read}', 'dev') RETURNING secret AS parent \gset
INSERT INTO rk_apikeys.orm_keys (name, scopes, environment) VALUES ('orm beyond', '{b:read}', 'dev');
RESET ROLE;
GRANT rk_apikeys_verifier TO rk_test_manager;
SET ROLE rk_test_manager;
BEGIN;
SELECT code FROM rk_apikeys.authenticate(:'parent');
SELECT pg_temp.try('INSERT INTO rk_apikeys.orm_keys (name, scopes, environment) VALUES (''orm child'', ''{a:read}'', ''dev'') RETURNING name') AS child;
SELECT pg_temp.try('INSERT INTO rk_apikeys.orm_keys (name, scopes, environment) VALUES (''orm child'', ''{b:read}'', ''dev'')') ~ 'cannot grant scope' AS another_scope;
SELECT pg_temp.try('INSERT INTO rk_apikeys.orm_keys (name, scopes) VALUES (''orm child'', ''{a:read}'')') ~ 'environment "prod"' AS another_environment;
SELECT pg_temp.try('UPDATE rk_apikeys.orm_keys SET description = ''x'' WHERE name = ''orm beyond''') ~ 'cannot change' AS another_key;
SELECT pg_temp.try('DELETE FROM rk_apikeys.orm_keys WHERE name = ''orm beyond''') ~ 'cannot change or delete' AS delete_another;
COMMIT;
RESET ROLE;
REVOKE rk_apikeys_verifier FROM rk_test_manager;

-- Plans that are kept follow changes of the objects.
SET ROLE rk_test_manager;
SELECT name, count(*) FROM (SELECT pg_temp.update('orm_keys', 'description', 'text') AS name FROM generate_series(1, 8)) u GROUP BY 1;
INSERT INTO rk_apikeys.orm_keys (name) VALUES ('orm plan');
UPDATE rk_apikeys.orm_keys SET description = 'before' WHERE name = 'orm plan' RETURNING description;
RESET ROLE;
BEGIN;
CREATE OR REPLACE VIEW rk_apikeys.orm_keys WITH (security_invoker = true) AS SELECT *, 7 AS added FROM rk_apikeys.keys;
UPDATE rk_apikeys.orm_keys SET description = 'with a column' WHERE name = 'orm plan'; -- fails: keys has no such column
ROLLBACK;
UPDATE rk_apikeys.orm_keys SET description = 'after' WHERE name = 'orm plan' RETURNING description;
BEGIN;
SET LOCAL client_min_messages = error;
DROP EXTENSION rk_apikeys CASCADE;
CREATE EXTENSION rk_apikeys;
SET LOCAL ROLE rk_test_manager;
COPY rk_apikeys.orm_keys (name) FROM STDIN;
orm anew
\.
UPDATE rk_apikeys.orm_keys SET description = 'before' WHERE name = 'orm anew' RETURNING description;
SELECT event FROM rk_apikeys.key_events ORDER BY event_id;
DELETE FROM rk_apikeys.orm_keys WHERE name = 'orm anew' RETURNING name;
ROLLBACK;
UPDATE rk_apikeys.orm_keys SET description = 'again' WHERE name = 'orm plan' RETURNING description;

-- Where triggers and rules of the origin do not fire, a write does nothing.
RESET ROLE;
SET session_replication_role = replica;
INSERT INTO rk_apikeys.orm_keys (name, tenant) VALUES ('orm replica', 'rk_test_manager');
UPDATE rk_apikeys.orm_keys SET description = 'replica' WHERE name = 'orm plan';
DELETE FROM rk_apikeys.orm_keys WHERE name = 'orm plan';
RESET session_replication_role;
SELECT name, description FROM rk_apikeys.keys WHERE name IN ('orm replica', 'orm plan');
SET ROLE rk_test_manager;

DELETE FROM rk_apikeys.orm_keys WHERE name LIKE 'orm%';
SELECT count(*) FROM rk_apikeys.keys WHERE name LIKE 'orm%';
RESET ROLE;
TRUNCATE rk_apikeys.key_events;
