CREATE TYPE rk_apikeys.verdict AS (
  valid boolean,
  code text,
  key_id text,
  family text,
  tenant text,
  owner text,
  name text,
  environment text,
  scopes text[],
  metadata jsonb,
  expires_at timestamptz,
  retry_after_ms integer,
  limit_name text,
  limit_units bigint,
  limit_remaining bigint,
  limit_resets_at timestamptz
);
COMMENT ON TYPE rk_apikeys.verdict IS
  'The outcome of a verify. code is one of: valid, malformed, unknown, revoked, disabled, expired, rotated, environment_mismatch, address_denied, scope_missing, rate_limited, quota_exceeded, limiter_unavailable. If the token is not genuine, only valid and code are set. retry_after_ms: when a call that a limit refused may succeed; NULL if it never will. limit_name, limit_units, limit_remaining, limit_resets_at: the limit that refused or, of a valid key, the limit with the fewest units left; NULL without a limit.';

CREATE TYPE rk_apikeys.new_key AS (key_id text, secret text);
COMMENT ON TYPE rk_apikeys.new_key IS
  'The result of create_key and rotate_key. secret is the whole token, shown only this once.';

CREATE TYPE rk_apikeys.listed_key AS (
  key_id text,
  tenant text,
  name text,
  description text,
  environment text,
  masked_key text,
  status text,
  enabled boolean,
  scopes text[],
  allowed_cidrs cidr[],
  rate_limit integer,
  rate_window interval,
  metadata jsonb,
  expires_at timestamptz,
  expires_in interval,
  last_used_at timestamptz,
  use_count bigint,
  replaces text,
  grace_until timestamptz,
  revoked_at timestamptz,
  revoked_reason text,
  created_at timestamptz,
  created_by text,
  updated_at timestamptz,
  updated_by text,
  cursor text,
  parent text,
  last_used_addr inet,
  family text,
  owner text,
  created_by_user text,
  updated_by_user text
);
COMMENT ON TYPE rk_apikeys.listed_key IS
  'A row of list_keys: the columns of the view keys except secret, and cursor. To get the next page, give the cursor of a page''s last row as "after".';

