-- A database with :keys keys, as a product's would be after a year; psql reads it, as the superuser.
-- The rows come complete, as in a restore, so that they can have a past; their tokens are kept in bench.token.
--   tenant      acme has a tenth of the keys, the other tenants 100 each
--   state       all good, but for 12% of acme's: disabled, expired, revoked, in grace
--   usage       70% have been used
-- The random numbers are the same in each run (setseed), the tokens are not.
-- The group roles exist and have members: that is told each time.
SET client_min_messages = error;
CREATE EXTENSION pgcrypto;
CREATE EXTENSION rk_apikeys;
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO PUBLIC;
SELECT setseed(0.5);

CREATE UNLOGGED TABLE bench.token AS
  SELECT n, rk_apikeys.generate_token('prod', 'rk') AS token,
      CASE WHEN n % 10 <> 0 OR random() > 0.12 THEN 0 ELSE 1 + n / 10 % 4 END AS fate
    FROM generate_series(1, :keys) n;

INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, description, prefix, environment, scopes, enabled, expires_at,
    grace_until, revoked_at, created_at, created_by, updated_at, updated_by, hint, digest, digest_kind)
  SELECT split_part(token, '_', 3),
      CASE WHEN n % 10 = 0 THEN 'acme' ELSE 'tenant-' || 1 + n % greatest(:keys / 100, 1) END,
      (ARRAY['HubSpot Sync', 'Billing export', 'Form intake', 'Data lake', 'Support desk'])[1 + floor(random() * 5)]
        || ' ' || floor(random() * 1000000),
      'Made for an integration that copies contacts every hour', 'rk', 'prod', '{records:read,contacts:read}',
      fate <> 1,
      CASE WHEN fate = 2 THEN now() - interval '1 day' * random() WHEN random() < 0.4 THEN now() + interval '1 year' * (1 + random()) END,
      CASE WHEN fate = 4 THEN now() + interval '30 days' END,
      CASE WHEN fate = 3 THEN now() - interval '1 day' * random() END,
      created_at, 'acme', created_at + interval '1 day' * random(), 'acme',
      substr(token, 61, 4), rk_apikeys.hash_token(token), 'native'
    FROM (SELECT *, now() - interval '1 year' * (1 - (n - random())::float8 / :keys) - interval '2 days' AS created_at
        FROM bench.token) t;

INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, use_count)
  SELECT key_id, tenant, now() - interval '90 days' * random(), floor(random() * 100000)
    FROM rk_apikeys.api_keys WHERE random() < 0.7;

-- What a statement over many tokens reads: 100,000 of them, as often each as the next, in no order.
CREATE TABLE bench.probe AS
  SELECT token, convert_to(token, 'UTF8') AS token_bytes
    FROM (SELECT token FROM bench.token WHERE fate = 0 AND n % 10 <> 0 ORDER BY random() LIMIT least(:probe, :keys * 9 / 10)) t,
      generate_series(1, greatest(:probe / (:keys * 9 / 10), 1))
    ORDER BY random();
GRANT SELECT ON bench.probe TO backend;
VACUUM ANALYZE;
