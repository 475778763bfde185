-- examples/console/sample.sql: a few hundred made-up keys of two tenants, with a past, for looking at the console. For a throwaway
-- database: run by a superuser, who moves things into the past as nobody else may. The same each time, secrets and ids apart.
\set ON_ERROR_STOP 1
\connect - console

-- 24 services, each with keys for several places: acme has 216, globex 96.
CREATE TEMP TABLE made AS
  SELECT tenant, n, places[p] AS place, services[s] || ' – ' || places[p] AS name,
      uses[s] || CASE WHEN places[p] IN ('Stage', 'Dev') THEN ', for tests' ELSE '' END AS description, verbs[s] AS scope
    FROM (VALUES (ARRAY['HubSpot Sync', 'Billing Export', 'Mobile App', 'Nightly Backup', 'Data Warehouse', 'Form Intake', 'Status Page',
          'Search Indexer', 'Invoice Mailer', 'Partner Portal', 'Fraud Check', 'Chat Widget', 'Usage Reports', 'CRM Import', 'Webhook Relay',
          'Terraform', 'Grafana', 'Zapier', 'Checkout', 'Stock Scanner', 'Survey Tool', 'Push Sender', 'Tax Service', 'Image Resizer'],
        ARRAY['Copies contacts every hour', 'Books invoices at night', 'The app of our customers', 'Saves records off site', 'Loads the marts',
          'Contact form of the site', 'Tells whether we are up', 'Keeps the search fresh', 'Sends invoices', 'Partners look up orders',
          'Scores each payment', 'Chat on every page', 'Monthly numbers', 'Takes over old contacts', 'Hands events on', 'Sets up machines',
          'Draws dashboards', 'Flows that sales has built', 'Pays baskets', 'Scanners in the hall', 'Asks how we did', 'Wakes phones up',
          'Knows the rates', 'Makes thumbnails'],
        ARRAY['contacts', 'billing', 'app', 'records', 'records', 'forms', 'status', 'search', 'billing', 'orders', 'payments', 'chat',
          'usage', 'contacts', 'events', 'infra', 'metrics', 'flows', 'payments', 'stock', 'forms', 'push', 'billing', 'images'],
        ARRAY['Prod', 'Stage', 'Dev', 'EU', 'US', 'APAC', 'Canary', 'Partner', 'Reports'])) l(services, uses, verbs, places),
      generate_series(1, 24) s, generate_series(1, 9) p, LATERAL (SELECT s * 9 + p - 9) i(n),
      (VALUES ('acme'), ('globex')) t(tenant)
    WHERE tenant = 'acme' OR p <= 4;

SET rk_apikeys.end_user = 'ann@acme';
SET rk_apikeys.tenant = 'acme';
INSERT INTO rk_apikeys.keys (name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window, expires_at, owner)
  SELECT name, description, CASE place WHEN 'Stage' THEN 'stage' WHEN 'Dev' THEN 'dev' ELSE 'prod' END,
      CASE n % 3 WHEN 0 THEN ARRAY[scope || ':read'] WHEN 1 THEN ARRAY[scope || ':read', scope || ':write'] ELSE ARRAY[scope || ':*'] END,
      CASE WHEN n % 4 = 1 THEN '{203.0.113.0/24,2001:db8:7::/48}'::cidr[] END,
      CASE WHEN n % 5 = 1 THEN 600 END, CASE WHEN n % 5 = 1 THEN interval '1 minute' END,
      CASE WHEN n % 6 = 1 THEN now() + n * interval '2 days' END,
      CASE n % 8 WHEN 1 THEN 'ann@acme' WHEN 3 THEN 'bob@acme' WHEN 4 THEN 'ci@acme' END
    FROM made WHERE tenant = 'acme' ORDER BY n DESC;
SET rk_apikeys.tenant = 'globex';
SET rk_apikeys.end_user = 'eve@globex';
INSERT INTO rk_apikeys.keys (name, description, scopes)
  SELECT name, description, ARRAY[scope || ':read'] FROM made WHERE tenant = 'globex' ORDER BY n DESC;

-- what has been done to them
SET rk_apikeys.tenant = 'acme';
SET rk_apikeys.end_user = 'bob@acme';
UPDATE rk_apikeys.keys SET enabled = false FROM made WHERE made.tenant = 'acme' AND keys.name = made.name AND n % 13 IN (1, 4);
UPDATE rk_apikeys.keys SET enabled = true WHERE name = 'HubSpot Sync – Prod';
UPDATE rk_apikeys.keys SET description = 'Copies contacts every hour; ask the sales tools team before you touch it'
  WHERE name = 'HubSpot Sync – Prod';
SELECT FROM rk_apikeys.keys k, made, rk_apikeys.revoke_key(key_id, 'found in a log') WHERE made.tenant = 'acme' AND k.name = made.name AND n % 29 = 5 \g /dev/null
SELECT FROM rk_apikeys.keys k, made, rk_apikeys.rotate_key(key_id, '7 days') WHERE made.tenant = 'acme' AND k.name = made.name AND n % 31 = 2 \g /dev/null

