CREATE FUNCTION rk_apikeys._page(query text, search text, status text, environment text,
    start_value text, start_key text, sort_by text, descending boolean,
    owner text, tenant text, metadata jsonb, scopes text[], statuses text[]) RETURNS SETOF rk_apikeys.listed_key
  LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 25
  AS 'MODULE_PATHNAME', 'rk_apikeys_page_0_3';
COMMENT ON FUNCTION rk_apikeys._page(text, text, text, text, text, text, text, boolean, text, text, jsonb, text[], text[]) IS
  'Private: runs the query that list_keys has built, with the caller''s rights, and keeps its plan.';

CREATE FUNCTION rk_apikeys._searched_key_id(search text) RETURNS text
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_searched_key_id';
COMMENT ON FUNCTION rk_apikeys._searched_key_id(text) IS
  'Private: the key id of a search that is a token or a mask. NULL if it is neither, or an imported token whose key the caller may not see.';

-- The conditions of list_keys and count_keys. $1 to $12 are the arguments of _page
-- after its query.
CREATE FUNCTION rk_apikeys._conditions(search text, status text, environment text, owner text,
    tenant text, metadata jsonb, scopes text[], statuses text[]) RETURNS text
  LANGUAGE plpgsql STABLE PARALLEL SAFE
  SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  known CONSTANT text[] := '{active,grace,rotated,disabled,expired,revoked}';
  one text;
  conditions text := '';
BEGIN
  IF status <> ALL (known) OR NOT statuses <@ known THEN
    SELECT * INTO one FROM unnest(statuses || status) AS given WHERE (given = ANY (known)) IS NOT TRUE;
    RAISE EXCEPTION 'there is no status "%"', coalesce(left(rk_apikeys.redact(one), 80), 'null')
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use active, grace, rotated, disabled, expired or revoked.';
  END IF;
  -- Key ids and environments are ASCII. A Turkish locale would fold "I" otherwise.
  IF search <> '' THEN
    conditions := conditions || $c$ AND (strpos(lower(k.name), lower($1)) > 0
      OR strpos(lower(k.description), lower($1)) > 0
      OR strpos(lower(k.key_id), lower($1 COLLATE "C")) > 0
      OR strpos(k.environment, lower($1 COLLATE "C")) > 0
      OR k.key_id = (SELECT rk_apikeys._searched_key_id($1))
      OR k.hint = $1
      OR k.start || '********' || coalesce(k.hint, '') = $1)$c$;
  END IF;
  RETURN conditions
    || CASE WHEN status IS NULL THEN ''
      ELSE ' AND rk_apikeys._status(k.revoked_at, k.enabled, k.expires_at, k.grace_until) = $2' END
    || CASE WHEN environment IS NULL THEN '' ELSE ' AND k.environment = $3' END
    || CASE WHEN owner IS NULL THEN '' WHEN owner = '' THEN ' AND k.owner IS NULL' ELSE ' AND k.owner = $8' END
    || CASE WHEN tenant IS NULL THEN '' ELSE ' AND k.tenant = $9' END
    || CASE WHEN metadata IS NULL THEN '' ELSE ' AND k.metadata @> $10' END
    || CASE WHEN scopes IS NULL THEN '' ELSE ' AND k.scopes @> $11' END
    || CASE WHEN statuses IS NULL THEN ''
      ELSE ' AND rk_apikeys._status(k.revoked_at, k.enabled, k.expires_at, k.grace_until) = ANY ($12)' END;
END $$;
COMMENT ON FUNCTION rk_apikeys._conditions(text, text, text, text, text, jsonb, text[], text[]) IS
  'Private: the conditions of list_keys and count_keys, as SQL. Errors: 22023.';

