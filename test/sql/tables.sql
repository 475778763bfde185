-- The schema as DESIGN has it: comments, grants, policies, no raised rights.
\set VERBOSITY sqlstate

-- Every object has a comment.
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
  FROM pg_depend d
  WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'rk_apikeys')
    AND pg_describe_object(d.classid, d.objid, 0) !~ '^(type .*(\[\]|\.(api_keys|key_usage|key_usage_daily|usage_senders|key_events|keys|active_keys|expiring_keys|stale_keys|key_activity|stats|health|orm_keys|policies|noncompliant_keys|limits|limit_usage|limit_status|_live_keys|unrecorded_uses))$|toast|rule|default)'
    AND NOT EXISTS (SELECT FROM pg_description c
      WHERE c.classoid = d.classid AND c.objoid = d.objid AND c.objsubid = 0)
  ORDER BY 1;
SELECT tgname AS without_comment FROM pg_trigger t
  WHERE tgrelid::regclass::text LIKE 'rk\_apikeys.%' AND NOT tgisinternal AND obj_description(oid, 'pg_trigger') IS NULL;
SELECT polname AS without_comment FROM pg_policy WHERE polrelid::regclass::text LIKE 'rk\_apikeys.%'
  AND obj_description(oid, 'pg_policy') IS NULL;
SELECT attrelid::regclass, attname AS without_comment FROM pg_attribute
  WHERE attrelid IN ('rk_apikeys.api_keys'::regclass, 'rk_apikeys.key_usage'::regclass,
      'rk_apikeys.key_usage_daily'::regclass, 'rk_apikeys.key_events'::regclass, 'rk_apikeys.usage_senders'::regclass, 'rk_apikeys.policies'::regclass)
    AND attnum > 0 AND col_description(attrelid, attnum) IS NULL;
SELECT rolname, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname ~ '^rk_apikeys_' ORDER BY 1;

-- No function has its owner's rights; no view hides the caller's.
SELECT proname AS security_definer FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace AND prosecdef;
SELECT relname AS not_invoker FROM pg_class WHERE relnamespace = 'rk_apikeys'::regnamespace AND relkind = 'v'
  AND NOT coalesce(reloptions @> '{security_invoker=true}', false);
-- No function is trusted with rows that its caller cannot see, and one role owns all.
SELECT proname AS leakproof FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace AND proleakproof;
SELECT relname AS another_owner FROM pg_class, pg_extension WHERE relnamespace = 'rk_apikeys'::regnamespace
  AND extname = 'rk_apikeys' AND relowner <> extowner;
SELECT proname AS another_owner FROM pg_proc, pg_extension WHERE pronamespace = 'rk_apikeys'::regnamespace
  AND extname = 'rk_apikeys' AND proowner <> extowner;
-- PL/pgSQL depends on no search_path.
SELECT proname AS path_dependent FROM pg_proc p JOIN pg_language l ON l.oid = prolang
  WHERE pronamespace = 'rk_apikeys'::regnamespace
    AND (lanname = 'plpgsql' AND NOT coalesce(proconfig @> '{"search_path=pg_catalog, pg_temp"}', false)
      OR lanname = 'sql' AND prosqlbody IS NULL);
-- All of it is dumped.
SELECT unnest(extconfig)::regclass AS dumped FROM pg_extension WHERE extname = 'rk_apikeys';

-- Nobody but the owner has the digest.
SELECT attname AS granted_to_nobody FROM pg_attribute
  WHERE attrelid = 'rk_apikeys.api_keys'::regclass AND attnum > 0 AND attacl IS NULL ORDER BY attnum;

-- A row that lies about itself is refused even when it comes complete.
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind)
  VALUES ('short', 't', 'n', 'rk', 'prod', now(), 'x', now(), 'x', sha256('x'), 'native'); -- fails: key id
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind)
  VALUES ('000000000001', 't', 'n', 'rk', 'prod', now(), 'x', now(), 'x', '\x00', 'native'); -- fails: digest
INSERT INTO rk_apikeys.api_keys (key_id, tenant, name, prefix, environment, created_at, created_by, updated_at, updated_by, digest, digest_kind, scopes)
  VALUES ('000000000001', 't', 'n', 'rk', 'prod', now(), 'x', now(), 'x', sha256('x'), 'native', '{"a b"}'); -- fails: scope
SELECT count(*) FROM rk_apikeys.api_keys;
