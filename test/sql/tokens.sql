-- Tokens as text, by a role without any right.
\set VERBOSITY sqlstate
SET ROLE rk_test_nobody;

-- The vectors of another implementation.
CREATE TEMP TABLE vectors (token text, prefix text, environment text, key_id text, sha256 text, last4 text);
INSERT INTO vectors VALUES
  ('rk_prod_000000000000_00000000000000000000000000000000000000000001SXSHc', 'rk', 'prod', '000000000000',
   'f503e449c4159e5c643a05cecdd49a7bdce6ab6a3fafe657a55a348bfe9ced5b', '0000'),
  ('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j', 'rk', 'prod', '7Yh2kQ9mZp1x',
   'a9937338c51bdc90c387d9972a815c7a7c68490666ea533d127ddbdf657df391', 'DeFg'),
  ('acme1_stage2_zzzzzzzzzzzz_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz1Y5vGh', 'acme1', 'stage2', 'zzzzzzzzzzzz',
   '428f6542420e0921aad2835dfd1f6bd00d27f805d9964b312e7aaef40e42022d', 'zzzz'),
  ('r_d_A0a9Z0z9b8Y7_QwErTyUiOpAsDfGhJkLzXcVbNm1234567890qWeRtYu3zcPWk', 'r', 'd', 'A0a9Z0z9b8Y7',
   '0882bf79284d2b26ff4e6726fc8dd959a663d8954099c1b240b68e322c04aed1', 'RtYu');
SELECT key_id, rk_apikeys.is_well_formed(token) AS well_formed,
    rk_apikeys.mask(token) = prefix || '_' || environment || '_' || key_id || '_********' || last4 AS masked,
    encode(rk_apikeys.hash_token(token), 'hex') = sha256 AS hashed,
    rk_apikeys.hash_token(token) = public.digest(token, 'sha256') AS as_pgcrypto
  FROM vectors;
SELECT rk_apikeys.mask('nonsense'), rk_apikeys.mask(''), rk_apikeys.mask(NULL) IS NULL AS null_is_null;

-- No substitution, deletion, insertion or swap of neighbours goes unnoticed.
SELECT count(*) AS tried, count(*) FILTER (WHERE rk_apikeys.is_well_formed(changed)) AS passed
  FROM vectors, generate_series(1, length(token)) i,
    LATERAL (SELECT overlay(token PLACING c FROM i FOR 1) AS changed FROM regexp_split_to_table('_0aZz-*é', '') c
      UNION ALL SELECT overlay(token PLACING '' FROM i FOR 1)
      UNION ALL SELECT overlay(token PLACING '0' FROM i FOR 0)
      UNION ALL SELECT overlay(token PLACING reverse(substr(token, i, 2)) FROM i FOR 2)) m
  WHERE changed <> token;

-- Any string is an answer, never an error.
SELECT s AS string, rk_apikeys.is_well_formed(s), rk_apikeys.mask(s), rk_apikeys.redact(s)
  FROM unnest(ARRAY['', '_', '____', 'rk_prod_', 'rk_prod_7Yh2kQ9mZp1x_', 'é_é_é', E'a\nb']) s;
SELECT rk_apikeys.is_well_formed(repeat('a', 10000000)) AS ten_megabytes;

-- Fresh tokens: well-formed, all different, all 62 digits, prefix and environment as asked.
SELECT count(DISTINCT t), bool_and(rk_apikeys.is_well_formed(t)), bool_and(t LIKE 'rk\_prod\_%')
  FROM (SELECT rk_apikeys.generate_token() t FROM generate_series(1, 2000)) x;
SELECT count(DISTINCT c) AS digits, min(n) > 0.8 * avg(n) AND max(n) < 1.2 * avg(n) AS even
  FROM (SELECT c, count(*) n
    FROM (SELECT split_part(rk_apikeys.generate_token(), '_', 4) t FROM generate_series(1, 4000)) x,
      regexp_split_to_table(left(t, 43), '') c GROUP BY c) y;
SELECT rk_apikeys.generate_token('dev', 'acme') ~ '^acme_dev_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$' AS as_asked;
SELECT rk_apikeys.generate_token('Prod'); -- fails: capital letter
SELECT rk_apikeys.generate_token('prod', ''); -- fails: empty prefix
SELECT rk_apikeys.generate_token('prod', 'a2345678901234567'); -- fails: 17 characters
\set VERBOSITY terse
SELECT rk_apikeys.generate_token('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j'); -- fails: a token, shown masked
\set VERBOSITY sqlstate

-- Found where people leave them; start counts characters.
CREATE TEMP TABLE documents (n int, document text);
INSERT INTO documents
  SELECT 1, token FROM vectors WHERE key_id = '7Yh2kQ9mZp1x' UNION ALL
  SELECT 2, 'curl -H "Authorization: Bearer ' || token || '" x' FROM vectors WHERE key_id = '7Yh2kQ9mZp1x' UNION ALL
  SELECT 3, 'naïve – ключ: ' || token || '.' FROM vectors WHERE key_id = '7Yh2kQ9mZp1x' UNION ALL
  SELECT 4, string_agg(token, '' ORDER BY key_id) FROM vectors WHERE key_id ~ '0' UNION ALL
  SELECT 5, '{"a":"' || string_agg(token, '","' ORDER BY key_id) || '"}' FROM vectors UNION ALL
  SELECT 6, 'XYZ' || token || 'trailing' FROM vectors WHERE key_id = '7Yh2kQ9mZp1x' UNION ALL
  SELECT 7, left(token, 60) FROM vectors WHERE key_id = '7Yh2kQ9mZp1x' UNION ALL
  SELECT 8, 'no_such_thing_here and prod_000000000000_x' UNION ALL
  SELECT 9, overlay(token PLACING 'X' FROM 30 FOR 1) FROM vectors WHERE key_id = '7Yh2kQ9mZp1x';
