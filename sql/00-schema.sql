-- rk_apikeys, the install script. make joins it from the parts in sql/.
\echo Use "CREATE EXTENSION rk_apikeys CASCADE" to load this file. \quit

-- Other users may have made functions and operators in a schema of search_path
-- that match a call better than the server's own.
SET LOCAL search_path = pg_catalog, pg_temp;

-- This script makes the schema, and the control file does not, so that a schema
-- that exists already is an error: somebody may have put traps into it.
CREATE SCHEMA rk_apikeys;
COMMENT ON SCHEMA rk_apikeys IS
  'API keys: create, show once, verify, search, expire, rotate, revoke, audit';

