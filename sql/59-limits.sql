-- Limits: what a tenant's keys may use, by rate or by calendar period.
CREATE TABLE rk_apikeys.limits (
  -- The C code (src/key/limit.c) relies on this order: add new columns at the end.
  limit_id uuid NOT NULL DEFAULT gen_random_uuid(),
  tenant text NOT NULL,
  name text NOT NULL,
  owner text,
  environment text,
  family text COLLATE "C",
  per_key boolean NOT NULL DEFAULT false,
  units bigint NOT NULL,
  rate_window interval,
  period text,
  always boolean NOT NULL DEFAULT true,
  reset_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT limits_pkey PRIMARY KEY (limit_id),
  CONSTRAINT limits_tenant_check CHECK (char_length(tenant) BETWEEN 1 AND 200),
  -- rate_limit is the name of a key's own limit in verdicts.
  CONSTRAINT limits_name_check CHECK (name ~ '^[a-z][a-z0-9_:.-]{0,62}$' AND name <> 'rate_limit'),
  CONSTRAINT limits_owner_check CHECK (char_length(owner) BETWEEN 1 AND 200),
  CONSTRAINT limits_environment_check CHECK (environment ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT limits_family_check CHECK (family ~ '^[0-9A-Za-z]{12}$'),
  CONSTRAINT limits_units_check CHECK (units > 0 AND units <= CASE WHEN period IS NULL THEN 2147483647 ELSE 1000000000000000 END),
  CONSTRAINT limits_kind_check CHECK ((rate_window IS NULL) <> (period IS NULL)),
  CONSTRAINT limits_rate_window_check CHECK (rate_window > '0' AND rate_window <= '366 days'),
  CONSTRAINT limits_period_check CHECK (period IN ('day', 'week', 'month', 'year', 'total'))
);
-- No statistics of what is written for one tenant: see api_keys.
ALTER TABLE rk_apikeys.limits ALTER limit_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER name SET STATISTICS 0, ALTER owner SET STATISTICS 0, ALTER environment SET STATISTICS 0,
  ALTER family SET STATISTICS 0, ALTER period SET STATISTICS 0;
CREATE INDEX limits_tenant ON rk_apikeys.limits (tenant, name);
CREATE INDEX limits_name ON rk_apikeys.limits (name);
COMMENT ON TABLE rk_apikeys.limits IS 'What the keys of a tenant may use. A limit binds the keys that match each of its columns that is not NULL. All limits that bind a key must pass.';
COMMENT ON COLUMN rk_apikeys.limits.limit_id IS 'The id of the limit.';
COMMENT ON COLUMN rk_apikeys.limits.tenant IS 'The tenant whose keys the limit binds.';
COMMENT ON COLUMN rk_apikeys.limits.name IS 'The name of the limit, in verdicts and in the argument "limits" of verify_key: 1 to 63 characters. Several limits may have one name.';
COMMENT ON COLUMN rk_apikeys.limits.owner IS 'The owner whose keys the limit binds. NULL: every owner, and keys without one.';
COMMENT ON COLUMN rk_apikeys.limits.environment IS 'The environment whose keys the limit binds. NULL: every environment.';
COMMENT ON COLUMN rk_apikeys.limits.family IS 'The family of keys that the limit binds. NULL: every family.';
COMMENT ON COLUMN rk_apikeys.limits.per_key IS 'Whether each family of keys has the units for itself. If not, all keys that the limit binds share them.';
COMMENT ON COLUMN rk_apikeys.limits.units IS 'The units of cost that are allowed per rate_window or per period.';
COMMENT ON COLUMN rk_apikeys.limits.rate_window IS 'The time to which a rate limit applies. NULL: the limit is a quota.';
COMMENT ON COLUMN rk_apikeys.limits.period IS 'The calendar period, in UTC, to which a quota applies: day, week (from Monday), month, year or total (without end). NULL: the limit is a rate limit.';
COMMENT ON COLUMN rk_apikeys.limits.always IS 'Whether every verify takes from the limit. If not, only a verify does that names the limit.';
COMMENT ON COLUMN rk_apikeys.limits.reset_at IS 'The time of the last reset_limit. NULL: there was none.';
COMMENT ON COLUMN rk_apikeys.limits.created_at IS 'The time when the limit was made. It cannot be given.';
COMMENT ON INDEX rk_apikeys.limits_tenant IS 'verify finds the limits of a tenant by this index.';
COMMENT ON INDEX rk_apikeys.limits_name IS 'verify finds out by this index whether a name is known.';

-- The units that quotas have used. A flush writes them.
CREATE TABLE rk_apikeys.limit_usage (
  limit_id uuid NOT NULL,
  family text COLLATE "C" NOT NULL,
  period_start timestamptz NOT NULL,
  units bigint NOT NULL,
  tenant text NOT NULL,
  CONSTRAINT limit_usage_pkey PRIMARY KEY (limit_id, family, period_start),
  CONSTRAINT limit_usage_limit_id_fkey FOREIGN KEY (limit_id) REFERENCES rk_apikeys.limits ON DELETE CASCADE
) WITH (fillfactor = 70);
ALTER TABLE rk_apikeys.limit_usage ALTER limit_id SET STATISTICS 0, ALTER family SET STATISTICS 0,
  ALTER tenant SET STATISTICS 0;
COMMENT ON TABLE rk_apikeys.limit_usage IS 'The units that a quota has used, one row per period and, with per_key, per family of keys. The view limit_status has the units of this moment.';
COMMENT ON COLUMN rk_apikeys.limit_usage.limit_id IS 'The quota.';
COMMENT ON COLUMN rk_apikeys.limit_usage.family IS 'The family of keys that used the units. Empty: the keys share them.';
COMMENT ON COLUMN rk_apikeys.limit_usage.period_start IS 'When the period began: the begin of the calendar period, or the last reset in it. -infinity: of total.';
COMMENT ON COLUMN rk_apikeys.limit_usage.units IS 'The units used.';
COMMENT ON COLUMN rk_apikeys.limit_usage.tenant IS 'The tenant of the quota.';

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.limits', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.limit_usage', '');