SELECT n, f.token_mask, f.key_id, f.start, rk_apikeys.mask(substr(document, f.start, length(v.token))) = f.token_mask AS there
  FROM documents, rk_apikeys.find_tokens(document) f JOIN vectors v USING (key_id) ORDER BY n, start;
-- Redacted is what looks like a token: cut and mistyped ones too.
SELECT n, rk_apikeys.redact(document) FROM documents ORDER BY n;
-- Also where the end of one is the beginning of another.
SELECT s AS string, rk_apikeys.redact(s) FROM unnest(ARRAY['a_b_00000000000A_r_d_A0a9Z0z9b8Y7_QwErTyUi',
  'rk_prod_00000000000A_rk_prod_A0a9Z0z9b8Y7_QwErTyUi', 'a_b_c00000000000_d_A0a9Z0z9b8Y7_QwErTyUi']) s;
-- A text without a token stays: names, times, digests. Not so a token that was folded to small letters, or a name with capitals.
SELECT s AS string, rk_apikeys.redact(s) = s AS stays FROM unnest(ARRAY['app_user_subscription_items', 'no_such_subscription_' || repeat('very', 12) || 'long',
  'table_name_of_2024_partition_p01', 'orders_by_partition024_p01', 'log_events_202401011230_p01', 'img_prod_0123456789ab_' || repeat('0a9f', 16),
  'img_prod_0123456789ab_latest', 'a_b_c2d81acf-4d6b-4c1e-9b6a-0123456789ab', 'https://example.com/a_b_subscription_items?x_y_organization_id=1',
  lower(left('rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j', 63)), 'app_user_getUserItems_list',
  'rk_prod_7Yh2kQ9mZp1x_a', 'rk_prod_abcdefghijkl_Ab', 'rk_prod_abcdefghijkl_' || repeat('z', 19) || '9']) s;
-- Nor does an error that quotes the end of a long name change.
\set VERBOSITY default
SELECT ('{"' || repeat('very', 10) || 'longfieldname":}')::json;
\set VERBOSITY sqlstate
SELECT count(*) AS longer FROM documents WHERE length(rk_apikeys.redact(document)) > length(document);

-- Linear: eight times the text takes about eight times as long.
DO $$
DECLARE
  part text := repeat('a_b_c_', 20) || repeat('rk_prod_7Yh2kQ9mZp1x_', 3) || 'AbC ';
  start timestamptz;
  small interval;
  large interval;
BEGIN
  -- The best of some: another process may have its turn meanwhile.
  FOR round IN 1 .. 5 LOOP
    start := clock_timestamp();
    PERFORM rk_apikeys.redact(repeat(part, 5000)), count(*) FROM rk_apikeys.find_tokens(repeat(part, 5000));
    small := least(small, clock_timestamp() - start);
    start := clock_timestamp();
    PERFORM rk_apikeys.redact(repeat(part, 40000)), count(*) FROM rk_apikeys.find_tokens(repeat(part, 40000));
    large := least(large, clock_timestamp() - start);
  END LOOP;
  IF large > small * 32 THEN
    RAISE EXCEPTION 'not linear: % and %', small, large;
  END IF;
END $$;

SELECT rk_apikeys.digest_equal('\x00ff', '\x00ff') AS same, rk_apikeys.digest_equal('\x00ff', '\x00fe') AS differs,
  rk_apikeys.digest_equal('\x00ff', '\x00') AS shorter, rk_apikeys.digest_equal('\x00', '\x00ff') AS longer, rk_apikeys.digest_equal('', '') AS empty;
-- Long values, in parts.
SELECT rk_apikeys.hash_token(repeat('x', n)) = sha256(repeat('x', n)::bytea) AS same, rk_apikeys.digest_equal(a, a) AS equal,
    rk_apikeys.digest_equal(a, set_byte(a, 0, 0)) AS first, rk_apikeys.digest_equal(a, set_byte(a, n - 1, 0)) AS last
  FROM unnest('{1048575,1048576,1048577,3000000}'::int[]) n, LATERAL (SELECT repeat('x', n)::bytea AS a) a;
RESET ROLE;
DROP TABLE vectors, documents;
-- A call can be cancelled: none comes to its end, where a sequence would move on.
CREATE SEQUENCE came_to_its_end;
CREATE TEMP TABLE large AS SELECT repeat('x', 100000000) AS t, repeat('x', 100000000)::bytea AS b;
CREATE FUNCTION pg_temp.call_often(call text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('WITH large AS MATERIALIZED (SELECT t || '''' AS t, b || '''' AS b FROM large)
    SELECT CASE WHEN %s true THEN nextval(''came_to_its_end'') END FROM large', repeat(call || ' AND ', 200));
END $$;
SET statement_timeout = '300ms';
SELECT pg_temp.call_often('rk_apikeys.hash_token(t) IS NOT NULL'); -- fails: cancelled
SELECT pg_temp.call_often('rk_apikeys.digest_equal(b, b)'); -- fails: cancelled
SELECT pg_temp.call_often('rk_apikeys.redact(t) IS NOT NULL'); -- fails: cancelled
RESET statement_timeout;
SELECT is_called FROM came_to_its_end;
DROP SEQUENCE came_to_its_end;
DROP TABLE large;
