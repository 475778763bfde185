-- The lifecycle of a key as function calls. INSERT, UPDATE and DELETE on the view
-- keys do the same. Privileges and policies decide in both cases.

CREATE FUNCTION rk_apikeys.create_key(name text, description text DEFAULT '',
    expires_at timestamptz DEFAULT NULL, environment text DEFAULT NULL,
    scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE sql VOLATILE PARALLEL UNSAFE
BEGIN ATOMIC
  INSERT INTO rk_apikeys.keys (name, description, expires_at, environment, scopes,
      allowed_cidrs, rate_limit, rate_window, metadata, tenant)
    VALUES (name, coalesce(description, ''), expires_at,
      coalesce(environment, rk_apikeys._default_environment()), coalesce(scopes, '{}'),
      allowed_cidrs, rate_limit, rate_window, coalesce(metadata, '{}'),
      coalesce(tenant, rk_apikeys.current_tenant()))
    RETURNING keys.key_id, keys.secret;
END;
COMMENT ON FUNCTION rk_apikeys.create_key(text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text) IS
  'Makes a key. Returns its id and, only this once, its whole token. The same as INSERT INTO rk_apikeys.keys. Errors: 23514 for a value of wrong shape, 22023 for an expires_at in the past or beyond max_lifetime, 42501 for another tenant.';

CREATE FUNCTION rk_apikeys.rotate_key(key_id text, grace interval DEFAULT '24 hours',
    expires_at timestamptz DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  made rk_apikeys.new_key;
  seen record;
BEGIN
  IF grace IS NULL OR grace < '0' THEN
    RAISE EXCEPTION 'grace cannot be %', coalesce(grace::text, 'null')
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give an interval from 0 (the old key ends at once) up.';
  END IF;

  -- One statement, so that of two concurrent rotations the second waits, sees
  -- grace_until set, and gets no row.
  WITH old AS (
    UPDATE rk_apikeys.api_keys k
      SET grace_until = least(now() + rotate_key.grace, k.expires_at)
      WHERE k.key_id = rotate_key.key_id
        AND k.revoked_at IS NULL AND k.grace_until IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
      RETURNING k.key_id, k.tenant, k.name, k.description, k.environment, k.scopes, k.allowed_cidrs,
        k.rate_limit, k.rate_window, k.metadata, k.enabled, k.expires_at
  )
  INSERT INTO rk_apikeys.keys AS new (replaces, tenant, name, description, environment, scopes,
      allowed_cidrs, rate_limit, rate_window, metadata, enabled, expires_at)
    SELECT o.key_id, o.tenant, o.name, o.description, o.environment, o.scopes, o.allowed_cidrs,
        o.rate_limit, o.rate_window, o.metadata, o.enabled,
        coalesce(rotate_key.expires_at,
          least(o.expires_at, now() + rk_apikeys._setting_interval('max_lifetime')))
      FROM old o
    RETURNING new.key_id, new.secret INTO made;
  IF FOUND THEN
    RETURN made;
  END IF;

  SELECT k.revoked_at, k.grace_until INTO seen
    FROM rk_apikeys.api_keys k WHERE k.key_id = rotate_key.key_id;
  IF NOT FOUND THEN
    PERFORM rk_apikeys._no_such_key(rotate_key.key_id);
  END IF;
  RAISE EXCEPTION 'API key "%" cannot be rotated: it %', rotate_key.key_id,
      CASE WHEN seen.revoked_at IS NOT NULL THEN 'is revoked'
           WHEN seen.grace_until IS NOT NULL THEN 'was rotated already'
           ELSE 'has expired' END
    USING ERRCODE = 'object_not_in_prerequisite_state',
          HINT = CASE WHEN seen.revoked_at IS NULL AND seen.grace_until IS NOT NULL
            THEN 'Rotate its successor, which is the key that replaces it.'
            ELSE 'Create a new key.' END;
END $$;
COMMENT ON FUNCTION rk_apikeys.rotate_key(text, interval, timestamptz) IS
  'Makes a successor with the same settings. Returns the successor''s id and token. The old key stays good for the time of grace (0: it ends at once), but never beyond its own expires_at. expires_at: the successor''s expiry; NULL: the old key''s, within max_lifetime. Errors: 42704 no such key, 55000 the key is revoked, expired or already rotated, 22023 negative grace.';

CREATE FUNCTION rk_apikeys.revoke_key(key_id text, reason text DEFAULT NULL) RETURNS boolean
  LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  UPDATE rk_apikeys.api_keys k SET revoked_at = now(), revoked_reason = revoke_key.reason
    WHERE k.key_id = revoke_key.key_id AND k.revoked_at IS NULL;
  IF FOUND THEN
    RETURN true;
  END IF;
  PERFORM FROM rk_apikeys.api_keys k WHERE k.key_id = revoke_key.key_id;
  IF NOT FOUND THEN
    PERFORM rk_apikeys._no_such_key(revoke_key.key_id);
  END IF;
  RETURN false;
END $$;
COMMENT ON FUNCTION rk_apikeys.revoke_key(text, text) IS
  'Ends a key for good. True if this call revoked the key, false if it was revoked before. Errors: 42704 no such key.';

-- The caller may have given a token as key id, so the message shows it masked.
CREATE FUNCTION rk_apikeys._no_such_key(key_id text) RETURNS void
  LANGUAGE plpgsql VOLATILE PARALLEL SAFE
  SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION 'API key "%" does not exist', coalesce(left(rk_apikeys.redact(key_id), 80), 'null')
    USING ERRCODE = 'undefined_object',
          HINT = 'The key id is the third part of the token; see the view rk_apikeys.keys.';
END $$;
COMMENT ON FUNCTION rk_apikeys._no_such_key(text) IS
  'Private: raises 42704. The error is the same for another tenant''s key as for a key that does not exist.';

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
  'Deletes the keys that have been revoked, expired or rotated for longer than older_than. Returns the number of deleted keys. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.purge_events(older_than interval) RETURNS bigint
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_events';
COMMENT ON FUNCTION rk_apikeys.purge_events(interval) IS
  'Deletes the events that are older than older_than, and leaves one event purged. Returns the number of deleted events. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.flush_usage() RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_flush_usage';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes the usage of this database''s keys from shared memory to key_usage and key_usage_daily now. Returns the number of keys. Returns 0 without shared memory, or while another flush is running. Commit soon, because other flushes wait until then.';

CREATE FUNCTION rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[], environments text[],
    last_used_at timestamptz[], addrs inet[], uses bigint[], denials bigint[],
    known_uses bigint[], known_denials bigint[],
    OUT n integer, OUT use_count bigint, OUT denied_count bigint) RETURNS SETOF record
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_receive_usage';
COMMENT ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[], bigint[], bigint[]) IS
  'Writes a batch of usage that a standby or subscriber has counted. The sending server calls it, as the role of its rk_apikeys.primary_conninfo. Returns for each written key its position in the batch and its counts now, or NULLs if the key does not exist. A batch that is sent again counts once. Errors: 22023 for an invalid batch, 55P03 while another flush is running.';

CREATE FUNCTION rk_apikeys.seal(secret text, pgp_public_key text) RETURNS text
  LANGUAGE C VOLATILE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_seal';
COMMENT ON FUNCTION rk_apikeys.seal(text, text) IS
  'Returns the secret as an OpenPGP message (RFC 4880, armoured). Only the owner of the armoured public key can read the message. Errors: 55000 without the extension pgcrypto, else those of pgcrypto for an invalid key.';

