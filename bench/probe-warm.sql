-- P2's tokens: 1,000 keys, as often each as the next, in turn; psql reads it, as the superuser.
CREATE TABLE bench.probe_warm AS
  SELECT t.token, t.token_bytes FROM generate_series(1, :probe / 1000) g, (SELECT * FROM bench.probe LIMIT 1000) t ORDER BY g;
GRANT SELECT ON bench.probe_warm TO backend;
VACUUM ANALYZE bench.probe_warm;
