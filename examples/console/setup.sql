-- examples/console/setup.sql: the console's role. It manages keys and nothing else; settings tell it whose, and who does it. For a person
-- who manages only its own keys, it takes the role console_member. Run by a superuser, after CREATE EXTENSION rk_apikeys CASCADE. Give it
-- a password, or another way to log in.
CREATE ROLE console LOGIN IN ROLE rk_apikeys_manager;
CREATE ROLE console_member IN ROLE rk_apikeys_member ROLE console;
GRANT SET ON PARAMETER rk_apikeys.tenant, rk_apikeys.end_user TO console;
ALTER ROLE console SET rk_apikeys.require_end_user = on;
