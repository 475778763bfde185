\echo Use "ALTER EXTENSION rk_apikeys UPDATE TO '0.3'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- A verify without preload locks key_usage, then api_keys.  Locks in this order,
-- at full strength from the start, keep the update from a deadlock with it.
LOCK TABLE rk_apikeys.key_usage, rk_apikeys.api_keys, rk_apikeys.key_usage_daily,
  rk_apikeys.key_events;

-- Before PostgreSQL 16, E'\v' is the letter v and not a vertical tab, so the
-- constraint refused the name "v".
ALTER TABLE rk_apikeys.api_keys DROP CONSTRAINT api_keys_name_check,
  ADD CONSTRAINT api_keys_name_check CHECK (char_length(btrim(name, E' \t\n\r\f\x0b')) BETWEEN 1 AND 200);

-- The parts that make joins to this script make them again.
DROP FUNCTION rk_apikeys.list_keys(text, text, text, text, boolean, integer, text),
  rk_apikeys._page(text, text, text, text, text, text, text, boolean);

-- A restore, or ALTER TABLE ... ENABLE TRIGGER, may have left other states.
ALTER TABLE rk_apikeys.api_keys
  ENABLE TRIGGER api_keys_make, ENABLE TRIGGER api_keys_guard,
  ENABLE ALWAYS TRIGGER api_keys_settle, ENABLE ALWAYS TRIGGER api_keys_settle_imported,
  ENABLE TRIGGER api_keys_audit_insert, ENABLE TRIGGER api_keys_audit_update,
  ENABLE TRIGGER api_keys_audit_delete;

-- After a restore of rows alone, the sequence was behind the events.
SELECT setval('rk_apikeys.key_events_event_id_seq', e.last)
  FROM (SELECT max(event_id) AS last FROM rk_apikeys.key_events) e,
    rk_apikeys.key_events_event_id_seq s
  WHERE e.last > s.last_value OR (e.last = s.last_value AND NOT s.is_called);

-- A principal sees only the keys of its environment.
CREATE FUNCTION rk_apikeys._principal_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_principal_environment';
COMMENT ON FUNCTION rk_apikeys._principal_environment() IS
  'Private: the environment of the principal''s key. NULL without a good principal.';
ALTER POLICY principal ON rk_apikeys.api_keys
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY principal ON rk_apikeys.api_keys IS 'A principal sees and changes keys only of its environment, and only if it has the scope apikeys:manage.';
COMMENT ON POLICY principal ON rk_apikeys.key_usage IS 'A principal sees usage only of keys that it sees.';
ALTER POLICY principal ON rk_apikeys.key_usage_daily
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY principal ON rk_apikeys.key_usage_daily IS 'A principal sees usage only of its environment, and only if it has the scope apikeys:manage.';
COMMENT ON POLICY principal ON rk_apikeys.key_events IS 'A principal sees events only of keys that it sees.';

-- seal() finds pgcrypto when it is called, so the extension does not depend on it.
CREATE OR REPLACE FUNCTION rk_apikeys.seal(secret text, pgp_public_key text) RETURNS text
  LANGUAGE C VOLATILE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_seal';

-- The key that made a key, and the start of an imported token.
ALTER TABLE rk_apikeys.api_keys ADD parent text COLLATE "C", ADD start text,
  ADD CONSTRAINT api_keys_start_check CHECK (char_length(start) <= 12);
CREATE INDEX api_keys_parent ON rk_apikeys.api_keys (parent) WHERE parent IS NOT NULL;
COMMENT ON COLUMN rk_apikeys.api_keys.parent IS 'The id of the key that made this key, as principal. NULL: a role without a principal made this key.';
COMMENT ON COLUMN rk_apikeys.api_keys.start IS 'The first characters of an imported token, shown in the masked key. NULL: the token is one of ours.';
COMMENT ON INDEX rk_apikeys.api_keys_parent IS 'revoke_key finds the keys that a key has made by this index.';

-- No statistics of what tenants write.
ALTER TABLE rk_apikeys.api_keys ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER name SET STATISTICS 0, ALTER description SET STATISTICS 0, ALTER prefix SET STATISTICS 0,
  ALTER scopes SET STATISTICS 0, ALTER allowed_cidrs SET STATISTICS 0, ALTER metadata SET STATISTICS 0,
  ALTER replaces SET STATISTICS 0, ALTER revoked_reason SET STATISTICS 0, ALTER created_by SET STATISTICS 0,
  ALTER updated_by SET STATISTICS 0, ALTER hint SET STATISTICS 0, ALTER digest SET STATISTICS 0,
  ALTER parent SET STATISTICS 0, ALTER start SET STATISTICS 0;
ALTER TABLE rk_apikeys.key_usage ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER last_used_addr SET STATISTICS 0;
ALTER TABLE rk_apikeys.key_usage_daily ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0;
ALTER TABLE rk_apikeys.key_events ALTER tenant SET STATISTICS 0, ALTER key_id SET STATISTICS 0,
  ALTER actor SET STATISTICS 0, ALTER role SET STATISTICS 0, ALTER principal SET STATISTICS 0,
  ALTER client_addr SET STATISTICS 0, ALTER application_name SET STATISTICS 0, ALTER changes SET STATISTICS 0;
-- ANALYZE leaves the statistics that it has made before.
DELETE FROM pg_catalog.pg_statistic s USING pg_catalog.pg_attribute a
  WHERE s.starelid = a.attrelid AND s.staattnum = a.attnum AND a.attstattarget = 0
    AND a.attrelid IN ('rk_apikeys.api_keys'::pg_catalog.regclass, 'rk_apikeys.key_usage'::pg_catalog.regclass,
      'rk_apikeys.key_usage_daily'::pg_catalog.regclass, 'rk_apikeys.key_events'::pg_catalog.regclass);

