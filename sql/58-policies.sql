-- Policies: which keys an administrator allows, by tenant and environment.
CREATE TABLE rk_apikeys.policies (
  -- The C code (src/key/policy.c) relies on this order: add new columns at the end.
  tenant text,
  environment text,
  max_lifetime interval,
  max_idle interval,
  max_keys integer,
  allowed_scopes text[],
  require_cidrs boolean NOT NULL DEFAULT false,
  require_owner boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT policies_tenant_environment_key UNIQUE NULLS NOT DISTINCT (tenant, environment),
  CONSTRAINT policies_tenant_check CHECK (char_length(tenant) BETWEEN 1 AND 200),
  CONSTRAINT policies_environment_check CHECK (environment ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT policies_max_lifetime_check CHECK (max_lifetime > '0' AND max_lifetime <= '1000 years'),
  CONSTRAINT policies_max_idle_check CHECK (max_idle > '0' AND max_idle <= '1000 years'),
  CONSTRAINT policies_max_keys_check CHECK (max_keys >= 0),
  CONSTRAINT policies_allowed_scopes_check CHECK (
    cardinality(allowed_scopes) >= 1 AND cardinality(allowed_scopes) <= 64 AND array_position(allowed_scopes, NULL) IS NULL
    AND cardinality(string_to_array(array_to_string(allowed_scopes, ' '), ' ')) = cardinality(allowed_scopes)
    AND array_to_string(allowed_scopes, ' ') ~ '^([a-z0-9_*.-]+(:[a-z0-9_*.-]+)*( |$))*$')
);
-- The unique columns may be NULL, so they cannot identify a row to a subscriber.
ALTER TABLE rk_apikeys.policies REPLICA IDENTITY FULL;
-- No statistics of what is written for one tenant: see api_keys.
ALTER TABLE rk_apikeys.policies ALTER tenant SET STATISTICS 0, ALTER environment SET STATISTICS 0,
  ALTER allowed_scopes SET STATISTICS 0;
COMMENT ON TABLE rk_apikeys.policies IS 'Which keys are allowed. All rows that match a key''s tenant and environment bind the key. A change of a policy changes no key.';
COMMENT ON COLUMN rk_apikeys.policies.tenant IS 'The tenant whose keys the policy binds. NULL: every tenant.';
COMMENT ON COLUMN rk_apikeys.policies.environment IS 'The environment whose keys the policy binds. NULL: every environment.';
COMMENT ON COLUMN rk_apikeys.policies.max_lifetime IS 'The longest time from created_at to expires_at of a key. NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.policies.max_idle IS 'How long a key may be unused before disable_idle_keys disables it. NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.policies.max_keys IS 'The most keys of one tenant, in the policy''s environment, that are not revoked, rotated or expired. NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.policies.allowed_scopes IS 'The scopes that a key may have: each of its scopes is granted by one of these. NULL: all scopes.';
COMMENT ON COLUMN rk_apikeys.policies.require_cidrs IS 'Whether a key must have allowed_cidrs.';
COMMENT ON COLUMN rk_apikeys.policies.require_owner IS 'Whether a key must have an owner.';
COMMENT ON COLUMN rk_apikeys.policies.created_at IS 'The time when the policy was made. It cannot be given.';

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.policies', '');
ALTER TABLE rk_apikeys.policies ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON rk_apikeys.policies TO rk_apikeys_admin
  USING ((SELECT rk_apikeys._no_principal()));
CREATE POLICY all_tenants_read ON rk_apikeys.policies FOR SELECT TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant IS NULL OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.policies FOR SELECT TO rk_apikeys_manager, rk_apikeys_member
  USING (tenant IS NULL OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY principal ON rk_apikeys.policies AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment IS NULL OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY all_tenants ON rk_apikeys.policies IS 'An admin writes policies, but not as a principal.';
COMMENT ON POLICY all_tenants_read ON rk_apikeys.policies IS 'Admins and auditors read every policy.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.policies IS 'A manager or member reads the policies that bind its own tenant.';
COMMENT ON POLICY principal ON rk_apikeys.policies IS 'A principal sees only policies that bind its environment, and only if it has the scope apikeys:manage.';

CREATE FUNCTION rk_apikeys._policies_audit() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_policies_audit';
COMMENT ON FUNCTION rk_apikeys._policies_audit() IS
  'Private: writes the events policy_created, policy_changed and policy_deleted.';
CREATE TRIGGER policies_audit_insert AFTER INSERT ON rk_apikeys.policies
  REFERENCING NEW TABLE AS new_policies
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._policies_audit();
CREATE TRIGGER policies_audit_update AFTER UPDATE ON rk_apikeys.policies
  REFERENCING OLD TABLE AS old_policies NEW TABLE AS new_policies
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._policies_audit();
CREATE TRIGGER policies_audit_delete AFTER DELETE ON rk_apikeys.policies
  REFERENCING OLD TABLE AS old_policies
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._policies_audit();
COMMENT ON TRIGGER policies_audit_insert ON rk_apikeys.policies IS 'Writes the events of new policies.';
COMMENT ON TRIGGER policies_audit_update ON rk_apikeys.policies IS 'Writes the events of changed policies.';
COMMENT ON TRIGGER policies_audit_delete ON rk_apikeys.policies IS 'Writes the events of deleted policies.';

CREATE FUNCTION rk_apikeys._keys_max_keys() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_max_keys';
COMMENT ON FUNCTION rk_apikeys._keys_max_keys() IS
  'Private: refuses a statement that gives a tenant more keys than max_keys of a policy.';
CREATE TRIGGER api_keys_max_keys_insert AFTER INSERT ON rk_apikeys.api_keys
  REFERENCING NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_max_keys();
CREATE TRIGGER api_keys_max_keys_update AFTER UPDATE ON rk_apikeys.api_keys
  REFERENCING OLD TABLE AS old_keys NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_max_keys();
COMMENT ON TRIGGER api_keys_max_keys_insert ON rk_apikeys.api_keys IS
  'Refuses new keys beyond max_keys of a policy.';
COMMENT ON TRIGGER api_keys_max_keys_update ON rk_apikeys.api_keys IS
  'Refuses changes that give a tenant keys beyond max_keys of a policy.';

-- Without policies the conditions on them are checked once, and no key is read.
-- Of max_keys the newest keys are too many.
CREATE VIEW rk_apikeys.noncompliant_keys WITH (security_invoker = true) AS
  SELECT k.key_id, k.tenant, k.name, k.environment, k.masked_key, k.status, k.owner, r.rule, r.allowed
  FROM rk_apikeys.keys k
    LEFT JOIN (
      SELECT o.key_id,
        row_number() OVER (PARTITION BY o.tenant ORDER BY o.created_at, o.key_id) AS of_tenant,
        row_number() OVER (PARTITION BY o.tenant, o.environment ORDER BY o.created_at, o.key_id) AS of_environment
      FROM rk_apikeys.api_keys o
      WHERE o.revoked_at IS NULL AND o.grace_until IS NULL
        AND (o.expires_at IS NULL OR o.expires_at > statement_timestamp())
        AND EXISTS (SELECT FROM rk_apikeys.policies WHERE max_keys IS NOT NULL)
    ) n ON n.key_id = k.key_id
    CROSS JOIN LATERAL (
      SELECT min(k.created_at + p.max_lifetime) AS latest_end, min(p.max_idle) AS max_idle,
        max(statement_timestamp() - p.max_idle) AS idle_since,
        min(p.max_keys) FILTER (WHERE p.environment IS NULL) AS keys_of_tenant,
        min(p.max_keys) FILTER (WHERE p.environment IS NOT NULL) AS keys_of_environment,
        -- Each list has to grant each scope, as has_scope does.
        (array_agg(array_to_string(p.allowed_scopes, ' ')) FILTER (WHERE EXISTS (
          SELECT FROM unnest(k.scopes) s WHERE NOT EXISTS (
            SELECT FROM unnest(p.allowed_scopes) a
            WHERE a IN (s, '*') OR (right(a, 2) = ':*' AND starts_with(s, left(a, -1)))))
          AND p.allowed_scopes IS NOT NULL))[1] AS scopes,
        bool_or(p.require_cidrs) AS require_cidrs, bool_or(p.require_owner) AS require_owner
      FROM rk_apikeys.policies p
      WHERE (p.tenant IS NULL OR p.tenant = k.tenant)
        AND (p.environment IS NULL OR p.environment = k.environment)
    ) p
    CROSS JOIN LATERAL (VALUES
      (text 'max_lifetime', coalesce(k.expires_at, 'infinity') > p.latest_end, p.latest_end::text),
      ('max_idle', k.enabled AND p.max_idle IS NOT NULL
        AND greatest(k.created_at, k.last_used_at) < p.idle_since
        AND (rk_apikeys._unrecorded_use_at(k.key_id) < p.idle_since) IS NOT FALSE, p.max_idle::text),
      ('max_keys', n.of_tenant > p.keys_of_tenant OR n.of_environment > p.keys_of_environment,
        (CASE WHEN n.of_tenant > p.keys_of_tenant THEN p.keys_of_tenant ELSE p.keys_of_environment END)::text),
      ('allowed_scopes', p.scopes IS NOT NULL, p.scopes),
      ('require_cidrs', p.require_cidrs AND k.allowed_cidrs IS NULL, NULL),
      ('require_owner', p.require_owner AND k.owner IS NULL, NULL)) r(rule, broken, allowed)
  WHERE EXISTS (SELECT FROM rk_apikeys.policies)
    AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
    AND (k.grace_until IS NULL OR k.grace_until > statement_timestamp())
    AND r.broken;
COMMENT ON VIEW rk_apikeys.noncompliant_keys IS
  'The keys that break a policy now: one row per key and rule. Keys that are revoked, expired or out of grace are left out.';
COMMENT ON COLUMN rk_apikeys.noncompliant_keys.rule IS
  'max_lifetime, max_idle, max_keys (the newest keys are too many), allowed_scopes, require_cidrs or require_owner.';
COMMENT ON COLUMN rk_apikeys.noncompliant_keys.allowed IS
  'What the strictest policy allows: the latest end, the idle time, the number of keys, the scopes.';

CREATE FUNCTION rk_apikeys.disable_idle_keys() RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'rk_apikeys_disable_idle_keys';
COMMENT ON FUNCTION rk_apikeys.disable_idle_keys() IS
  'Disables the keys that nobody has used for max_idle of a policy. For a key that was never used, the time counts from its creation. Skips a key that another transaction has locked. Returns the number of keys. Errors: 55000 if track_usage is off.';
