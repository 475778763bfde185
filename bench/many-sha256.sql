-- P2's other side: the core's own SHA-256 of the same tokens.
SET max_parallel_workers_per_gather = 0;
SET jit = off;
-- request
SELECT count(sha256(token_bytes)) FROM bench.probe_warm;
