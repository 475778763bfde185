\echo Use "ALTER EXTENSION rk_apikeys UPDATE TO '0.2'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- The lists of a tenant, by use and by day.
CREATE INDEX key_usage_tenant ON rk_apikeys.key_usage (tenant, key_id);
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'A tenant''s lists, by use.';
CREATE INDEX key_usage_daily_tenant ON rk_apikeys.key_usage_daily (tenant, day);
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'A tenant''s days.';