ALTER TABLE rk_apikeys.limits ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON rk_apikeys.limits TO rk_apikeys_admin
  USING ((SELECT rk_apikeys._no_principal()));
CREATE POLICY all_tenants_read ON rk_apikeys.limits FOR SELECT TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.limits FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
-- A member sees no other keys.
CREATE POLICY own_keys_read ON rk_apikeys.limits FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.tenant = limits.tenant
      AND (limits.owner IS NULL OR k.owner = limits.owner)
      AND (limits.environment IS NULL OR k.environment = limits.environment)
      AND (limits.family IS NULL OR coalesce(k.family, k.key_id) = limits.family)));
CREATE POLICY principal ON rk_apikeys.limits AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment IS NULL OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY all_tenants ON rk_apikeys.limits IS 'An admin writes limits, but not as a principal.';
COMMENT ON POLICY all_tenants_read ON rk_apikeys.limits IS 'Admins and auditors read every limit.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.limits IS 'A manager reads the limits of its own tenant.';
COMMENT ON POLICY own_keys_read ON rk_apikeys.limits IS 'A member reads the limits that bind its end user''s keys.';
COMMENT ON POLICY principal ON rk_apikeys.limits IS 'A principal sees only limits that bind its environment, and only if it has the scope apikeys:manage.';

ALTER TABLE rk_apikeys.limit_usage ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.limit_usage FOR SELECT TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.limit_usage FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_keys_read ON rk_apikeys.limit_usage FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND limit_id IN (SELECT l.limit_id FROM rk_apikeys.limits l)
    AND (family = '' OR family IN (SELECT coalesce(k.family, k.key_id) FROM rk_apikeys.api_keys k)));
CREATE POLICY principal ON rk_apikeys.limit_usage AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR (limit_id IN (SELECT l.limit_id FROM rk_apikeys.limits l)
      AND (family = '' OR family IN (SELECT coalesce(k.family, k.key_id) FROM rk_apikeys.api_keys k)))));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.limit_usage IS 'Admins and auditors read what every quota has used.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.limit_usage IS 'A manager reads what the quotas of its own tenant have used.';