-- A revocation of a key and of the keys that it made.
CREATE FUNCTION rk_apikeys._keys_parent() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_parent';
COMMENT ON FUNCTION rk_apikeys._keys_parent() IS
  'Private: refuses the COMMIT of a key whose principal was revoked or deleted meanwhile.';
CREATE CONSTRAINT TRIGGER api_keys_parent AFTER INSERT ON rk_apikeys.api_keys
  DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.parent IS NOT NULL) EXECUTE FUNCTION rk_apikeys._keys_parent();
COMMENT ON TRIGGER api_keys_parent ON rk_apikeys.api_keys IS
  'Refuses the COMMIT of a key whose principal was revoked or deleted meanwhile.';
DROP FUNCTION rk_apikeys.revoke_key(text, text);
CREATE FUNCTION rk_apikeys.revoke_key(key_id text, reason text DEFAULT NULL,
    cascade boolean DEFAULT false) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_key';
COMMENT ON FUNCTION rk_apikeys.revoke_key(text, text, boolean) IS
  'Ends a key for good. cascade: ends the keys that it made too, and the keys that those made. True if this call revoked the key, false if it was revoked before. Errors: 42704 no such key.';
COMMENT ON FUNCTION rk_apikeys.purge_keys(interval) IS
  'Deletes the keys that have been revoked, expired or rotated for longer than older_than. A key stays while a key that it made is in the table. Returns the number of deleted keys. Errors: 22023 if negative.';

-- Calls that need no right to columns that they do not give.
CREATE OR REPLACE FUNCTION rk_apikeys.create_key(name text, description text DEFAULT '',
    expires_at timestamptz DEFAULT NULL, environment text DEFAULT NULL,
    scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_create_key';
CREATE OR REPLACE FUNCTION rk_apikeys.rotate_key(key_id text, grace interval DEFAULT '24 hours',
    expires_at timestamptz DEFAULT NULL) RETURNS rk_apikeys.new_key
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  SET search_path = pg_catalog, pg_temp
  AS 'MODULE_PATHNAME', 'rk_apikeys_rotate_key';
DROP FUNCTION rk_apikeys._no_such_key(text);
-- Masks of imported keys, the address of the last use, and what made a key.
UPDATE rk_apikeys.api_keys SET start = '' WHERE digest_kind <> 'native' AND start IS NULL;
DROP FUNCTION rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text);
CREATE FUNCTION rk_apikeys.import_key(name text, digest bytea, digest_kind text,
    hint text DEFAULT NULL, description text DEFAULT '', expires_at timestamptz DEFAULT NULL,
    environment text DEFAULT NULL, scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL, start text DEFAULT NULL) RETURNS text
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_import_key_0_3';
COMMENT ON FUNCTION rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text, text) IS
  'Adds a key that was issued elsewhere. Returns its key id. digest: of the full token, which has 16 to 512 bytes. digest_kind: sha256 or sha512. hint: up to 4 last characters of the token, to show. start: up to 12 first characters of the token, to show. Errors: 22023 for a digest that does not fit its kind, else as create_key.';

-- 0.2 stored an address as it was given: with its netmask, and IPv4 maybe mapped.
UPDATE rk_apikeys.key_usage u SET last_used_addr = h.addr
  FROM (SELECT key_id, CASE WHEN host(last_used_addr)::inet <<= '::ffff:0:0/96'
      THEN '0.0.0.0'::inet + (host(last_used_addr)::inet - '::ffff:0.0.0.0'::inet)
      ELSE host(last_used_addr)::inet END AS addr FROM rk_apikeys.key_usage) h
  WHERE u.key_id = h.key_id AND u.last_used_addr <> h.addr;
CREATE FUNCTION rk_apikeys._live_last_used_addr(key_id text) RETURNS inet
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_last_used_addr';
COMMENT ON FUNCTION rk_apikeys._live_last_used_addr(text) IS
  'Private: the last address of a key that shared memory knows. NULL if there is none, or if the caller may not see it.';

ALTER TYPE rk_apikeys.listed_key ADD ATTRIBUTE parent text, ADD ATTRIBUTE last_used_addr inet;

-- The family and the owner of a key.
ALTER TABLE rk_apikeys.api_keys ADD family text COLLATE "C", ADD owner text,
  ADD CONSTRAINT api_keys_owner_check CHECK (char_length(owner) BETWEEN 1 AND 200);
COMMENT ON COLUMN rk_apikeys.api_keys.family IS 'The id of the first key of a chain of rotations, of a new key its own id. NULL: the key''s own id.';
COMMENT ON COLUMN rk_apikeys.api_keys.owner IS 'The person or service account of the tenant that owns the key: 1 to 200 characters. NULL: the tenant.';
COMMENT ON COLUMN rk_apikeys.api_keys.tenant IS 'The tenant that the key belongs to.';
ALTER TABLE rk_apikeys.api_keys ALTER family SET STATISTICS 0, ALTER owner SET STATISTICS 0;
WITH RECURSIVE chain AS (
  SELECT k.key_id, coalesce(k.replaces, k.key_id) AS family
    FROM rk_apikeys.api_keys k
    WHERE NOT EXISTS (SELECT FROM rk_apikeys.api_keys o WHERE o.key_id = k.replaces)
  UNION ALL
  SELECT k.key_id, c.family
    FROM chain c JOIN rk_apikeys.api_keys k ON k.replaces = c.key_id
)
UPDATE rk_apikeys.api_keys k SET family = c.family FROM chain c
  WHERE c.key_id = k.key_id;

