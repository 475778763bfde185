-- The keys' settings. Rows change rarely, because a use never changes this table.
CREATE TABLE rk_apikeys.api_keys (
  -- The C code (src/base/store.h) relies on this order: add new columns at the end.
  key_id text COLLATE "C" NOT NULL,
  tenant text NOT NULL DEFAULT rk_apikeys.current_tenant(),
  name text NOT NULL,
  description text NOT NULL DEFAULT '',
  prefix text NOT NULL,
  environment text NOT NULL DEFAULT rk_apikeys._default_environment(),
  scopes text[] NOT NULL DEFAULT '{}',
  allowed_cidrs cidr[],
  rate_limit integer,
  rate_window interval,
  metadata jsonb NOT NULL DEFAULT '{}',
  enabled boolean NOT NULL DEFAULT true,
  expires_at timestamptz,
  replaces text,
  grace_until timestamptz,
  revoked_at timestamptz,
  revoked_reason text,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL,
  updated_at timestamptz NOT NULL,
  updated_by text NOT NULL,
  hint text,
  digest bytea NOT NULL,
  digest_kind text NOT NULL,
  pepper_id smallint,
  parent text COLLATE "C",
  start text,
  family text COLLATE "C",
  owner text,
  created_by_user text,
  updated_by_user text,
  limits_reset_at timestamptz,
  CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
  -- Constraints check only rules that always hold, because a restored row may
  -- have expired.
  CONSTRAINT api_keys_key_id_check CHECK (key_id ~ '^[0-9A-Za-z]{12}$'),
  CONSTRAINT api_keys_tenant_check CHECK (char_length(tenant) BETWEEN 1 AND 200),
  CONSTRAINT api_keys_name_check CHECK (char_length(btrim(name, E' \t\n\r\f\x0b')) BETWEEN 1 AND 200),
  CONSTRAINT api_keys_description_check CHECK (char_length(description) <= 2000),
  CONSTRAINT api_keys_prefix_check CHECK (prefix ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT api_keys_environment_check CHECK (environment ~ '^[a-z][a-z0-9]{0,15}$'),
  CONSTRAINT api_keys_scopes_check CHECK (
    cardinality(scopes) <= 64 AND array_position(scopes, NULL) IS NULL
    AND cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes)
    AND array_to_string(scopes, ' ') ~ '^([a-z0-9_*.-]+(:[a-z0-9_*.-]+)*( |$))*$'),
  CONSTRAINT api_keys_allowed_cidrs_check CHECK (cardinality(allowed_cidrs) BETWEEN 1 AND 64),
  CONSTRAINT api_keys_rate_check CHECK (
    (rate_limit IS NULL) = (rate_window IS NULL)
    AND rate_limit > 0 AND rate_window > '0'),
  CONSTRAINT api_keys_metadata_check CHECK (
    jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 8192),
  CONSTRAINT api_keys_revoked_check CHECK (
    (revoked_reason IS NULL OR revoked_at IS NOT NULL) AND char_length(revoked_reason) <= 500),
  CONSTRAINT api_keys_hint_check CHECK (char_length(hint) <= 4),
  CONSTRAINT api_keys_digest_check CHECK (
    octet_length(digest) = CASE digest_kind WHEN 'sha512' THEN 64 ELSE 32 END
    AND digest_kind IN ('native', 'sha256', 'sha512')),
  CONSTRAINT api_keys_pepper_id_check CHECK (pepper_id IS NULL OR (pepper_id > 0 AND digest_kind = 'native')),
  CONSTRAINT api_keys_start_check CHECK (char_length(start) <= 12),
  CONSTRAINT api_keys_owner_check CHECK (char_length(owner) BETWEEN 1 AND 200)
);
-- Without statistics the planner's estimates show a manager nothing of what other
-- tenants wrote. Without those of tenant the planner also assumes 200 tenants, so
-- that it plans no nested loop for a large tenant among many small ones.
ALTER TABLE rk_apikeys.api_keys ALTER key_id SET STATISTICS 0, ALTER tenant SET STATISTICS 0,
  ALTER name SET STATISTICS 0, ALTER description SET STATISTICS 0, ALTER prefix SET STATISTICS 0,
  ALTER scopes SET STATISTICS 0, ALTER allowed_cidrs SET STATISTICS 0, ALTER metadata SET STATISTICS 0,
  ALTER replaces SET STATISTICS 0, ALTER revoked_reason SET STATISTICS 0, ALTER created_by SET STATISTICS 0,
  ALTER updated_by SET STATISTICS 0, ALTER hint SET STATISTICS 0, ALTER digest SET STATISTICS 0,
  ALTER parent SET STATISTICS 0, ALTER start SET STATISTICS 0, ALTER family SET STATISTICS 0,
  ALTER owner SET STATISTICS 0, ALTER created_by_user SET STATISTICS 0,
  ALTER updated_by_user SET STATISTICS 0;
