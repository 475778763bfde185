-- rk_apikeys, the install script. It is joined by make from the parts in sql/.
\echo Use "CREATE EXTENSION rk_apikeys CASCADE" to load this file. \quit

-- CREATE EXTENSION puts the schema of pgcrypto on the path, where others may
-- have put functions and operators that fit a call better than the server's.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The schema is made here and not by the control file: one that somebody made
-- before, with traps in it, is an error.
CREATE SCHEMA rk_apikeys;
COMMENT ON SCHEMA rk_apikeys IS
  'API keys: create, show once, verify, search, expire, rotate, revoke, audit';

-- The group roles. Roles are cluster-wide: DROP EXTENSION leaves them.
DO $$
DECLARE
  name text;
  existing record;
  members text;
BEGIN
  FOREACH name IN ARRAY ARRAY['rk_apikeys_admin', 'rk_apikeys_auditor',
                              'rk_apikeys_manager', 'rk_apikeys_verifier']
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
      ELSE 'rk_apikeys: verifies tokens, reads no table' END);
  END LOOP;
END $$;

CREATE TYPE rk_apikeys.verdict AS (
  valid boolean,
  code text,
  key_id text,
  tenant text,
  name text,
  environment text,
  scopes text[],
  metadata jsonb,
  expires_at timestamptz,
  retry_after interval
);
COMMENT ON TYPE rk_apikeys.verdict IS
  'The outcome of a verify. code: valid, malformed, unknown, revoked, disabled, expired, rotated, address_denied, scope_missing, rate_limited, limiter_unavailable. If the token is not genuine only valid and code are set.';

CREATE TYPE rk_apikeys.new_key AS (key_id text, secret text);
COMMENT ON TYPE rk_apikeys.new_key IS
  'What create_key and rotate_key return. secret: the whole token, shown this once.';

CREATE TYPE rk_apikeys.listed_key AS (
  key_id text,
  tenant text,
  name text,
  description text,
  environment text,
  masked_key text,
  status text,
  enabled boolean,
  scopes text[],
  allowed_cidrs cidr[],
  rate_limit integer,
  rate_window interval,
  metadata jsonb,
  expires_at timestamptz,
  expires_in interval,
  last_used_at timestamptz,
  use_count bigint,
  replaces text,
  grace_until timestamptz,
  revoked_at timestamptz,
  revoked_reason text,
  created_at timestamptz,
  created_by text,
  updated_at timestamptz,
  updated_by text,
  cursor text
);
COMMENT ON TYPE rk_apikeys.listed_key IS
  'A row of list_keys: the columns of the view keys but secret. cursor: give that of a page''s last row as "after" to get the next page.';

-- What a session is, and the settings as SQL reads them.

CREATE FUNCTION rk_apikeys.current_tenant() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_tenant';
COMMENT ON FUNCTION rk_apikeys.current_tenant() IS
  'The tenant whose keys this session manages: the principal''s (NULL if it has died since), or else the setting rk_apikeys.tenant, or else the name of the current role. For rk_apikeys'' own tables: policies on other tables must not rest on it.';

-- The principal. They look at the key afresh, and never fall back to a role or
-- a setting: policies on the users' tables rest on them.
CREATE FUNCTION rk_apikeys.current_key_id() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_id';
COMMENT ON FUNCTION rk_apikeys.current_key_id() IS
  'The key that this transaction has authenticated as; NULL without one, or if it has died since.';

CREATE FUNCTION rk_apikeys.current_key_tenant() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_key_tenant';
COMMENT ON FUNCTION rk_apikeys.current_key_tenant() IS
  'The tenant of the key that this transaction has authenticated as; NULL without one, or if it has died since.';

CREATE FUNCTION rk_apikeys.current_scopes() RETURNS text[]
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_current_scopes';
COMMENT ON FUNCTION rk_apikeys.current_scopes() IS
  'The scopes of the key that this transaction has authenticated as; NULL without one, or if it has died since.';

CREATE FUNCTION rk_apikeys.has_scope(scope text) RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_has_scope';
COMMENT ON FUNCTION rk_apikeys.has_scope(text) IS
  'Whether the key that this transaction has authenticated as has the scope, by itself, by a:* or by *; false without one, or if it has died since.';

CREATE FUNCTION rk_apikeys._may_manage() RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_may_manage';
COMMENT ON FUNCTION rk_apikeys._may_manage() IS
  'Private: false if a principal is set that lacks the scope apikeys:manage, or has died.';

CREATE FUNCTION rk_apikeys._no_principal() RETURNS boolean
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_no_principal';
COMMENT ON FUNCTION rk_apikeys._no_principal() IS
  'Private: false if a principal is set, alive or dead: then no role reaches other tenants.';

CREATE FUNCTION rk_apikeys._default_environment() RETURNS text
  LANGUAGE C STABLE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_environment';
COMMENT ON FUNCTION rk_apikeys._default_environment() IS
  'Private: the setting rk_apikeys.default_environment.';

CREATE FUNCTION rk_apikeys._setting_interval(name text) RETURNS interval
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_setting_interval';
COMMENT ON FUNCTION rk_apikeys._setting_interval(text) IS
  'Private: the setting expiring_window, stale_after or max_lifetime; NULL if max_lifetime is 0.';

