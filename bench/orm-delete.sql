-- All keys in one statement, through {view}.
DELETE FROM rk_apikeys.{view};
