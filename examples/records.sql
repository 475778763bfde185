-- examples/records.sql: a table of several tenants, that an API's backend reaches by API keys; the servers beside this file use it.
--
-- Run it once, as the owner of the database, after CREATE EXTENSION rk_apikeys CASCADE. A tenant's key is then made with
--   SELECT secret FROM rk_apikeys.create_key('CRM', tenant => 'acme', scopes => '{records:read}');

-- The backend's role. It verifies keys, and of the table sees what the key of its transaction may see: nothing without one.
CREATE ROLE records_api LOGIN;
GRANT rk_apikeys_verifier TO records_api;

CREATE TABLE records (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant text NOT NULL DEFAULT rk_apikeys.current_key_tenant(),
  body text NOT NULL
);
CREATE INDEX ON records (tenant, id);
GRANT SELECT, INSERT, UPDATE, DELETE ON records TO records_api;

-- One policy per verb. (SELECT … WHERE …) is asked once per statement, not per row, and is one condition on the index.
-- Policies bind the table's owner only with FORCE. Superusers and roles with BYPASSRLS are never bound: no backend logs in as one.
ALTER TABLE records ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY reads ON records FOR SELECT
  USING (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope('records:read')));
CREATE POLICY inserts ON records FOR INSERT
  WITH CHECK (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope('records:write')));
CREATE POLICY updates ON records FOR UPDATE
  USING (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope('records:write')));
CREATE POLICY deletes ON records FOR DELETE
  USING (tenant = (SELECT rk_apikeys.current_key_tenant() WHERE rk_apikeys.has_scope('records:write')));
