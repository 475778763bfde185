-- The same with no cache: each verify reads the key's row.
SET max_parallel_workers_per_gather = 0;
SET jit = off;
SET rk_apikeys.cache_size = 0;
-- request
SELECT count(rk_apikeys.verify(token)) FROM bench.probe;
