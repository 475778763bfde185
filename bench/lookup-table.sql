-- P1's other side: a table of :keys rows with a text primary key, the same ids; psql reads it, as the superuser.
CREATE TABLE bench.lookup (id text PRIMARY KEY, v boolean NOT NULL);
INSERT INTO bench.lookup SELECT split_part(token, '_', 3), true FROM bench.token ORDER BY n;
GRANT SELECT ON bench.lookup TO backend;
VACUUM ANALYZE bench.lookup;
-- P1b's other side: the columns of a verdict, of the same keys.
CREATE TABLE bench.verdict OF rk_apikeys.verdict (PRIMARY KEY (key_id));
INSERT INTO bench.verdict (valid, code, key_id, family, tenant, owner, name, environment, scopes, metadata, expires_at)
  SELECT true, 'valid', key_id, key_id, tenant, owner, name, environment, scopes, metadata, expires_at
    FROM rk_apikeys.api_keys JOIN bench.lookup ON id = key_id;
GRANT SELECT ON bench.verdict TO backend;
VACUUM ANALYZE bench.verdict;
