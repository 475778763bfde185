-- rk_apikeys, the install script. make joins it from the parts in sql/.
\echo Use "CREATE EXTENSION rk_apikeys CASCADE" to load this file. \quit

-- Other users may have made functions and operators in a schema of search_path
-- that match a call better than the server's own.
SET LOCAL search_path = pg_catalog, pg_temp;

-- plpgsql is all that the extension needs. Its owner can drop plpgsql, and the
-- extension with it.
DO $$
DECLARE
  owner name;
BEGIN
  SELECT r.rolname INTO owner
    FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_roles r ON r.oid = e.extowner
    WHERE e.extname = 'plpgsql' AND NOT r.rolsuper;
  IF FOUND THEN
    RAISE EXCEPTION 'the owner of the extension plpgsql, role "%", is not a superuser', owner
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Drop the extension plpgsql, and create it again as a superuser.';
  END IF;
END $$;

-- This script makes the schema, and the control file does not, so that a schema
-- that exists already is an error: somebody may have put traps into it.
CREATE SCHEMA rk_apikeys;
COMMENT ON SCHEMA rk_apikeys IS
  'API keys: create, show once, verify, search, expire, rotate, revoke, audit';

