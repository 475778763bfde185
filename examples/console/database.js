// examples/console/database.js: what the console says to the database. Each action is one statement of rk_apikeys, in a transaction
// whose tenant and end user are the session's; who may see or do what is decided there and not here.
'use strict';

const { Pool, types } = require('pg');

types.setTypeParser(types.builtins.INTERVAL, (text) => text);
types.setTypeParser(types.builtins.DATE, (text) => text);
types.setTypeParser(types.builtins.INT8, Number);
types.setTypeParser(651, types.getTypeParser(1009)); // cidr[], as text[]

// From PGHOST, PGUSER…; dates that people type are days in UTC.
const pool = new Pool({ max: 5, application_name: 'console', options: '-c TimeZone=UTC -c IntervalStyle=postgres_verbose' });
pool.on('error', (error) => console.error(`idle connection: ${error.code}`));

// `who` is a session: its tenant, its user, and whether it is a member, whose transaction has only a member's rights. COMMIT and ROLLBACK
// take the settings and the role back.
async function transaction(begin, who, action) {
  const client = await pool.connect();
  let broken;
  try {
    await client.query(`${begin}; SET LOCAL rk_apikeys.tenant = ${client.escapeLiteral(who.tenant)};
      SET LOCAL rk_apikeys.end_user = ${client.escapeLiteral(who.user)}${who.member ? '; SET LOCAL ROLE console_member' : ''}`);
    const answer = await action(client);
    await client.query('COMMIT');
    return answer;
  } catch (error) {
    await client.query('ROLLBACK').catch((lost) => { broken = lost; });
    throw error;
  } finally {
    client.release(broken);
  }
}

const reading = (who, action) => transaction('BEGIN READ ONLY', who, action);

// The rows of one statement that changes something.
const change = (who, text, values) =>
  transaction('BEGIN', who, async (client) => (await client.query(text, values)).rows);

const LISTED = 'key_id, name, environment, masked_key, status, enabled, expires_at, grace_until, revoked_at, last_used_at, created_at, updated_at, owner';
const EXPIRING = "status = 'active' AND expires_at <= now() + interval '30 days'";

// The last day on which a request used a key after its end.
const LATE = `CASE WHEN status IN ('revoked', 'rotated', 'expired') THEN (SELECT max(changes ->> 'day') FROM rk_apikeys.key_events e
  WHERE e.key_id = k.key_id AND event = 'used_after_end') END AS late`;

// What each policy demands of a new key. Only a manager can count the tenant's keys.
const policies = async (client, who) => (await client.query(
  `SELECT environment, (now() + max_lifetime)::date AS latest_end, allowed_scopes, require_cidrs, require_owner, max_keys,
     CASE WHEN $1 AND max_keys IS NOT NULL
       THEN greatest(max_keys - rk_apikeys.count_keys(environment => environment, statuses => '{active,disabled}'), 0) END AS keys_left
   FROM (SELECT environment, max_lifetime, allowed_scopes, require_cidrs, require_owner, max_keys FROM rk_apikeys.policies
     UNION ALL SELECT NULL, nullif(current_setting('rk_apikeys.max_lifetime')::interval, '0'), NULL, false, false, NULL) p`,
  [!who.member])).rows;

// The owners of the tenant's keys, for a manager to choose from.
const owners = async (client, who) => (who.member ? [] : (await client.query(
  'SELECT DISTINCT owner FROM rk_apikeys.keys WHERE owner IS NOT NULL ORDER BY owner LIMIT 200')).rows.map(({ owner }) => owner));

// The limits that bind a key, each with what remains, the own one first: of those per key, the bucket of its family alone.
const limits = async (client, id) => (await client.query(
  `SELECT l.name, l.limit_id IS NULL OR l.per_key OR l.family IS NOT NULL AS own, l.owner, l.environment, l.units, l.rate_window, l.period, l.always,
     l.used, l.remaining, l.resets_at
   FROM rk_apikeys.keys k JOIN rk_apikeys.limit_status l
     ON l.tenant = k.tenant AND (l.family = k.family OR l.family IS NULL AND NOT l.per_key)
       AND coalesce(l.owner = k.owner, l.owner IS NULL) AND coalesce(l.environment = k.environment, l.environment IS NULL)
   WHERE k.key_id = $1 ORDER BY l.limit_id IS NOT NULL, NOT l.always, l.name, l.limit_id`, [id])).rows;

