-- P1's other side: a table of :keys rows with a text primary key, the same ids; psql reads it, as the superuser.
CREATE TABLE bench.lookup (id text PRIMARY KEY, v boolean NOT NULL);
INSERT INTO bench.lookup SELECT split_part(token, '_', 3), true FROM bench.token ORDER BY n;
GRANT SELECT ON bench.lookup TO backend;
VACUUM ANALYZE bench.lookup;