\connect - postgres
-- what an administrator allows: eve's tenant has narrow limits, ann's only for development
INSERT INTO rk_apikeys.policies (tenant, environment, max_lifetime, max_keys, allowed_scopes, require_cidrs, require_owner) VALUES
  ('acme', NULL, NULL, 300, NULL, false, false),
  ('acme', 'dev', '30 days', 100, '{contacts:*,billing:read,search:read}', false, true),
  ('globex', NULL, '90 days', 120, '{billing:read,contacts:read,contacts:write,orders:read}', true, false);
-- as a restore would: no trigger fires
SET session_replication_role = replica;
-- what was sold: a plan to acme, exports that only some requests name, and a small quota for development
INSERT INTO rk_apikeys.limits (limit_id, tenant, name, environment, units, rate_window, period, always) VALUES
  ('00000000-0000-4000-8000-000000000001', 'acme', 'per_minute', NULL, 1000, '1 minute', NULL, true),
  ('00000000-0000-4000-8000-000000000002', 'acme', 'monthly', NULL, 100000, NULL, 'month', true),
  ('00000000-0000-4000-8000-000000000003', 'acme', 'exports', NULL, 10, '1 hour', NULL, false),
  ('00000000-0000-4000-8000-000000000004', 'acme', 'dev', 'dev', 1000, NULL, 'month', true);
INSERT INTO rk_apikeys.limit_usage (limit_id, family, period_start, units, tenant) VALUES
  ('00000000-0000-4000-8000-000000000002', '', date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', 81234, 'acme'),
  ('00000000-0000-4000-8000-000000000004', '', date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', 188, 'acme');
CREATE TEMP TABLE age AS
  SELECT key_id, tenant, environment, rank,
      now() - (rank ^ 1.15 * 0.7 + 0.6) * interval '1 day' - rank * 37 % 23 * interval '29 minutes' AS made_at,
      now() - ((rank * 37) % 101 + 1) * CASE WHEN rank % 7 = 0 THEN interval '13 hours' ELSE interval '11 minutes' END AS used_at,
      rank % 11 <> 3 AND status NOT IN ('rotated') AS used, 20 + (rank * 7919) % 900 AS pace
    FROM (SELECT key_id, tenant, environment, status,
        row_number() OVER (PARTITION BY tenant ORDER BY name COLLATE "C", key_id) * 89 % 227 AS rank FROM rk_apikeys.keys) k;
UPDATE age SET rank = 41, used = true, made_at = now() - interval '41 days 3 hours', used_at = now() - interval '2 minutes', pace = 640
  WHERE key_id = (SELECT key_id FROM rk_apikeys.keys WHERE tenant = 'acme' AND name = 'HubSpot Sync – Prod');
UPDATE rk_apikeys.api_keys k SET created_at = made_at,
    updated_at = CASE WHEN k.updated_by IS NULL OR k.updated_at <= k.created_at THEN made_at ELSE made_at + (now() - made_at) * 0.7 END,
    revoked_at = CASE WHEN revoked_at IS NOT NULL THEN made_at + (now() - made_at) * 0.7 END,
    expires_at = CASE WHEN rank % 17 = 9 AND enabled AND revoked_at IS NULL THEN now() - interval '3 days' ELSE expires_at END
  FROM age WHERE k.key_id = age.key_id;
UPDATE rk_apikeys.key_events e SET occurred_at = CASE event WHEN 'created' THEN made_at ELSE made_at + (now() - made_at) * CASE event WHEN 'disabled' THEN 0.5 WHEN 'enabled' THEN 0.51 ELSE 0.7 END END
  FROM age WHERE e.key_id = age.key_id;
INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant, uses, denials)
  SELECT key_id, day::date, environment, tenant,
      greatest(1, pace * CASE WHEN extract(isodow FROM day) > 5 THEN 0.35 ELSE 1 END * (1 + 0.3 * sin(extract(day FROM day)::int * (rank % 7 + 1))))::int,
      CASE WHEN (extract(doy FROM day)::int + rank) % 9 = 0 THEN pace / 8 ELSE 0 END
    FROM age, generate_series(greatest(current_date - 60, made_at::date), current_date, '1 day') day WHERE used AND day <= used_at;
INSERT INTO rk_apikeys.key_usage (key_id, tenant, last_used_at, use_count, denied_count)
  SELECT key_id, tenant, greatest(used_at, made_at), uses, denials
    FROM age JOIN (SELECT key_id, sum(uses) AS uses, sum(denials) AS denials FROM rk_apikeys.key_usage_daily GROUP BY 1) d USING (key_id);
-- an ended key that somebody still has
INSERT INTO rk_apikeys.key_events (tenant, key_id, event, actor, role, changes, occurred_at)
  SELECT tenant, key_id, 'used_after_end', 'postgres', 'postgres', jsonb_build_object('day', day::date), day + interval '9 hours'
    FROM rk_apikeys.keys, generate_series(current_date - 3, current_date - 2, '1 day') day
    WHERE tenant = 'acme' AND status = 'revoked' AND name IN ('HubSpot Sync – US', 'Status Page – Reports');