module.exports = {
  close: () => pool.end(),

  // A page of keys, how many match on all pages, and what the forms offer. The keys that expire soon are the first ones by expires_at.
  list: (who, { search, status, owner, sort, descending, size, after, before }) => reading(who, async (client) => {
    const expiring = status === 'expiring';
    const filter = [search, expiring ? 'active' : status, owner];
    const page = (columns) => `SELECT ${columns} FROM rk_apikeys.list_keys(search => $1, status => $2, owner => $3, sort_by => $4,
      descending => $5, page_size => $6, after => $7, before => $8) k ${expiring ? `WHERE ${EXPIRING}` : ''}`;
    const { rows } = await client.query(page(`${LISTED}, ${EXPIRING} AS expiring, ${LATE}, cursor`), [...filter, sort, descending, size, after, before]);
    const { rows: [{ count }] } = expiring ? await client.query(page('count(*)'), [...filter, sort, descending, 1000, null, null])
      : await client.query('SELECT rk_apikeys.count_keys(search => $1, status => $2, owner => $3) AS count', filter);
    const { rows: [{ environment }] } = await client.query("SELECT current_setting('rk_apikeys.default_environment') AS environment");
    return { rows, count, owners: await owners(client, who), policies: await policies(client, who), environment };
  }),

  // What an address may hold of a search: a token of ours is masked, which finds its key too. A word of 16 characters or more may be an
  // imported token: it becomes the id of the one key that it finds, or undefined if it finds none.
  search: (who, text) => reading(who, async (client) => {
    const { rows: [{ masked, ids }] } = await client.query(
      'SELECT rk_apikeys.redact($1) AS masked, ARRAY(SELECT key_id FROM rk_apikeys.list_keys($1, page_size => 2)) AS ids', [text]);
    if (masked !== text || !/^\s*\S{16,}\s*$/.test(text)) return masked;
    return ids.length > 1 ? text : ids[0];
  }),

  // A key with its use per day and its history; undefined if there is none. A deleted key has its history left.
  key: (who, id) => reading(who, async (client) => {
    const key = await client.query(
      `SELECT ${LISTED}, ${EXPIRING} AS expiring, ${LATE}, description, scopes, allowed_cidrs, rate_limit, rate_window, expires_in, use_count, last_used_addr, replaces, parent,
         revoked_reason, created_by, created_by_user, updated_by, updated_by_user FROM rk_apikeys.keys k WHERE key_id = $1`, [id]);
    const days = await client.query(
      `SELECT day, coalesce(uses, 0) AS uses, coalesce(denials, 0) AS denials
         FROM generate_series(current_date - 29, current_date, '1 day') d(at)
           CROSS JOIN LATERAL (SELECT at::date) today(day)
           LEFT JOIN (SELECT day, uses, denials FROM rk_apikeys.key_activity WHERE key_id = $1) a USING (day)
         ORDER BY day`, [id]);
    const events = await client.query(
      `SELECT occurred_at, event, actor, end_user, principal, changes FROM rk_apikeys.key_events WHERE key_id = $1
         ORDER BY event_id DESC LIMIT 100`, [id]);
    return events.rows.length || key.rows.length ? { key: key.rows[0], days: days.rows, events: events.rows, limits: await limits(client, id), owners: await owners(client, who) }
      : undefined;
  }),

  limits: (who, id) => reading(who, async (client) => {
    const { rows: [key] } = await client.query('SELECT FROM rk_apikeys.keys WHERE key_id = $1', [id]);
    return key && limits(client, id);
  }),

  create: (who, k) => change(who,
    `INSERT INTO rk_apikeys.keys (name, description, expires_at, environment, scopes, allowed_cidrs, rate_limit, rate_window, owner)
       VALUES ($1, $2, $3, $4, $5, $6::text[]::cidr[], $7, $8, $9) RETURNING key_id, secret`,
    [k.name, k.description, k.expires, k.environment, k.scopes, k.addresses, k.limit, k.window, k.owner]),

  rotate: (who, id, grace) => change(who, 'SELECT key_id, secret FROM rk_apikeys.rotate_key($1, $2)', [id, grace]),

  enable: (who, id, enabled) => change(who,
    `UPDATE rk_apikeys.keys SET enabled = $2 WHERE key_id = $1 RETURNING ${LISTED}`, [id, enabled]),

  transfer: (who, id, owner) => change(who, 'UPDATE rk_apikeys.keys SET owner = $2 WHERE key_id = $1 RETURNING name', [id, owner]),

  revoke: (who, id) => change(who,
    'UPDATE rk_apikeys.keys SET revoked_at = now() WHERE key_id = $1 AND revoked_at IS NULL RETURNING name', [id]),

  remove: (who, id) => change(who, 'DELETE FROM rk_apikeys.keys WHERE key_id = $1 RETURNING name', [id]),
};
