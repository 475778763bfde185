-- P9: a thousand of acme's keys that change, and as many rows of an ordinary table.
CREATE TABLE bench.changing AS
  SELECT row_number() OVER () AS n, key_id FROM (SELECT key_id FROM rk_apikeys.api_keys WHERE tenant = 'acme' ORDER BY key_id LIMIT 1000) k;
ALTER TABLE bench.changing ADD PRIMARY KEY (n);
CREATE TABLE bench.ordinary AS SELECT n, key_id, 'Made for an integration'::text AS description FROM bench.changing;
ALTER TABLE bench.ordinary ADD PRIMARY KEY (key_id);
GRANT SELECT ON bench.changing TO acme;
GRANT SELECT, UPDATE ON bench.ordinary TO acme;
VACUUM ANALYZE bench.changing, bench.ordinary;