-- The end users who made and changed a key.
CREATE FUNCTION rk_apikeys.current_end_user() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_end_user';
COMMENT ON FUNCTION rk_apikeys.current_end_user() IS
  'The person of the product for whom this session acts: the setting rk_apikeys.end_user. NULL if it is empty. Policies on other tables must not rest on it.';
ALTER TABLE rk_apikeys.api_keys ADD created_by_user text, ADD updated_by_user text;
ALTER TABLE rk_apikeys.api_keys ALTER created_by_user SET STATISTICS 0, ALTER updated_by_user SET STATISTICS 0;
COMMENT ON COLUMN rk_apikeys.api_keys.created_by_user IS 'The end user for whom the key was made: rk_apikeys.end_user then. NULL: none.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_by_user IS 'The end user for whom a setting was last changed. NULL: none.';
CREATE INDEX api_keys_owner ON rk_apikeys.api_keys (tenant, owner, created_at, key_id) WHERE owner IS NOT NULL;
COMMENT ON INDEX rk_apikeys.api_keys_owner IS 'For pages of an owner''s keys, ordered by created_at.';
ALTER TABLE rk_apikeys.key_events ADD end_user text, ADD owner text;
ALTER TABLE rk_apikeys.key_events ALTER end_user SET STATISTICS 0, ALTER owner SET STATISTICS 0;
COMMENT ON COLUMN rk_apikeys.key_events.end_user IS 'The end user for whom the change was made: rk_apikeys.end_user then. NULL: none.';
COMMENT ON COLUMN rk_apikeys.key_events.owner IS 'The owner of the key after the change. NULL: the tenant, or the event is of an earlier release.';
ALTER TYPE rk_apikeys.listed_key ADD ATTRIBUTE family text, ADD ATTRIBUTE owner text,
  ADD ATTRIBUTE created_by_user text, ADD ATTRIBUTE updated_by_user text;

-- Use by family.  The family of the keys was set above.
ALTER TABLE rk_apikeys.key_usage_daily ADD family text COLLATE "C";
ALTER TABLE rk_apikeys.key_usage_daily ALTER family SET STATISTICS 0;
COMMENT ON COLUMN rk_apikeys.key_usage_daily.family IS 'The family of a key that was rotated from another one. NULL: the key''s own id.';
UPDATE rk_apikeys.key_usage_daily d SET family = k.family FROM rk_apikeys.api_keys k
  WHERE k.key_id = d.key_id AND k.family <> k.key_id;

-- Members, and what they see.
DO $$
DECLARE
  existing record;
  members text;
BEGIN
  SELECT * INTO existing FROM pg_catalog.pg_roles WHERE rolname = 'rk_apikeys_member';
  IF NOT FOUND THEN
    CREATE ROLE rk_apikeys_member NOLOGIN;
  ELSIF existing.rolcanlogin OR existing.rolsuper OR existing.rolcreaterole
        OR existing.rolbypassrls OR existing.rolreplication THEN
    RAISE EXCEPTION 'role "rk_apikeys_member" exists and is more than a group'
      USING ERRCODE = 'invalid_role_specification',
            DETAIL = 'It has LOGIN, SUPERUSER, CREATEROLE, BYPASSRLS or REPLICATION.',
            HINT = 'Take that from the role, or rename it.';
  ELSE
    SELECT string_agg(quote_ident(m.rolname), ', ' ORDER BY m.rolname) INTO members
      FROM pg_catalog.pg_auth_members a
        JOIN pg_catalog.pg_roles m ON m.oid = a.member
      WHERE a.roleid = existing.oid;
    IF members IS NOT NULL THEN
      RAISE WARNING 'role "rk_apikeys_member" exists and has members: %', members
        USING HINT = 'They have its rights on the API keys of this database too.';
    END IF;
  END IF;
END $$;
COMMENT ON ROLE rk_apikeys_member IS 'rk_apikeys: the keys of its own tenant that its end user owns';
CREATE POLICY own_keys ON rk_apikeys.api_keys TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant()) AND owner = (SELECT rk_apikeys.current_end_user()));
COMMENT ON POLICY own_keys ON rk_apikeys.api_keys IS 'A member manages the keys of its own tenant that its end user owns.';
CREATE POLICY own_keys_read ON rk_apikeys.key_usage FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = key_usage.key_id));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_usage IS 'A member reads the usage of keys that it sees.';
CREATE POLICY own_keys_read ON rk_apikeys.key_usage_daily FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = key_usage_daily.key_id));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_usage_daily IS 'A member reads the usage of keys that it sees.';
CREATE POLICY own_keys_read ON rk_apikeys.key_events FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant()) AND owner = (SELECT rk_apikeys.current_end_user()));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_events IS 'A member reads the events of keys that its end user owned then.';
ALTER POLICY principal ON rk_apikeys.api_keys TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member;
ALTER POLICY principal ON rk_apikeys.key_usage TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member;
ALTER POLICY principal ON rk_apikeys.key_usage_daily TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member;
ALTER POLICY principal ON rk_apikeys.key_events TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member;
CREATE INDEX key_events_owner ON rk_apikeys.key_events (tenant, owner, event_id) WHERE owner IS NOT NULL;
COMMENT ON INDEX rk_apikeys.key_events_owner IS 'For the history of an owner''s keys.';

