-- The extension is made, and the roles that every other test uses.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION rk_apikeys CASCADE;
CREATE EXTENSION pgcrypto;
CREATE ROLE rk_test_manager IN ROLE rk_apikeys_manager;
CREATE ROLE rk_test_other IN ROLE rk_apikeys_manager;
CREATE ROLE rk_test_admin IN ROLE rk_apikeys_admin;
CREATE ROLE rk_test_auditor IN ROLE rk_apikeys_auditor;
CREATE ROLE rk_test_verifier IN ROLE rk_apikeys_verifier;
CREATE ROLE rk_test_nobody;
SELECT extversion FROM pg_extension WHERE extname = 'rk_apikeys';

-- A schema that somebody made before is an error, not a trap.
CREATE DATABASE rk_test_trap;
\c rk_test_trap
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA rk_apikeys;
CREATE EXTENSION rk_apikeys CASCADE; -- fails: the schema exists
DROP SCHEMA rk_apikeys;

-- A group role with members is told of, and one that is more than a group refused.
CREATE EXTENSION rk_apikeys CASCADE;
DROP EXTENSION rk_apikeys;
ALTER ROLE rk_apikeys_auditor LOGIN;
CREATE EXTENSION rk_apikeys CASCADE; -- fails: LOGIN
ALTER ROLE rk_apikeys_auditor NOLOGIN;
\c contrib_regression
DROP DATABASE rk_test_trap;

-- A key that has expired. A busy machine may need longer to make it than it is to last: then one that lasts longer.
CREATE FUNCTION rk_test_expired(name text) RETURNS TABLE (key_id text, secret text) LANGUAGE plpgsql AS $$
DECLARE
  life interval := '50 ms';
  ends timestamptz;
BEGIN
  LOOP
    ends := clock_timestamp() + life;
    BEGIN
      SELECT k.key_id, k.secret INTO key_id, secret FROM rk_apikeys.create_key(name, expires_at => ends) k;
      PERFORM pg_sleep_until(ends);
      RETURN NEXT;
      RETURN;
    EXCEPTION WHEN invalid_parameter_value THEN
      IF life > interval '1 minute' THEN
        RAISE;
      END IF;
      life := life * 2;
    END;
  END LOOP;
END $$;