-- For pages of a tenant's keys, ordered by created_at.
CREATE INDEX api_keys_tenant_created ON rk_apikeys.api_keys (tenant, created_at, key_id);
-- For pages of a tenant's keys, ordered by key id.
CREATE INDEX api_keys_tenant_key ON rk_apikeys.api_keys (tenant, key_id);
-- For pages of a tenant's keys, ordered by name.
CREATE INDEX api_keys_tenant_name ON rk_apikeys.api_keys (tenant, name, key_id);
-- For pages of all tenants' keys, ordered by created_at.
CREATE INDEX api_keys_created ON rk_apikeys.api_keys (created_at, key_id);
CREATE INDEX api_keys_owner ON rk_apikeys.api_keys (tenant, owner, created_at, key_id) WHERE owner IS NOT NULL;
CREATE INDEX api_keys_family ON rk_apikeys.api_keys (family) WHERE family <> key_id;
CREATE INDEX api_keys_parent ON rk_apikeys.api_keys (parent) WHERE parent IS NOT NULL;
-- src/base/store.c finds this index by its name.
CREATE UNIQUE INDEX api_keys_imported_digest ON rk_apikeys.api_keys (digest)
  WHERE digest_kind <> 'native';

COMMENT ON TABLE rk_apikeys.api_keys IS 'The API keys: settings and digests. People use the view keys instead.';
COMMENT ON COLUMN rk_apikeys.api_keys.key_id IS 'The public part of the token: 12 base62 digits, safe to log.';
COMMENT ON COLUMN rk_apikeys.api_keys.tenant IS 'The tenant that the key belongs to.';
COMMENT ON COLUMN rk_apikeys.api_keys.name IS 'A name for people: 1 to 200 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.description IS 'The purpose of the key: up to 2000 characters.';
COMMENT ON COLUMN rk_apikeys.api_keys.prefix IS 'The first part of the token: the setting token_prefix when the key was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.environment IS 'The second part of the token, such as dev, stage or prod.';
COMMENT ON COLUMN rk_apikeys.api_keys.scopes IS 'The permissions of the key: names such as records:read, records:* or *.';
COMMENT ON COLUMN rk_apikeys.api_keys.allowed_cidrs IS 'The networks from which the key may be used. NULL: any network.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_limit IS 'The uses that are allowed per rate_window. NULL: no limit.';
COMMENT ON COLUMN rk_apikeys.api_keys.rate_window IS 'The time to which rate_limit applies.';
COMMENT ON COLUMN rk_apikeys.api_keys.metadata IS 'Any data of the product: a JSON object of up to 8 kB.';
COMMENT ON COLUMN rk_apikeys.api_keys.enabled IS 'The toggle: verify refuses a key that is not enabled.';
COMMENT ON COLUMN rk_apikeys.api_keys.expires_at IS 'The key is good before this time. NULL: for ever.';
COMMENT ON COLUMN rk_apikeys.api_keys.replaces IS 'The id of the key that this key was rotated from.';
COMMENT ON COLUMN rk_apikeys.api_keys.grace_until IS 'Set by a rotation: the key is good only before this time, and only before expires_at.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_at IS 'The time when the key was revoked, for good.';
COMMENT ON COLUMN rk_apikeys.api_keys.revoked_reason IS 'The reason why the key was revoked.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_at IS 'The time when the key was made.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_by IS 'The session user who made the key.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_at IS 'The time when a setting was last changed. A use does not move it.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_by IS 'The session user who last changed a setting.';
COMMENT ON COLUMN rk_apikeys.api_keys.hint IS 'The last 4 digits of the secret, shown in the masked key.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest IS 'The digest of the token. Granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.digest_kind IS 'native, or for an imported key sha256 or sha512. Granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.pepper_id IS 'The pepper with which the digest was made. Granted to no role.';
COMMENT ON COLUMN rk_apikeys.api_keys.parent IS 'The id of the key that made this key, as principal. NULL: a role without a principal made this key.';
COMMENT ON COLUMN rk_apikeys.api_keys.start IS 'The first characters of an imported token, shown in the masked key. NULL: the token is one of ours.';
COMMENT ON COLUMN rk_apikeys.api_keys.family IS 'The id of the first key of a chain of rotations, of a new key its own id. NULL: the key''s own id.';
COMMENT ON COLUMN rk_apikeys.api_keys.owner IS 'The person or service account of the tenant that owns the key: 1 to 200 characters. NULL: the tenant.';
COMMENT ON COLUMN rk_apikeys.api_keys.created_by_user IS 'The end user for whom the key was made: rk_apikeys.end_user then. NULL: none.';
COMMENT ON COLUMN rk_apikeys.api_keys.updated_by_user IS 'The end user for whom a setting was last changed. NULL: none.';
COMMENT ON COLUMN rk_apikeys.api_keys.limits_reset_at IS 'The time of the last reset_limit of the key''s family. NULL: there was none.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_created IS 'For pages of a tenant''s keys, ordered by created_at.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_key IS 'For pages of a tenant''s keys, ordered by key id.';
COMMENT ON INDEX rk_apikeys.api_keys_tenant_name IS 'For pages of a tenant''s keys, ordered by name.';
COMMENT ON INDEX rk_apikeys.api_keys_created IS 'For pages of all tenants'' keys, ordered by created_at.';
COMMENT ON INDEX rk_apikeys.api_keys_owner IS 'For pages of an owner''s keys, ordered by created_at.';
COMMENT ON INDEX rk_apikeys.api_keys_family IS 'The successors of a family''s first key are found by this index.';
COMMENT ON INDEX rk_apikeys.api_keys_parent IS 'revoke_key finds the keys that a key has made by this index.';
COMMENT ON INDEX rk_apikeys.api_keys_imported_digest IS 'verify finds an imported key by this index.';

