// test/orm/npm/drizzle.mjs: Drizzle.
import { asc, eq, ilike, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { bigint, boolean, cidr, integer, interval, jsonb, pgSchema, pgTable, text, timestamp } from 'drizzle-orm/pg-core'
import pg from 'pg'

export const title = 'Drizzle'
export const tool = 'drizzle-orm'

// doc: model
const time = () => timestamp({ withTimezone: true })
const number = () => bigint({ mode: 'bigint' })
const api = pgSchema('rk_apikeys')
const keys = api.table('orm_keys', {
  key_id: text().primaryKey(), tenant: text(), name: text(), description: text(), environment: text(), masked_key: text(),
  status: text(), enabled: boolean(), scopes: text().array(), allowed_cidrs: cidr().array(), rate_limit: integer(),
  rate_window: interval(), metadata: jsonb(), expires_at: time(), expires_in: interval(), last_used_at: time(), use_count: number(),
  replaces: text(), grace_until: time(), revoked_at: time(), revoked_reason: text(), created_at: time(), created_by: text(),
  updated_at: time(), updated_by: text(), secret: text(), family: text(), owner: text()
})
// The columns of a verdict; the functions stand where a table would.
const verdict = {
  valid: sql`valid`.mapWith(Boolean), code: sql`code`, key_id: sql`key_id`, family: sql`family`, tenant: sql`tenant`, owner: sql`owner`,
  name: sql`name`, environment: sql`environment`, scopes: sql`scopes`, metadata: sql`metadata`,
  expires_at: sql`expires_at`.mapWith(keys.expires_at), retry_after_ms: sql`retry_after_ms`.mapWith(Number), limit_name: sql`limit_name`,
  limit_units: sql`limit_units`.mapWith(keys.use_count), limit_remaining: sql`limit_remaining`.mapWith(keys.use_count),
  limit_resets_at: sql`limit_resets_at`.mapWith(keys.expires_at)
}
const records = pgTable('records', { id: integer(), tenant: text(), body: text() })

// doc: end

export async function open({ log, ...where }) {
  const options = log ? { logger: { logQuery: (query, values) => log({ query, values }) } } : {}
  // doc: code
  const pool = new pg.Pool(where)
  const db = drizzle({ client: pool, ...options })

  const create = async values => (await db.insert(keys).values(values).returning())[0]
  const createMany = list => db.insert(keys).values(list).returning()
  const read = async key_id => (await db.select().from(keys).where(eq(keys.key_id, key_id)))[0]
  const find = ({ search, sort, limit, offset }) => db.select().from(keys).where(ilike(keys.name, `%${search}%`)).orderBy(asc(keys[sort]))
    .limit(limit).offset(offset)
  const write = (key_id, values) => db.update(keys).set(values).where(eq(keys.key_id, key_id))
  const remove = key_id => db.delete(keys).where(eq(keys.key_id, key_id))

  const verify = async (token, scope, cost) => (await db.select(verdict)
    .from(sql`rk_apikeys.verify_key(${token}, ${scope}, cost => ${cost})`))[0]
  const enter = token => db.transaction(async tx => {
    const [found] = await tx.select(verdict).from(sql`rk_apikeys.authenticate(${token}, raise => false)`)
    return { verdict: found, rows: found.valid ? await tx.select().from(records).orderBy(records.id) : [] }
  })
  // doc: end

  const demand = token => db.transaction(async tx => {
    await tx.select(verdict).from(sql`rk_apikeys.authenticate(${token})`)
    return tx.select().from(records)
  })
  // Drizzle's raw SQL is a template: text, value, text.
  const rows = async (text, values) => (await db.execute(sql.join(text.split(/(\$\d+)/).map(part =>
    /^\$\d/.test(part) ? sql`${sql.param(values[part.slice(1) - 1])}` : sql.raw(part))))).rows
  const save = async (key_id, changes) => write(key_id, { ...await read(key_id), ...changes })
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => pool.end() }
}
