-- P8: a user's table with a policy by principal, and two roles: app, under the policy, and app_plain, which no policy holds.
-- 200,000 rows of 40 tenants; psql reads it, as the superuser.
CREATE TABLE bench.records (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant text NOT NULL, amount integer NOT NULL,
  note text NOT NULL);
INSERT INTO bench.records (tenant, amount, note)
  SELECT CASE WHEN n % 40 = 0 THEN 'acme' ELSE 'tenant-' || n % 40 END, n % 1000, repeat('x', 50) FROM generate_series(1, 200000) n;
CREATE INDEX ON bench.records (tenant);
ALTER TABLE bench.records ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_key ON bench.records TO app
  USING (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope('records:read')));
GRANT SELECT ON bench.records TO app, app_plain;
VACUUM ANALYZE bench.records;
