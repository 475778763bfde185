-- The views that people and reports read.
\set VERBOSITY sqlstate
SET timezone = 'UTC';
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, hint, digest, digest_kind,
    expires_at, enabled, revoked_at, grace_until)
  SELECT lpad(n::text, 12, '0'), 'rk_test_manager', name, 'rk', 'prod', now() - created, 'x', now(), 'x', 'abcd', sha256(name::bytea), 'native',
      now() + expires, enabled, now() + revoked, now() + grace
    FROM (VALUES
      (1, 'fresh', interval '0', NULL::interval, true, NULL::interval, NULL::interval),
      (2, 'old, never used', '91 days', NULL, true, NULL, NULL),
      (3, 'old, used', '91 days', NULL, true, NULL, NULL),
      (4, 'old, used long ago', '200 days', NULL, true, NULL, NULL),
      (5, 'ends soon', '1 day', '13 days', true, NULL, NULL),
      (6, 'ends later', '1 day', '15 days', true, NULL, NULL),
      (7, 'ended', '91 days', '-1 day', true, NULL, NULL),
      (8, 'off', '91 days', '2 days', false, NULL, NULL),
      (9, 'revoked', '91 days', '2 days', true, '-1 day', NULL),
      (10, 'in grace', '91 days', '2 days', true, NULL, '1 day'),
      (11, 'rotated', '91 days', '2 days', true, NULL, '-1 day'),
      (12, 'revoked and off and ended and rotated', '91 days', '-2 days', false, '-1 day', '-1 day')
    ) k(n, name, created, expires, enabled, revoked, grace);
INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, last_used_addr, use_count, denied_count)
  VALUES ('000000000003', 'rk_test_manager', now() - interval '1 day', '192.0.2.1', 7, 2),
    ('000000000004', 'rk_test_manager', now() - interval '100 days', NULL, 5, 0);
INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant, uses, denials)
  VALUES ('000000000003', '2026-01-01', 'prod', 'rk_test_manager', 3, 1), ('000000000003', '2026-01-02', 'prod', 'rk_test_manager', 4, 1),
    ('gone00000000', '2026-01-01', 'dev', 'rk_test_manager', 9, 0), ('000000000003', '2026-01-03', 'prod', 'rk_test_other', 1, 0);

SET ROLE rk_test_manager;
SELECT name, status, enabled, date_trunc('hour', expires_in + '1 minute') AS expires_in, use_count, last_used_at IS NOT NULL AS used, masked_key FROM rk_apikeys.keys ORDER BY key_id;
SELECT name, status FROM rk_apikeys.active_keys ORDER BY key_id;
SELECT name, status, date_trunc('hour', expires_in + '1 minute') AS expires_in FROM rk_apikeys.expiring_keys ORDER BY key_id;
SELECT name, unused_for FROM rk_apikeys.stale_keys ORDER BY key_id;
SET rk_apikeys.expiring_window = '16 days';
SET rk_apikeys.stale_after = '1 year';
SELECT name FROM rk_apikeys.expiring_keys ORDER BY key_id;
SELECT name FROM rk_apikeys.stale_keys ORDER BY key_id;
SET rk_apikeys.stale_after = '12h';
SELECT name FROM rk_apikeys.stale_keys ORDER BY key_id;
SET rk_apikeys.stale_after = 'ages'; -- fails: no interval
RESET rk_apikeys.expiring_window;
RESET rk_apikeys.stale_after;
SELECT * FROM rk_apikeys.key_activity ORDER BY day, key_id;
SELECT last_used_addr, denied_count FROM rk_apikeys.key_usage ORDER BY key_id;

-- A neighbour: nothing in any of them. An auditor: all.
SET ROLE rk_test_other;
SELECT (SELECT count(*) FROM rk_apikeys.keys) AS keys, (SELECT count(*) FROM rk_apikeys.active_keys) AS active,
  (SELECT count(*) FROM rk_apikeys.expiring_keys) AS expiring, (SELECT count(*) FROM rk_apikeys.stale_keys) AS stale,
  (SELECT count(*) FROM rk_apikeys.key_usage) AS usage, (SELECT count(*) FROM rk_apikeys.key_activity) AS activity;
SELECT day, name, uses FROM rk_apikeys.key_activity;
SET ROLE rk_test_auditor;
SELECT (SELECT count(*) FROM rk_apikeys.keys) AS keys, (SELECT count(*) FROM rk_apikeys.active_keys) AS active,
  (SELECT count(*) FROM rk_apikeys.expiring_keys) AS expiring, (SELECT count(*) FROM rk_apikeys.stale_keys) AS stale,
  (SELECT count(*) FROM rk_apikeys.key_usage) AS usage, (SELECT count(*) FROM rk_apikeys.key_activity) AS activity;
SET ROLE rk_test_verifier;
SELECT count(*) FROM rk_apikeys.active_keys; -- fails: not granted
SELECT count(*) FROM rk_apikeys.expiring_keys; -- fails: not granted
SELECT count(*) FROM rk_apikeys.stale_keys; -- fails: not granted
SELECT count(*) FROM rk_apikeys.key_activity; -- fails: not granted
SELECT count(*) FROM rk_apikeys.stats; -- fails: not granted

-- A function in WHERE that tells what it sees is given the caller's rows only.
RESET ROLE;
CREATE FUNCTION tell(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'saw %', t; RETURN true; END $$;
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query; END $$;
SET ROLE rk_test_other;
SELECT name FROM rk_apikeys.keys WHERE tell(name);
-- The tenant is one index condition.
SET ROLE rk_test_manager;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT line ~ 'Index Cond: \(tenant = ' AS index_condition, line ~ 'Filter: .*tenant' AS filter
  FROM plan('SELECT key_id FROM rk_apikeys.api_keys ORDER BY tenant, created_at LIMIT 1') line WHERE line ~ 'tenant = ';
RESET enable_seqscan;
RESET enable_bitmapscan;
RESET ROLE;
DROP FUNCTION tell, plan;
DELETE FROM rk_apikeys.api_keys;
TRUNCATE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