COMMENT ON POLICY own_keys_read ON rk_apikeys.limit_usage IS 'A member reads what quotas that it sees have used: shared units, and units of keys that it sees.';
COMMENT ON POLICY principal ON rk_apikeys.limit_usage IS 'A principal reads what quotas that it sees have used: shared units, and units of keys that it sees.';

CREATE FUNCTION rk_apikeys._limits_guard() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_limits_guard';
COMMENT ON FUNCTION rk_apikeys._limits_guard() IS
  'Private: refuses what a role may not give or change of a limit, and masks tokens.';
CREATE TRIGGER limits_guard BEFORE INSERT OR UPDATE ON rk_apikeys.limits
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._limits_guard();
COMMENT ON TRIGGER limits_guard ON rk_apikeys.limits IS 'Refuses changes that are not allowed.';

CREATE FUNCTION rk_apikeys._limits_max() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_limits_max';
COMMENT ON FUNCTION rk_apikeys._limits_max() IS 'Private: refuses more than 100 limits of a tenant.';
CREATE TRIGGER limits_max AFTER INSERT ON rk_apikeys.limits
  REFERENCING NEW TABLE AS new_limits
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._limits_max();
COMMENT ON TRIGGER limits_max ON rk_apikeys.limits IS 'Refuses more than 100 limits of a tenant.';

CREATE FUNCTION rk_apikeys._limits_audit() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_limits_audit';
COMMENT ON FUNCTION rk_apikeys._limits_audit() IS
  'Private: writes the events limit_created, limit_changed and limit_deleted.';
CREATE TRIGGER limits_audit_insert AFTER INSERT ON rk_apikeys.limits
  REFERENCING NEW TABLE AS new_limits
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._limits_audit();
CREATE TRIGGER limits_audit_update AFTER UPDATE ON rk_apikeys.limits
  REFERENCING OLD TABLE AS old_limits NEW TABLE AS new_limits
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._limits_audit();
CREATE TRIGGER limits_audit_delete AFTER DELETE ON rk_apikeys.limits
  REFERENCING OLD TABLE AS old_limits
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._limits_audit();
COMMENT ON TRIGGER limits_audit_insert ON rk_apikeys.limits IS 'Writes the events of new limits.';
COMMENT ON TRIGGER limits_audit_update ON rk_apikeys.limits IS 'Writes the events of changed limits.';
COMMENT ON TRIGGER limits_audit_delete ON rk_apikeys.limits IS 'Writes the events of deleted limits.';

-- ALWAYS, because sessions need the message of a change that replication applies
-- too.
CREATE FUNCTION rk_apikeys._limits_settle() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_limits_settle';
COMMENT ON FUNCTION rk_apikeys._limits_settle() IS
  'Private: sends every session an invalidation message when a limit changes.';
CREATE TRIGGER limits_settle AFTER INSERT OR UPDATE OR DELETE ON rk_apikeys.limits
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._limits_settle();
CREATE TRIGGER limits_settle_truncate AFTER TRUNCATE ON rk_apikeys.limits
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._limits_settle();
ALTER TABLE rk_apikeys.limits ENABLE ALWAYS TRIGGER limits_settle, ENABLE ALWAYS TRIGGER limits_settle_truncate;
COMMENT ON TRIGGER limits_settle ON rk_apikeys.limits IS
  'Sends every session an invalidation message when a limit changes.';
COMMENT ON TRIGGER limits_settle_truncate ON rk_apikeys.limits IS
  'Sends every session an invalidation message when all limits are deleted.';

CREATE FUNCTION rk_apikeys._limit_state(tenant text, limit_id uuid, family text, units bigint,
    rate_window interval, period text, reset_at timestamptz,
    OUT used bigint, OUT remaining bigint, OUT resets_at timestamptz) RETURNS record
  LANGUAGE C VOLATILE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'rk_apikeys_limit_state';
COMMENT ON FUNCTION rk_apikeys._limit_state(text, uuid, text, bigint, interval, text, timestamptz) IS
  'Private: what a limit has now, by its row, for the view limit_status. NULLs if the role may not see the limit.';

