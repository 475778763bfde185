-- The session's tenant and principal, and the settings that SQL reads.

CREATE FUNCTION rk_apikeys.current_tenant() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_tenant';
COMMENT ON FUNCTION rk_apikeys.current_tenant() IS
  'The tenant whose keys this session manages: the principal''s tenant, else the setting rk_apikeys.tenant, else the name of the current role. NULL if the principal''s key is no longer good. Only for rk_apikeys'' own tables. Policies on other tables must not rest on it.';

CREATE FUNCTION rk_apikeys.current_end_user() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_end_user';
COMMENT ON FUNCTION rk_apikeys.current_end_user() IS
  'The person of the product for whom this session acts: the setting rk_apikeys.end_user. NULL if it is empty. Policies on other tables must not rest on it.';

-- The principal. These functions read the key anew at each call. They never fall
-- back to a role or a setting, because policies on the users' tables rest on
-- them.
CREATE FUNCTION rk_apikeys.current_key_id() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_id';
COMMENT ON FUNCTION rk_apikeys.current_key_id() IS
  'The id of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_tenant() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_tenant';
COMMENT ON FUNCTION rk_apikeys.current_key_tenant() IS
  'The tenant of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_environment';
COMMENT ON FUNCTION rk_apikeys.current_key_environment() IS
  'The environment of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_owner() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_owner';
COMMENT ON FUNCTION rk_apikeys.current_key_owner() IS
  'The owner of the key that this transaction has authenticated as. NULL if the key has no owner, without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_family() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_family';
COMMENT ON FUNCTION rk_apikeys.current_key_family() IS
  'The family of the key that this transaction has authenticated as: the id of the first key of its chain of rotations. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_scopes() RETURNS text[]
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_scopes';
COMMENT ON FUNCTION rk_apikeys.current_scopes() IS
  'The scopes of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.has_scope(scope text) RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_has_scope';
COMMENT ON FUNCTION rk_apikeys.has_scope(text) IS
  'Whether the key that this transaction has authenticated as has the scope, by its own name, by a:* or by *. scope may be a list as in verify_key. False for what is no list, without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys._may_manage() RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_may_manage';
COMMENT ON FUNCTION rk_apikeys._may_manage() IS
  'Private: false if a principal is set that lacks the scope apikeys:manage or is no longer good.';

CREATE FUNCTION rk_apikeys._no_principal() RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_no_principal';
COMMENT ON FUNCTION rk_apikeys._no_principal() IS
  'Private: false if a principal is set, even one that is no longer good. While it is false, no role reaches other tenants.';

CREATE FUNCTION rk_apikeys._principal_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_principal_environment';
COMMENT ON FUNCTION rk_apikeys._principal_environment() IS
  'Private: the environment of the principal''s key. NULL without a good principal.';

CREATE FUNCTION rk_apikeys._default_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_environment';
COMMENT ON FUNCTION rk_apikeys._default_environment() IS
  'Private: the setting rk_apikeys.default_environment.';

CREATE FUNCTION rk_apikeys._setting_interval(name text) RETURNS interval
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_interval';
COMMENT ON FUNCTION rk_apikeys._setting_interval(text) IS
  'Private: the value of the setting expiring_window, stale_after or max_lifetime. NULL if max_lifetime is 0.';

