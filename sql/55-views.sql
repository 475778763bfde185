-- Views for people and reports. With security_invoker, the policies of the
-- tables apply to the caller.

CREATE FUNCTION rk_apikeys.reveal(key_id text) RETURNS text
  LANGUAGE C STABLE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'rk_apikeys_reveal';
COMMENT ON FUNCTION rk_apikeys.reveal(text) IS
  'Returns the token of a key that this transaction has made, to the role that made it. Otherwise returns NULL.';

CREATE FUNCTION rk_apikeys._status(revoked_at timestamptz, enabled boolean,
    expires_at timestamptz, grace_until timestamptz) RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN CASE
    WHEN revoked_at IS NOT NULL THEN 'revoked'
    WHEN NOT enabled THEN 'disabled'
    WHEN expires_at <= statement_timestamp() THEN 'expired'
    WHEN grace_until <= statement_timestamp() THEN 'rotated'
    WHEN grace_until IS NOT NULL THEN 'grace'
    ELSE 'active' END;
COMMENT ON FUNCTION rk_apikeys._status(timestamptz, boolean, timestamptz, timestamptz) IS
  'Private: the status of a key at the start of the statement, in the order in which verify checks.';

-- STABLE although shared memory changes meanwhile, because the planner could not
-- simplify the views with VOLATILE functions in them.
CREATE FUNCTION rk_apikeys._live_last_used_at(key_id text) RETURNS timestamptz
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_last_used_at';
COMMENT ON FUNCTION rk_apikeys._live_last_used_at(text) IS
  'Private: the last use of a key that shared memory knows. NULL if there is none, or if the caller may not see it.';

CREATE FUNCTION rk_apikeys._live_last_used_addr(key_id text) RETURNS inet
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_last_used_addr';
COMMENT ON FUNCTION rk_apikeys._live_last_used_addr(text) IS
  'Private: the last address of a key that shared memory knows. NULL if there is none, or if the caller may not see it.';

CREATE FUNCTION rk_apikeys._live_use_count(key_id text) RETURNS bigint
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_use_count';
COMMENT ON FUNCTION rk_apikeys._live_use_count(text) IS
  'Private: the uses of a key that shared memory knows. NULL if there are none, or if the caller may not see them.';

CREATE FUNCTION rk_apikeys._live_usage(OUT key_id text, OUT last_used_at timestamptz, OUT use_count bigint)
  RETURNS SETOF record
  LANGUAGE C STABLE PARALLEL SAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_usage';
COMMENT ON FUNCTION rk_apikeys._live_usage() IS
  'Private: the last use and the uses that shared memory knows, for all keys whose usage the caller may see. It can skip a key if the tables have the same values.';

CREATE FUNCTION rk_apikeys._unrecorded_use_at(key_id text) RETURNS timestamptz
  LANGUAGE C STABLE STRICT PARALLEL SAFE COST 100
  AS 'MODULE_PATHNAME', 'rk_apikeys_unrecorded_use_at';
COMMENT ON FUNCTION rk_apikeys._unrecorded_use_at(text) IS
  'Private: the last time at which a use of the key may have found no room in shared memory. NULL if there was none, or if the caller may not see the key.';

CREATE VIEW rk_apikeys.keys WITH (security_invoker = true) AS
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
-- For UPDATE ... SET column = DEFAULT, and for tools that read the defaults.
ALTER VIEW rk_apikeys.keys ALTER tenant SET DEFAULT rk_apikeys.current_tenant(),
  ALTER description SET DEFAULT '', ALTER environment SET DEFAULT rk_apikeys._default_environment(),
  ALTER scopes SET DEFAULT '{}', ALTER metadata SET DEFAULT '{}', ALTER enabled SET DEFAULT true;
COMMENT ON VIEW rk_apikeys.keys IS
  'The keys, masked. INSERT, UPDATE and DELETE work on this view. secret holds a new key''s token until the transaction ends, and is NULL ever after.';
COMMENT ON COLUMN rk_apikeys.keys.masked_key IS 'The token with its secret hidden, except the last 4 digits. Of an imported token: the start and the hint that import_key was given.';
COMMENT ON COLUMN rk_apikeys.keys.status IS 'active, grace (rotated, but still accepted), rotated, disabled, expired or revoked.';
COMMENT ON COLUMN rk_apikeys.keys.expires_in IS 'The time left before expires_at. 0 once expires_at has passed. NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.keys.last_used_at IS 'The last recorded use. NULL: never.';
COMMENT ON COLUMN rk_apikeys.keys.use_count IS 'Recorded uses.';
COMMENT ON COLUMN rk_apikeys.keys.secret IS 'The whole token of a key that this transaction has made. Otherwise NULL.';
COMMENT ON COLUMN rk_apikeys.keys.parent IS 'The id of the key that made this key, as principal. NULL: a role without a principal made this key.';
COMMENT ON COLUMN rk_apikeys.keys.last_used_addr IS 'The address of the last use that came with an address.';

CREATE VIEW rk_apikeys.active_keys WITH (security_invoker = true) AS
  SELECT key_id, tenant, name, description, environment, masked_key, status, scopes,
    expires_at, expires_in, last_used_at, use_count, grace_until,
    created_at, created_by, updated_at, updated_by
  FROM rk_apikeys.keys WHERE status IN ('active', 'grace');
COMMENT ON VIEW rk_apikeys.active_keys IS 'The keys that are accepted now: status active or grace.';

CREATE VIEW rk_apikeys.expiring_keys WITH (security_invoker = true) AS
  SELECT key_id, tenant, name, description, environment, masked_key, status,
    expires_at, expires_in, last_used_at, use_count, created_at, created_by
  FROM rk_apikeys.keys
  WHERE status IN ('active', 'grace')
    AND expires_at <= statement_timestamp() + rk_apikeys._setting_interval('expiring_window');
COMMENT ON VIEW rk_apikeys.expiring_keys IS
  'The accepted keys that expire within the time of the setting rk_apikeys.expiring_window.';

-- A join, because the sub-selects of keys would look up the use of each key. Columns
-- instead of status, because the planner knows how many rows have them.
CREATE VIEW rk_apikeys.stale_keys WITH (security_invoker = true) AS
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
COMMENT ON VIEW rk_apikeys.stale_keys IS
  'The active keys that nobody has used for the time of the setting rk_apikeys.stale_after. For a key that was never used, the time counts from its creation.';

CREATE VIEW rk_apikeys.key_activity WITH (security_invoker = true) AS
  SELECT d.day, d.key_id, d.tenant, k.name, d.environment, d.uses, d.denials,
    coalesce(d.family, d.key_id) AS family, k.owner, k.created_by_user
  FROM rk_apikeys.key_usage_daily d LEFT JOIN rk_apikeys.api_keys k USING (key_id);
COMMENT ON VIEW rk_apikeys.key_activity IS
  'Uses and denials per key and day (UTC). name, owner and created_by_user are NULL for a deleted key. Sum by family to have a key and its rotations as one.';

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

CREATE VIEW rk_apikeys.stats WITH (security_invoker = true) AS
  SELECT preloaded, verified, malformed, unknown, revoked, disabled, expired, rotated, address_denied,
    scope_missing, rate_limited, limiter_unavailable, cache_hits, cache_misses,
    tracked_keys, max_tracked_keys, pending_keys, overflow, dropped,
    flushes, flushed_keys, last_flush_at, flush_lag_ms, environment_mismatch, quota_exceeded
  FROM rk_apikeys._server_stats();
COMMENT ON VIEW rk_apikeys.stats IS
  'One row: counters of this server since its start, over all databases. Without shared memory, all columns except preloaded are NULL.';