CREATE FUNCTION rk_apikeys.count_keys(search text DEFAULT NULL, status text DEFAULT NULL,
    environment text DEFAULT NULL, owner text DEFAULT NULL, tenant text DEFAULT NULL,
    metadata jsonb DEFAULT NULL, scopes text[] DEFAULT NULL, statuses text[] DEFAULT NULL) RETURNS bigint
  LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
  SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  result bigint;
BEGIN
  EXECUTE 'SELECT count(*) FROM rk_apikeys.api_keys k WHERE true'
      || rk_apikeys._conditions(search, status, environment, owner, tenant, metadata, scopes, statuses)
    INTO result
    USING search, status, environment, NULL::text, NULL::text, NULL::text, NULL::boolean,
      owner, tenant, metadata, scopes, statuses;
  RETURN result;
END $$;
COMMENT ON FUNCTION rk_apikeys.count_keys(text, text, text, text, text, jsonb, text[], text[]) IS
  'Returns how many keys list_keys finds with the same filters, on all pages. Errors: 22023.';

CREATE FUNCTION rk_apikeys.list_keys(search text DEFAULT NULL, status text DEFAULT NULL,
    environment text DEFAULT NULL, sort_by text DEFAULT 'created_at',
    descending boolean DEFAULT false, page_size integer DEFAULT 25,
    after text DEFAULT NULL, before text DEFAULT NULL, owner text DEFAULT NULL, tenant text DEFAULT NULL,
    metadata jsonb DEFAULT NULL, scopes text[] DEFAULT NULL, statuses text[] DEFAULT NULL)
  RETURNS SETOF rk_apikeys.listed_key
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
  -- Whether an index gives the order, as it gives that of the names in one tenant, and
  -- the view has all columns of the conditions.
  by_view boolean := coalesce(search, '') = '' AND (sort_by IN ('key_id', 'created_at')
    OR (sort_by = 'name' AND (tenant IS NOT NULL OR NOT (pg_has_role('rk_apikeys_admin', 'USAGE')
      OR pg_has_role('rk_apikeys_auditor', 'USAGE')))));
  -- The page before a cursor is read backwards from it.
  backward boolean := before IS NOT NULL;
  inner_direction text := CASE WHEN descending = backward THEN 'ASC' ELSE 'DESC' END;
  beyond text := CASE WHEN descending = backward THEN '>' ELSE '<' END;
  nulls text := '';
  inner_nulls text := '';
  conditions text;
  page text;
  position text[];
  start_value text;
  start_key text;
  -- A value of the cursor's, to see whether it is of the type.
  count bigint;
  moment timestamptz;
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
  IF after IS NOT NULL AND before IS NOT NULL THEN
    RAISE EXCEPTION 'after and before cannot both be given'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the cursor of one row.';
  END IF;
  conditions := CASE WHEN num_nonnulls(search, status, environment, owner, tenant, metadata, scopes, statuses) = 0 THEN ''
    ELSE rk_apikeys._conditions(search, status, environment, owner, tenant, metadata, scopes, statuses) END;

  IF nullable THEN
    nulls := 'NULLS LAST';
    inner_nulls := CASE WHEN backward THEN 'NULLS FIRST' ELSE 'NULLS LAST' END;
  END IF;
  IF expression LIKE '%u.%' THEN
    usage_join := 'LEFT JOIN rk_apikeys.key_usage u ON u.key_id = k.key_id
            LEFT JOIN rk_apikeys._live_usage() l ON l.key_id = k.key_id';
  END IF;

  IF after IS NOT NULL OR backward THEN
    -- A cursor gives only a position. Policies decide anew which rows the caller
    -- sees. SQL_ASCII takes the bytes as they are, in every database encoding.
    BEGIN
      position := regexp_match(convert_from(decode(coalesce(after, before), 'hex'), 'SQL_ASCII'),
        '^([a-z_]+)([+-])([0-9A-Za-z]{12})(?:=(.*))?$');
      start_key := position[3];
      start_value := position[4];
      IF type = 'bigint' THEN
        count := start_value;
      ELSIF type = 'timestamptz' THEN
        moment := start_value;
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
              HINT = 'Take the cursor of the last row of a page as "after" or of its first row as "before", or start without one.';
    END IF;
    IF start_value IS NULL THEN
      conditions := conditions || format(CASE WHEN backward THEN ' AND (%s IS NOT NULL OR k.key_id %s $5)'
        ELSE ' AND %s IS NULL AND k.key_id %s $5' END, expression, beyond);
    ELSE
      -- If every key is compared with the cursor's value, the sub-select parses it
      -- once, not once per key.
      conditions := conditions || format(' AND ((%s, k.key_id) %s (%s, $5)%s)', expression, beyond,
        format(CASE WHEN sort_by IN ('key_id', 'created_at') THEN '$4::%s' ELSE '(SELECT $4::%s)' END, type),
        CASE WHEN nullable AND NOT backward THEN format(' OR %s IS NULL', expression) ELSE '' END);
    END IF;
  END IF;

  -- If possible, read the page from the view. Otherwise sort narrow rows, then
  -- join the page to the view.
  page := format(CASE WHEN by_view THEN $q$
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
    expression, usage_join, conditions, inner_direction, inner_nulls, page_size);
  RETURN QUERY SELECT * FROM rk_apikeys._page(format($q$
    SELECT v.key_id, v.tenant, v.name, v.description, v.environment, v.masked_key, v.status, v.enabled,
        v.scopes, v.allowed_cidrs, v.rate_limit, v.rate_window, v.metadata, v.expires_at, v.expires_in,
        greatest(u.last_used_at, rk_apikeys._live_last_used_at(v.key_id)),
        greatest(u.use_count, rk_apikeys._live_use_count(v.key_id), 0),
        v.replaces, v.grace_until, v.revoked_at, v.revoked_reason,
        v.created_at, v.created_by, v.updated_at, v.updated_by,
        encode(convert_to($6 || CASE WHEN $7 THEN '-' ELSE '+' END || v.key_id
          || %4$s, 'SQL_ASCII'), 'hex'),
        v.parent,
        coalesce(CASE WHEN u.last_used_at > rk_apikeys._live_last_used_at(v.key_id) THEN u.last_used_addr END,
          rk_apikeys._live_last_used_addr(v.key_id), u.last_used_addr),
        v.family, v.owner, v.created_by_user, v.updated_by_user
      FROM %1$s v LEFT JOIN rk_apikeys.key_usage u ON u.key_id = v.key_id
      ORDER BY v.sort_value %2$s %3$s%5$s$q$,
      page, direction, nulls,
      -- JSON writes a value alike under every setting.
      CASE WHEN type LIKE 'text%' THEN $q$'=' || v.sort_value$q$ ELSE $q$coalesce('=' || (to_jsonb(v.sort_value) #>> '{}'), '')$q$ END,
      -- The planner does not know that the sort value of that sort is the key id.
      CASE WHEN sort_by <> 'key_id' THEN ', v.key_id ' || direction ELSE '' END),
    search, status, environment, start_value, start_key, sort_by, descending,
    owner, tenant, metadata, scopes, statuses);
END $$;
COMMENT ON FUNCTION rk_apikeys.list_keys(text, text, text, text, boolean, integer, text, text, text, text, jsonb, text[], text[]) IS
  'Returns a page of the keys that the caller can see, without secrets. search: a text in name, description, key id or environment, in any case, taken literally; or a whole token, a whole masked key, or the last 4 characters of a token. sort_by: name, environment, key_id, created_at, updated_at, expires_at, last_used_at, use_count or status; NULLs last, ties by key_id. page_size: 1 to 1000. after: the cursor of the last row of the previous page. before: the cursor of the first row of the next page. owner, tenant, environment, status: equal. metadata: contained in the key''s. scopes: the key has each of them. statuses: the key has one of them. Errors: 22023.';
