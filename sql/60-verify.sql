-- VOLATILE and PARALLEL UNSAFE, because these functions take a snapshot of their
-- own.

CREATE FUNCTION rk_apikeys.verify(token text) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify';
COMMENT ON FUNCTION rk_apikeys.verify(text) IS
  'Whether the token is good now. Never raises an error for a bad token. NULL returns false.';

CREATE FUNCTION rk_apikeys.verify_key(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_key';
COMMENT ON FUNCTION rk_apikeys.verify_key(text, text, inet, integer) IS
  'Returns the verdict on a token. scope: the scope that the request needs. client_addr: the address of the API''s client. cost: the uses that the request costs. Never raises an error for a bad token. Errors: 22023 for a cost below 1, or above the key''s rate_limit.';

CREATE FUNCTION rk_apikeys.authenticate(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_authenticate';
COMMENT ON FUNCTION rk_apikeys.authenticate(text, text, inet) IS
  'Verifies a token and makes its key the principal until the transaction ends. Call it as the first statement of a transaction. Errors: 28000 unless valid. The message ends with the code. With rate_limited, the number in the hint is the milliseconds until a call may succeed.';

CREATE FUNCTION rk_apikeys.revoke_token(token text, reason text DEFAULT NULL) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_token';
COMMENT ON FUNCTION rk_apikeys.revoke_token(text, text) IS
  'Revokes the key of a token: whoever holds the token may do so. True if the token is genuine: its key is then revoked, by this call or before. False otherwise.';

