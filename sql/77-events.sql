-- The events for followers, and the functions that write or delete events and use.

-- A place in the order of events_since: the history of the server that wrote the
-- event, and the transaction. Events of 0.2 keep the defaults here, and come first.
ALTER TABLE rk_apikeys.key_events
  ADD COLUMN history text COLLATE "C" NOT NULL DEFAULT '',
  ADD COLUMN xid xid8 NOT NULL DEFAULT '0',
  ADD COLUMN came_as text[];
CREATE FUNCTION rk_apikeys._history() RETURNS text
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_history';
COMMENT ON FUNCTION rk_apikeys._history() IS
  'Private: the history of this server: its system identifier and its timeline.';
ALTER TABLE rk_apikeys.key_events
  ALTER history SET DEFAULT rk_apikeys._history(), ALTER history SET STATISTICS 0,
  ALTER xid SET DEFAULT pg_current_xact_id(), ALTER xid SET STATISTICS 0,
  ALTER came_as SET STATISTICS 0;
CREATE INDEX key_events_place ON rk_apikeys.key_events (history, xid, event_id);
COMMENT ON COLUMN rk_apikeys.key_events.history IS 'The system identifier and timeline of the server when the event was written. Empty: by a release before 0.3.';
COMMENT ON COLUMN rk_apikeys.key_events.xid IS 'The transaction that wrote the event. 0: by a release before 0.3.';
COMMENT ON COLUMN rk_apikeys.key_events.came_as IS 'The history and xid of the event on the servers from which logical replication brought it. NULL: written here.';
COMMENT ON INDEX rk_apikeys.key_events_place IS 'events_since reads in the order of this index.';

CREATE FUNCTION rk_apikeys._events_place() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.came_as := NEW.came_as || format('%s/%s', NEW.history, NEW.xid);
  NEW.history := rk_apikeys._history();
  NEW.xid := pg_current_xact_id();
  RETURN NEW;
END $$;
COMMENT ON FUNCTION rk_apikeys._events_place() IS
  'Private: gives an event that logical replication brings a place in the order of this server.';
CREATE TRIGGER key_events_place BEFORE INSERT ON rk_apikeys.key_events
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._events_place();
-- Only for rows that replication applies, because a restored row keeps its place.
ALTER TABLE rk_apikeys.key_events ENABLE REPLICA TRIGGER key_events_place;
COMMENT ON TRIGGER key_events_place ON rk_apikeys.key_events IS
  'Gives an event that logical replication brings a place in the order of this server.';

CREATE FUNCTION rk_apikeys.events_since(cursor text DEFAULT NULL, max_events integer DEFAULT 1000)
  RETURNS TABLE (event_id bigint, occurred_at timestamptz, tenant text, key_id text, event text,
    actor text, role text, principal text, client_addr inet, application_name text, changes jsonb,
    end_user text, owner text, cursor text)
  LANGUAGE C STABLE PARALLEL RESTRICTED
  AS 'MODULE_PATHNAME', 'rk_apikeys_events_since';
COMMENT ON FUNCTION rk_apikeys.events_since(text, integer) IS
  'Returns the committed events after a cursor that the role may read, at most max_events (1 to 10000). Each row has the cursor for the next call. NULL begins at the oldest event. A follower that keeps the last cursor gets each event exactly once. Errors: 22023.';

CREATE FUNCTION rk_apikeys.notice_expiring(ahead interval) RETURNS bigint
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_notice_expiring';
COMMENT ON FUNCTION rk_apikeys.notice_expiring(interval) IS
  'Writes one event expiring for each key that is good now and ends within ahead, unless the end as it stands was told. Returns the number of events. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.purge_events(older_than interval, tenant text DEFAULT NULL) RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_events_0_3';
COMMENT ON FUNCTION rk_apikeys.purge_events(interval, text) IS
  'Deletes the events that are older than older_than, of one tenant or of all, and leaves one event purged. Returns the number of deleted events; NULL if older_than is NULL. Errors: 22023 if negative.';

CREATE FUNCTION rk_apikeys.purge_usage(older_than interval, tenant text DEFAULT NULL) RETURNS bigint
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge_usage';
COMMENT ON FUNCTION rk_apikeys.purge_usage(interval, text) IS
  'Deletes the rows of key_usage_daily whose day ended longer than older_than ago, and those of limit_usage whose period did, of one tenant or of all. Leaves one event purged for each of both. Returns the number of deleted rows; NULL if older_than is NULL. Errors: 22023 if negative.';

CREATE PROCEDURE rk_apikeys.purge(keys interval DEFAULT NULL, usage interval DEFAULT NULL,
    events interval DEFAULT NULL)
  LANGUAGE C
  AS 'MODULE_PATHNAME', 'rk_apikeys_purge';
COMMENT ON PROCEDURE rk_apikeys.purge(interval, interval, interval) IS
  'Deletes what purge_keys, purge_usage and purge_events delete, for all tenants, in batches. Each batch is a transaction, and a NOTICE reports it. keys, usage, events: older than this; NULL leaves them alone. Skips locked keys. Errors: 22023 if negative, 2D000 in a transaction block.';

CREATE FUNCTION rk_apikeys.erase_tenant(tenant text, OUT keys bigint, OUT usage bigint,
    OUT daily bigint, OUT policies bigint, OUT limits bigint, OUT limit_usage bigint, OUT events bigint) RETURNS record
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_erase_tenant';
COMMENT ON FUNCTION rk_apikeys.erase_tenant(text) IS
  'Deletes all rows of a tenant, and leaves one event erased with the numbers. Returns how many rows each table had: keys, usage, daily usage, policies, limits, usage of limits, and events.';

-- Usage of other servers, with the days on which tokens of ended keys were presented.
CREATE FUNCTION rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[], environments text[],
    last_used_at timestamptz[], addrs inet[], uses bigint[], denials bigint[],
    known_uses bigint[], known_denials bigint[], ended date[] DEFAULT '{}', limit_ids uuid[] DEFAULT '{}',
    OUT n integer, OUT use_count bigint, OUT denied_count bigint) RETURNS SETOF record
  LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1000
  AS 'MODULE_PATHNAME', 'rk_apikeys_receive_usage_0_3';
COMMENT ON FUNCTION rk_apikeys.receive_usage(uuid, bigint, text[], text[], timestamptz[], inet[], bigint[], bigint[], bigint[], bigint[], date[], uuid[]) IS
  'Writes a batch of usage that a standby or subscriber has counted. The sending server calls it, as the role of its rk_apikeys.primary_conninfo. Returns for each written key its position in the batch and its counts now, or NULLs if the key does not exist. A batch that is sent again counts once. Errors: 22023 for an invalid batch, 55P03 while another flush is running.';
