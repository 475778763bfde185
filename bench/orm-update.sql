-- All keys in one statement, through {view}.
UPDATE rk_apikeys.{view} SET description = 'Copies contacts every night';
