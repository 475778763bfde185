-- What a session is, and the settings as SQL reads them.

CREATE FUNCTION rk_apikeys.current_tenant() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_tenant';
COMMENT ON FUNCTION rk_apikeys.current_tenant() IS
  'The tenant whose keys this session manages: the setting rk_apikeys.tenant, or else the name of the current role. For rk_apikeys'' own tables: policies on other tables must not rest on it.';

CREATE FUNCTION rk_apikeys._default_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_environment';
COMMENT ON FUNCTION rk_apikeys._default_environment() IS
  'Private: the setting rk_apikeys.default_environment.';

CREATE FUNCTION rk_apikeys._setting_interval(name text) RETURNS interval
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_interval';
COMMENT ON FUNCTION rk_apikeys._setting_interval(text) IS
  'Private: the setting expiring_window, stale_after or max_lifetime; NULL if max_lifetime is 0.';

