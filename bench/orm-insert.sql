-- {keys} keys in one statement, through {view}.
INSERT INTO rk_apikeys.{view} (name, description, scopes)
  SELECT 'HubSpot Sync ' || n, 'Copies contacts every hour', '{contacts:read}' FROM generate_series(1, {keys}) n;
