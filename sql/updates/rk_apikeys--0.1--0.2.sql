\echo Use "ALTER EXTENSION rk_apikeys UPDATE TO '0.2'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

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
