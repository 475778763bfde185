-- What P4's statements cost without the function.
SET max_parallel_workers_per_gather = 0;
SET jit = off;
-- request
SELECT count(token) FROM bench.probe;
