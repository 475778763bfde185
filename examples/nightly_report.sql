-- examples/nightly_report.sql: a report of a night's keys by pg_cron: which expire, which are stale, which were denied.
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
  finding text NOT NULL CHECK (finding IN ('expires', 'stale', 'denied')),
  tenant text NOT NULL,
  key_id text NOT NULL,
  name text,                -- NULL: the key was deleted
  expires_at timestamptz,
  last_used_at timestamptz,
  denials bigint,           -- of the day before, in UTC
  PRIMARY KEY (reported_at, finding, key_id)
);

CREATE PROCEDURE reports.report_api_keys() LANGUAGE sql AS $$
  DELETE FROM reports.api_keys WHERE reported_at < now() - interval '90 days';
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, expires_at)
    SELECT 'expires', tenant, key_id, name, expires_at FROM rk_apikeys.expiring_keys;
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, last_used_at)
    SELECT 'stale', tenant, key_id, name, last_used_at FROM rk_apikeys.stale_keys;
  INSERT INTO reports.api_keys (finding, tenant, key_id, name, denials)
    SELECT 'denied', tenant, key_id, name, denials FROM rk_apikeys.key_activity
      WHERE denials > 0 AND day = (now() AT TIME ZONE 'UTC')::date - 1;
$$;

CREATE VIEW reports.latest AS
  SELECT * FROM reports.api_keys WHERE reported_at = (SELECT max(reported_at) FROM reports.api_keys);

SELECT cron.schedule('api-keys', :'schedule', 'CALL reports.report_api_keys()');

RESET ROLE;
