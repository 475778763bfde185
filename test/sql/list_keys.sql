-- Search, sort, pages: what an "API Keys" screen does.
\set VERBOSITY sqlstate
SET ROLE rk_test_other;
SELECT count(*) FROM (SELECT * FROM rk_apikeys.create_key('the neighbour''s hub')) x;
SET ROLE rk_test_manager;
SELECT count(*) FROM rk_apikeys.list_keys();
INSERT INTO rk_apikeys.keys (name, description, environment, expires_at) VALUES
  ('HubSpot Sync – Prod', 'contacts', 'prod', NULL),
  ('Form intake – stage', 'from the hub', 'stage', now() + interval '3 days'),
  ('100% literal', 'a_b', 'prod', now() + interval '1 day'),
  ('Émile', '', 'dev', NULL),
  ('zeta', '', 'dev', now() + interval '2 days'),
  ('alpha', '', 'dev', NULL);
UPDATE rk_apikeys.keys SET enabled = false WHERE name = 'zeta';
SELECT count(rk_apikeys.revoke_key(key_id)) FROM rk_apikeys.keys WHERE name = 'alpha';

-- Search: in name, description, environment, key id; any case; % and _ are themselves.
SELECT name FROM rk_apikeys.list_keys('hub') ORDER BY 1;
SELECT name FROM rk_apikeys.list_keys('HUB', sort_by => 'name');
SELECT name FROM rk_apikeys.list_keys('stag');
SELECT name FROM rk_apikeys.list_keys('%');
SELECT name FROM rk_apikeys.list_keys('_');
-- The database's locale says what any case is: C folds ASCII alone, and Turkish has an i of its own. A name as it is written is always found.
SELECT search, EXISTS (SELECT FROM rk_apikeys.list_keys(search)) = (lower(search) = lower(part)) AS as_the_locale_folds
  FROM (VALUES ('émi', 'Émi'), ('ÉMI', 'Émi'), ('FORM INTAKE', 'Form intake'), ('Émi', 'Émi'), ('ZETA', 'zeta')) v(search, part);
SELECT name FROM rk_apikeys.list_keys('Émi');
SELECT name FROM rk_apikeys.list_keys('nothing of it');
SELECT name FROM rk_apikeys.keys k, LATERAL (SELECT count(*) FROM rk_apikeys.list_keys(lower(k.key_id))) x WHERE count = 1 AND name = 'zeta';
SELECT count(*) FROM rk_apikeys.list_keys('');
SELECT name, status FROM rk_apikeys.list_keys(status => 'disabled');
SELECT name, status FROM rk_apikeys.list_keys(status => 'revoked');
SELECT count(*) FROM rk_apikeys.list_keys(status => 'active');
SELECT count(*) FROM rk_apikeys.list_keys(environment => 'dev');
SELECT count(*) FROM rk_apikeys.list_keys(environment => 'none');
SELECT name FROM rk_apikeys.list_keys('hub', 'active', 'stage');

-- A key id and an environment are ASCII: they are found in any case in every locale.
BEGIN;
CREATE FUNCTION pg_temp.with_an_i() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  id text := '';
BEGIN
  WHILE id !~ 'I' LOOP
    id := (SELECT key_id FROM rk_apikeys.create_key('x', environment => 'pilot'));
  END LOOP;
  RETURN id;
END $$;
SELECT pg_temp.with_an_i() AS id \gset
SELECT array_agg(k.name) AS found FROM unnest(ARRAY[:'id', lower(:'id' COLLATE "C"), upper(:'id' COLLATE "C")]) s, rk_apikeys.list_keys(s) k
  WHERE k.key_id = :'id';
SELECT bool_and(k.environment = 'pilot') AS of_that, count(DISTINCT s) AS found FROM unnest(ARRAY['pilot', 'PILOT', 'Pilot']) s, rk_apikeys.list_keys(s) k;
ROLLBACK;

