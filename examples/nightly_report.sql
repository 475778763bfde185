-- examples/nightly_report.sql: a report of a night's keys by pg_cron: which expire, which are stale, which were denied, and which were
-- presented after their end.
--
-- Run it once with psql as a superuser, in the database of cron.database_name, after CREATE EXTENSION pg_cron. The server's configuration
-- needs shared_preload_libraries = 'rk_apikeys, pg_cron', and cron.use_background_workers = on, or else a way in for the role in
-- pg_hba.conf. `-v schedule='…'` gives another time than 02:15; pg_cron's clock is GMT.
\if :{?schedule} \else \set schedule '15 2 * * *' \endif

CREATE ROLE reporter LOGIN IN ROLE rk_apikeys_auditor;
CREATE SCHEMA reports AUTHORIZATION reporter;
GRANT USAGE ON SCHEMA cron TO reporter;

SET ROLE reporter;

CREATE TABLE reports.api_keys (
  reported_at timestamptz NOT NULL DEFAULT now(),
  finding text NOT NULL CHECK (finding IN ('expires', 'stale', 'denied', 'ended')),
  tenant text NOT NULL,
  key_id text NOT NULL,
  name text,                -- NULL: the key was deleted
  expires_at timestamptz,
  last_used_at timestamptz,
  denials bigint,           -- of the day before, in UTC
  PRIMARY KEY (reported_at, finding, key_id)
);

-- How far the events were read.
CREATE TABLE reports.follower (cursor text);
INSERT INTO reports.follower VALUES (NULL);

CREATE PROCEDURE reports.report_api_keys() LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM reports.follower FOR UPDATE;
  DELETE FROM reports.api_keys WHERE reported_at < now() - interval '90 days';
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, expires_at)
    SELECT 'expires', tenant, key_id, name, expires_at FROM rk_apikeys.expiring_keys;
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, last_used_at)
    SELECT 'stale', tenant, key_id, name, last_used_at FROM rk_apikeys.stale_keys;
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, denials)
    SELECT 'denied', tenant, key_id, name, denials FROM rk_apikeys.key_activity
      WHERE denials > 0 AND day = (now() AT TIME ZONE 'UTC')::date - 1;
  LOOP
    WITH news AS MATERIALIZED (
      SELECT e.* FROM reports.follower f, rk_apikeys.events_since(f.cursor, 10000) WITH ORDINALITY e
    ), found AS (
      INSERT INTO reports.api_keys (finding, tenant, key_id, name)
        SELECT 'ended', n.tenant, n.key_id, k.name FROM news n LEFT JOIN rk_apikeys.keys k ON k.key_id = n.key_id
          WHERE n.event = 'used_after_end' ON CONFLICT DO NOTHING
    )
    UPDATE reports.follower SET cursor = n.cursor FROM news n WHERE n.ordinality = (SELECT max(ordinality) FROM news);
    EXIT WHEN NOT FOUND;
  END LOOP;
END $$;

CREATE VIEW reports.latest AS
  SELECT * FROM reports.api_keys WHERE reported_at = (SELECT max(reported_at) FROM reports.api_keys);

SELECT cron.schedule('api-keys', :'schedule', 'CALL reports.report_api_keys()');

RESET ROLE;
