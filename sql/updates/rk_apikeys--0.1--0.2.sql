\echo Use "ALTER EXTENSION rk_apikeys UPDATE TO '0.2'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- A verify without preload locks key_usage, then api_keys.  Locks in this order,
-- at full strength from the start, keep the update from a deadlock with it.
LOCK TABLE rk_apikeys.key_usage, rk_apikeys.api_keys, rk_apikeys.key_usage_daily,
  rk_apikeys.key_events;

-- The lists of a tenant, by use and by day.
CREATE INDEX key_usage_tenant ON rk_apikeys.key_usage (tenant, key_id);
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'A tenant''s lists, by use.';
CREATE INDEX key_usage_daily_tenant ON rk_apikeys.key_usage_daily (tenant, day);
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'A tenant''s days.';

-- What other servers have sent: their last batch each, so that none counts twice.
CREATE TABLE rk_apikeys.usage_senders (
  sender uuid NOT NULL,
  batch bigint NOT NULL,
  received_at timestamptz NOT NULL,
  client_addr inet,
  application_name text,
  left_out text[] NOT NULL,
  CONSTRAINT usage_senders_pkey PRIMARY KEY (sender)
) WITH (fillfactor = 50);
COMMENT ON TABLE rk_apikeys.usage_senders IS 'The standbys and subscribers that send usage here, a row for each start of such a server.';
COMMENT ON COLUMN rk_apikeys.usage_senders.sender IS 'A random number that the server made at its start.';
COMMENT ON COLUMN rk_apikeys.usage_senders.batch IS 'The number of the last batch that was written.';
COMMENT ON COLUMN rk_apikeys.usage_senders.received_at IS 'When that was.';
COMMENT ON COLUMN rk_apikeys.usage_senders.client_addr IS 'The server''s address; NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.usage_senders.application_name IS 'Its application_name.';
COMMENT ON COLUMN rk_apikeys.usage_senders.left_out IS 'The keys of that batch whose row was locked: they come again.';
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.usage_senders', '');
ALTER TABLE rk_apikeys.usage_senders ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.usage_senders FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.usage_senders IS 'Admins and auditors see which servers send usage.';
GRANT SELECT ON rk_apikeys.usage_senders TO rk_apikeys_auditor, rk_apikeys_admin;

CREATE FUNCTION rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[], environments text[],
    last_used_at timestamptz[], addrs inet[], uses bigint[], denials bigint[],
    known_uses bigint[], known_denials bigint[],
    OUT n integer, OUT use_count bigint, OUT denied_count bigint) RETURNS SETOF record
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_receive_usage';
COMMENT ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[], bigint[], bigint[]) IS
  'Writes a batch of usage that a standby or subscriber has counted; the server itself calls it, as the role of its rk_apikeys.primary_conninfo. Per key that was written, its place in the batch and its counts now; NULLs if there is no such key. A batch that comes again counts once. Errors: 22023 for what is no batch, 55P03 while another flush is under way.';
REVOKE ALL ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[],
    bigint[], bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[],
    bigint[], bigint[]) TO rk_apikeys_admin;

-- From PostgreSQL 17 on there is shared memory without preload.
COMMENT ON COLUMN rk_apikeys.key_usage.use_count IS 'Uses recorded: without shared memory, at most one per usage_resolution.';
COMMENT ON COLUMN rk_apikeys.key_usage.denied_count IS 'Genuine tokens refused; counted only in shared memory.';
COMMENT ON VIEW rk_apikeys.stats IS
  'One row: counters of this server since its start, over all databases; all but preloaded are NULL without shared memory.';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes what shared memory holds of this database''s keys to key_usage and key_usage_daily now; returns how many keys. 0 without shared memory, or if another flush is under way. Commit soon: other flushes wait their turn until then.';

-- A cursor's time is parsed once and not for each key.
CREATE OR REPLACE FUNCTION rk_apikeys.list_keys(search text DEFAULT NULL, status text DEFAULT NULL,
    environment text DEFAULT NULL, sort_by text DEFAULT 'created_at',
    descending boolean DEFAULT false, page_size integer DEFAULT 25,
    after text DEFAULT NULL) RETURNS SETOF rk_apikeys.listed_key
  LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
  SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  -- The expression to sort by, its type, and whether it can be NULL.
  expression text;
  type text := 'timestamptz';
  nullable boolean := false;
  usage_join text := '';
  direction text := CASE WHEN descending THEN 'DESC' ELSE 'ASC' END;
  beyond text := CASE WHEN descending THEN '<' ELSE '>' END;
  conditions text := '';
  page text;
  position text[];
  start_value text;
  start_key text;
