-- The triggers of api_keys. They make a key, refuse changes that are not
-- allowed, send invalidation messages, and write the events.

CREATE FUNCTION rk_apikeys._keys_make() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_make';
COMMENT ON FUNCTION rk_apikeys._keys_make() IS
  'Private: gives a new key its id, token and digest. Stores a restored row as it is.';
CREATE TRIGGER api_keys_make BEFORE INSERT ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make();
COMMENT ON TRIGGER api_keys_make ON rk_apikeys.api_keys IS 'Gives a new key its id, token and digest.';

CREATE FUNCTION rk_apikeys._keys_guard() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_guard';
COMMENT ON FUNCTION rk_apikeys._keys_guard() IS
  'Private: the state machine of a key. Moves updated_at when a setting really changes.';
CREATE TRIGGER api_keys_guard BEFORE UPDATE ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_guard();
COMMENT ON TRIGGER api_keys_guard ON rk_apikeys.api_keys IS 'Refuses changes that are not allowed.';

-- The message that a key has changed names this type. A message about a relation
-- costs only those who use the relation, and nobody uses this one.
CREATE TYPE rk_apikeys._change AS ();
COMMENT ON TYPE rk_apikeys._change IS
  'Private: stands for "a key has changed" in the invalidation messages between sessions. It has no values.';

-- ALWAYS, because sessions need the message of a change that replication applies
-- too.
CREATE FUNCTION rk_apikeys._keys_settle() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_settle';
COMMENT ON FUNCTION rk_apikeys._keys_settle() IS
  'Private: sends every session an invalidation message when a key changes. Deletes the usage of a deleted key.';
CREATE TRIGGER api_keys_settle AFTER UPDATE OR DELETE ON rk_apikeys.api_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_settle();
ALTER TABLE rk_apikeys.api_keys ENABLE ALWAYS TRIGGER api_keys_settle;
COMMENT ON TRIGGER api_keys_settle ON rk_apikeys.api_keys IS
  'Sends every session an invalidation message when a key changes. Deletes the usage of a deleted key.';

CREATE FUNCTION rk_apikeys._keys_settle_imported() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_settle_imported';
COMMENT ON FUNCTION rk_apikeys._keys_settle_imported() IS
  'Private: sends every session an invalidation message when an imported key is added.';
CREATE TRIGGER api_keys_settle_imported AFTER INSERT ON rk_apikeys.api_keys
  FOR EACH ROW WHEN (NEW.digest_kind <> 'native')
  EXECUTE FUNCTION rk_apikeys._keys_settle_imported();
ALTER TABLE rk_apikeys.api_keys ENABLE ALWAYS TRIGGER api_keys_settle_imported;
COMMENT ON TRIGGER api_keys_settle_imported ON rk_apikeys.api_keys IS
  'Sends every session an invalidation message when an imported key is added.';

-- Deferred, because until COMMIT the lock would let an open transaction hold up a
-- revocation.
CREATE FUNCTION rk_apikeys._keys_parent() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_parent';
COMMENT ON FUNCTION rk_apikeys._keys_parent() IS
  'Private: refuses the COMMIT of a key whose principal was revoked or deleted meanwhile.';
CREATE CONSTRAINT TRIGGER api_keys_parent AFTER INSERT ON rk_apikeys.api_keys
  DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.parent IS NOT NULL) EXECUTE FUNCTION rk_apikeys._keys_parent();
COMMENT ON TRIGGER api_keys_parent ON rk_apikeys.api_keys IS
  'Refuses the COMMIT of a key whose principal was revoked or deleted meanwhile.';

CREATE FUNCTION rk_apikeys._keys_audit_insert() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_insert';
COMMENT ON FUNCTION rk_apikeys._keys_audit_insert() IS 'Private: writes the events created and imported.';
CREATE TRIGGER api_keys_audit_insert AFTER INSERT ON rk_apikeys.api_keys
  REFERENCING NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_insert();
COMMENT ON TRIGGER api_keys_audit_insert ON rk_apikeys.api_keys IS 'Writes the events of new keys.';

CREATE FUNCTION rk_apikeys._keys_audit_update() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_update';
COMMENT ON FUNCTION rk_apikeys._keys_audit_update() IS
  'Private: writes the events updated, enabled, disabled, rotated and revoked.';
CREATE TRIGGER api_keys_audit_update AFTER UPDATE ON rk_apikeys.api_keys
  REFERENCING OLD TABLE AS old_keys NEW TABLE AS new_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_update();
COMMENT ON TRIGGER api_keys_audit_update ON rk_apikeys.api_keys IS 'Writes the events of changed keys.';

CREATE FUNCTION rk_apikeys._keys_audit_delete() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_keys_audit_delete';
COMMENT ON FUNCTION rk_apikeys._keys_audit_delete() IS 'Private: writes the event deleted.';
CREATE TRIGGER api_keys_audit_delete AFTER DELETE ON rk_apikeys.api_keys
  REFERENCING OLD TABLE AS old_keys
  FOR EACH STATEMENT EXECUTE FUNCTION rk_apikeys._keys_audit_delete();
COMMENT ON TRIGGER api_keys_audit_delete ON rk_apikeys.api_keys IS 'Writes the events of deleted keys.';

