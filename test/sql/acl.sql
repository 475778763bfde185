-- The rights to every object of the schema, and what else decides what it may do: a change of any is a line here.
-- "owner" is the extension's owner, whoever that is; "all" is all that an owner has, to which PostgreSQL 17 has added a right.
\pset format unaligned

CREATE FUNCTION pg_temp.named(role oid) RETURNS text LANGUAGE sql AS $$
  SELECT CASE role WHEN 0 THEN 'PUBLIC' WHEN extowner THEN 'owner' ELSE role::regrole::text END
    FROM pg_extension WHERE extname = 'rk_apikeys' $$;
CREATE FUNCTION pg_temp.grants(acl aclitem[], kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
  SELECT CASE WHEN acl IS NULL THEN CASE kind WHEN 'c' THEN 'nobody' ELSE 'by default' END ELSE coalesce(string_agg(who || '=' || may, ' ' ORDER BY who COLLATE "C"), 'nobody') END
    FROM (SELECT pg_temp.named(grantee) AS who,
        CASE WHEN grantee = owner AND NOT EXISTS (SELECT privilege_type FROM aclexplode(acldefault(kind, owner)) WHERE grantee = owner
            EXCEPT SELECT privilege_type FROM aclexplode(acl) WHERE grantee = owner) THEN 'all'
          ELSE string_agg(privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ',' ORDER BY privilege_type) END AS may
      FROM aclexplode(acl) GROUP BY grantee) g $$;

-- The schema, and every kind of object that the extension has: each kind is below.
SELECT nspname AS schema, pg_temp.named(nspowner) AS owner, pg_temp.grants(nspacl, 'n', nspowner) AS grants
  FROM pg_namespace WHERE nspname = 'rk_apikeys';
SELECT classid::regclass AS kind FROM pg_depend JOIN pg_extension e ON refclassid = 'pg_extension'::regclass AND refobjid = e.oid
  WHERE extname = 'rk_apikeys' AND deptype = 'e' GROUP BY 1 ORDER BY classid::regclass::text;
SELECT relkind AS kind, oid::regclass AS not_a_member FROM pg_class c WHERE relnamespace = 'rk_apikeys'::regnamespace AND relkind NOT IN ('i', 'c')
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e');

-- The roles. None can log in, none has more than its grants.
SELECT rolname AS role, rolcanlogin AS login, rolsuper AS super, rolcreaterole AS createrole, rolcreatedb AS createdb, rolreplication AS replication,
    rolbypassrls AS bypassrls, ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = r.oid) AS member_of
  FROM pg_roles r WHERE rolname ~ '^rk_apikeys_' ORDER BY rolname COLLATE "C";

-- Tables, views, sequences. For a view: by whose rights it reads, and whether it is a barrier.
SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE relkind::text END AS kind, oid::regclass AS name,
    pg_temp.named(relowner) AS owner, CASE WHEN relkind = 'r' THEN relrowsecurity END AS rls, CASE WHEN relkind = 'r' THEN relforcerowsecurity END AS forced,
    reloptions AS options, pg_temp.grants(relacl, (CASE relkind WHEN 'S' THEN 's' ELSE 'r' END)::"char", relowner) AS grants
  FROM pg_class WHERE relnamespace = 'rk_apikeys'::regnamespace AND relkind NOT IN ('i', 'c') ORDER BY 1, oid::regclass::text COLLATE "C";
-- Columns: every one of a table; of a view, those that are granted by themselves.
SELECT attrelid::regclass || '.' || attname AS column, pg_temp.grants(attacl, 'c', relowner) AS grants
  FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
  WHERE relnamespace = 'rk_apikeys'::regnamespace AND attnum > 0 AND NOT attisdropped AND (relkind = 'r' OR attacl IS NOT NULL)
    AND relkind IN ('r', 'v')
  ORDER BY attrelid::regclass::text COLLATE "C", attnum;
-- Indexes.
SELECT indexrelid::regclass AS index, pg_temp.named(relowner) AS owner, indrelid::regclass AS "table", indisunique AS "unique",
    ARRAY(SELECT pg_get_indexdef(indexrelid, n, false) FROM generate_series(1, indnkeyatts) n) AS columns
  FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'rk_apikeys'::regnamespace ORDER BY indexrelid::regclass::text COLLATE "C";
-- Policies.
SELECT polrelid::regclass AS "table", polname AS policy, polcmd AS command, polpermissive AS permissive,
    ARRAY(SELECT pg_temp.named(r) FROM unnest(polroles) r ORDER BY 1) AS roles,
    pg_get_expr(polqual, polrelid) AS using, pg_get_expr(polwithcheck, polrelid) AS check
  FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE relnamespace = 'rk_apikeys'::regnamespace
  ORDER BY polrelid::regclass::text COLLATE "C", polname COLLATE "C";
-- Triggers. O fires in ordinary sessions, A under replication too; the type's bits: 1 row, 2 before, 4 insert, 8 delete, 16 update.
SELECT tgrelid::regclass AS "table", tgname AS trigger, tgfoid::regproc AS function, tgenabled AS fires, tgtype AS type,
    tgqual IS NOT NULL AS conditional
  FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'rk_apikeys'::regnamespace AND NOT tgisinternal
  ORDER BY tgrelid::regclass::text COLLATE "C", tgname COLLATE "C";

-- Rules, except those that make a view. A rule runs with its view's owner's rights on the relation that it names: see orm_keys.
SELECT ev_class::regclass AS view, rulename AS rule, ev_type AS event, is_instead AS instead, ev_enabled AS fires
  FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class WHERE relnamespace = 'rk_apikeys'::regnamespace AND rulename <> '_RETURN'
  ORDER BY ev_class::regclass::text COLLATE "C", rulename COLLATE "C";

-- Functions. By default would be by anybody: each says it.
SELECT oid::regprocedure AS function, pg_temp.named(proowner) AS owner, (SELECT lanname FROM pg_language l WHERE l.oid = prolang) AS language,
    provolatile AS volatility, proparallel AS parallel, proisstrict AS strict, prosecdef AS definer, proleakproof AS leakproof, proconfig AS settings,
    pg_temp.grants(proacl, 'f', proowner) AS grants
  FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace ORDER BY oid::regprocedure::text COLLATE "C";
SELECT oid::regprocedure AS without_grant_or_revoke FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace AND proacl IS NULL;
-- Types. Anybody may name a type.
SELECT oid::regtype AS type, typtype AS kind, pg_temp.named(typowner) AS owner, pg_temp.grants(typacl, 'T', typowner) AS grants
  FROM pg_type t WHERE typnamespace = 'rk_apikeys'::regnamespace AND typelem = 0
    AND NOT EXISTS (SELECT FROM pg_class WHERE oid = typrelid AND relkind <> 'c')
  ORDER BY oid::regtype::text COLLATE "C";
-- Settings that others than superusers may set, and what is granted on objects that are made later.
SELECT parname AS setting, paracl FROM pg_parameter_acl WHERE parname LIKE 'rk\_apikeys.%';
SELECT defaclobjtype, defaclacl FROM pg_default_acl WHERE defaclnamespace IN (0, 'rk_apikeys'::regnamespace);
