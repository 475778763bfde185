-- P5: an empty database, and a plain table with the columns and indexes of api_keys; psql reads it, as the superuser.
-- The group roles exist and have members: that is told each time.
SET client_min_messages = error;
CREATE EXTENSION pgcrypto;
CREATE EXTENSION rk_apikeys;
CREATE SCHEMA bench;
CREATE TABLE bench.plain (LIKE rk_apikeys.api_keys);
ALTER TABLE bench.plain ADD PRIMARY KEY (key_id);
CREATE INDEX ON bench.plain (tenant, created_at, key_id);
CREATE INDEX ON bench.plain (tenant, key_id);
CREATE INDEX ON bench.plain (tenant, name, key_id);
CREATE INDEX ON bench.plain (created_at, key_id);
CREATE UNIQUE INDEX ON bench.plain (digest) WHERE digest_kind <> 'native';
GRANT USAGE ON SCHEMA bench TO acme;
GRANT INSERT ON bench.plain TO acme;
