-- What may change of a key, and what follows from a change.
\set VERBOSITY sqlstate
SET ROLE rk_test_manager;
SELECT key_id, secret FROM rk_apikeys.create_key('guarded') \gset

-- updated_at moves when a setting really changes, and only then.
SELECT updated_at AS before FROM rk_apikeys.keys \gset
UPDATE rk_apikeys.keys SET name = 'guarded', enabled = true, scopes = '{}';
SELECT updated_at = :'before' AS unmoved FROM rk_apikeys.keys;
UPDATE rk_apikeys.keys SET description = 'changed';
SELECT updated_at > :'before' AS moved, updated_by = session_user AS by_me FROM rk_apikeys.keys;
SELECT updated_at AS before FROM rk_apikeys.keys \gset
UPDATE rk_apikeys.keys SET enabled = false RETURNING enabled, status;
UPDATE rk_apikeys.keys SET enabled = true RETURNING enabled, status;
SELECT updated_at > :'before' AS moved FROM rk_apikeys.keys;
SELECT updated_at AS before FROM rk_apikeys.keys \gset
SET ROLE rk_test_verifier;
SELECT rk_apikeys.verify(:'secret');
SET ROLE rk_test_manager;
SELECT updated_at = :'before' AS use_does_not_move_it, use_count FROM rk_apikeys.keys;

-- Dates.
UPDATE rk_apikeys.keys SET expires_at = now() - interval '1 second'; -- fails: past
UPDATE rk_apikeys.keys SET expires_at = '-infinity'; -- fails: past
UPDATE rk_apikeys.keys SET expires_at = now() + interval '1 day' RETURNING status;
UPDATE rk_apikeys.keys SET expires_at = NULL RETURNING status;
UPDATE rk_apikeys.keys SET revoked_reason = 'not yet'; -- fails: it is not revoked
UPDATE rk_apikeys.keys SET revoked_at = now() + interval '1 day'; -- fails: later than now
UPDATE rk_apikeys.keys SET revoked_at = now() - interval '1 day'; -- fails: earlier than now

-- grace_until is set once, and then only shortened.
UPDATE rk_apikeys.keys SET grace_until = now() + interval '1 hour' RETURNING status;
UPDATE rk_apikeys.keys SET grace_until = now() + interval '2 hours'; -- fails: longer
UPDATE rk_apikeys.keys SET grace_until = NULL; -- fails: endless
UPDATE rk_apikeys.keys SET grace_until = now() RETURNING status;

-- Revoked is final.
UPDATE rk_apikeys.keys SET revoked_at = now(), revoked_reason = 'over' RETURNING status;
UPDATE rk_apikeys.keys SET revoked_at = NULL, revoked_reason = NULL; -- fails: final
UPDATE rk_apikeys.keys SET revoked_at = now(); -- fails: final
UPDATE rk_apikeys.keys SET revoked_reason = 'another'; -- fails: final
UPDATE rk_apikeys.keys SET enabled = false, name = 'renamed' RETURNING status, name;
UPDATE rk_apikeys.keys SET enabled = true RETURNING status;
SET ROLE rk_test_verifier;
SELECT code FROM rk_apikeys.verify_key(:'secret');
RESET ROLE;

-- The state machine holds where grants do not.
CREATE ROLE rk_test_writer IN ROLE pg_read_all_data, pg_write_all_data, rk_apikeys_admin;
GRANT EXECUTE ON FUNCTION rk_apikeys.current_tenant() TO rk_test_writer;
SET ROLE rk_test_writer;
UPDATE rk_apikeys.api_keys SET revoked_at = NULL, revoked_reason = NULL; -- fails: final
UPDATE rk_apikeys.api_keys SET digest = sha256('x'); -- fails: fixed
UPDATE rk_apikeys.api_keys SET tenant = 'x'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET key_id = '000000000000'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET created_at = now(); -- fails: fixed
UPDATE rk_apikeys.api_keys SET environment = 'dev'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET replaces = '000000000000'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET prefix = 'x'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET created_by = 'x'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET hint = 'xxxx'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET digest_kind = 'sha256'; -- fails: fixed
UPDATE rk_apikeys.api_keys SET pepper_id = 1; -- fails: fixed
UPDATE rk_apikeys.api_keys SET updated_at = now(); -- fails: not to be set
RESET ROLE;
DROP OWNED BY rk_test_writer;
DROP ROLE rk_test_writer;