BEGIN
  IF sort_by IN ('name', 'environment') THEN
    expression := 'k.' || sort_by;
    type := 'text';
  ELSIF sort_by = 'key_id' THEN
    expression := 'k.key_id';
    type := 'text COLLATE "C"';
  ELSIF sort_by IN ('created_at', 'updated_at') THEN
    expression := 'k.' || sort_by;
  ELSIF sort_by = 'expires_at' THEN
    expression := 'k.expires_at';
    nullable := true;
  ELSIF sort_by = 'last_used_at' THEN
    expression := 'greatest(u.last_used_at, l.last_used_at)';
    nullable := true;
  ELSIF sort_by = 'use_count' THEN
    expression := 'greatest(u.use_count, l.use_count, 0)';
    type := 'bigint';
  ELSIF sort_by = 'status' THEN
    expression := 'rk_apikeys._status(k.revoked_at, k.enabled, k.expires_at, k.grace_until)';
    type := 'text';
  ELSE
    RAISE EXCEPTION 'cannot sort by "%"', coalesce(left(rk_apikeys.redact(sort_by), 80), 'null')
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use name, environment, key_id, created_at, updated_at, expires_at, last_used_at, use_count or status.';
  END IF;
  IF descending IS NULL THEN
    RAISE EXCEPTION 'descending cannot be null'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use true or false.';
  END IF;
  IF page_size IS NULL OR page_size NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'page_size cannot be %', coalesce(page_size::text, 'null')
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use 1 to 1000.';
  END IF;
  IF status NOT IN ('active', 'grace', 'rotated', 'disabled', 'expired', 'revoked') THEN
    RAISE EXCEPTION 'there is no status "%"', left(rk_apikeys.redact(status), 80)
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use active, grace, rotated, disabled, expired or revoked.';
  END IF;

  IF expression LIKE '%u.%' THEN
    usage_join := 'LEFT JOIN rk_apikeys.key_usage u ON u.key_id = k.key_id
            LEFT JOIN rk_apikeys._live_usage() l ON l.key_id = k.key_id';
  END IF;
  IF search <> '' THEN
    conditions := conditions || $c$ AND (strpos(lower(k.name), lower($1)) > 0
      OR strpos(lower(k.description), lower($1)) > 0
      OR strpos(lower(k.key_id), lower($1)) > 0
      OR strpos(k.environment, lower($1)) > 0)$c$;
  END IF;
  IF status IS NOT NULL THEN
    conditions := conditions ||
      ' AND rk_apikeys._status(k.revoked_at, k.enabled, k.expires_at, k.grace_until) = $2';
  END IF;
  IF environment IS NOT NULL THEN
    conditions := conditions || ' AND k.environment = $3';
  END IF;

  IF after IS NOT NULL THEN
    -- It gives a position, nothing more: what can be seen is decided afresh.
    BEGIN
      position := regexp_match(convert_from(decode(after, 'hex'), 'UTF8'),
        '^([a-z_]+)([+-])([0-9A-Za-z]{12})(?:=(.*))?$');
      start_key := position[3];
      start_value := position[4];
      IF start_value IS NOT NULL AND type NOT LIKE 'text%' THEN
        EXECUTE 'SELECT $1::' || type USING start_value;
      END IF;
    EXCEPTION WHEN data_exception OR character_not_in_repertoire OR syntax_error THEN
      position := NULL;
    END;
    IF position[1] IS DISTINCT FROM sort_by
       OR position[2] IS DISTINCT FROM (CASE WHEN descending THEN '-' ELSE '+' END)
       OR (start_value IS NULL AND NOT nullable) THEN
      RAISE EXCEPTION 'cursor is not one of this list'
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = 'A cursor goes on only with the sort_by and descending that it came from.',
              HINT = 'Take the cursor of the last row of a page, or start without one.';
    END IF;
    IF start_value IS NULL THEN
      conditions := conditions || format(' AND %s IS NULL AND k.key_id %s $5', expression, beyond);
    ELSE
      -- Where all keys are compared with it, it is parsed once and not for each.
      conditions := conditions || format(' AND ((%s, k.key_id) %s (%s, $5)%s)', expression, beyond,
        format(CASE WHEN sort_by IN ('key_id', 'created_at') THEN '$4::%s' ELSE '(SELECT $4::%s)' END, type),
        CASE WHEN nullable THEN format(' OR %s IS NULL', expression) ELSE '' END);
    END IF;
  END IF;

  -- Where an index has the order, a page is read off the view; else the sort is
  -- kept narrow, and its page joined to the view.
  page := format(CASE WHEN sort_by IN ('key_id', 'created_at') THEN $q$
      (SELECT k.*, %1$s AS sort_value FROM rk_apikeys.keys k
        WHERE true %3$s
        ORDER BY %1$s %4$s, k.key_id %4$s LIMIT %6$s)$q$
    ELSE $q$
      (SELECT v.*, p.sort_value
        FROM (SELECT k.key_id, %1$s AS sort_value
            FROM rk_apikeys.api_keys k %2$s
            WHERE true %3$s
            ORDER BY %1$s %4$s %5$s, k.key_id %4$s LIMIT %6$s) p
          JOIN rk_apikeys.keys v ON v.key_id = p.key_id)$q$ END,
    expression, usage_join, conditions, direction, CASE WHEN nullable THEN 'NULLS LAST' ELSE '' END, page_size);
  RETURN QUERY SELECT * FROM rk_apikeys._page(format($q$
    SELECT v.key_id, v.tenant, v.name, v.description, v.environment, v.masked_key, v.status, v.enabled,
        v.scopes, v.allowed_cidrs, v.rate_limit, v.rate_window, v.metadata, v.expires_at, v.expires_in,
        greatest(u.last_used_at, rk_apikeys._live_last_used_at(v.key_id)),
        greatest(u.use_count, rk_apikeys._live_use_count(v.key_id), 0),
        v.replaces, v.grace_until, v.revoked_at, v.revoked_reason,
        v.created_at, v.created_by, v.updated_at, v.updated_by,
        encode(convert_to($6 || CASE WHEN $7 THEN '-' ELSE '+' END || v.key_id
          || coalesce('=' || (to_jsonb(v.sort_value) #>> '{}'), ''), 'UTF8'), 'hex')
      FROM %s v LEFT JOIN rk_apikeys.key_usage u ON u.key_id = v.key_id
      ORDER BY v.sort_value %s %s, v.key_id %2$s$q$,
      page, direction, CASE WHEN nullable THEN 'NULLS LAST' ELSE '' END),
    search, status, environment, start_value, start_key, sort_by, descending);
END $$;