SELECT pg_catalog.pg_extension_config_dump('rk_apikeys.api_keys', '');
ALTER TABLE rk_apikeys.api_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON rk_apikeys.api_keys TO rk_apikeys_admin
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY all_tenants_read ON rk_apikeys.api_keys FOR SELECT TO rk_apikeys_auditor
  USING ((SELECT rk_apikeys._no_principal()) OR tenant = (SELECT rk_apikeys.current_tenant()));
CREATE POLICY own_tenant ON rk_apikeys.api_keys TO rk_apikeys_manager
  USING (tenant = (SELECT rk_apikeys.current_tenant()));
COMMENT ON POLICY all_tenants ON rk_apikeys.api_keys IS 'An admin manages every tenant''s keys.';
COMMENT ON POLICY all_tenants_read ON rk_apikeys.api_keys IS 'An auditor reads every tenant''s keys.';
COMMENT ON POLICY own_tenant ON rk_apikeys.api_keys IS 'A manager manages the keys of its own tenant.';
CREATE POLICY own_keys ON rk_apikeys.api_keys TO rk_apikeys_member
  USING (tenant = (SELECT rk_apikeys.current_tenant()) AND owner = (SELECT rk_apikeys.current_end_user()));
COMMENT ON POLICY own_keys ON rk_apikeys.api_keys IS 'A member manages the keys of its own tenant that its end user owns.';
CREATE POLICY principal ON rk_apikeys.api_keys AS RESTRICTIVE
  TO rk_apikeys_admin, rk_apikeys_auditor, rk_apikeys_manager, rk_apikeys_member
  USING ((SELECT rk_apikeys._may_manage()) AND ((SELECT rk_apikeys._no_principal())
    OR environment = (SELECT rk_apikeys._principal_environment())));
COMMENT ON POLICY principal ON rk_apikeys.api_keys IS 'A principal sees and changes keys only of its environment, and only if it has the scope apikeys:manage.';

