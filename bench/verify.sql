-- A request as rk_apikeys has it: one statement, and the use is on record.
SELECT rk_apikeys.verify(:token);
