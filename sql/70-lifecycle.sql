-- The lifecycle of a key as function calls. INSERT, UPDATE and DELETE on the view
-- keys do the same. Privileges and policies decide in both cases.

CREATE FUNCTION rk_apikeys.create_key(name text, description text DEFAULT '',
    expires_at timestamptz DEFAULT NULL, environment text DEFAULT NULL,
    scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_create_key';
COMMENT ON FUNCTION rk_apikeys.create_key(text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text) IS
  'Makes a key. Returns its id and, only this once, its whole token. The same as INSERT INTO rk_apikeys.keys. Errors: 23514 for a value of wrong shape, 22023 for an expires_at in the past or beyond max_lifetime, 42501 for another tenant.';

CREATE FUNCTION rk_apikeys.rotate_key(key_id text, grace interval DEFAULT '24 hours',
    expires_at timestamptz DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'rk_apikeys_rotate_key';
COMMENT ON FUNCTION rk_apikeys.rotate_key(text, interval, timestamptz) IS
  'Makes a successor with the same settings. Returns the successor''s id and token. The old key stays good for the time of grace (0: it ends at once), but never beyond its own expires_at. expires_at: the successor''s expiry; NULL: the old key''s, within max_lifetime. Errors: 42704 no such key, 55000 the key is revoked, expired or already rotated, 22023 negative grace.';

CREATE FUNCTION rk_apikeys.revoke_key(key_id text, reason text DEFAULT NULL,
    cascade boolean DEFAULT false) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_key';
COMMENT ON FUNCTION rk_apikeys.revoke_key(text, text, boolean) IS
  'Ends a key for good. cascade: ends the keys that it made too, and the keys that those made. True if this call revoked the key, false if it was revoked before. Errors: 42704 no such key.';

CREATE FUNCTION rk_apikeys.import_key(name text, digest bytea, digest_kind text,
    hint text DEFAULT NULL, description text DEFAULT '', expires_at timestamptz DEFAULT NULL,
    environment text DEFAULT NULL, scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL, start text DEFAULT NULL) RETURNS text
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_import_key_0_3';
COMMENT ON FUNCTION rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text, text) IS
  'Adds a key that was issued elsewhere. Returns its key id. digest: of the full token, which has 16 to 512 bytes. digest_kind: sha256 or sha512. hint: up to 4 last characters of the token, to show. start: up to 12 first characters of the token, to show. Errors: 22023 for a digest that does not fit its kind, else as create_key.';

CREATE FUNCTION rk_apikeys.purge_keys(older_than interval) RETURNS bigint
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_keys';
COMMENT ON FUNCTION rk_apikeys.purge_keys(interval) IS
  'Deletes the keys that have been revoked, expired or rotated for longer than older_than. A key stays while a key that it made is in the table. Returns the number of deleted keys. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.flush_usage() RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_flush_usage';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes the usage of this database''s keys from shared memory to key_usage and key_usage_daily now. Returns the number of keys. Returns 0 without shared memory, or while another flush is running. Commit soon, because other flushes wait until then.';

CREATE FUNCTION rk_apikeys.seal(secret text, pgp_public_key text) RETURNS text
  LANGUAGE C VOLATILE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_seal';
COMMENT ON FUNCTION rk_apikeys.seal(text, text) IS
  'Returns the secret as an OpenPGP message (RFC 4880, armoured). Only the owner of the armoured public key can read the message. Errors: 55000 without the extension pgcrypto, else those of pgcrypto for an invalid key.';

