-- What the extension is in this database, a line for each object and each of its parts, without OIDs: equal in two databases if the
-- extension is. Run by test/t/RkApikeys.pm.
SET search_path = pg_catalog;
WITH ext AS (SELECT * FROM pg_extension WHERE extname = 'rk_apikeys'),
members AS (
  SELECT d.classid, d.objid, d.objsubid FROM pg_depend d, ext
  WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = ext.oid AND d.deptype = 'e'),
rel AS (SELECT c.* FROM pg_class c WHERE c.relnamespace = 'rk_apikeys'::regnamespace),
-- no list of grants means the default one
acl(class, oid, sub, usual, list) AS (
  SELECT 'pg_class'::regclass, oid, 0, acldefault(CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner), relacl FROM rel
  UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, acldefault('c', relowner), attacl FROM pg_attribute JOIN rel ON attrelid = rel.oid
  UNION ALL SELECT 'pg_proc'::regclass, oid, 0, acldefault('f', proowner), proacl FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace
  UNION ALL SELECT 'pg_type'::regclass, oid, 0, acldefault('T', typowner), typacl FROM pg_type WHERE typnamespace = 'rk_apikeys'::regnamespace
  UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, acldefault('n', nspowner), nspacl FROM pg_namespace WHERE nspname = 'rk_apikeys'),
lines(line) AS (
  SELECT format('extension version %s schema %s relocatable %s', extversion, extnamespace::regnamespace, extrelocatable) FROM ext
  UNION ALL
  SELECT format('dumped %s where %L', c.oid::regclass, c.condition)
    FROM ext, unnest(extconfig, extcondition) c(oid, condition)
  UNION ALL
  SELECT format('member %s', pg_describe_object(classid, objid, objsubid)) FROM members
  UNION ALL
  -- what each needs, within the extension and beyond
  SELECT format('%s depends (%s) on %s', pg_describe_object(d.classid, d.objid, d.objsubid), d.deptype,
      pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid))
    FROM pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) o
    WHERE (o.schema = 'rk_apikeys' OR o.identity LIKE '%rk_apikeys.%') AND d.deptype <> 'e'
      -- a composite type's own row, a toast table and a trigger of a foreign key have names made of OIDs
      AND o.type NOT LIKE 'toast%'
      AND NOT EXISTS (SELECT FROM pg_trigger WHERE d.classid = 'pg_trigger'::regclass AND oid = d.objid AND tgisinternal)
  UNION ALL
  SELECT format('schema owner %s', nspowner::regrole) FROM pg_namespace WHERE nspname = 'rk_apikeys'
  UNION ALL
  SELECT format('function %s owner %s: %s', oid::regprocedure, proowner::regrole, pg_get_functiondef(oid))
    FROM pg_proc WHERE pronamespace = 'rk_apikeys'::regnamespace
  UNION ALL
  SELECT format('type %s owner %s kind %s category %s', oid::regtype, typowner::regrole, typtype, typcategory)
    FROM pg_type WHERE typnamespace = 'rk_apikeys'::regnamespace
  UNION ALL
  SELECT format('relation %s kind %s persistence %s owner %s options %s policies %s forced %s identity %s method %s', oid::regclass,
      relkind, relpersistence, relowner::regrole, reloptions, relrowsecurity, relforcerowsecurity, relreplident,
      (SELECT amname FROM pg_am WHERE oid = relam)) FROM rel
  UNION ALL
  SELECT format('column %s %s. %s %s collation %s not null %s identity %L generated %L storage %s statistics %s default %s', attrelid::regclass,
      attnum, attname, format_type(atttypid, atttypmod), attcollation::regcollation, attnotnull, attidentity, attgenerated, attstorage,
      nullif(attstattarget, -1), pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN rel ON attrelid = rel.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0
  UNION ALL
  SELECT format('constraint %s on %s valid %s: %s', conname, conrelid::regclass, convalidated, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'rk_apikeys'::regnamespace
  UNION ALL
  SELECT format('index %s valid %s ready %s clustered %s: %s', indexrelid::regclass, indisvalid, indisready, indisclustered, pg_get_indexdef(indexrelid))
    FROM pg_index JOIN rel ON indexrelid = rel.oid
  UNION ALL
  SELECT format('trigger %s on %s enabled %s: %s', tgname, tgrelid::regclass, tgenabled, pg_get_triggerdef(t.oid))
    FROM pg_trigger t JOIN rel ON tgrelid = rel.oid WHERE NOT tgisinternal
  UNION ALL
  SELECT format('rule %s on %s enabled %s: %s', rulename, ev_class::regclass, ev_enabled, pg_get_ruledef(r.oid))
    FROM pg_rewrite r JOIN rel ON ev_class = rel.oid
  UNION ALL
  SELECT format('view %s: %s', oid::regclass, pg_get_viewdef(oid)) FROM rel WHERE relkind IN ('v', 'm')
  UNION ALL
  SELECT format('policy %s on %s for %s permissive %s to %s using %s check %s', polname, polrelid::regclass, polcmd, polpermissive,
      (SELECT string_agg(r::regrole::text, ', ' ORDER BY r::regrole::text) FROM unnest(polroles) r),
      pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
    FROM pg_policy JOIN rel ON polrelid = rel.oid
  UNION ALL
  SELECT format('sequence %s: %s %s %s %s %s %s %s', seqrelid::regclass, seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle)
    FROM pg_sequence JOIN rel ON seqrelid = rel.oid
  UNION ALL
  SELECT format('statistics %s: %s', stxname, pg_get_statisticsobjdef(oid)) FROM pg_statistic_ext WHERE stxnamespace = 'rk_apikeys'::regnamespace
  UNION ALL
  SELECT format('grant of %s on %s to %s by %s grantable %s', privilege_type, pg_describe_object(class, acl.oid, sub),
      CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, grantor::regrole, is_grantable)
    FROM acl, aclexplode(coalesce(list, usual))
  UNION ALL
  -- what a dump takes for the extension's own
  SELECT format('initial grant of %s on %s to %s by %s grantable %s', privilege_type, pg_describe_object(classoid, objoid, objsubid),
      CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, grantor::regrole, is_grantable)
    FROM pg_init_privs JOIN acl ON (class, oid, sub) = (classoid, objoid, objsubid), aclexplode(initprivs)
    WHERE privtype = 'e' AND NOT (initprivs @> usual AND usual @> initprivs)
  UNION ALL
  SELECT format('comment on %s: %s', pg_describe_object(d.classoid, d.objoid, d.objsubid), description)
    FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) o
    WHERE o.schema = 'rk_apikeys' OR o.identity LIKE '%rk_apikeys%')
SELECT regexp_replace(line, '\s+', ' ', 'g') AS line FROM lines ORDER BY line COLLATE "C";
