-- As app: the policy by principal decides.
BEGIN;
SELECT valid FROM rk_apikeys.authenticate(:token);
-- request
SELECT count(*), sum(amount) FROM bench.records;