-- A key is found by its whole token, by its mask as it is shown, and by the last four characters.
RESET ROLE;
SET ROLE rk_test_admin;
SELECT rk_apikeys.import_key('old ERP', sha256('sk_live_0123456789abcd_f'), 'sha256', hint => 'cd_f', start => 'sk_live_', tenant => 'rk_test_manager') AS "old" \gset
SELECT rk_apikeys.import_key('old shop', sha512('100% like_this, any bytes'), 'sha512', tenant => 'rk_test_manager') AS shop \gset
SELECT rk_apikeys.import_key('old neighbour', sha256('sk_live_fedcba9876543210'), 'sha256', hint => '3210', start => 'sk_live_', tenant => 'rk_test_other') AS "other" \gset
SET ROLE rk_test_manager;
SELECT key_id AS id, secret AS token FROM rk_apikeys.create_key('found by its token', environment => 'stage') \gset
SELECT masked_key AS mask, right(masked_key, 4) AS hint FROM rk_apikeys.keys WHERE key_id = :'id' \gset
SELECT what, (SELECT array_agg(name ORDER BY name) FROM rk_apikeys.list_keys(search)) AS found FROM (VALUES
  ('token', :'token'), ('blanks around it', E' \t' || :'token' || E'\r\n'), ('wrong secret', overlay(:'token' PLACING '000' FROM 30 FOR 3)),
  ('half of it', left(:'token', 40)), ('mask', :'mask'), ('mask of mask()', rk_apikeys.mask(:'token')), ('hint', :'hint'), ('key id', :'id'),
  ('part of the key id', substr(:'id', 2, 10)), ('imported token', 'sk_live_0123456789abcd_f'), ('blanks around it', E'  sk_live_0123456789abcd_f\n'),
  ('sha512', '100% like_this, any bytes'), ('imported mask', 'sk_live_********cd_f'), ('mask without start and hint', '********'),
  ('imported hint', 'cd_f'), ('hint in capitals', 'CD_F'), ('part of a hint', 'cd_'), ('a wildcard', 'cd%f'), ('another', 'sk_live_********____'),
  ('part of a token', 'sk_live_0123456789abcd_'), ('the neighbour''s token', 'sk_live_fedcba9876543210'), ('mask', 'sk_live_********3210'),
  ('hint', '3210'), ('too long', repeat('x', 3000)), ('a name of that shape', 'app_user_subscription_items')) v(what, search);
-- By every sort, and over pages.
SELECT s, array_agg(k.name) AS token, (SELECT array_agg(name) FROM rk_apikeys.list_keys('sk_live_0123456789abcd_f', sort_by => s)) AS imported
  FROM unnest(ARRAY['name', 'environment', 'key_id', 'created_at', 'updated_at', 'expires_at', 'last_used_at', 'use_count', 'status']) WITH ORDINALITY u(s, n),
    rk_apikeys.list_keys(:'token', sort_by => s) k GROUP BY s, n ORDER BY n;
BEGIN;
UPDATE rk_apikeys.keys SET description = 'successor of ' || :'mask' WHERE name IN ('zeta', 'alpha');
SELECT p1.name, p2.name, p3.name, convert_from(decode(p2.cursor, 'hex'), 'UTF8') ~ '^name[+][0-9A-Za-z]{12}=found by its token$' AS cursor
  FROM rk_apikeys.list_keys(:'mask', sort_by => 'name', page_size => 1) p1,
    LATERAL rk_apikeys.list_keys(:'mask', sort_by => 'name', page_size => 1, after => p1.cursor) p2,
    LATERAL rk_apikeys.list_keys(:'mask', sort_by => 'name', page_size => 1, after => p2.cursor) p3;
SELECT (SELECT count(*) FROM rk_apikeys.list_keys(:'token', page_size => 1, after => p.cursor)) AS behind_it FROM rk_apikeys.list_keys(:'token', page_size => 1) p;
ROLLBACK;
-- The private function says nothing of a key that the caller cannot see; what is in the text itself it may say.
SELECT rk_apikeys._searched_key_id('sk_live_0123456789abcd_f') = :'old' AS mine, rk_apikeys._searched_key_id('sk_live_fedcba9876543210') AS neighbours,
  rk_apikeys._searched_key_id(:'token') = :'id' AS token, rk_apikeys._searched_key_id('') AS nothing, rk_apikeys._searched_key_id(NULL) AS "null";
