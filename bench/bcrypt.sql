-- A password's hash for a key, by pgcrypto; the use is not even on record.
SELECT prefix FROM bench.bcrypt_keys WHERE prefix = :key_id AND key_hash = public.crypt(:token, key_hash);
