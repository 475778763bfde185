-- The whole access policy. The update script ends with it too.

-- Nobody but the owner has a right to an object of the extension, except the
-- rights below. ALTER DEFAULT PRIVILEGES may have given or taken others.
DO $$
DECLARE
  object record;
  whom text;
BEGIN
  FOR object IN
    WITH member AS (
      SELECT d.classid, d.objid
        FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
        WHERE d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
          AND d.deptype = 'e' AND e.extname = 'rk_apikeys'
    ), owned AS (
      SELECT 'SCHEMA' AS kind, objid, pg_catalog.quote_ident(nspname) AS name, nspowner AS owner,
          coalesce(nspacl, pg_catalog.acldefault('n', nspowner)) AS acl
        FROM member JOIN pg_catalog.pg_namespace n
          ON classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND objid = n.oid
      UNION ALL
      SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, objid, c.oid::pg_catalog.regclass::text,
          relowner, relacl
        FROM member JOIN pg_catalog.pg_class c
          ON classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objid = c.oid
        WHERE relkind IN ('r', 'v', 'S')
      UNION ALL
      SELECT 'ROUTINE', objid, p.oid::pg_catalog.regprocedure::text, proowner,
          coalesce(proacl, pg_catalog.acldefault('f', proowner))
        FROM member JOIN pg_catalog.pg_proc p
          ON classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND objid = p.oid
      UNION ALL
      SELECT 'TYPE', objid, t.oid::pg_catalog.regtype::text, typowner,
          coalesce(typacl, pg_catalog.acldefault('T', typowner))
        FROM member JOIN pg_catalog.pg_type t
          ON classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND objid = t.oid
          JOIN pg_catalog.pg_class c ON c.oid = typrelid
        WHERE relkind = 'c'
    )
    SELECT kind, name, owner, ARRAY(
        SELECT grantee FROM pg_catalog.aclexplode(acl)
        UNION SELECT grantee FROM pg_catalog.pg_attribute, pg_catalog.aclexplode(attacl)
          WHERE kind = 'TABLE' AND attrelid = objid) AS grantees
      FROM owned
  LOOP
    FOR whom IN
      SELECT CASE g WHEN 0 THEN 'PUBLIC' ELSE g::pg_catalog.regrole::text END
        FROM pg_catalog.unnest(object.grantees) g
    LOOP
      EXECUTE pg_catalog.format('REVOKE ALL ON %s %s FROM %s CASCADE', object.kind, object.name, whom);
    END LOOP;
    EXECUTE pg_catalog.format('GRANT ALL ON %s %s TO %s', object.kind, object.name,
      object.owner::pg_catalog.regrole);
  END LOOP;
END $$;

GRANT USAGE ON SCHEMA rk_apikeys TO PUBLIC;
GRANT USAGE ON TYPE rk_apikeys.verdict, rk_apikeys.new_key, rk_apikeys.listed_key TO PUBLIC;

-- Any role: tokens as text, and the session's tenant and principal.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.generate_token(text, text), rk_apikeys.is_well_formed(text), rk_apikeys.mask(text),
  rk_apikeys.hash_token(text), rk_apikeys.digest_equal(bytea, bytea),
  rk_apikeys.find_tokens(text), rk_apikeys.redact(text), rk_apikeys.seal(text, text),
  rk_apikeys.current_tenant(), rk_apikeys.current_end_user(), rk_apikeys.current_key_id(), rk_apikeys.current_key_tenant(),
  rk_apikeys.current_key_environment(), rk_apikeys.current_key_owner(), rk_apikeys.current_key_family(),
  rk_apikeys.current_scopes(), rk_apikeys.has_scope(text),
  rk_apikeys.client_addr(text), rk_apikeys.http_response(rk_apikeys.verdict, text)
  TO PUBLIC;

-- A backend: verify tokens, and revoke a leaked token.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.verify(text), rk_apikeys.verify_key(text, text, inet, integer, text, text[], text),
  rk_apikeys.authenticate(text, text, inet, integer, text, text[], text, boolean),
  rk_apikeys.revoke_token(text, text)
  TO rk_apikeys_verifier, rk_apikeys_admin;

-- Roles that read: masked keys, usage, events.
GRANT SELECT ON rk_apikeys.keys, rk_apikeys.active_keys, rk_apikeys.expiring_keys,
  rk_apikeys.stale_keys, rk_apikeys.key_activity, rk_apikeys.orm_keys,
  rk_apikeys.key_usage, rk_apikeys.key_usage_daily, rk_apikeys.key_events,
  rk_apikeys.policies, rk_apikeys.noncompliant_keys, rk_apikeys.limits, rk_apikeys.limit_usage,
  rk_apikeys.limit_status, rk_apikeys._live_keys
  TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