SET ROLE rk_test_other;
SELECT name FROM rk_apikeys.list_keys(:'token');
SELECT name FROM rk_apikeys.list_keys('sk_live_0123456789abcd_f');
SELECT rk_apikeys._searched_key_id('sk_live_fedcba9876543210') = :'other' AS mine, rk_apikeys._searched_key_id('sk_live_0123456789abcd_f') AS neighbours;
SET ROLE rk_test_auditor;
SELECT name FROM rk_apikeys.list_keys(:'token');
SELECT name FROM rk_apikeys.list_keys('sk_live_0123456789abcd_f');
SET ROLE rk_test_verifier;
SELECT rk_apikeys._searched_key_id('sk_live_0123456789abcd_f'); -- fails: not granted
-- A principal finds the keys that it sees.
RESET ROLE;
SELECT secret AS principal FROM rk_apikeys.create_key('principal', environment => 'stage', scopes => '{apikeys:manage}', tenant => 'rk_test_manager') \gset
SET ROLE rk_test_admin;
BEGIN;
SELECT FROM rk_apikeys.authenticate(:'principal');
SELECT name FROM rk_apikeys.list_keys(:'token');
SELECT count(*), (SELECT count(rk_apikeys._searched_key_id('sk_live_0123456789abcd_f'))) AS of_another_environment FROM rk_apikeys.list_keys('sk_live_0123456789abcd_f');
COMMIT;
RESET ROLE;
DELETE FROM rk_apikeys.api_keys WHERE name ~ '^(old|found|principal)';
TRUNCATE rk_apikeys.key_usage_daily;
SET ROLE rk_test_manager;

-- Sort: every column, NULLs last both ways; texts by the database's collation.
SELECT by_name = ARRAY(SELECT name FROM rk_apikeys.keys ORDER BY name) AS by_name,
    ARRAY(SELECT name FROM rk_apikeys.list_keys(sort_by => 'name', descending => true)) = ARRAY(SELECT name FROM rk_apikeys.keys ORDER BY name DESC) AS down,
    ARRAY(SELECT n FROM unnest(by_name) n ORDER BY n COLLATE "C") AS names
  FROM (SELECT ARRAY(SELECT name FROM rk_apikeys.list_keys(sort_by => 'name'))) x(by_name);
SELECT ARRAY(SELECT environment FROM rk_apikeys.list_keys(sort_by => 'environment')) AS by_environment;
SELECT (ARRAY(SELECT name FROM rk_apikeys.list_keys(sort_by => 'expires_at')))[1:3] AS by_expiry;
SELECT (ARRAY(SELECT name FROM rk_apikeys.list_keys(sort_by => 'expires_at', descending => true)))[1:3] AS by_expiry_down;
SELECT ARRAY(SELECT status FROM rk_apikeys.list_keys(sort_by => 'status')) AS by_status;
SELECT (ARRAY(SELECT name FROM rk_apikeys.list_keys(sort_by => 'updated_at')))[5:6] AS by_update;
SELECT bool_and(a.key_id = b.key_id) AS mirrored
  FROM (SELECT key_id, row_number() OVER () n FROM rk_apikeys.list_keys(sort_by => 'created_at')) a
    JOIN (SELECT key_id, 7 - row_number() OVER () n FROM rk_apikeys.list_keys(sort_by => 'created_at', descending => true)) b USING (n);

-- Pages, by every sort and both ways: each key once, in the order of the whole list.
RESET ROLE;
INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, use_count)
  SELECT key_id, tenant, '2026-01-01'::timestamptz + (row_number() OVER (ORDER BY name) % 2) * interval '1 day', row_number() OVER (ORDER BY name) % 2
    FROM rk_apikeys.api_keys WHERE tenant = 'rk_test_manager' AND name <> 'zeta';
