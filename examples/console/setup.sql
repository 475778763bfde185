-- examples/console/setup.sql: the console's role. It manages keys and nothing else; the setting tells it whose.
-- Run by a superuser, after CREATE EXTENSION rk_apikeys CASCADE. Give it a password, or another way to log in.
CREATE ROLE console LOGIN IN ROLE rk_apikeys_manager;
GRANT SET ON PARAMETER rk_apikeys.tenant TO console;
