-- SELECT, compare, UPDATE: what a product's backend does for each request. The client compares key_hash.
SELECT id, key_hash FROM bench.api_keys WHERE prefix = :key_id AND revoked_at IS NULL;
UPDATE bench.api_keys SET last_used_at = now() WHERE id = :id;