GRANT SELECT (key_id, tenant, name, description, prefix, environment, scopes, allowed_cidrs,
    rate_limit, rate_window, metadata, enabled, expires_at, replaces, grace_until, revoked_at,
    revoked_reason, created_at, created_by, updated_at, updated_by, hint,
    parent, start, family, owner, created_by_user, updated_by_user, limits_reset_at)
  ON rk_apikeys.api_keys TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION
  rk_apikeys.list_keys(text, text, text, text, boolean, integer, text, text, text, text, jsonb, text[], text[]),
  rk_apikeys.count_keys(text, text, text, text, text, jsonb, text[], text[]),
  rk_apikeys._conditions(text, text, text, text, text, jsonb, text[], text[]), rk_apikeys.reveal(text),
  rk_apikeys._status(timestamptz, boolean, timestamptz, timestamptz),
  rk_apikeys._setting_interval(text), rk_apikeys._may_manage(), rk_apikeys._no_principal(),
  rk_apikeys._principal_environment(), rk_apikeys._sees_key(text),
  rk_apikeys._live_last_used_at(text), rk_apikeys._live_last_used_addr(text),
  rk_apikeys._live_use_count(text), rk_apikeys._live_usage(), rk_apikeys._unrecorded_use_at(text),
  rk_apikeys._limit_state(text, uuid, text, bigint, interval, text, timestamptz),
  rk_apikeys._searched_key_id(text), rk_apikeys.events_since(text, integer),
  rk_apikeys._page(text, text, text, text, text, text, text, boolean, text, text, jsonb, text[], text[])
  TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;

-- Roles that manage keys. Policies decide which keys. INSERT is granted on the
-- columns that an insert refuses too, because the refusal names the column.
GRANT INSERT, UPDATE ON rk_apikeys.orm_keys TO rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
GRANT INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window,
    metadata, enabled, expires_at, replaces, owner, key_id, grace_until, revoked_at, revoked_reason,
    created_at, created_by, updated_at, updated_by, parent, created_by_user, updated_by_user),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled,
    expires_at, grace_until, revoked_at, revoked_reason)
  ON rk_apikeys.keys TO rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
GRANT INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window,
    metadata, enabled, expires_at, replaces, owner, key_id, grace_until, revoked_at, revoked_reason,
    created_at, created_by, updated_at, updated_by, parent, created_by_user, updated_by_user),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled,
    expires_at, grace_until, revoked_at, revoked_reason)
  ON rk_apikeys.api_keys TO rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION
  rk_apikeys.create_key(text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text),
  rk_apikeys.rotate_key(text, interval, timestamptz), rk_apikeys.revoke_key(text, text, boolean),
  rk_apikeys._default_environment()
  TO rk_apikeys_manager, rk_apikeys_member, rk_apikeys_admin;
-- A member transfers no key, and ends a key only by a revocation: DELETE also
-- allows LOCK TABLE, and would hide a key from a cascade.
GRANT UPDATE (owner), DELETE ON rk_apikeys.keys TO rk_apikeys_manager, rk_apikeys_admin;
GRANT UPDATE (owner), DELETE ON rk_apikeys.api_keys TO rk_apikeys_manager, rk_apikeys_admin;
GRANT DELETE ON rk_apikeys.orm_keys TO rk_apikeys_manager, rk_apikeys_admin;

-- Roles of all tenants only, because counters of the whole server cover every
-- tenant.
GRANT SELECT ON rk_apikeys.stats, rk_apikeys.usage_senders, rk_apikeys.health,
  rk_apikeys.key_events_event_id_seq
  TO rk_apikeys_auditor, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION rk_apikeys._server_stats(), rk_apikeys._health(), rk_apikeys._missing_peppers()
  TO rk_apikeys_auditor, rk_apikeys_admin;

-- Administrators only: policies and limits. They bind the keys of every tenant.
GRANT INSERT (tenant, environment, max_lifetime, max_idle, max_keys, allowed_scopes, require_cidrs, require_owner),
  UPDATE (tenant, environment, max_lifetime, max_idle, max_keys, allowed_scopes, require_cidrs, require_owner),
  DELETE
  ON rk_apikeys.policies TO rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION rk_apikeys.disable_idle_keys() TO rk_apikeys_admin;
-- Limits: what a limit binds may change, except its tenant.
GRANT INSERT (tenant, name, owner, environment, family, per_key, units, rate_window, period, always),
  UPDATE (name, owner, environment, family, per_key, units, rate_window, period, always),
  DELETE
  ON rk_apikeys.limits TO rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION rk_apikeys.reset_limit(uuid, text) TO rk_apikeys_admin;

-- Administrators only, because these functions write with the owner's rights.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer,
    interval, jsonb, text, text),
  rk_apikeys.purge_keys(interval), rk_apikeys.purge_usage(interval, text),
  rk_apikeys.purge_events(interval, text), rk_apikeys.flush_usage(),
  rk_apikeys.erase_tenant(text), rk_apikeys.notice_expiring(interval),
  rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[],
    bigint[], bigint[], date[], uuid[])
  TO rk_apikeys_admin;
GRANT EXECUTE ON PROCEDURE rk_apikeys.purge(interval, interval, interval) TO rk_apikeys_admin;

-- Nobody: the functions of the triggers.
REVOKE ALL ON FUNCTION
  rk_apikeys._keys_make(), rk_apikeys._keys_guard(), rk_apikeys._keys_settle(),
  rk_apikeys._keys_settle_imported(), rk_apikeys._keys_parent(), rk_apikeys._keys_audit_insert(),
  rk_apikeys._keys_audit_update(), rk_apikeys._keys_audit_delete(), rk_apikeys._orm_keys(),
  rk_apikeys._keys_max_keys(), rk_apikeys._policies_audit(), rk_apikeys._limits_guard(),
  rk_apikeys._limits_settle(), rk_apikeys._limits_max(), rk_apikeys._limits_audit(),
  rk_apikeys._events_place(), rk_apikeys._history()
  FROM PUBLIC;
