-- 1,000 keys, which the cache holds, again and again.
SET max_parallel_workers_per_gather = 0;
SET jit = off;
-- request
SELECT count(rk_apikeys.verify(token)) FROM bench.probe_warm;
