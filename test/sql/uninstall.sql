-- The extension is dropped, and leaves nothing but its group roles.
\set VERBOSITY sqlstate
-- A user's policy rests on it: it is not dropped in passing.
CREATE TABLE records (tenant text);
CREATE POLICY by_key ON records USING (tenant = (SELECT rk_apikeys.current_key_tenant()));
DROP EXTENSION rk_apikeys; -- fails: the policy depends on it
DROP TABLE records;

-- Sessions that have used it live on.
SELECT rk_apikeys.verify('x');
DROP EXTENSION rk_apikeys;
SELECT rk_apikeys.verify('x'); -- fails: no such schema
SELECT nspname FROM pg_namespace WHERE nspname = 'rk_apikeys';
SELECT rolname FROM pg_roles WHERE rolname ~ '^rk_apikeys_' ORDER BY 1;
-- And it can come back.
SET client_min_messages = error;
CREATE EXTENSION rk_apikeys;
SELECT rk_apikeys.verify('x'), (SELECT count(*) FROM rk_apikeys.keys) AS keys;
DROP EXTENSION rk_apikeys;
DROP EXTENSION pgcrypto;
DROP ROLE rk_test_manager, rk_test_other, rk_test_admin, rk_test_auditor, rk_test_verifier, rk_test_nobody;
