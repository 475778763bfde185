-- {keys} keys in one statement.
INSERT INTO rk_apikeys.keys (name, description, scopes)
  SELECT 'HubSpot Sync ' || n, 'Copies contacts every hour', '{contacts:read}' FROM generate_series(1, {keys}) n;
