-- The group roles. DROP EXTENSION leaves them, because roles are cluster-wide.
DO $$
DECLARE
  name text;
  existing record;
  members text;
BEGIN
  FOREACH name IN ARRAY ARRAY['rk_apikeys_admin', 'rk_apikeys_auditor',
                              'rk_apikeys_manager', 'rk_apikeys_member', 'rk_apikeys_verifier']
  LOOP
    SELECT * INTO existing FROM pg_catalog.pg_roles WHERE rolname = name;
    IF NOT FOUND THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', name);
    ELSIF existing.rolcanlogin OR existing.rolsuper OR existing.rolcreaterole
          OR existing.rolbypassrls OR existing.rolreplication THEN
      RAISE EXCEPTION 'role "%" exists and is more than a group', name
        USING ERRCODE = 'invalid_role_specification',
              DETAIL = 'It has LOGIN, SUPERUSER, CREATEROLE, BYPASSRLS or REPLICATION.',
              HINT = 'Take that from the role, or rename it.';
    ELSE
      SELECT string_agg(quote_ident(m.rolname), ', ' ORDER BY m.rolname) INTO members
        FROM pg_catalog.pg_auth_members a
          JOIN pg_catalog.pg_roles m ON m.oid = a.member
        WHERE a.roleid = existing.oid;
      IF members IS NOT NULL THEN
        RAISE WARNING 'role "%" exists and has members: %', name, members
          USING HINT = 'They have its rights on the API keys of this database too.';
      END IF;
    END IF;
    EXECUTE format('COMMENT ON ROLE %I IS %L', name, CASE name
      WHEN 'rk_apikeys_admin' THEN 'rk_apikeys: everything, all tenants'
      WHEN 'rk_apikeys_auditor' THEN 'rk_apikeys: reads masked keys and events of all tenants'
      WHEN 'rk_apikeys_manager' THEN 'rk_apikeys: the keys of its own tenant'
      WHEN 'rk_apikeys_member' THEN 'rk_apikeys: the keys of its own tenant that its end user owns'
      ELSE 'rk_apikeys: verifies tokens, reads no table' END);
  END LOOP;
END $$;

