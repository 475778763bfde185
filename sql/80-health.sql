-- What an operator has to do: the view health, and what it asks the library.

CREATE FUNCTION rk_apikeys._health(OUT preloaded boolean, OUT has_launcher boolean,
    OUT has_worker boolean, OUT sends_usage boolean, OUT reaches_primary boolean,
    OUT flush_interval_ms bigint, OUT flush_lag_ms bigint, OUT limiter_unavailable bigint,
    OUT overflow bigint, OUT pending_keys bigint, OUT max_tracked_keys bigint) RETURNS record
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_health';
COMMENT ON FUNCTION rk_apikeys._health() IS
  'Private: the state of this server, for the view health.';

CREATE FUNCTION rk_apikeys._missing_peppers(OUT pepper_id integer, OUT problem text, OUT hint text)
  RETURNS SETOF record
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_missing_peppers';
COMMENT ON FUNCTION rk_apikeys._missing_peppers() IS
  'Private: the pepper ids of keys that the pepper file lacks, or one row with the problem of the file. Reads all of api_keys.';

CREATE VIEW rk_apikeys.health WITH (security_invoker = true) AS
  WITH server AS MATERIALIZED (
    SELECT h.*,
      -- Three rounds were missed.
      flush_lag_ms > 3 * flush_interval_ms + 10000 AS late,
      pg_is_in_recovery() AND NOT sends_usage AS keeps_usage,
      format('ALTER SYSTEM SET max_worker_processes = %s; -- then restart the server',
        current_setting('max_worker_processes')::integer + 4) AS more_workers,
      text 'Add rk_apikeys to shared_preload_libraries, and restart the server.' AS preload
    FROM rk_apikeys._health() h
  ), member AS (
    SELECT d.classid, d.objid
    FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'rk_apikeys'
  ), owned (classid, objid, objsubid, kind, attname, owner, acl, usual) AS (
    SELECT classid, objid, 0, 'SCHEMA' AS kind, NULL::text AS attname, nspowner, nspacl, acldefault('n', nspowner)
    FROM member JOIN pg_namespace n ON classid = 'pg_namespace'::regclass AND objid = n.oid
    UNION ALL
    SELECT classid, objid, 0, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, NULL AS attname, relowner, relacl,
      acldefault('r', relowner)
    FROM member JOIN pg_class c ON classid = 'pg_class'::regclass AND objid = c.oid
    UNION ALL
    SELECT classid, objid, attnum, 'TABLE' AS kind, quote_ident(attname), relowner, attacl, acldefault('c', relowner)
    FROM member JOIN pg_class c ON classid = 'pg_class'::regclass AND objid = c.oid
      JOIN pg_attribute ON attrelid = c.oid
    UNION ALL
    SELECT classid, objid, 0, CASE prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END AS kind, NULL AS attname,
      proowner, proacl, acldefault('f', proowner)
    FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND objid = p.oid
    UNION ALL
    SELECT classid, objid, 0, 'TYPE' AS kind, NULL AS attname, typowner, typacl, acldefault('T', typowner)
    FROM member JOIN pg_type t ON classid = 'pg_type'::regclass AND objid = t.oid
    UNION ALL
    SELECT 'pg_parameter_acl'::regclass, oid, 0, 'PARAMETER' AS kind, NULL AS attname, 10, paracl, acldefault('p', 10)
    FROM pg_parameter_acl WHERE parname = 'rk_apikeys.principal'
  ), granted AS (
    -- PostgreSQL keeps in pg_init_privs what a script of the extension grants, and
    -- each script ends with the whole access policy. pg_upgrade leaves out the
    -- grants that every new object has.
    SELECT o.objid, o.kind, (pg_identify_object(o.classid, o.objid, 0)).identity AS name, o.attname,
      CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
      a.privilege_type AS privilege, a.is_grantable,
      (SELECT CASE WHEN bool_or(p.is_grantable) THEN 'grantable' ELSE 'plain' END
        FROM aclexplode(coalesce((SELECT initprivs FROM pg_init_privs i
            WHERE i.objoid = o.objid AND i.classoid = o.classid AND i.objsubid = o.objsubid), o.usual)) p
        WHERE p.privilege_type = a.privilege_type AND p.grantee IN (a.grantee, 0)
        HAVING count(*) > 0) AS ours,
      -- A sender of use, and a role of replication, which reads all anyway.
      NOT a.is_grantable AND ((o.classid = 'pg_proc'::regclass AND EXISTS
          (SELECT FROM pg_proc p WHERE p.oid = o.objid AND p.proname = 'receive_usage'))
        OR (a.privilege_type = 'SELECT' AND coalesce(r.rolreplication, false))) AS allowed
    FROM owned o CROSS JOIN aclexplode(coalesce(o.acl, o.usual)) a LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE a.grantee <> o.owner AND r.rolsuper IS NOT TRUE
  )
  SELECT text 'preload' AS name, text 'info' AS severity, NULL::text AS object,
    CASE WHEN max_tracked_keys IS NULL
      THEN text 'the library is not preloaded: keys with a rate limit are refused, and the log may show tokens'
      ELSE 'the library is not preloaded: the log may show tokens' END AS message,
    preload AS mend
  FROM server WHERE NOT preloaded
  UNION ALL
  SELECT 'launcher', 'error', NULL, 'no launcher is running, so use is not written', more_workers
  FROM server WHERE NOT has_launcher
  UNION ALL
  SELECT 'flush', 'error', NULL,
    format('pending use has not been written for %s seconds', flush_lag_ms / 1000),
    CASE WHEN has_worker THEN 'Look for the cause in the server log.' ELSE more_workers END
  FROM server WHERE late AND NOT sends_usage AND NOT keeps_usage
  UNION ALL
  SELECT 'delivery', 'warning', NULL, 'use does not reach the primary, and waits in memory',
    'Look for the cause in the server log, and check rk_apikeys.primary_conninfo.'
  FROM server WHERE sends_usage AND (late OR NOT reaches_primary)
  UNION ALL
  SELECT 'room', CASE WHEN limiter_unavailable > 0 OR overflow > 0 THEN 'error' ELSE 'warning' END, NULL,
    format('max_tracked_keys is %s, and %s keys are pending; since the start of the server %s uses were not recorded and %s calls were refused',
      max_tracked_keys, pending_keys, overflow, limiter_unavailable),
    CASE WHEN preloaded
      THEN format('ALTER SYSTEM SET rk_apikeys.max_tracked_keys = %s; -- then restart the server',
        least(2 * max_tracked_keys, 16777216))
      ELSE preload END
  FROM server
  WHERE limiter_unavailable > 0 OR overflow > 0
    OR (pending_keys > 0.8 * max_tracked_keys AND NOT keeps_usage)
  UNION ALL
  SELECT 'pepper', 'error', pepper_id::text,
    coalesce(problem, format('keys were signed with pepper %s, which is missing', pepper_id)),
    coalesce(hint, 'Put the pepper back into the file that rk_apikeys.pepper_file names, and reload the configuration.')
  FROM rk_apikeys._missing_peppers()
  UNION ALL
  SELECT 'triggers',
    CASE WHEN e.state <> 'O' OR t.tgenabled = 'A' THEN 'warning' ELSE 'error' END, e.trigger,
    CASE t.tgenabled WHEN 'O' THEN 'the trigger does not fire for changes that replication applies'
      WHEN 'A' THEN 'the trigger fires for changes that replication applies'
      WHEN 'R' THEN 'the trigger does not fire in ordinary sessions'
      WHEN 'D' THEN 'the trigger is disabled'
      ELSE 'the trigger is missing' END,
    CASE WHEN t.tgenabled IS NULL THEN 'Create the trigger as the install script does.'
      ELSE format('ALTER TABLE %s ENABLE %sTRIGGER %I;', r.name,
        CASE e.state WHEN 'A' THEN 'ALWAYS ' WHEN 'R' THEN 'REPLICA ' ELSE '' END, e.trigger) END
  FROM (VALUES (text 'api_keys_make', "char" 'O'), ('api_keys_guard', 'O'),
      ('api_keys_settle', 'A'), ('api_keys_settle_imported', 'A'),
      ('api_keys_parent', 'O'), ('api_keys_audit_insert', 'O'), ('api_keys_audit_update', 'O'),
      ('api_keys_audit_delete', 'O'),
      ('api_keys_max_keys_insert', 'O'), ('api_keys_max_keys_update', 'O'),
      ('policies_audit_insert', 'O'), ('policies_audit_update', 'O'), ('policies_audit_delete', 'O'),
      ('limits_guard', 'O'), ('limits_max', 'O'), ('limits_settle', 'A'), ('limits_settle_truncate', 'A'),
      ('limits_audit_insert', 'O'), ('limits_audit_update', 'O'), ('limits_audit_delete', 'O'),
      ('key_events_place', 'R')) e(trigger, state)
    CROSS JOIN LATERAL (SELECT 'rk_apikeys.' || CASE WHEN starts_with(e.trigger, 'policies')
      THEN 'policies' WHEN starts_with(e.trigger, 'limits') THEN 'limits' WHEN e.state = 'R' THEN 'key_events' ELSE 'api_keys' END AS name) r
    LEFT JOIN pg_trigger t ON t.tgrelid = r.name::regclass AND t.tgname = e.trigger
  WHERE t.tgenabled IS DISTINCT FROM e.state
  UNION ALL
  -- While a subscription brings the events, the sequence always stays behind.
  SELECT 'event_numbers', 'info', 'rk_apikeys.key_events_event_id_seq',
    'the sequence is behind the last event; the next change of a key sets it too',
    format('SELECT setval(''rk_apikeys.key_events_event_id_seq'', %s);', e.last)
  FROM (SELECT max(event_id) AS last FROM rk_apikeys.key_events) e,
    rk_apikeys.key_events_event_id_seq s
  WHERE (e.last > s.last_value OR (e.last = s.last_value AND NOT s.is_called))
    AND NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = 'rk_apikeys.key_events'::regclass)
  UNION ALL
  -- Tables of the extension, and tables whose policies call a function about
  -- the principal. FORCE does not bind a role that bypasses row-level security.
  SELECT 'row_security', CASE WHEN c.relrowsecurity THEN 'warning' ELSE 'error' END, t.name,
    CASE WHEN NOT c.relrowsecurity THEN 'row-level security is off, so the policies of the table do not apply'
      ELSE format('the policies of the table do not apply to its owner, role %I, which can log in', o.rolname) END,
    format('ALTER TABLE %s %s ROW LEVEL SECURITY;', t.name,
      CASE WHEN c.relrowsecurity THEN 'FORCE' ELSE 'ENABLE' END)
  FROM pg_class c
    JOIN pg_roles o ON o.oid = c.relowner
    CROSS JOIN LATERAL (SELECT (pg_identify_object('pg_class'::regclass, c.oid, 0)).identity) t(name)
  WHERE CASE
      WHEN c.oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
        THEN c.relkind = 'r' AND NOT c.relrowsecurity
      ELSE c.oid IN (SELECT p.polrelid FROM pg_policy p
            JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
          WHERE d.refclassid = 'pg_proc'::regclass
            AND d.refobjid IN ('rk_apikeys.current_key_id()'::regprocedure,
              'rk_apikeys.current_key_tenant()'::regprocedure,
              'rk_apikeys.current_scopes()'::regprocedure,
              'rk_apikeys.has_scope(text)'::regprocedure))
        AND (NOT c.relrowsecurity OR (NOT c.relforcerowsecurity AND o.rolcanlogin
          AND NOT o.rolsuper AND NOT o.rolbypassrls)) END
  UNION ALL
  SELECT 'grants', 'warning', g.object,
    format('%s has %s%s beyond the grants of the extension', g.grantee, array_to_string(g.privileges, ', '),
      CASE WHEN g.option_only THEN ' with grant option' ELSE '' END),
    format('REVOKE %s%s ON %s %s FROM %s CASCADE;', CASE WHEN g.option_only THEN 'GRANT OPTION FOR ' ELSE '' END,
        (SELECT string_agg(p || coalesce(' (' || g.attname || ')', ''), ', ') FROM unnest(g.privileges) p),
        g.kind, g.name, g.grantee)
      -- REVOKE on a table takes the grants on its columns too.
      || CASE WHEN g.kind = 'TABLE' AND g.attname IS NULL AND NOT g.option_only THEN coalesce(
        (SELECT format(' GRANT %s ON TABLE %s TO %s;',
            string_agg(format('%s (%s)', c.privilege, c.attname), ', '), g.name, g.grantee)
          FROM granted c
          WHERE c.objid = g.objid AND c.attname IS NOT NULL AND c.grantee = g.grantee
            AND c.privilege = ANY (g.privileges) AND c.ours IS NOT NULL
          HAVING count(*) > 0), '') ELSE '' END
  FROM (
    SELECT objid, kind, name, attname, concat_ws('.', name, attname) AS object, grantee,
      ours IS NOT NULL AS option_only, array_agg(DISTINCT privilege) AS privileges
    FROM granted
    WHERE NOT allowed AND (ours IS NULL OR (is_grantable AND ours = 'plain'))
    GROUP BY objid, kind, name, attname, grantee, ours IS NOT NULL
  ) g
  UNION ALL
  SELECT 'policy', 'warning', rule, format('%s keys are beyond their policy', count(*)),
    CASE rule WHEN 'max_idle' THEN 'SELECT rk_apikeys.disable_idle_keys();'
      ELSE 'Look at rk_apikeys.noncompliant_keys. Change these keys, or end them.' END
  FROM rk_apikeys.noncompliant_keys GROUP BY rule;
COMMENT ON VIEW rk_apikeys.health IS
  'One row for each thing to do. Empty: all is well. severity is error, warning or info. object is what it is about, where that has a name. mend is SQL for a superuser, or a sentence that says what to do.';
