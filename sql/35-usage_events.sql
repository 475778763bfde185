-- The data that a use changes. Rows are narrow, so that an update stays on its
-- page.
CREATE TABLE rk_apikeys.key_usage (
  -- The C code (src/base/store.c) relies on this order: add new columns at the end.
  key_id text COLLATE "C" NOT NULL,
  tenant text NOT NULL,
  last_used_at timestamptz,
  last_used_addr inet,
  use_count bigint NOT NULL DEFAULT 0,
  denied_count bigint NOT NULL DEFAULT 0,
  CONSTRAINT key_usage_pkey PRIMARY KEY (key_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE rk_apikeys.key_usage IS 'When and how often each key was used. Only the extension writes it.';
COMMENT ON COLUMN rk_apikeys.key_usage.key_id IS 'The key id.';
COMMENT ON COLUMN rk_apikeys.key_usage.tenant IS 'The key''s tenant.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_at IS 'The time of the last use. It only moves forward.';
COMMENT ON COLUMN rk_apikeys.key_usage.last_used_addr IS 'The last client_addr that verify_key or authenticate was given with a valid token.';
COMMENT ON COLUMN rk_apikeys.key_usage.use_count IS 'Recorded uses. Without shared memory, at most one per usage_resolution.';
COMMENT ON COLUMN rk_apikeys.key_usage.denied_count IS 'How often a genuine token was refused. Counted only in shared memory.';

-- For a tenant's lists. The indexed columns never change, so an update still
-- stays on its page.
CREATE INDEX key_usage_tenant ON rk_apikeys.key_usage (tenant, key_id);
COMMENT ON INDEX rk_apikeys.key_usage_tenant IS 'For lists of a tenant''s keys, ordered by use.';

-- For reports. A row outlives its key.
CREATE TABLE rk_apikeys.key_usage_daily (
  key_id text COLLATE "C" NOT NULL,
  day date NOT NULL,
  environment text NOT NULL,
  tenant text NOT NULL,
  uses bigint NOT NULL DEFAULT 0,
  denials bigint NOT NULL DEFAULT 0,
  family text COLLATE "C",
  CONSTRAINT key_usage_daily_pkey PRIMARY KEY (key_id, day)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_daily_tenant ON rk_apikeys.key_usage_daily (tenant, day);
CREATE INDEX key_usage_daily_day ON rk_apikeys.key_usage_daily (day);
COMMENT ON INDEX rk_apikeys.key_usage_daily_day IS 'A purge finds old days by this index.';
COMMENT ON INDEX rk_apikeys.key_usage_daily_tenant IS 'For reports on one tenant, by day.';
COMMENT ON TABLE rk_apikeys.key_usage_daily IS 'Uses and denials per key and day. A row outlives its key.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.key_id IS 'The key id.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.day IS 'The day, in UTC.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.environment IS 'The key''s environment.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.tenant IS 'The key''s tenant.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.uses IS 'Recorded uses, as in key_usage.use_count.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.denials IS 'Denials, as in key_usage.denied_count.';
COMMENT ON COLUMN rk_apikeys.key_usage_daily.family IS 'The family of a key that was rotated from another one. NULL: the key''s own id.';

-- Uses that shared memory had no room for. Nobody is granted it, because a row is
-- of keys of all tenants.
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

-- The last batch of usage that each other server has sent, so that no batch
-- counts twice.
CREATE TABLE rk_apikeys.usage_senders (
  sender uuid NOT NULL,
  batch bigint NOT NULL,
  received_at timestamptz NOT NULL,
  client_addr inet,
  application_name text,
  left_out text[] NOT NULL,
  CONSTRAINT usage_senders_pkey PRIMARY KEY (sender)
) WITH (fillfactor = 50);
COMMENT ON TABLE rk_apikeys.usage_senders IS 'The standbys and subscribers that send usage here: one row for each start of such a server.';
COMMENT ON COLUMN rk_apikeys.usage_senders.sender IS 'A random number that the sending server made at its start.';
COMMENT ON COLUMN rk_apikeys.usage_senders.batch IS 'The number of the last batch that was written.';
COMMENT ON COLUMN rk_apikeys.usage_senders.received_at IS 'The time when the last batch was written.';
COMMENT ON COLUMN rk_apikeys.usage_senders.client_addr IS 'The sending server''s address. NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.usage_senders.application_name IS 'The sending server''s application_name.';
COMMENT ON COLUMN rk_apikeys.usage_senders.left_out IS 'The keys of the last batch that were not written, because their row was locked. The server sends them again.';

-- The audit: append-only, written by triggers. An event outlives its key.
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
  end_user text,
  owner text,
  CONSTRAINT key_events_pkey PRIMARY KEY (event_id),
  CONSTRAINT key_events_event_check CHECK (event IN ('created', 'imported', 'updated',
    'enabled', 'disabled', 'rotated', 'revoked', 'deleted', 'expiring', 'used_after_end', 'purged', 'erased',
    'policy_created', 'policy_changed', 'policy_deleted', 'limit_created', 'limit_changed', 'limit_deleted')),
  CONSTRAINT key_events_key_check CHECK (event ~ '^(purged|erased|policy_|limit_)'
    OR (key_id IS NOT NULL AND tenant IS NOT NULL))
);
CREATE INDEX key_events_key ON rk_apikeys.key_events (tenant, key_id, event_id);
CREATE INDEX key_events_occurred ON rk_apikeys.key_events (occurred_at);
CREATE INDEX key_events_owner ON rk_apikeys.key_events (tenant, owner, event_id) WHERE owner IS NOT NULL;
COMMENT ON TABLE rk_apikeys.key_events IS 'The audit of the keys. Append-only. Each event is written in the transaction of its change, and outlives the key.';
COMMENT ON COLUMN rk_apikeys.key_events.event_id IS 'A number that grows with each event.';
COMMENT ON COLUMN rk_apikeys.key_events.occurred_at IS 'The clock time when the event was written.';
COMMENT ON COLUMN rk_apikeys.key_events.tenant IS 'The tenant. NULL: of all tenants, such as a purge.';
COMMENT ON COLUMN rk_apikeys.key_events.key_id IS 'The key id. NULL: the event is not of one key.';
COMMENT ON COLUMN rk_apikeys.key_events.event IS 'created, imported, updated, enabled, disabled, rotated, revoked, deleted, expiring, used_after_end, purged, erased, or policy_ or limit_ with created, changed or deleted.';
COMMENT ON COLUMN rk_apikeys.key_events.actor IS 'The session user.';
COMMENT ON COLUMN rk_apikeys.key_events.role IS 'The current role.';
COMMENT ON COLUMN rk_apikeys.key_events.principal IS 'The id of the key that the transaction had authenticated as.';
COMMENT ON COLUMN rk_apikeys.key_events.client_addr IS 'The database client''s address. NULL over a Unix-domain socket.';
COMMENT ON COLUMN rk_apikeys.key_events.application_name IS 'The database client''s application_name.';
COMMENT ON COLUMN rk_apikeys.key_events.changes IS 'The old and new value of each changed setting. Never a digest or secret.';
COMMENT ON COLUMN rk_apikeys.key_events.end_user IS 'The end user for whom the change was made: rk_apikeys.end_user then. NULL: none.';
COMMENT ON COLUMN rk_apikeys.key_events.owner IS 'The owner of the key after the change. NULL: the tenant, or the event is of an earlier release.';
COMMENT ON INDEX rk_apikeys.key_events_key IS 'For the history of one key.';
COMMENT ON INDEX rk_apikeys.key_events_occurred IS 'For the events of a time. A purge finds old events by this index.';
COMMENT ON INDEX rk_apikeys.key_events_owner IS 'For the history of an owner''s keys.';
COMMENT ON SEQUENCE rk_apikeys.key_events_event_id_seq IS 'Numbers the events.';

-- No statistics of what tenants write: see api_keys.
ALTER TABLE rk_apikeys.key_usage ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER last_used_addr SET STATISTICS 0;
ALTER TABLE rk_apikeys.key_usage_daily ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER family SET STATISTICS 0;
ALTER TABLE rk_apikeys.key_events ALTER tenant SET STATISTICS 0, ALTER key_id SET STATISTICS 0,
  ALTER actor SET STATISTICS 0, ALTER role SET STATISTICS 0, ALTER principal SET STATISTICS 0,
  ALTER client_addr SET STATISTICS 0, ALTER application_name SET STATISTICS 0, ALTER changes SET STATISTICS 0,
  ALTER end_user SET STATISTICS 0, ALTER owner SET STATISTICS 0;

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_usage', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_usage_daily', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_events', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.key_events_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.usage_senders', '');

-- A sub-select in a policy costs the planner a look-up for each row, though only a
-- principal needs the look-up. The planner would then read whole tables by index.
CREATE FUNCTION rk_apikeys._sees_key(key_id text) RETURNS boolean
  LANGUAGE C STABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_sees_key';
COMMENT ON FUNCTION rk_apikeys._sees_key(text) IS
  'Private: whether the caller sees a key, as the policies of api_keys say.';

ALTER TABLE rk_apikeys.key_usage ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.key_usage FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.key_usage FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.key_usage IS 'Admins and auditors read every tenant''s usage.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.key_usage IS 'A manager reads its own tenant''s usage.';
CREATE POLICY own_keys_read ON rk_apikeys.key_usage FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = key_usage.key_id));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_usage IS 'A member reads the usage of keys that it sees.';
CREATE POLICY principal ON rk_apikeys.key_usage AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR rk_apikeys._sees_key(key_id)));
COMMENT ON POLICY principal ON rk_apikeys.key_usage IS 'A principal sees usage only of keys that it sees.';

