-- P3's other sides: the api-key tables that products write by hand, with the same tokens; psql reads it, as the superuser.
CREATE TABLE bench.api_keys (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant text NOT NULL,
  name text NOT NULL,
  prefix text NOT NULL UNIQUE,
  key_hash bytea NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now(),
  last_used_at timestamptz,
  revoked_at timestamptz
);
INSERT INTO bench.api_keys (tenant, name, prefix, key_hash)
  SELECT k.tenant, k.name, k.key_id, sha256(convert_to(t.token, 'UTF8'))
    FROM bench.token t JOIN rk_apikeys.api_keys k ON k.key_id = split_part(t.token, '_', 3);
GRANT SELECT, UPDATE ON bench.api_keys TO backend;

-- bcrypt at pgcrypto's default cost, 6, which is less than what is recommended; the first 100 keys will do.
CREATE TABLE bench.bcrypt_keys (prefix text PRIMARY KEY, key_hash text NOT NULL);
INSERT INTO bench.bcrypt_keys
  SELECT split_part(token, '_', 3), crypt(token, gen_salt('bf')) FROM bench.token WHERE fate = 0 ORDER BY n LIMIT 100;
GRANT SELECT ON bench.bcrypt_keys TO backend;
VACUUM ANALYZE bench.api_keys, bench.bcrypt_keys;