SET ROLE rk_test_manager;
DO $$
DECLARE
  s text;
  d boolean;
  whole text[];
  paged text[];
  page text[];
  position text;
BEGIN
  FOR s, d IN SELECT * FROM unnest(ARRAY['name', 'environment', 'key_id', 'created_at', 'updated_at', 'expires_at', 'last_used_at', 'use_count', 'status']) a,
      unnest(ARRAY[false, true]) b
  LOOP
    whole := ARRAY(SELECT key_id FROM rk_apikeys.list_keys(sort_by => s, descending => d));
    paged := '{}';
    position := NULL;
    LOOP
      SELECT array_agg(key_id), (array_agg(cursor))[count(*)] INTO page, position
        FROM rk_apikeys.list_keys(sort_by => s, descending => d, page_size => 2, after => position);
      EXIT WHEN page IS NULL;
      paged := paged || page;
    END LOOP;
    IF whole <> paged OR cardinality(whole) <> 6 THEN
      RAISE EXCEPTION '% %: % but %', s, d, whole, paged;
    END IF;
    -- Backwards, from each row: the two rows before it.
    FOR i IN 1 .. 6 LOOP
      page := ARRAY(SELECT p.key_id FROM rk_apikeys.list_keys(sort_by => s, descending => d) k,
        rk_apikeys.list_keys(sort_by => s, descending => d, page_size => 2, before => k.cursor) p WHERE k.key_id = whole[i]);
      IF page <> whole[greatest(i - 2, 1):i - 1] THEN
        RAISE EXCEPTION '% % before %: % but %', s, d, i, whole, page;
      END IF;
    END LOOP;
  END LOOP;
END $$;
SELECT last_used_at::date, use_count, count(*) FROM rk_apikeys.list_keys(sort_by => 'last_used_at', descending => true) GROUP BY 1, 2 ORDER BY 1;

-- Filters, each alone and all at once, and what they count.
UPDATE rk_apikeys.keys SET owner = 'ann', scopes = '{a:read,b}', metadata = '{"team": "sales", "tags": ["x", "y"], "n": {"a": 1}}'
  WHERE name IN ('zeta', '100% literal');
