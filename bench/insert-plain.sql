-- P5's other side: the same rows by hand. Token and digest are made in SQL, with the same number of random bits; no check
-- digits, no constraint, no event, and the token is not kept for anybody.
INSERT INTO bench.plain (key_id, tenant, name, description, prefix, environment, scopes, metadata, enabled,
    created_at, created_by, updated_at, updated_by, hint, digest, digest_kind)
  SELECT key_id, current_user, 'HubSpot Sync ' || n, 'Copies contacts every hour', 'rk', 'prod', '{contacts:read}', '{}', true,
      now(), session_user, now(), session_user, right(secret, 4),
      sha256(convert_to('rk_prod_' || key_id || '_' || secret, 'UTF8')), 'native'
    FROM (SELECT n, encode(public.gen_random_bytes(6), 'hex') AS key_id,
          translate(encode(public.gen_random_bytes(32), 'base64'), '+/=', '-_') AS secret
        FROM generate_series(1, {keys}) n OFFSET 0) t;