CREATE OR REPLACE VIEW rk_apikeys.keys WITH (security_invoker = true) AS
  SELECT k.key_id, k.tenant, k.name, k.description, k.environment,
    coalesce(k.start, k.prefix || '_' || k.environment || '_' || k.key_id || '_') || '********'
      || coalesce(k.hint, '') AS masked_key,
    rk_apikeys._status(k.revoked_at, k.enabled, k.expires_at, k.grace_until) AS status,
    k.enabled, k.scopes, k.allowed_cidrs, k.rate_limit, k.rate_window, k.metadata,
    k.expires_at,
    CASE WHEN isfinite(k.expires_at) THEN
      greatest(date_trunc('second', k.expires_at - statement_timestamp()), '0') END AS expires_in,
    greatest((SELECT u.last_used_at FROM rk_apikeys.key_usage u WHERE u.key_id = k.key_id),
      rk_apikeys._live_last_used_at(k.key_id)) AS last_used_at,
    greatest((SELECT u.use_count FROM rk_apikeys.key_usage u WHERE u.key_id = k.key_id),
      rk_apikeys._live_use_count(k.key_id), 0) AS use_count,
    k.replaces, k.grace_until, k.revoked_at, k.revoked_reason,
    k.created_at, k.created_by, k.updated_at, k.updated_by,
    rk_apikeys.reveal(k.key_id) AS secret,
    k.parent,
    -- The address of the later use, as a flush would store it.
    coalesce((SELECT CASE WHEN u.last_used_at > rk_apikeys._live_last_used_at(k.key_id) THEN u.last_used_addr
          ELSE coalesce(rk_apikeys._live_last_used_addr(k.key_id), u.last_used_addr) END
        FROM rk_apikeys.key_usage u WHERE u.key_id = k.key_id),
      rk_apikeys._live_last_used_addr(k.key_id)) AS last_used_addr,
    coalesce(k.family, k.key_id) AS family, k.owner, k.created_by_user, k.updated_by_user
  FROM rk_apikeys.api_keys k;
COMMENT ON COLUMN rk_apikeys.keys.parent IS 'The id of the key that made this key, as principal. NULL: a role without a principal made this key.';
COMMENT ON COLUMN rk_apikeys.keys.last_used_addr IS 'The address of the last use that came with an address.';

CREATE OR REPLACE VIEW rk_apikeys.key_activity WITH (security_invoker = true) AS
  SELECT d.day, d.key_id, d.tenant, k.name, d.environment, d.uses, d.denials,
    coalesce(d.family, d.key_id) AS family, k.owner, k.created_by_user
  FROM rk_apikeys.key_usage_daily d LEFT JOIN rk_apikeys.api_keys k USING (key_id);

-- The verdict of 0.3.
DROP FUNCTION rk_apikeys.verify_key(text, text, inet, integer), rk_apikeys.authenticate(text, text, inet);
DROP TYPE rk_apikeys.verdict;
CREATE TYPE rk_apikeys.verdict AS (
  valid boolean,
  code text,
  key_id text,
  family text,
  tenant text,
  owner text,
  name text,
  environment text,
  scopes text[],
  metadata jsonb,
  expires_at timestamptz,
  retry_after_ms integer,
  limit_name text,
  limit_units bigint,
  limit_remaining bigint,
  limit_resets_at timestamptz
);
COMMENT ON TYPE rk_apikeys.verdict IS
  'The outcome of a verify. code is one of: valid, malformed, unknown, revoked, disabled, expired, rotated, environment_mismatch, address_denied, scope_missing, rate_limited, quota_exceeded, limiter_unavailable. If the token is not genuine, only valid and code are set. retry_after_ms: when a call that a limit refused may succeed; NULL if it never will. limit_name, limit_units, limit_remaining, limit_resets_at: the limit that refused or, of a valid key, the limit with the fewest units left; NULL without a limit.';

CREATE FUNCTION rk_apikeys.verify_key(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1, environment text DEFAULT NULL,
    limits text[] DEFAULT NULL, charge text DEFAULT 'now')
  RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_key_0_3';
COMMENT ON FUNCTION rk_apikeys.verify_key(text, text, inet, integer, text, text[], text) IS
  'Returns the verdict on a token. scope: the scopes that the request needs, with one space between them (RFC 6749 section 3.3); of a|b one is enough. client_addr: the address of the API''s client. cost: the units that the request takes from each limit of the key. environment: the only one whose keys are accepted. limits: names of limits to take from that are not always taken. charge: now or commit, which reserves the units until the transaction ends. Never raises an error for a bad token. Errors: 22023 for a scope that is no list, a cost below 1 or above the units of a limit, a limit that does not exist, or another charge.';

CREATE FUNCTION rk_apikeys.authenticate(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1, environment text DEFAULT NULL,
    limits text[] DEFAULT NULL, charge text DEFAULT 'now', raise boolean DEFAULT true) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_authenticate_0_3';
COMMENT ON FUNCTION rk_apikeys.authenticate(text, text, inet, integer, text, text[], text, boolean) IS
  'Verifies a token and makes its key the principal until the transaction ends. Call it as the first statement of a transaction. Arguments as for verify_key. raise: if false, a refused token raises no error, takes away a principal that was set, and returns the verdict. Errors: 28000 unless valid, with the code and, if known, key_id and retry_after_ms in the DETAIL; 22023 as verify_key.';

CREATE FUNCTION rk_apikeys.current_key_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_environment';
COMMENT ON FUNCTION rk_apikeys.current_key_environment() IS
  'The environment of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_owner() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_owner';
COMMENT ON FUNCTION rk_apikeys.current_key_owner() IS
  'The owner of the key that this transaction has authenticated as. NULL if the key has no owner, without such a key, or if the key is no longer good.';

