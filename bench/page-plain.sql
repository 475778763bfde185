-- P6's other side: the same page by hand, on the bare tables. The page is found first and joined to what it shows: written as
-- one SELECT without the sub-select, the planner would join usage to all of the tenant's keys before it sorts them.
SELECT k.key_id, k.tenant, k.name, k.description, k.environment,
    k.prefix || '_' || k.environment || '_' || k.key_id || '_********' || k.hint AS masked_key, {status} AS status, k.enabled,
    k.scopes, k.allowed_cidrs, k.rate_limit, k.rate_window, k.metadata, k.expires_at, k.expires_at - now() AS expires_in,
    u.last_used_at, coalesce(u.use_count, 0) AS use_count, k.replaces, k.grace_until, k.revoked_at, k.revoked_reason,
    k.created_at, k.created_by, k.updated_at, k.updated_by, p.sort_value::text AS "cursor"
  FROM (SELECT k.key_id, {expression} AS sort_value
      FROM rk_apikeys.api_keys k {join}
      WHERE k.tenant = 'acme' {after}
      ORDER BY {expression}, k.key_id LIMIT 25) p
    JOIN rk_apikeys.api_keys k ON k.key_id = p.key_id
    LEFT JOIN rk_apikeys.key_usage u ON u.key_id = p.key_id
  ORDER BY p.sort_value, p.key_id;