-- The owner may mend things.
UPDATE rk_apikeys.api_keys SET created_at = created_at - interval '1 year' RETURNING created_at < now() - interval '300 days' AS moved;

-- The trigger functions serve the extension's own triggers only.
CREATE TABLE elsewhere (LIKE rk_apikeys.api_keys);
CREATE TRIGGER api_keys_make BEFORE INSERT ON elsewhere FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make();
INSERT INTO elsewhere (name) VALUES ('x'); -- fails: not its table
SELECT rk_apikeys._keys_make(); -- fails: not a trigger
BEGIN;
CREATE TRIGGER again BEFORE INSERT ON rk_apikeys.api_keys FOR EACH ROW EXECUTE FUNCTION rk_apikeys._keys_make();
INSERT INTO rk_apikeys.api_keys (name) VALUES ('made twice'); -- fails: another trigger on the same table
ROLLBACK;
DROP TABLE elsewhere;

-- A column that a DBA adds counts as a setting. The ROLLBACK removes the columns again.
BEGIN;
CREATE TYPE place AS (street text, number integer);
ALTER TABLE rk_apikeys.api_keys ADD COLUMN note text DEFAULT 'none', ADD COLUMN place place, ADD COLUMN gone text;
GRANT SELECT (note), UPDATE (note) ON rk_apikeys.api_keys TO rk_test_manager;
-- A text that is stored out of line.
CREATE FUNCTION long(seed text) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(md5(seed || n), '') FROM generate_series(1, 200) n $$;
-- Returns whether an assignment moves updated_at and updated_by.
CREATE FUNCTION moves(assignment text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  UPDATE rk_apikeys.api_keys SET updated_at = now() - interval '1 day', updated_by = 'before';
  EXECUTE 'UPDATE rk_apikeys.api_keys SET ' || assignment;
  RETURN (SELECT CASE WHEN updated_at = now() AND updated_by = session_user THEN 'both'
      WHEN updated_at = now() - interval '1 day' AND updated_by = 'before' THEN 'none' END FROM rk_apikeys.api_keys);
END $$;
SELECT assignment, moves(assignment) FROM (VALUES
    ($$note = 'none'$$), ($$note = 'first'$$), ($$note = 'first'$$), ($$note = NULL$$), ($$note = NULL$$),
    ($$note = long('a')$$), ($$note = long('a')$$), ($$note = note$$), ($$note = long('b')$$), ($$note = 'first'$$),
    ($$place = ROW('High Street', 1)$$), ($$place = ROW('High Street', 1)$$), ($$place = ROW('High Street', 2)$$),
    ($$place = ROW(long('a'), 1)$$), ($$place = ROW(long('a'), 1)$$), ($$place = ROW(long('b'), 1)$$),
    ($$place = ROW(NULL, NULL)$$), ($$place = NULL$$), ($$place = NULL$$), ($$gone = 'x'$$)) a(assignment);
-- The row keeps the value of a dropped column until an UPDATE, which does not count as a change.
UPDATE rk_apikeys.api_keys SET updated_at = now() - interval '1 day', updated_by = 'before';
ALTER TABLE rk_apikeys.api_keys DROP COLUMN gone;
SET ROLE rk_test_manager;
UPDATE rk_apikeys.api_keys SET note = 'first';
SELECT updated_at = now() AS moved, updated_by = session_user AS by_me FROM rk_apikeys.keys;
UPDATE rk_apikeys.api_keys SET note = 'by a manager';
SELECT updated_at = now() AS moved, updated_by = session_user AS by_me FROM rk_apikeys.keys;
ROLLBACK;

-- Deleting a key deletes its usage.
SET ROLE rk_test_manager;
SELECT count(*) FROM rk_apikeys.keys;
DELETE FROM rk_apikeys.keys;
SELECT count(*) FROM rk_apikeys.key_usage;
RESET ROLE;
TRUNCATE rk_apikeys.key_events;