CREATE FUNCTION rk_apikeys.current_key_family() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_family';
COMMENT ON FUNCTION rk_apikeys.current_key_family() IS
  'The family of the key that this transaction has authenticated as: the id of the first key of its chain of rotations. NULL without such a key, or if the key is no longer good.';

-- The verdict environment_mismatch has a counter.
CREATE FUNCTION rk_apikeys._server_stats(OUT preloaded boolean,
    OUT malformed bigint, OUT unknown bigint, OUT revoked bigint, OUT disabled bigint,
    OUT expired bigint, OUT rotated bigint, OUT environment_mismatch bigint, OUT address_denied bigint, OUT scope_missing bigint,
    OUT rate_limited bigint, OUT quota_exceeded bigint, OUT limiter_unavailable bigint, OUT verified bigint,
    OUT cache_hits bigint, OUT cache_misses bigint, OUT overflow bigint, OUT dropped bigint,
    OUT flushes bigint, OUT flushed_keys bigint, OUT tracked_keys bigint, OUT max_tracked_keys bigint,
    OUT pending_keys bigint, OUT last_flush_at timestamptz, OUT flush_lag_ms bigint) RETURNS record
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_stats_0_3';
COMMENT ON FUNCTION rk_apikeys._server_stats() IS 'Private: returns the row of the view stats.';

CREATE OR REPLACE VIEW rk_apikeys.stats WITH (security_invoker = true) AS
  SELECT preloaded, verified, malformed, unknown, revoked, disabled, expired, rotated, address_denied,
    scope_missing, rate_limited, limiter_unavailable, cache_hits, cache_misses,
    tracked_keys, max_tracked_keys, pending_keys, overflow, dropped,
    flushes, flushed_keys, last_flush_at, flush_lag_ms, environment_mismatch, quota_exceeded
  FROM rk_apikeys._server_stats();
DROP FUNCTION rk_apikeys._stats();
COMMENT ON FUNCTION rk_apikeys._server_stats() IS 'Private: returns the row of the view stats.';

-- The view keys tells every default.
ALTER VIEW rk_apikeys.keys ALTER tenant SET DEFAULT rk_apikeys.current_tenant(),
  ALTER environment SET DEFAULT rk_apikeys._default_environment();

-- The message that a key has changed names a type. A session that still has the
-- library of 0.2 would not know it, so its verify must fail, as its verify_key does.
CREATE TYPE rk_apikeys._change AS ();
COMMENT ON TYPE rk_apikeys._change IS
  'Private: stands for "a key has changed" in the invalidation messages between sessions. It has no values.';
CREATE OR REPLACE FUNCTION rk_apikeys.verify(token text) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_0_3';

-- The kinds of events of 0.3. The functions for events come with sql/77-events.sql.
ALTER TABLE rk_apikeys.key_events DROP CONSTRAINT key_events_event_check, DROP CONSTRAINT key_events_key_check;
ALTER TABLE rk_apikeys.key_events
  ADD CONSTRAINT key_events_event_check CHECK (event IN ('created', 'imported', 'updated',
    'enabled', 'disabled', 'rotated', 'revoked', 'deleted', 'expiring', 'used_after_end', 'purged', 'erased',
    'policy_created', 'policy_changed', 'policy_deleted', 'limit_created', 'limit_changed', 'limit_deleted')),
  ADD CONSTRAINT key_events_key_check CHECK (event ~ '^(purged|erased|policy_|limit_)'
    OR (key_id IS NOT NULL AND tenant IS NOT NULL));
COMMENT ON COLUMN rk_apikeys.key_events.tenant IS 'The tenant. NULL: of all tenants, such as a purge.';
COMMENT ON COLUMN rk_apikeys.key_events.key_id IS 'The key id. NULL: the event is not of one key.';
COMMENT ON COLUMN rk_apikeys.key_events.event IS 'created, imported, updated, enabled, disabled, rotated, revoked, deleted, expiring, used_after_end, purged, erased, or policy_ or limit_ with created, changed or deleted.';
DROP FUNCTION rk_apikeys.purge_events(interval);
DROP FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[],
  bigint[], bigint[], bigint[]);

-- A reset of the limits of a family.
CREATE INDEX api_keys_family ON rk_apikeys.api_keys (family) WHERE family <> key_id;
COMMENT ON INDEX rk_apikeys.api_keys_family IS 'The successors of a family''s first key are found by this index.';
ALTER TABLE rk_apikeys.api_keys ADD limits_reset_at timestamptz;
COMMENT ON COLUMN rk_apikeys.api_keys.limits_reset_at IS 'The time of the last reset_limit of the key''s family. NULL: there was none.';

-- Tables with millions of rows: pages by name, an administrator's lists, and purges.
CREATE INDEX api_keys_tenant_name ON rk_apikeys.api_keys (tenant, name, key_id);
CREATE INDEX api_keys_created ON rk_apikeys.api_keys (created_at, key_id);
CREATE INDEX key_usage_daily_day ON rk_apikeys.key_usage_daily (day);
CREATE INDEX key_events_occurred ON rk_apikeys.key_events (occurred_at);
COMMENT ON INDEX rk_apikeys.api_keys_tenant_name IS 'For pages of a tenant''s keys, ordered by name.';
COMMENT ON INDEX rk_apikeys.api_keys_created IS 'For pages of all tenants'' keys, ordered by created_at.';
COMMENT ON INDEX rk_apikeys.key_usage_daily_day IS 'A purge finds old days by this index.';
COMMENT ON INDEX rk_apikeys.key_events_occurred IS 'For the events of a time. A purge finds old events by this index.';
CREATE FUNCTION rk_apikeys._sees_key(key_id text) RETURNS boolean
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_sees_key';
COMMENT ON FUNCTION rk_apikeys._sees_key(text) IS
  'Private: whether the caller sees a key, as the policies of api_keys say.';
