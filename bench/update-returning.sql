-- The same in one statement.
UPDATE bench.api_keys SET last_used_at = now()
  WHERE key_hash = sha256(convert_to(:token, 'UTF8')) AND revoked_at IS NULL RETURNING id;
