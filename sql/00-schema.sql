-- rk_apikeys, the install script. It is joined by make from the parts in sql/.
\echo Use "CREATE EXTENSION rk_apikeys CASCADE" to load this file. \quit

-- CREATE EXTENSION puts the schema of pgcrypto on the path, where others may
-- have put functions and operators that fit a call better than the server's.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The schema is made here and not by the control file: one that somebody made
-- before, with traps in it, is an error.
CREATE SCHEMA rk_apikeys;
COMMENT ON SCHEMA rk_apikeys IS
  'API keys: create, show once, verify, search, expire, rotate, revoke, audit';