ALTER POLICY principal ON rk_apikeys.key_usage
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR rk_apikeys._sees_key(key_id)));
ALTER POLICY principal ON rk_apikeys.key_events
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR rk_apikeys._sees_key(key_id)));

-- Uses that found no room, so that their keys do not count as stale.
CREATE TABLE rk_apikeys.unrecorded_uses (
  -- The C code (src/usage/lost.c) relies on this order: add new columns at the end.
  part integer NOT NULL,
  last_used_at timestamptz NOT NULL,
  CONSTRAINT unrecorded_uses_pkey PRIMARY KEY (part)
) WITH (fillfactor = 50);
ALTER TABLE rk_apikeys.unrecorded_uses ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE rk_apikeys.unrecorded_uses IS 'When keys were used that found no room in shared memory, by parts of the keys, so that stale_keys leaves these keys out. Only the extension reads and writes it.';
COMMENT ON COLUMN rk_apikeys.unrecorded_uses.part IS 'A hash of the key id.';
COMMENT ON COLUMN rk_apikeys.unrecorded_uses.last_used_at IS 'The time of the last unrecorded use of a key of that part. It only moves forward.';
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.unrecorded_uses', '');
CREATE FUNCTION rk_apikeys._unrecorded_use_at(key_id text) RETURNS timestamptz
  LANGUAGE C STABLE STRICT PARALLEL SAFE COST 100
  AS 'MODULE_PATHNAME', 'rk_apikeys_unrecorded_use_at';
COMMENT ON FUNCTION rk_apikeys._unrecorded_use_at(text) IS
  'Private: the last time at which a use of the key may have found no room in shared memory. NULL if there was none, or if the caller may not see the key.';
CREATE OR REPLACE VIEW rk_apikeys.stale_keys WITH (security_invoker = true) AS
  SELECT k.key_id, k.tenant, k.name, k.description, k.environment, k.masked_key, k.status,
    greatest(u.last_used_at, rk_apikeys._live_last_used_at(k.key_id)) AS last_used_at,
    greatest(u.use_count, rk_apikeys._live_use_count(k.key_id), 0) AS use_count, k.created_at, k.created_by,
    date_trunc('second', statement_timestamp()
      - greatest(coalesce(greatest(u.last_used_at, rk_apikeys._live_last_used_at(k.key_id)), k.created_at),
        rk_apikeys._unrecorded_use_at(k.key_id))) AS unused_for
  FROM rk_apikeys.keys k LEFT JOIN rk_apikeys.key_usage u ON u.key_id = k.key_id
  WHERE k.revoked_at IS NULL AND k.enabled AND k.grace_until IS NULL
    AND (k.expires_at > statement_timestamp()) IS NOT FALSE
    AND coalesce(greatest(u.last_used_at, rk_apikeys._live_last_used_at(k.key_id)), k.created_at)
      < (SELECT statement_timestamp() - rk_apikeys._setting_interval('stale_after'))
    AND (rk_apikeys._unrecorded_use_at(k.key_id)
      < (SELECT statement_timestamp() - rk_apikeys._setting_interval('stale_after'))) IS NOT FALSE;

-- The words of 0.3.
COMMENT ON TYPE rk_apikeys.new_key IS
  'The result of create_key and rotate_key. secret is the whole token, shown only this once.';
COMMENT ON TYPE rk_apikeys.listed_key IS
  'A row of list_keys: the columns of the view keys except secret, and cursor. To get the next page, give the cursor of a page''s last row as "after".';
COMMENT ON FUNCTION rk_apikeys.current_tenant() IS
  'The tenant whose keys this session manages: the principal''s tenant, else the setting rk_apikeys.tenant, else the name of the current role. NULL if the principal''s key is no longer good. Only for rk_apikeys'' own tables. Policies on other tables must not rest on it.';
COMMENT ON FUNCTION rk_apikeys.current_key_id() IS
  'The id of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';
COMMENT ON FUNCTION rk_apikeys.current_key_tenant() IS
  'The tenant of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';
COMMENT ON FUNCTION rk_apikeys.current_scopes() IS
  'The scopes of the key that this transaction has authenticated as. NULL without such a key, or if the key is no longer good.';
COMMENT ON FUNCTION rk_apikeys._may_manage() IS
  'Private: false if a principal is set that lacks the scope apikeys:manage or is no longer good.';
COMMENT ON FUNCTION rk_apikeys._no_principal() IS
  'Private: false if a principal is set, even one that is no longer good. While it is false, no role reaches other tenants.';
COMMENT ON FUNCTION rk_apikeys._setting_interval(text) IS
  'Private: the value of the setting expiring_window, stale_after or max_lifetime. NULL if max_lifetime is 0.';
