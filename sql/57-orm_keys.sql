-- The view for tools that map objects to rows.

CREATE VIEW rk_apikeys.orm_keys WITH (security_invoker = true) AS
  SELECT * FROM rk_apikeys.keys;
ALTER VIEW rk_apikeys.orm_keys ALTER tenant SET DEFAULT rk_apikeys.current_tenant(),
  ALTER description SET DEFAULT '', ALTER environment SET DEFAULT rk_apikeys._default_environment(),
  ALTER scopes SET DEFAULT '{}', ALTER metadata SET DEFAULT '{}', ALTER enabled SET DEFAULT true;
COMMENT ON VIEW rk_apikeys.orm_keys IS
  'The view keys for tools that map objects to rows. INSERT and UPDATE take every column. In an INSERT, NULL stands for the default. What is sent for a column that the database computes does not count. A value that cannot be given or changed is an error that names the column.';

CREATE FUNCTION rk_apikeys._orm_keys() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_orm_keys';
COMMENT ON FUNCTION rk_apikeys._orm_keys() IS
  'Private: writes a row of orm_keys, as the caller.';
CREATE TRIGGER orm_keys_write INSTEAD OF INSERT OR UPDATE OR DELETE ON rk_apikeys.orm_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._orm_keys();
COMMENT ON TRIGGER orm_keys_write ON rk_apikeys.orm_keys IS 'Changes and deletes keys, and inserts what COPY sends, as the caller.';
-- A rule, because a trigger would insert row by row. COPY comes to the trigger.
-- A tool sets created_at by its own clock, so a time within a day counts as none.
-- VALUES makes an expression for created_at run once.
CREATE RULE orm_keys_insert AS ON INSERT TO rk_apikeys.orm_keys DO INSTEAD
  INSERT INTO rk_apikeys.keys (key_id, tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window,
      metadata, enabled, expires_at, replaces, grace_until, revoked_at, revoked_reason, created_by, parent, owner,
      created_by_user, created_at)
    VALUES (NEW.key_id, NEW.tenant, NEW.name, NEW.description, NEW.environment, NEW.scopes, NEW.allowed_cidrs,
      NEW.rate_limit, NEW.rate_window, NEW.metadata, NEW.enabled, NEW.expires_at, NEW.replaces,
      NEW.grace_until, NEW.revoked_at, NEW.revoked_reason, NEW.created_by, NEW.parent, NEW.owner,
      NEW.created_by_user,
      (SELECT at FROM (VALUES (NEW.created_at)) sent(at)
        WHERE at NOT BETWEEN now() - interval '24 hours' AND now() + interval '24 hours'))
    RETURNING key_id, tenant, name, description, environment, masked_key, status, enabled, scopes, allowed_cidrs,
      rate_limit, rate_window, metadata, expires_at, expires_in, last_used_at, use_count, replaces,
      grace_until, revoked_at, revoked_reason, created_at, created_by, updated_at, updated_by, secret, parent,
      last_used_addr, family, owner, created_by_user, updated_by_user;
COMMENT ON RULE orm_keys_insert ON rk_apikeys.orm_keys IS 'Inserts into the view keys.';
