-- {keys} keys with an end, in one statement.
INSERT INTO rk_apikeys.keys (name, description, scopes, expires_at)
  SELECT 'HubSpot Sync ' || n, 'Copies contacts every hour', '{contacts:read}', now() + interval '1 year' FROM generate_series(1, {keys}) n;
