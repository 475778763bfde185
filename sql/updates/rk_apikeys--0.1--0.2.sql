\echo Use "ALTER EXTENSION rk_apikeys UPDATE TO '0.2'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- The lists of a tenant, by use and by day.
CREATE INDEX key_usage_tenant ON rk_apikeys.key_usage (tenant, key_id);
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'A tenant''s lists, by use.';
CREATE INDEX key_usage_daily_tenant ON rk_apikeys.key_usage_daily (tenant, day);
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'A tenant''s days.';

-- From PostgreSQL 17 on there is shared memory without preload.
COMMENT ON COLUMN rk_apikeys.key_usage.use_count IS 'Uses recorded: without shared memory, at most one per usage_resolution.';
COMMENT ON COLUMN rk_apikeys.key_usage.denied_count IS 'Genuine tokens refused; counted only in shared memory.';
COMMENT ON VIEW rk_apikeys.stats IS
  'One row: counters of this server since its start, over all databases; all but preloaded are NULL without shared memory.';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes what shared memory holds of this database''s keys to key_usage and key_usage_daily now; returns how many keys. 0 without shared memory, or if another flush is under way. Commit soon: other flushes wait their turn until then.';
