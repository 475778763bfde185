-- Keys in no order, many more than the cache holds.
SET max_parallel_workers_per_gather = 0;
SET jit = off;
-- request
SELECT count(rk_apikeys.verify(token)) FROM bench.probe;
