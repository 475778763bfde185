-- examples/console/setup.sql: the console's roles. One manages the keys of a tenant, the other one the keys of a person; settings tell them
-- whose. Run by a superuser, after CREATE EXTENSION rk_apikeys CASCADE. Give them a password, or another way to log in.
CREATE ROLE console LOGIN IN ROLE rk_apikeys_manager;
CREATE ROLE console_member LOGIN IN ROLE rk_apikeys_member;
GRANT SET ON PARAMETER rk_apikeys.tenant, rk_apikeys.end_user TO console, console_member;
ALTER ROLE console SET rk_apikeys.require_end_user = on;