COMMENT ON TABLE rk_apikeys.api_keys IS 'The API keys: settings and digests. People use the view keys instead.';
COMMENT ON COLUMN rk_apikeys.api_keys.key_id IS 'The public part of the token: 12 base62 digits, safe to log.';
COMMENT ON COLUMN rk_apikeys.api_keys.name IS 'A name for people: 1 to 200 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.description IS 'The purpose of the key: up to 2000 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.prefix IS 'The first part of the token: the setting token_prefix when the key was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.environment IS 'The second part of the token, such as dev, stage or prod.';
COMMENT ON COLUMN rk_apikeys.api_keys.scopes IS 'The permissions of the key: names such as records:read, records:* or *.';
COMMENT ON COLUMN rk_apikeys.api_keys.allowed_cidrs IS 'The networks from which the key may be used. NULL: any network.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_limit IS 'The uses that are allowed per rate_window. NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_window IS 'The time to which rate_limit applies.';
COMMENT ON COLUMN rk_apikeys.api_keys.metadata IS 'Any data of the product: a JSON object of up to 8 kB.';
COMMENT ON COLUMN rk_apikeys.api_keys.enabled IS 'The toggle: verify refuses a key that is not enabled.';
COMMENT ON COLUMN rk_apikeys.api_keys.expires_at IS 'The key is good before this time. NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.api_keys.replaces IS 'The id of the key that this key was rotated from.';
COMMENT ON COLUMN rk_apikeys.api_keys.grace_until IS 'Set by a rotation: the key is good only before this time, and only before expires_at.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_at IS 'The time when the key was revoked, for good.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_reason IS 'The reason why the key was revoked.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_at IS 'The time when the key was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_by IS 'The session user who made the key.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_at IS 'The time when a setting was last changed. A use does not move it.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest IS 'The digest of the token. Granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest_kind IS 'native, or for an imported key sha256 or sha512. Granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.pepper_id IS 'The pepper with which the digest was made. Granted to no role.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_created IS 'For pages of a tenant''s keys, ordered by created_at.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_key IS 'For pages of a tenant''s keys, ordered by key id.';
COMMENT ON INDEX rk_apikeys.api_keys_imported_digest IS 'verify finds an imported key by this index.';
COMMENT ON TABLE rk_apikeys.key_usage IS 'When and how often each key was used. Only the extension writes it.';
COMMENT ON COLUMN rk_apikeys.key_usage.key_id IS 'The key id.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_at IS 'The time of the last use. It only moves forward.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_addr IS 'The last client_addr that verify_key or authenticate was given with a valid token.';
COMMENT ON COLUMN rk_apikeys.key_usage.use_count IS 'Recorded uses. Without shared memory, at most one per usage_resolution.';
COMMENT ON COLUMN rk_apikeys.key_usage.denied_count IS 'How often a genuine token was refused. Counted only in shared memory.';
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'For lists of a tenant''s keys, ordered by use.';
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'For reports on one tenant, by day.';
COMMENT ON TABLE rk_apikeys.key_usage_daily IS 'Uses and denials per key and day. A row outlives its key.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.key_id IS 'The key id.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.uses IS 'Recorded uses, as in key_usage.use_count.';
COMMENT ON TABLE rk_apikeys.usage_senders IS 'The standbys and subscribers that send usage here: one row for each start of such a server.';
COMMENT ON COLUMN rk_apikeys.usage_senders.sender IS 'A random number that the sending server made at its start.';
COMMENT ON COLUMN rk_apikeys.usage_senders.received_at IS 'The time when the last batch was written.';
COMMENT ON COLUMN rk_apikeys.usage_senders.client_addr IS 'The sending server''s address. NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.usage_senders.application_name IS 'The sending server''s application_name.';
COMMENT ON COLUMN rk_apikeys.usage_senders.left_out IS 'The keys of the last batch that were not written, because their row was locked. The server sends them again.';
COMMENT ON TABLE rk_apikeys.key_events IS 'The audit of the keys. Append-only. Each event is written in the transaction of its change, and outlives the key.';
COMMENT ON COLUMN rk_apikeys.key_events.event_id IS 'A number that grows with each event.';
COMMENT ON COLUMN rk_apikeys.key_events.occurred_at IS 'The clock time when the event was written.';
COMMENT ON COLUMN rk_apikeys.key_events.role IS 'The current role.';
COMMENT ON COLUMN rk_apikeys.key_events.principal IS 'The id of the key that the transaction had authenticated as.';
COMMENT ON COLUMN rk_apikeys.key_events.client_addr IS 'The database client''s address. NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.key_events.changes IS 'The old and new value of each changed setting. Never a digest or secret.';
COMMENT ON INDEX rk_apikeys.key_events_key IS 'For the history of one key.';
COMMENT ON FUNCTION rk_apikeys._keys_make() IS
  'Private: gives a new key its id, token and digest. Stores a restored row as it is.';
COMMENT ON FUNCTION rk_apikeys._keys_guard() IS
  'Private: the state machine of a key. Moves updated_at when a setting really changes.';
COMMENT ON TRIGGER api_keys_guard ON rk_apikeys.api_keys IS 'Refuses changes that are not allowed.';
COMMENT ON FUNCTION rk_apikeys._keys_settle() IS
  'Private: sends every session an invalidation message when a key changes. Deletes the usage of a deleted key.';
COMMENT ON TRIGGER api_keys_settle ON rk_apikeys.api_keys IS
  'Sends every session an invalidation message when a key changes. Deletes the usage of a deleted key.';
COMMENT ON FUNCTION rk_apikeys._keys_settle_imported() IS
  'Private: sends every session an invalidation message when an imported key is added.';
COMMENT ON TRIGGER api_keys_settle_imported ON rk_apikeys.api_keys IS
  'Sends every session an invalidation message when an imported key is added.';
COMMENT ON FUNCTION rk_apikeys._keys_audit_insert() IS 'Private: writes the events created and imported.';
COMMENT ON FUNCTION rk_apikeys._keys_audit_update() IS
  'Private: writes the events updated, enabled, disabled, rotated and revoked.';
COMMENT ON FUNCTION rk_apikeys._keys_audit_delete() IS 'Private: writes the event deleted.';
COMMENT ON FUNCTION rk_apikeys.generate_token(text, text) IS
  'Returns a new token that belongs to no key. A NULL takes the setting default_environment or token_prefix. Errors: 22023 for a bad environment or prefix.';