-- Two parts, because the first key of a family is found by its key id.
CREATE VIEW rk_apikeys._live_keys WITH (security_invoker = true) AS
  SELECT key_id AS family, tenant, owner, environment, rate_limit, rate_window, grace_until, limits_reset_at
  FROM rk_apikeys.api_keys
  WHERE coalesce(family = key_id, true) AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > statement_timestamp())
    AND (grace_until IS NULL OR grace_until > statement_timestamp())
  UNION ALL
  SELECT family, tenant, owner, environment, rate_limit, rate_window, grace_until, limits_reset_at
  FROM rk_apikeys.api_keys
  WHERE family <> key_id AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > statement_timestamp())
    AND (grace_until IS NULL OR grace_until > statement_timestamp());
COMMENT ON VIEW rk_apikeys._live_keys IS
  'Private: the keys that are not revoked, expired or out of grace, by family, for the view limit_status.';

CREATE VIEW rk_apikeys.limit_status WITH (security_invoker = true) AS
  SELECT l.limit_id, l.tenant, l.name, l.owner, l.environment, f.family, l.per_key, l.units,
    l.rate_window, l.period, l.always, s.used, s.remaining, s.resets_at
  FROM rk_apikeys.limits l
    LEFT JOIN LATERAL (
      SELECT l.family, NULL::timestamptz AS reset_at WHERE NOT l.per_key
      UNION ALL
      SELECT k.family, max(k.limits_reset_at) FROM rk_apikeys._live_keys k
      WHERE l.per_key AND k.tenant = l.tenant
        AND (l.owner IS NULL OR k.owner = l.owner)
        AND (l.environment IS NULL OR k.environment = l.environment)
        AND (l.family IS NULL OR k.family = l.family)
      GROUP BY k.family
    ) f ON true
    CROSS JOIN LATERAL rk_apikeys._limit_state(l.tenant, l.limit_id, CASE WHEN l.per_key THEN f.family END,
      l.units, l.rate_window, l.period, greatest(l.reset_at, f.reset_at)) s
  UNION ALL
  -- The key that was not rotated, or is in grace for the longest time.
  SELECT NULL, k.tenant, 'rate_limit', k.owner, k.environment, k.family, true, k.rate_limit,
    k.rate_window, NULL, true, s.used, s.remaining, s.resets_at
  FROM (
      SELECT DISTINCT ON (tenant, family) * FROM rk_apikeys._live_keys
      WHERE rate_limit IS NOT NULL
      ORDER BY tenant, family, grace_until DESC NULLS FIRST
    ) k
    CROSS JOIN LATERAL rk_apikeys._limit_state(k.tenant, NULL, k.family, k.rate_limit, k.rate_window,
      NULL, k.limits_reset_at) s;
COMMENT ON VIEW rk_apikeys.limit_status IS
  'What is used and left of each limit now. Of a limit per_key: one row for each family of live keys that it binds. A family with a rate_limit of its own has a row too.';
COMMENT ON COLUMN rk_apikeys.limit_status.limit_id IS 'The id of the limit. NULL: a key''s own rate_limit.';
COMMENT ON COLUMN rk_apikeys.limit_status.family IS
  'With per_key, the family of keys that the row is of; NULL: the limit binds no live key. Otherwise as in limits.';
COMMENT ON COLUMN rk_apikeys.limit_status.used IS 'The units that are used or reserved now.';
COMMENT ON COLUMN rk_apikeys.limit_status.remaining IS 'The units that are left.';
COMMENT ON COLUMN rk_apikeys.limit_status.resets_at IS
  'When all units are available again: of a quota, the end of its period. NULL: never.';

CREATE FUNCTION rk_apikeys.reset_limit(limit_id uuid DEFAULT NULL, family text DEFAULT NULL) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_reset_limit';
COMMENT ON FUNCTION rk_apikeys.reset_limit(uuid, text) IS
  'Lets a limit, or the limits per key of a family, begin anew: what was used before no longer counts. A rollback undoes the reset. Returns whether there is such a limit or family. Errors: 22023 unless exactly one of both is given.';
