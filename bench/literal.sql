-- P8's other side, as app_plain: the same transaction, no policy, the tenant written out.
BEGIN;
SELECT valid FROM rk_apikeys.authenticate(:token);
-- request
SELECT count(*), sum(amount) FROM bench.records WHERE tenant = 'acme';