UPDATE rk_apikeys.keys SET owner = 'bob', scopes = '{b}' WHERE name = 'alpha';
CREATE FUNCTION pg_temp.names(args text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  names text;
  counted bigint;
BEGIN
  EXECUTE format('SELECT string_agg(name, '', '' ORDER BY name COLLATE "C") FROM rk_apikeys.list_keys(%s)', args) INTO names;
  EXECUTE format('SELECT rk_apikeys.count_keys(%s)', args) INTO counted;
  RETURN format('%s: %s', counted, names);
END $$;
\a
SELECT filter, pg_temp.names(filter) FROM (VALUES ($$owner => 'ann'$$), ($$owner => 'nobody'$$), ($$owner => ''$$), ($$tenant => 'rk_test_manager'$$),
  ($$tenant => 'rk_test_other'$$), ($$metadata => '{"team": "sales"}'$$), ($$metadata => '{"tags": ["y"], "n": {}}'$$), ($$metadata => '{"team": "x"}'$$),
  ($$metadata => '[1]'$$), ($$metadata => '{}'$$), ($$scopes => '{b}'$$), ($$scopes => '{b,a:read}'$$), ($$scopes => '{a}'$$), ($$scopes => '{}'$$),
  ($$scopes => '{NULL}'$$), ($$scopes => '{a:*}'$$), ($$statuses => '{disabled,revoked}'$$), ($$statuses => '{active}'$$), ($$statuses => '{}'$$),
  ($$status => 'disabled', statuses => '{disabled,active}'$$), ($$status => 'active', statuses => '{disabled}'$$),
  ($$search => 'z', status => 'disabled', environment => 'dev', owner => 'ann', tenant => 'rk_test_manager', metadata => '{"team": "sales"}', scopes => '{b}', statuses => '{disabled}'$$)) v(filter);
\a
-- By every sort, forwards and backwards, with all filters: the longest queries too.
SELECT p.name, count(*) FROM unnest(ARRAY['name', 'environment', 'key_id', 'created_at', 'updated_at', 'expires_at', 'last_used_at', 'use_count', 'status']) s,
  unnest(ARRAY[false, true]) d, unnest(ARRAY[false, true]) forward, rk_apikeys.list_keys(sort_by => s, descending => d, owner => 'ann') k,
  LATERAL rk_apikeys.list_keys('l', sort_by => s, descending => d, status => 'active', environment => 'prod', owner => 'ann', tenant => 'rk_test_manager',
    metadata => '{"team": "sales"}', scopes => '{b}', statuses => '{disabled,active}', after => CASE WHEN forward THEN k.cursor END, before => CASE WHEN NOT forward THEN k.cursor END) p
  GROUP BY p.name ORDER BY p.name;
SELECT count(*) FROM rk_apikeys.list_keys(statuses => '{active,on}'); -- fails: no such status
SELECT rk_apikeys.count_keys(statuses => '{active,NULL}'); -- fails: null
SELECT rk_apikeys.count_keys(status => 'on'); -- fails: no such status
SELECT owner, family = key_id AS own_family, created_by_user, updated_by_user FROM rk_apikeys.list_keys(owner => 'bob');
UPDATE rk_apikeys.keys SET owner = NULL, scopes = '{}', metadata = '{}';

-- A cursor is of one list; it gives a position and nothing more.
SELECT cursor FROM rk_apikeys.list_keys(sort_by => 'name', page_size => 1) \gset
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => :'cursor');
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'created_at', after => :'cursor'); -- fails: another sort
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'environment', after => :'cursor'); -- fails: another sort, of the same type
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', descending => true, after => :'cursor'); -- fails: another direction
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => :'cursor', before => :'cursor'); -- fails: both
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', before => :'cursor');
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'created_at', before => :'cursor'); -- fails: another sort
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', before => ''); -- fails: none
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => ''); -- fails: none
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => 'nonsense'); -- fails: none
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => '####'); -- fails: none
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => encode('name+7Yh2kQ9mZp1x', 'hex')); -- fails: no value
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => encode('name+short=x', 'hex')); -- fails: no key id
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'created_at', after => encode('created_at+7Yh2kQ9mZp1x=never', 'hex')); -- fails: no time
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name', after => 'ff00'); -- fails: no text
SET ROLE rk_test_other;
SELECT name FROM rk_apikeys.list_keys(sort_by => 'name', after => :'cursor');
SET ROLE rk_test_manager;

SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'digest'); -- fails: not to sort by
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'name; DROP TABLE x'); -- fails: not to sort by
\set VERBOSITY terse
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j'); -- fails: shown masked
SELECT count(*) FROM rk_apikeys.list_keys(status => 'rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j'); -- fails: shown masked
\set VERBOSITY sqlstate
SELECT count(*) FROM rk_apikeys.list_keys(sort_by => NULL); -- fails: null
SELECT count(*) FROM rk_apikeys.list_keys(descending => NULL); -- fails: null
SELECT count(*) FROM rk_apikeys.list_keys(page_size => 0); -- fails: too small
SELECT count(*) FROM rk_apikeys.list_keys(page_size => 1001); -- fails: too large
SELECT count(*) FROM rk_apikeys.list_keys(status => 'on'); -- fails: no such status

-- What runs the query of a page takes no other query.
SELECT count(*) FROM rk_apikeys._page(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); -- fails: null
SELECT count(*) FROM rk_apikeys._page('SELECT 1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); -- fails: not the columns of a list
SELECT count(*) FROM rk_apikeys._page('SHOW server_version', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); -- fails: no row of a list
SELECT count(*) FROM rk_apikeys._page('DELETE FROM rk_apikeys.keys', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); -- fails: a change

-- An auditor lists all tenants', without secrets.
SET ROLE rk_test_auditor;
SELECT tenant, name FROM rk_apikeys.list_keys('hub', sort_by => 'name');
RESET ROLE;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events;