COMMENT ON FUNCTION rk_apikeys.is_well_formed(text) IS
  'Whether a string has a token''s shape and correct check digits (CRC-32, IEEE 802.3). It does not check whether the key exists.';
COMMENT ON FUNCTION rk_apikeys.mask(text) IS
  'Returns the token with its secret hidden, except the last 4 digits. Returns ******** for a string that is no token.';
COMMENT ON FUNCTION rk_apikeys.hash_token(text) IS
  'Returns the SHA-256 (FIPS 180-4) of a token: 32 bytes, as import_key takes it.';
COMMENT ON FUNCTION rk_apikeys.digest_equal(bytea, bytea) IS
  'Whether two digests are equal. The time of the comparison reveals only their lengths.';
COMMENT ON FUNCTION rk_apikeys.find_tokens(text) IS
  'Returns the tokens in a text whose check digits are correct: the masked form, the key id, and the start in characters from 1.';
COMMENT ON FUNCTION rk_apikeys.redact(text) IS
  'Returns the text with every string masked that looks like a token. It also masks tokens that were cut or mistyped.';
COMMENT ON FUNCTION rk_apikeys.reveal(text) IS
  'Returns the token of a key that this transaction has made, to the role that made it. Otherwise returns NULL.';
COMMENT ON FUNCTION rk_apikeys._status(timestamptz, boolean, timestamptz, timestamptz) IS
  'Private: the status of a key at the start of the statement, in the order in which verify checks.';
COMMENT ON FUNCTION rk_apikeys._live_last_used_at(text) IS
  'Private: the last use of a key that shared memory knows. NULL if there is none, or if the caller may not see it.';
COMMENT ON FUNCTION rk_apikeys._live_use_count(text) IS
  'Private: the uses of a key that shared memory knows. NULL if there are none, or if the caller may not see them.';
COMMENT ON FUNCTION rk_apikeys._live_usage() IS
  'Private: the last use and the uses that shared memory knows, for all keys whose usage the caller may see. It can skip a key if the tables have the same values.';
COMMENT ON VIEW rk_apikeys.keys IS
  'The keys, masked. INSERT, UPDATE and DELETE work on this view. secret holds a new key''s token until the transaction ends, and is NULL ever after.';
COMMENT ON COLUMN rk_apikeys.keys.masked_key IS 'The token with its secret hidden, except the last 4 digits. Of an imported token: the start and the hint that import_key was given.';
COMMENT ON COLUMN rk_apikeys.keys.status IS 'active, grace (rotated, but still accepted), rotated, disabled, expired or revoked.';
COMMENT ON COLUMN rk_apikeys.keys.expires_in IS 'The time left before expires_at. 0 once expires_at has passed. NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.keys.last_used_at IS 'The last recorded use. NULL: never.';
COMMENT ON COLUMN rk_apikeys.keys.use_count IS 'Recorded uses.';
COMMENT ON COLUMN rk_apikeys.keys.secret IS 'The whole token of a key that this transaction has made. Otherwise NULL.';
COMMENT ON VIEW rk_apikeys.expiring_keys IS
  'The accepted keys that expire within the time of the setting rk_apikeys.expiring_window.';
COMMENT ON VIEW rk_apikeys.stale_keys IS
  'The active keys that nobody has used for the time of the setting rk_apikeys.stale_after. For a key that was never used, the time counts from its creation.';
COMMENT ON VIEW rk_apikeys.key_activity IS
  'Uses and denials per key and day (UTC). name, owner and created_by_user are NULL for a deleted key. Sum by family to have a key and its rotations as one.';
COMMENT ON VIEW rk_apikeys.stats IS
  'One row: counters of this server since its start, over all databases. Without shared memory, all columns except preloaded are NULL.';
COMMENT ON FUNCTION rk_apikeys.verify(text) IS
  'Whether the token is good now. Never raises an error for a bad token. NULL returns false.';
COMMENT ON FUNCTION rk_apikeys.revoke_token(text, text) IS
  'Revokes the key of a token: whoever holds the token may do so. True if the token is genuine: its key is then revoked, by this call or before. False otherwise.';
COMMENT ON FUNCTION rk_apikeys.create_key(text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text) IS
  'Makes a key. Returns its id and, only this once, its whole token. The same as INSERT INTO rk_apikeys.keys. Errors: 23514 for a value of wrong shape, 22023 for an expires_at in the past or beyond max_lifetime, 42501 for another tenant.';
COMMENT ON FUNCTION rk_apikeys.rotate_key(text, interval, timestamptz) IS
  'Makes a successor with the same settings. Returns the successor''s id and token. The old key stays good for the time of grace (0: it ends at once), but never beyond its own expires_at. expires_at: the successor''s expiry; NULL: the old key''s, within max_lifetime. Errors: 42704 no such key, 55000 the key is revoked, expired or already rotated, 22023 negative grace.';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes the usage of this database''s keys from shared memory to key_usage and key_usage_daily now. Returns the number of keys. Returns 0 without shared memory, or while another flush is running. Commit soon, because other flushes wait until then.';
COMMENT ON FUNCTION rk_apikeys.seal(text, text) IS
  'Returns the secret as an OpenPGP message (RFC 4880, armoured). Only the owner of the armoured public key can read the message. Errors: 55000 without the extension pgcrypto, else those of pgcrypto for an invalid key.';
COMMENT ON FUNCTION rk_apikeys.has_scope(text) IS
  'Whether the key that this transaction has authenticated as has the scope, by its own name, by a:* or by *. scope may be a list as in verify_key. False for what is no list, without such a key, or if the key is no longer good.';