ALTER TABLE rk_apikeys.key_usage_daily ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants_read ON rk_apikeys.key_usage_daily FOR SELECT
  TO rk_apikeys_admin, rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant_read ON rk_apikeys.key_usage_daily FOR SELECT TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants_read ON rk_apikeys.key_usage_daily IS 'Admins and auditors read every tenant''s usage.';
COMMENT ON POLICY own_tenant_read ON rk_apikeys.key_usage_daily IS 'A manager reads its own tenant''s usage.';
CREATE POLICY own_keys_read ON rk_apikeys.key_usage_daily FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant())
    AND EXISTS (SELECT FROM rk_apikeys.api_keys k WHERE k.key_id = key_usage_daily.key_id));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_usage_daily IS 'A member reads the usage of keys that it sees.';
CREATE POLICY principal ON rk_apikeys.key_usage_daily AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY principal ON rk_apikeys.key_usage_daily IS 'A principal sees usage only of its environment, and only if it has the scope apikeys:manage.';

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
CREATE POLICY own_keys_read ON rk_apikeys.key_events FOR SELECT TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant()) AND owner = (SELECT rk_apikeys.current_end_user()));
COMMENT ON POLICY own_keys_read ON rk_apikeys.key_events IS 'A member reads the events of keys that its end user owned then.';
CREATE POLICY principal ON rk_apikeys.key_events AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR rk_apikeys._sees_key(key_id)));
COMMENT ON POLICY principal ON rk_apikeys.key_events IS 'A principal sees events only of keys that it sees.';

