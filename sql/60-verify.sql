-- VOLATILE and PARALLEL UNSAFE, because these functions take a snapshot of their
-- own.

CREATE FUNCTION rk_apikeys.verify(token text) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_0_3';
COMMENT ON FUNCTION rk_apikeys.verify(text) IS
  'Whether the token is good now. Never raises an error for a bad token. NULL returns false.';

CREATE FUNCTION rk_apikeys.verify_key(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1, environment text DEFAULT NULL,
    limits text[] DEFAULT NULL, charge text DEFAULT 'now')
  RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_key_0_3';
COMMENT ON FUNCTION rk_apikeys.verify_key(text, text, inet, integer, text, text[], text) IS
  'Returns the verdict on a token. scope: the scopes that the request needs, with one space between them (RFC 6749 section 3.3); of a|b one is enough. client_addr: the address of the API''s client. cost: the units that the request takes from each limit of the key. environment: the only one whose keys are accepted. limits: names of limits to take from that are not always taken. charge: now or commit, which reserves the units until the transaction ends. Never raises an error for a bad token. Errors: 22023 for a scope that is no list, a cost below 1 or above the units of a limit, a limit that does not exist, or another charge.';

CREATE FUNCTION rk_apikeys.authenticate(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1, environment text DEFAULT NULL,
    limits text[] DEFAULT NULL, charge text DEFAULT 'now', raise boolean DEFAULT true) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_authenticate_0_3';
COMMENT ON FUNCTION rk_apikeys.authenticate(text, text, inet, integer, text, text[], text, boolean) IS
  'Verifies a token and makes its key the principal until the transaction ends. Call it as the first statement of a transaction. Arguments as for verify_key. raise: if false, a refused token raises no error, takes away a principal that was set, and returns the verdict. Errors: 28000 unless valid, with the code and, if known, key_id and retry_after_ms in the DETAIL; 22023 as verify_key.';

CREATE FUNCTION rk_apikeys.revoke_token(token text, reason text DEFAULT NULL) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_token';
COMMENT ON FUNCTION rk_apikeys.revoke_token(text, text) IS
  'Revokes the key of a token: whoever holds the token may do so. True if the token is genuine: its key is then revoked, by this call or before. False otherwise.';

