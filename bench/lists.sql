-- An event and a day of use for each key, for purges that find nothing; psql reads it, as the superuser.
INSERT INTO rk_apikeys.key_events (occurred_at, tenant, key_id, event, actor, role)
  SELECT created_at, tenant, key_id, 'created', 'acme', 'acme' FROM rk_apikeys.api_keys ORDER BY created_at;
INSERT INTO rk_apikeys.key_usage_daily (key_id, day, environment, tenant, uses)
  SELECT key_id, current_date - 1, environment, tenant, 1 FROM rk_apikeys.api_keys;
VACUUM ANALYZE rk_apikeys.key_events, rk_apikeys.key_usage_daily;