-- The keys' settings. Changes rarely; what a use changes is in key_usage.
CREATE TABLE rk_apikeys.api_keys (
  -- The C code knows the columns by this order (src/store.h): add at the end.
  key_id text COLLATE "C" NOT NULL,
  tenant text NOT NULL DEFAULT rk_apikeys.current_tenant(),
  name text NOT NULL,
  description text NOT NULL DEFAULT '',
  prefix text NOT NULL,
  environment text NOT NULL DEFAULT rk_apikeys._default_environment(),
  scopes text[] NOT NULL DEFAULT '{}',
  allowed_cidrs cidr[],
  rate_limit integer,
  rate_window interval,
  metadata jsonb NOT NULL DEFAULT '{}',
  enabled boolean NOT NULL DEFAULT true,
  expires_at timestamptz,
  replaces text,
  grace_until timestamptz,
  revoked_at timestamptz,
  revoked_reason text,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL,
  updated_at timestamptz NOT NULL,
  updated_by text NOT NULL,
  hint text,
  digest bytea NOT NULL,
  digest_kind text NOT NULL,
  pepper_id smallint,
  CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
  -- Only what is true of a key for ever: a restored row may have expired.
  CONSTRAINT api_keys_key_id_check CHECK (key_id ~ '^[0-9A-Za-z]{12}$'),
  CONSTRAINT api_keys_tenant_check CHECK (char_length(tenant) BETWEEN 1 AND 200),
  CONSTRAINT api_keys_name_check CHECK (char_length(btrim(name, E' \t\n\r\f\v')) BETWEEN 1 AND 200),
  CONSTRAINT api_keys_description_check CHECK (char_length(description) <= 2000),
  CONSTRAINT api_keys_prefix_check CHECK (prefix ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT api_keys_environment_check CHECK (environment ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT api_keys_scopes_check CHECK (
    cardinality(scopes) <= 64 AND array_position(scopes, NULL) IS NULL
    AND cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes)
    AND array_to_string(scopes, ' ') ~ '^([a-z0-9_*.-]+(:[a-z0-9_*.-]+)*( |$))*$'),
  CONSTRAINT api_keys_allowed_cidrs_check CHECK (cardinality(allowed_cidrs) BETWEEN 1 AND 64),
  CONSTRAINT api_keys_rate_check CHECK (
    (rate_limit IS NULL) = (rate_window IS NULL)
    AND rate_limit > 0 AND rate_window > '0'),
  CONSTRAINT api_keys_metadata_check CHECK (
    jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 8192),
  CONSTRAINT api_keys_revoked_check CHECK (
    (revoked_reason IS NULL OR revoked_at IS NOT NULL) AND char_length(revoked_reason) <= 500),
  CONSTRAINT api_keys_hint_check CHECK (char_length(hint) <= 4),
  CONSTRAINT api_keys_digest_check CHECK (
    octet_length(digest) = CASE digest_kind WHEN 'sha512' THEN 64 ELSE 32 END
    AND digest_kind IN ('native', 'sha256', 'sha512')),
  CONSTRAINT api_keys_pepper_id_check CHECK (pepper_id IS NULL OR (pepper_id > 0 AND digest_kind = 'native'))
);
-- One page of a tenant's keys, newest first.
CREATE INDEX api_keys_tenant_created ON rk_apikeys.api_keys (tenant, created_at, key_id);
-- The same, by key id.
CREATE INDEX api_keys_tenant_key ON rk_apikeys.api_keys (tenant, key_id);
-- The name of this index is known to src/store.c.
CREATE UNIQUE INDEX api_keys_imported_digest ON rk_apikeys.api_keys (digest)
  WHERE digest_kind <> 'native';

COMMENT ON TABLE rk_apikeys.api_keys IS 'API keys: settings and digests. People use the view keys.';
COMMENT ON COLUMN rk_apikeys.api_keys.key_id IS 'The public part of the token, 12 base62 digits; safe to log.';
COMMENT ON COLUMN rk_apikeys.api_keys.tenant IS 'Whoever owns the key.';
COMMENT ON COLUMN rk_apikeys.api_keys.name IS 'What people call the key: 1 to 200 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.description IS 'What it is for: up to 2000 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.prefix IS 'The first part of the token, from the setting token_prefix when the key was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.environment IS 'dev, stage, prod…: the second part of the token.';
COMMENT ON COLUMN rk_apikeys.api_keys.scopes IS 'What the key may do: names such as records:read, records:* or *.';
COMMENT ON COLUMN rk_apikeys.api_keys.allowed_cidrs IS 'Networks that the key may be used from; NULL: any.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_limit IS 'Uses per rate_window; NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_window IS 'The time that rate_limit counts for.';
COMMENT ON COLUMN rk_apikeys.api_keys.metadata IS 'Anything of the product''s: a JSON object of up to 8 kB.';
COMMENT ON COLUMN rk_apikeys.api_keys.enabled IS 'The toggle: a key that is not enabled is refused.';
COMMENT ON COLUMN rk_apikeys.api_keys.expires_at IS 'The key is good before that moment; NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.api_keys.replaces IS 'The key that this one was rotated from.';
COMMENT ON COLUMN rk_apikeys.api_keys.grace_until IS 'Set by a rotation: the key is good before that moment, and before expires_at.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_at IS 'When it was ended for good.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_reason IS 'Why it was ended.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_by IS 'The session user who made it.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_at IS 'When a setting was last changed; a use does not move it.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_by IS 'The session user who last changed a setting.';
COMMENT ON COLUMN rk_apikeys.api_keys.hint IS 'The last 4 digits of the secret, shown in the masked key.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest IS 'What is stored of the token; granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest_kind IS 'native, or sha256 or sha512 for an imported key; granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.pepper_id IS 'The pepper under which the digest was made; granted to no role.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_created IS 'One page of a tenant''s keys, newest first.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_key IS 'The same, by key id.';
COMMENT ON INDEX rk_apikeys.api_keys_imported_digest IS 'How verify finds an imported key.';

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.api_keys', '');
ALTER TABLE rk_apikeys.api_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON rk_apikeys.api_keys TO rk_apikeys_admin
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY all_tenants_read ON rk_apikeys.api_keys FOR SELECT TO rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant ON rk_apikeys.api_keys TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants ON rk_apikeys.api_keys IS 'An admin manages every tenant''s keys.';
COMMENT ON POLICY all_tenants_read ON rk_apikeys.api_keys IS 'An auditor reads every tenant''s keys.';
COMMENT ON POLICY own_tenant ON rk_apikeys.api_keys IS 'A manager manages the keys of its own tenant.';
CREATE POLICY principal ON rk_apikeys.api_keys AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager
  USING ((SELECT rk_apikeys._may_manage()));
COMMENT ON POLICY principal ON rk_apikeys.api_keys IS 'A key sees and changes keys only if it has the scope apikeys:manage.';

-- What uses change: narrow, so that an update stays on its page.
CREATE TABLE rk_apikeys.key_usage (
  -- The C code knows the columns by this order (src/store.c): add at the end.
  key_id text COLLATE "C" NOT NULL,
  tenant text NOT NULL,
  last_used_at timestamptz,
  last_used_addr inet,
  use_count bigint NOT NULL DEFAULT 0,
  denied_count bigint NOT NULL DEFAULT 0,
  CONSTRAINT key_usage_pkey PRIMARY KEY (key_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE rk_apikeys.key_usage IS 'When and how often each key was used; written by verify.';
COMMENT ON COLUMN rk_apikeys.key_usage.key_id IS 'The key.';
COMMENT ON COLUMN rk_apikeys.key_usage.tenant IS 'The key''s tenant.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_at IS 'The last use; only ever moves forward.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_addr IS 'The last client_addr that verify_key was told.';
COMMENT ON COLUMN rk_apikeys.key_usage.use_count IS 'Uses recorded: without shared memory, at most one per usage_resolution.';
COMMENT ON COLUMN rk_apikeys.key_usage.denied_count IS 'Genuine tokens refused; counted only in shared memory.';

-- For a tenant's lists. Its columns never change, so an update still stays on
-- its page.
CREATE INDEX key_usage_tenant ON rk_apikeys.key_usage (tenant, key_id);
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'A tenant''s lists, by use.';

-- For reports. Outlives the key.
CREATE TABLE rk_apikeys.key_usage_daily (
  key_id text COLLATE "C" NOT NULL,
  day date NOT NULL,
  environment text NOT NULL,
  tenant text NOT NULL,
  uses bigint NOT NULL DEFAULT 0,
  denials bigint NOT NULL DEFAULT 0,
  CONSTRAINT key_usage_daily_pkey PRIMARY KEY (key_id, day)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_daily_tenant ON rk_apikeys.key_usage_daily (tenant, day);
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'A tenant''s days.';
COMMENT ON TABLE rk_apikeys.key_usage_daily IS 'Uses per key and day; outlives the key.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.key_id IS 'The key.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.day IS 'The day, in UTC.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.environment IS 'The key''s environment.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.tenant IS 'The key''s tenant.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.uses IS 'Uses recorded, as in key_usage.use_count.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.denials IS 'Denials, as in key_usage.denied_count.';

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

-- The audit: append-only, written by triggers. Outlives the key.
CREATE TABLE rk_apikeys.key_events (
  event_id bigint GENERATED ALWAYS AS IDENTITY,
  occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  tenant text,
  key_id text COLLATE "C",
  event text NOT NULL,
  actor text NOT NULL,
  role text NOT NULL,
  principal text,
  client_addr inet,
  application_name text,
  changes jsonb,
  CONSTRAINT key_events_pkey PRIMARY KEY (event_id),
  CONSTRAINT key_events_event_check CHECK (event IN ('created', 'imported', 'updated',
    'enabled', 'disabled', 'rotated', 'revoked', 'deleted', 'purged')),
  CONSTRAINT key_events_key_check CHECK (event = 'purged' OR (key_id IS NOT NULL AND tenant IS NOT NULL))
);
CREATE INDEX key_events_key ON rk_apikeys.key_events (tenant, key_id, event_id);
COMMENT ON TABLE rk_apikeys.key_events IS 'What happened to the keys: append-only, written in the transaction that did it; outlives the key.';
COMMENT ON COLUMN rk_apikeys.key_events.event_id IS 'Grows with each event.';
COMMENT ON COLUMN rk_apikeys.key_events.occurred_at IS 'When.';
COMMENT ON COLUMN rk_apikeys.key_events.tenant IS 'The key''s tenant; NULL for a purge.';
COMMENT ON COLUMN rk_apikeys.key_events.key_id IS 'The key; NULL for a purge.';
COMMENT ON COLUMN rk_apikeys.key_events.event IS 'created, imported, updated, enabled, disabled, rotated, revoked, deleted or purged.';
COMMENT ON COLUMN rk_apikeys.key_events.actor IS 'The session user.';
COMMENT ON COLUMN rk_apikeys.key_events.role IS 'The role that was current.';
COMMENT ON COLUMN rk_apikeys.key_events.principal IS 'The key that the transaction had authenticated as.';
COMMENT ON COLUMN rk_apikeys.key_events.client_addr IS 'The database client''s address; NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.key_events.application_name IS 'The database client''s application_name.';
COMMENT ON COLUMN rk_apikeys.key_events.changes IS 'Per changed setting its old and new value; never a digest or secret.';
COMMENT ON INDEX rk_apikeys.key_events_key IS 'A key''s history.';
COMMENT ON SEQUENCE rk_apikeys.key_events_event_id_seq IS 'Numbers the events.';

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_usage', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_usage_daily', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_events', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_events_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.usage_senders', '');

ALTER TABLE rk_apikeys.key_usage ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.key_usage FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.key_usage FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.key_usage IS 'Admins and auditors read every tenant''s usage.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.key_usage IS 'A manager reads its own tenant''s usage.';
CREATE POLICY principal ON rk_apikeys.key_usage AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager
  USING ((SELECT rk_apikeys._may_manage()));
COMMENT ON POLICY principal ON rk_apikeys.key_usage IS 'A key sees and changes keys only if it has the scope apikeys:manage.';

ALTER TABLE rk_apikeys.key_usage_daily ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.key_usage_daily FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.key_usage_daily FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.key_usage_daily IS 'Admins and auditors read every tenant''s usage.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.key_usage_daily IS 'A manager reads its own tenant''s usage.';
CREATE POLICY principal ON rk_apikeys.key_usage_daily AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager
  USING ((SELECT rk_apikeys._may_manage()));
COMMENT ON POLICY principal ON rk_apikeys.key_usage_daily IS 'A key sees and changes keys only if it has the scope apikeys:manage.';

ALTER TABLE rk_apikeys.usage_senders ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.usage_senders FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.usage_senders IS 'Admins and auditors see which servers send usage.';

ALTER TABLE rk_apikeys.key_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.key_events FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.key_events FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.key_events IS 'Admins and auditors read every tenant''s events.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.key_events IS 'A manager reads its own tenant''s events.';
CREATE POLICY principal ON rk_apikeys.key_events AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager
  USING ((SELECT rk_apikeys._may_manage()));
COMMENT ON POLICY principal ON rk_apikeys.key_events IS 'A key sees and changes keys only if it has the scope apikeys:manage.';

-- How a key is made, what may change of it, and what is told of it.

CREATE FUNCTION rk_apikeys._keys_make() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_make';
COMMENT ON FUNCTION rk_apikeys._keys_make() IS
  'Private: gives a new key its id, token and digest; stores a restored row as it is.';
CREATE TRIGGER api_keys_make BEFORE INSERT ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make();
COMMENT ON TRIGGER api_keys_make ON rk_apikeys.api_keys IS 'Gives a new key its id, token and digest.';

CREATE FUNCTION rk_apikeys._keys_guard() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_guard';
COMMENT ON FUNCTION rk_apikeys._keys_guard() IS
  'Private: the state machine; moves updated_at when a setting really changes.';
CREATE TRIGGER api_keys_guard BEFORE UPDATE ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_guard();
COMMENT ON TRIGGER api_keys_guard ON rk_apikeys.api_keys IS 'Refuses what may not change.';

-- ALWAYS: where replication applies a change, sessions must hear of it too.
CREATE FUNCTION rk_apikeys._keys_settle() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_settle';
COMMENT ON FUNCTION rk_apikeys._keys_settle() IS
  'Private: tells every session of a changed key, and deletes the usage of a deleted one.';
CREATE TRIGGER api_keys_settle AFTER UPDATE OR DELETE ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_settle();
ALTER TABLE rk_apikeys.api_keys ENABLE ALWAYS TRIGGER api_keys_settle;
COMMENT ON TRIGGER api_keys_settle ON rk_apikeys.api_keys IS
  'Tells every session of a changed key, and deletes the usage of a deleted one.';

CREATE FUNCTION rk_apikeys._keys_settle_imported() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_settle_imported';
COMMENT ON FUNCTION rk_apikeys._keys_settle_imported() IS
  'Private: tells every session that there are imported keys.';
CREATE TRIGGER api_keys_settle_imported AFTER INSERT ON rk_apikeys.api_keys
  FOR EACH ROW WHEN (NEW.digest_kind <> 'native')
  EXECUTE FUNCTION rk_apikeys._keys_settle_imported();
ALTER TABLE rk_apikeys.api_keys ENABLE ALWAYS TRIGGER api_keys_settle_imported;
COMMENT ON TRIGGER api_keys_settle_imported ON rk_apikeys.api_keys IS
  'Tells every session that there are imported keys.';

CREATE FUNCTION rk_apikeys._keys_audit_insert() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_insert';
COMMENT ON FUNCTION rk_apikeys._keys_audit_insert() IS 'Private: the events created and imported.';
CREATE TRIGGER api_keys_audit_insert AFTER INSERT ON rk_apikeys.api_keys
  REFERENCING NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_insert();
COMMENT ON TRIGGER api_keys_audit_insert ON rk_apikeys.api_keys IS 'Writes the events of new keys.';

CREATE FUNCTION rk_apikeys._keys_audit_update() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_update';
COMMENT ON FUNCTION rk_apikeys._keys_audit_update() IS
  'Private: the events updated, enabled, disabled, rotated and revoked.';
CREATE TRIGGER api_keys_audit_update AFTER UPDATE ON rk_apikeys.api_keys
  REFERENCING OLD TABLE AS old_keys NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_update();
COMMENT ON TRIGGER api_keys_audit_update ON rk_apikeys.api_keys IS 'Writes the events of changed keys.';

CREATE FUNCTION rk_apikeys._keys_audit_delete() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_delete';
COMMENT ON FUNCTION rk_apikeys._keys_audit_delete() IS 'Private: the event deleted.';
CREATE TRIGGER api_keys_audit_delete AFTER DELETE ON rk_apikeys.api_keys
  REFERENCING OLD TABLE AS old_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_delete();
COMMENT ON TRIGGER api_keys_audit_delete ON rk_apikeys.api_keys IS 'Writes the events of deleted keys.';

-- Tokens as text. None of them reads a table.

CREATE FUNCTION rk_apikeys.generate_token(environment text DEFAULT NULL, prefix text DEFAULT NULL)
  RETURNS text
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_generate_token';
COMMENT ON FUNCTION rk_apikeys.generate_token(text, text) IS
  'A fresh token that belongs to no key. NULLs take the settings default_environment and token_prefix. Errors: 22023 for a bad environment or prefix.';

CREATE FUNCTION rk_apikeys.is_well_formed(token text) RETURNS boolean
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_is_well_formed';
COMMENT ON FUNCTION rk_apikeys.is_well_formed(text) IS
  'Whether a string has a token''s shape and check digits (CRC-32, IEEE 802.3). Says nothing of whether there is such a key.';

CREATE FUNCTION rk_apikeys.mask(token text) RETURNS text
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_mask';
COMMENT ON FUNCTION rk_apikeys.mask(text) IS
  'A token with its secret hidden, but for the last 4 digits; ******** for what is no token.';

CREATE FUNCTION rk_apikeys.hash_token(token text) RETURNS bytea
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_hash_token';
COMMENT ON FUNCTION rk_apikeys.hash_token(text) IS
  'The SHA-256 (FIPS 180-4) of a token, 32 bytes, as import_key takes it.';

CREATE FUNCTION rk_apikeys.digest_equal(a bytea, b bytea) RETURNS boolean
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_digest_equal';
COMMENT ON FUNCTION rk_apikeys.digest_equal(bytea, bytea) IS
  'Whether two digests are equal, in a time that tells nothing but their lengths.';

CREATE FUNCTION rk_apikeys.find_tokens(document text, OUT token_mask text, OUT key_id text, OUT start integer)
  RETURNS SETOF record
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_find_tokens';
COMMENT ON FUNCTION rk_apikeys.find_tokens(text) IS
  'The tokens in a text whose check digits are right: masked, key id, and where each starts, in characters from 1.';

CREATE FUNCTION rk_apikeys.redact(document text) RETURNS text
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_redact';
COMMENT ON FUNCTION rk_apikeys.redact(text) IS
  'The text with all that looks like a token masked: cut and mistyped ones too.';

-- What people and reports read. security_invoker: the tables' policies hold.

CREATE FUNCTION rk_apikeys.reveal(key_id text) RETURNS text
  LANGUAGE C STABLE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'rk_apikeys_reveal';
COMMENT ON FUNCTION rk_apikeys.reveal(text) IS
  'The token of a key that this transaction has made, to the role that made it; else NULL.';

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
  'Private: the status of a key, in the order in which verify looks; as of the statement''s start.';

-- STABLE, so that the views stay simple to the planner, though memory moves on.
CREATE FUNCTION rk_apikeys._live_last_used_at(key_id text) RETURNS timestamptz
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_last_used_at';
COMMENT ON FUNCTION rk_apikeys._live_last_used_at(text) IS
  'Private: the last use that shared memory knows of, for a key of the caller''s tenant; else NULL.';

CREATE FUNCTION rk_apikeys._live_use_count(key_id text) RETURNS bigint
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_use_count';
COMMENT ON FUNCTION rk_apikeys._live_use_count(text) IS
  'Private: the uses that shared memory knows of, for a key of the caller''s tenant; else NULL.';

CREATE FUNCTION rk_apikeys._live_usage(OUT key_id text, OUT last_used_at timestamptz, OUT use_count bigint)
  RETURNS SETOF record
  LANGUAGE C STABLE PARALLEL SAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_live_usage';
COMMENT ON FUNCTION rk_apikeys._live_usage() IS
  'Private: the same of all keys of the caller''s tenant, but for those of which the tables tell as much.';

CREATE VIEW rk_apikeys.keys WITH (security_invoker = true) AS
  SELECT k.key_id, k.tenant, k.name, k.description, k.environment,
    k.prefix || '_' || k.environment || '_' || k.key_id || '_********' || coalesce(k.hint, '') AS masked_key,
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
    rk_apikeys.reveal(k.key_id) AS secret
  FROM rk_apikeys.api_keys k;
-- For UPDATE … SET column = DEFAULT; an INSERT takes the table's.
ALTER VIEW rk_apikeys.keys ALTER description SET DEFAULT '', ALTER scopes SET DEFAULT '{}',
  ALTER metadata SET DEFAULT '{}', ALTER enabled SET DEFAULT true;
COMMENT ON VIEW rk_apikeys.keys IS
  'The keys, masked: INSERT, UPDATE and DELETE here. secret holds a new key''s token until the transaction ends, and is NULL ever after.';
COMMENT ON COLUMN rk_apikeys.keys.masked_key IS 'The token with its secret hidden, but for the last 4 digits.';
COMMENT ON COLUMN rk_apikeys.keys.status IS 'active, grace (rotated, still accepted), rotated, disabled, expired or revoked.';
COMMENT ON COLUMN rk_apikeys.keys.expires_in IS 'Time left before expires_at; 0 once it has passed; NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.keys.last_used_at IS 'The last use that was recorded; NULL: never.';
COMMENT ON COLUMN rk_apikeys.keys.use_count IS 'Uses recorded.';
COMMENT ON COLUMN rk_apikeys.keys.secret IS 'The whole token of a key that this transaction has made; else NULL.';

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
  'The accepted keys that expire within the setting rk_apikeys.expiring_window.';

CREATE VIEW rk_apikeys.stale_keys WITH (security_invoker = true) AS
  SELECT key_id, tenant, name, description, environment, masked_key, status,
    last_used_at, use_count, created_at, created_by,
    date_trunc('second', statement_timestamp() - coalesce(last_used_at, created_at)) AS unused_for
  FROM rk_apikeys.keys
  WHERE status = 'active'
    AND coalesce(last_used_at, created_at)
      < statement_timestamp() - rk_apikeys._setting_interval('stale_after');
COMMENT ON VIEW rk_apikeys.stale_keys IS
  'The active keys that nobody has used for the setting rk_apikeys.stale_after, counted from creation if never used.';

CREATE VIEW rk_apikeys.key_activity WITH (security_invoker = true) AS
  SELECT d.day, d.key_id, d.tenant, k.name, d.environment, d.uses, d.denials
  FROM rk_apikeys.key_usage_daily d LEFT JOIN rk_apikeys.api_keys k USING (key_id);
COMMENT ON VIEW rk_apikeys.key_activity IS
  'Uses and denials per key and day (UTC); name is NULL for a key that was deleted.';

CREATE FUNCTION rk_apikeys._stats(OUT preloaded boolean,
    OUT malformed bigint, OUT unknown bigint, OUT revoked bigint, OUT disabled bigint,
    OUT expired bigint, OUT rotated bigint, OUT address_denied bigint, OUT scope_missing bigint,
    OUT rate_limited bigint, OUT limiter_unavailable bigint, OUT verified bigint,
    OUT cache_hits bigint, OUT cache_misses bigint, OUT overflow bigint, OUT dropped bigint,
    OUT flushes bigint, OUT flushed_keys bigint, OUT tracked_keys bigint, OUT max_tracked_keys bigint,
    OUT pending_keys bigint, OUT last_flush_at timestamptz, OUT flush_lag_ms bigint) RETURNS record
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_stats';
COMMENT ON FUNCTION rk_apikeys._stats() IS 'Private: the row of the view stats.';

CREATE VIEW rk_apikeys.stats WITH (security_invoker = true) AS
  SELECT preloaded, verified, malformed, unknown, revoked, disabled, expired, rotated, address_denied,
    scope_missing, rate_limited, limiter_unavailable, cache_hits, cache_misses,
    tracked_keys, max_tracked_keys, pending_keys, overflow, dropped,
    flushes, flushed_keys, last_flush_at, flush_lag_ms
  FROM rk_apikeys._stats();
COMMENT ON VIEW rk_apikeys.stats IS
  'One row: counters of this server since its start, over all databases; all but preloaded are NULL without shared memory.';

-- VOLATILE and PARALLEL UNSAFE: they take a snapshot of their own.

CREATE FUNCTION rk_apikeys.verify(token text) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify';
COMMENT ON FUNCTION rk_apikeys.verify(text) IS
  'Whether the token is good now. Never raises for a bad token; NULL is false.';

CREATE FUNCTION rk_apikeys.verify_key(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_key';
COMMENT ON FUNCTION rk_apikeys.verify_key(text, text, inet, integer) IS
  'The verdict on a token: the scope that the request needs, the address of the API''s client, and the uses that the request costs. Never raises for a bad token; a cost below 1 raises 22023.';

CREATE FUNCTION rk_apikeys.authenticate(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_authenticate';
COMMENT ON FUNCTION rk_apikeys.authenticate(text, text, inet) IS
  'Verifies, and makes the key the principal until the transaction ends: call it as the first statement of a transaction. Errors: 28000 unless valid; the message ends with the code, and if that is rate_limited, the number in the hint is the milliseconds until it may succeed.';

CREATE FUNCTION rk_apikeys.revoke_token(token text, reason text DEFAULT NULL) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_token';
COMMENT ON FUNCTION rk_apikeys.revoke_token(text, text) IS
  'Ends the key of a token: whoever holds it may. True if the token is genuine (then its key is revoked, now or before), false if not.';

-- A key's life as calls. The same can be done by INSERT, UPDATE and DELETE on
-- the view keys; privileges and policies decide in either way.

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
  'Makes a key and returns its id and, this once, its whole token. The same as INSERT INTO rk_apikeys.keys. Errors: 23514 for what has a wrong shape, 22023 for an expiry in the past or beyond max_lifetime, 42501 for another tenant.';

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

  -- One statement: of two rotations at once the second waits, finds
  -- grace_until set, and comes out with no row.
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
  'Makes a successor with the same settings and returns its id and token; the old key is accepted for the time of grace (0: not any more), never longer than it would have been. expires_at is the successor''s; NULL: as the old key''s, within max_lifetime. Errors: 42704 no such key, 55000 the key is revoked, expired or rotated already, 22023 negative grace.';

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
  'Ends a key for good. True if this call did it, false if it was revoked before. Errors: 42704 no such key.';

-- A key id in the wrong place may be a token: the message shows it masked.
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
  'Private: raises 42704, the same for another tenant''s key as for none.';

CREATE FUNCTION rk_apikeys.import_key(name text, digest bytea, digest_kind text,
    hint text DEFAULT NULL, description text DEFAULT '', expires_at timestamptz DEFAULT NULL,
    environment text DEFAULT NULL, scopes text[] DEFAULT '{}', allowed_cidrs cidr[] DEFAULT NULL,
    rate_limit integer DEFAULT NULL, rate_window interval DEFAULT NULL,
    metadata jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_import_key';
COMMENT ON FUNCTION rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text) IS
  'Adds a key that was issued elsewhere and returns its key id. digest: of the full token, of 16 to 512 bytes; digest_kind: sha256 or sha512; hint: up to 4 last characters of the token, to show. Errors: 22023 for a digest that does not fit its kind, else as create_key.';

CREATE FUNCTION rk_apikeys.purge_keys(older_than interval) RETURNS bigint
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_keys';
COMMENT ON FUNCTION rk_apikeys.purge_keys(interval) IS
  'Deletes the keys that have been revoked, expired or rotated for longer than that; returns how many. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.purge_events(older_than interval) RETURNS bigint
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_events';
COMMENT ON FUNCTION rk_apikeys.purge_events(interval) IS
  'Deletes the events older than that, leaving one event purged; returns how many. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.flush_usage() RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_flush_usage';
COMMENT ON FUNCTION rk_apikeys.flush_usage() IS
  'Writes what shared memory holds of this database''s keys to key_usage and key_usage_daily now; returns how many keys. 0 without shared memory, or if another flush is under way. Commit soon: other flushes wait their turn until then.';

CREATE FUNCTION rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[], environments text[],
    last_used_at timestamptz[], addrs inet[], uses bigint[], denials bigint[],
    known_uses bigint[], known_denials bigint[],
    OUT n integer, OUT use_count bigint, OUT denied_count bigint) RETURNS SETOF record
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_receive_usage';
COMMENT ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[], bigint[], bigint[]) IS
  'Writes a batch of usage that a standby or subscriber has counted; the server itself calls it, as the role of its rk_apikeys.primary_conninfo. Per key that was written, its place in the batch and its counts now; NULLs if there is no such key. A batch that comes again counts once. Errors: 22023 for what is no batch, 55P03 while another flush is under way.';

-- The names of pgcrypto's functions are resolved here, once, with its schema on
-- the path.
SELECT set_config('search_path', format('pg_catalog, %s, pg_temp', extnamespace::regnamespace), true)
  FROM pg_extension WHERE extname = 'pgcrypto';
CREATE FUNCTION rk_apikeys.seal(secret text, pgp_public_key text) RETURNS text
  LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
BEGIN ATOMIC
  SELECT armor(pgp_pub_encrypt(secret, dearmor(pgp_public_key)));
END;
SET LOCAL search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION rk_apikeys.seal(text, text) IS
  'The secret as an OpenPGP message (RFC 4880, armoured) that only the owner of the armoured public key can read. Errors: those of pgcrypto for what is no key.';

CREATE FUNCTION rk_apikeys._page(query text, search text, status text, environment text,
    start_value text, start_key text, sort_by text, descending boolean) RETURNS SETOF rk_apikeys.listed_key
  LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 25
  AS 'MODULE_PATHNAME', 'rk_apikeys_page';
COMMENT ON FUNCTION rk_apikeys._page(text, text, text, text, text, text, text, boolean) IS
  'Private: runs the query that list_keys has written, with the caller''s rights, by a plan that is kept.';

CREATE FUNCTION rk_apikeys.list_keys(search text DEFAULT NULL, status text DEFAULT NULL,
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
COMMENT ON FUNCTION rk_apikeys.list_keys(text, text, text, text, boolean, integer, text) IS
  'A page of the keys that the caller can see, without secrets. search: in name, description, key id and environment, any case, taken literally; sort_by: name, environment, key_id, created_at, updated_at, expires_at, last_used_at, use_count or status, NULLs last, ties by key_id; page_size: 1 to 1000; after: the cursor of the last row of the page before. Errors: 22023.';

-- The whole access policy.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA rk_apikeys FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA rk_apikeys FROM PUBLIC;
GRANT USAGE ON SCHEMA rk_apikeys TO PUBLIC;

-- Any role: tokens as text, and what a session is.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.generate_token(text, text), rk_apikeys.is_well_formed(text), rk_apikeys.mask(text),
  rk_apikeys.hash_token(text), rk_apikeys.digest_equal(bytea, bytea),
  rk_apikeys.find_tokens(text), rk_apikeys.redact(text), rk_apikeys.seal(text, text),
  rk_apikeys.current_tenant(), rk_apikeys.current_key_id(), rk_apikeys.current_key_tenant(),
  rk_apikeys.current_scopes(), rk_apikeys.has_scope(text)
  TO PUBLIC;

-- A backend: verify, and end a leaked token.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.verify(text), rk_apikeys.verify_key(text, text, inet, integer),
  rk_apikeys.authenticate(text, text, inet),
  rk_apikeys.revoke_token(text, text)
  TO rk_apikeys_verifier, rk_apikeys_admin;

-- Whoever reads: masked keys, usage, events.
GRANT SELECT ON rk_apikeys.keys, rk_apikeys.active_keys, rk_apikeys.expiring_keys,
  rk_apikeys.stale_keys, rk_apikeys.key_activity,
  rk_apikeys.key_usage, rk_apikeys.key_usage_daily, rk_apikeys.key_events
  TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_admin;
GRANT SELECT (key_id, tenant, name, description, prefix, environment, scopes, allowed_cidrs,
    rate_limit, rate_window, metadata, enabled, expires_at, replaces, grace_until, revoked_at,
    revoked_reason, created_at, created_by, updated_at, updated_by, hint)
  ON rk_apikeys.api_keys TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION
  rk_apikeys.list_keys(text, text, text, text, boolean, integer, text), rk_apikeys.reveal(text),
  rk_apikeys._status(timestamptz, boolean, timestamptz, timestamptz),
  rk_apikeys._setting_interval(text), rk_apikeys._may_manage(), rk_apikeys._no_principal(),
  rk_apikeys._live_last_used_at(text), rk_apikeys._live_use_count(text), rk_apikeys._live_usage(),
  rk_apikeys._page(text, text, text, text, text, text, text, boolean)
  TO rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_admin;

-- Whoever manages: policies decide on which keys.
GRANT INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window,
    metadata, enabled, expires_at, replaces),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled,
    expires_at, grace_until, revoked_at, revoked_reason),
  DELETE
  ON rk_apikeys.keys TO rk_apikeys_manager, rk_apikeys_admin;
GRANT INSERT (tenant, name, description, environment, scopes, allowed_cidrs, rate_limit, rate_window,
    metadata, enabled, expires_at, replaces),
  UPDATE (name, description, scopes, allowed_cidrs, rate_limit, rate_window, metadata, enabled,
    expires_at, grace_until, revoked_at, revoked_reason),
  DELETE
  ON rk_apikeys.api_keys TO rk_apikeys_manager, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION
  rk_apikeys.create_key(text, text, timestamptz, text, text[], cidr[], integer, interval, jsonb, text),
  rk_apikeys.rotate_key(text, interval, timestamptz), rk_apikeys.revoke_key(text, text),
  rk_apikeys._default_environment(), rk_apikeys._no_such_key(text)
  TO rk_apikeys_manager, rk_apikeys_admin;

-- Counters of the whole server tell of every tenant.
GRANT SELECT ON rk_apikeys.stats, rk_apikeys.usage_senders TO rk_apikeys_auditor, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION rk_apikeys._stats() TO rk_apikeys_auditor, rk_apikeys_admin;

-- The administrator alone: these write with the owner's rights.
GRANT EXECUTE ON FUNCTION
  rk_apikeys.import_key(text, bytea, text, text, text, timestamptz, text, text[], cidr[], integer,
    interval, jsonb, text),
  rk_apikeys.purge_keys(interval), rk_apikeys.purge_events(interval), rk_apikeys.flush_usage(),
  rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[],
    bigint[], bigint[])
  TO rk_apikeys_admin;

-- Nobody: the triggers' functions.
REVOKE ALL ON FUNCTION
  rk_apikeys._keys_make(), rk_apikeys._keys_guard(), rk_apikeys._keys_settle(),
  rk_apikeys._keys_settle_imported(), rk_apikeys._keys_audit_insert(),
  rk_apikeys._keys_audit_update(), rk_apikeys._keys_audit_delete()
  FROM PUBLIC;
