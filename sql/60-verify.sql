-- VOLATILE and PARALLEL UNSAFE: they take a snapshot of their own.

CREATE FUNCTION rk_apikeys.verify(token text) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify';
COMMENT ON FUNCTION rk_apikeys.verify(text) IS
  'Whether the token is good now. Never raises for a bad token; NULL is false.';

CREATE FUNCTION rk_apikeys.verify_key(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL, cost integer DEFAULT 1) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_verify_key';
COMMENT ON FUNCTION rk_apikeys.verify_key(text, text, inet, integer) IS
  'The verdict on a token: the scope that the request needs, the address of the API''s client, and the uses that the request costs. Never raises for a bad token; a cost below 1 raises 22023.';

CREATE FUNCTION rk_apikeys.authenticate(token text, scope text DEFAULT NULL,
    client_addr inet DEFAULT NULL) RETURNS rk_apikeys.verdict
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_authenticate';
COMMENT ON FUNCTION rk_apikeys.authenticate(text, text, inet) IS
  'Verifies, and makes the key the principal until the transaction ends: call it as the first statement of a transaction. Errors: 28000 unless valid; the message ends with the code, and if that is rate_limited, the number in the hint is the milliseconds until it may succeed.';

CREATE FUNCTION rk_apikeys.revoke_token(token text, reason text DEFAULT NULL) RETURNS boolean
  LANGUAGE C VOLATILE PARALLEL UNSAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_revoke_token';
COMMENT ON FUNCTION rk_apikeys.revoke_token(text, text) IS
  'Ends the key of a token: whoever holds it may. True if the token is genuine (then its key is revoked, now or before), false if not.';

