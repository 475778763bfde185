-- The view for tools that map objects to rows.

CREATE VIEW rk_apikeys.orm_keys WITH (security_invoker = true) AS
  SELECT * FROM rk_apikeys.keys;
COMMENT ON VIEW rk_apikeys.orm_keys IS
  'The view keys for tools that map objects to rows. INSERT and UPDATE take every column. NULL stands for the default, or for a value that the database computes. A value that cannot be given or changed is an error that names the column.';

CREATE FUNCTION rk_apikeys._orm_keys() RETURNS trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'rk_apikeys_orm_keys';
COMMENT ON FUNCTION rk_apikeys._orm_keys() IS
  'Private: writes a row of orm_keys to the view keys, as the caller.';
CREATE TRIGGER orm_keys_write INSTEAD OF INSERT OR UPDATE OR DELETE ON rk_apikeys.orm_keys
  FOR EACH ROW EXECUTE FUNCTION rk_apikeys._orm_keys();
COMMENT ON TRIGGER orm_keys_write ON rk_apikeys.orm_keys IS 'Writes to the view keys, as the caller.';

