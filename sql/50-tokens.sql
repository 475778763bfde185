-- Tokens as text. None of these functions reads a table.

CREATE FUNCTION rk_apikeys.generate_token(environment text DEFAULT NULL, prefix text DEFAULT NULL)
  RETURNS text
  LANGUAGE C VOLATILE PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_generate_token';
COMMENT ON FUNCTION rk_apikeys.generate_token(text, text) IS
  'Returns a new token that belongs to no key. A NULL takes the setting default_environment or token_prefix. Errors: 22023 for a bad environment or prefix.';

CREATE FUNCTION rk_apikeys.is_well_formed(token text) RETURNS boolean
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_is_well_formed';
COMMENT ON FUNCTION rk_apikeys.is_well_formed(text) IS
  'Whether a string has a token''s shape and correct check digits (CRC-32, IEEE 802.3). It does not check whether the key exists.';

CREATE FUNCTION rk_apikeys.mask(token text) RETURNS text
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_mask';
COMMENT ON FUNCTION rk_apikeys.mask(text) IS
  'Returns the token with its secret hidden, except the last 4 digits. Returns ******** for a string that is no token.';

CREATE FUNCTION rk_apikeys.hash_token(token text) RETURNS bytea
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_hash_token';
COMMENT ON FUNCTION rk_apikeys.hash_token(text) IS
  'Returns the SHA-256 (FIPS 180-4) of a token: 32 bytes, as import_key takes it.';

CREATE FUNCTION rk_apikeys.digest_equal(a bytea, b bytea) RETURNS boolean
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_digest_equal';
COMMENT ON FUNCTION rk_apikeys.digest_equal(bytea, bytea) IS
  'Whether two digests are equal. The time of the comparison reveals only their lengths.';

CREATE FUNCTION rk_apikeys.find_tokens(document text, OUT token_mask text, OUT key_id text, OUT start integer)
  RETURNS SETOF record
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_find_tokens';
COMMENT ON FUNCTION rk_apikeys.find_tokens(text) IS
  'Returns the tokens in a text whose check digits are correct: the masked form, the key id, and the start in characters from 1.';

CREATE FUNCTION rk_apikeys.redact(document text) RETURNS text
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_redact';
COMMENT ON FUNCTION rk_apikeys.redact(text) IS
  'Returns the text with every string masked that looks like a token. It also masks tokens that were cut or mistyped.';

