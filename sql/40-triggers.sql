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

