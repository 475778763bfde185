// test/orm/npm/kysely.mjs: Kysely.
import { Kysely, PostgresDialect, sql, CompiledQuery } from 'kysely'
import pg from 'pg'

export const title = 'Kysely'
export const tool = 'kysely'

export async function open({ log, ...where }) {
  // doc: code
  const db = new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool(where) }), log })
  const keys = 'rk_apikeys.orm_keys'

  const create = values => db.insertInto(keys).values(values).returning(['key_id', 'name', 'secret']).executeTakeFirst()
  const createMany = list => db.insertInto(keys).values(list).returning(['key_id', 'name', 'secret']).execute()
  const read = key_id => db.selectFrom(keys).selectAll().where('key_id', '=', key_id).executeTakeFirst()
  const find = ({ search, sort, limit, offset }) => db.selectFrom(keys).selectAll().where('name', 'ilike', `%${search}%`)
    .orderBy(sort).limit(limit).offset(offset).execute()
  const write = (key_id, values) => db.updateTable(keys).set(values).where('key_id', '=', key_id).execute()
  const remove = key_id => db.deleteFrom(keys).where('key_id', '=', key_id).execute()

  const verify = async (token, scope, cost) => (await sql`SELECT * FROM rk_apikeys.verify_key(${token}, ${scope}, cost => ${cost})`
    .execute(db)).rows[0]
  const enter = token => db.transaction().execute(async tx => {
    const { rows: [verdict] } = await sql`SELECT * FROM rk_apikeys.authenticate(${token}, raise => false)`.execute(tx)
    return { verdict, rows: verdict.valid ? await tx.selectFrom('records').selectAll().orderBy('id').execute() : [] }
  })
  // doc: end

  const demand = token => db.transaction().execute(async tx => {
    await sql`SELECT * FROM rk_apikeys.authenticate(${token})`.execute(tx)
    return tx.selectFrom('records').selectAll().execute()
  })
  const rows = async (text, values) => (await db.executeQuery(CompiledQuery.raw(text, values))).rows
  const save = async (key_id, changes) => write(key_id, { ...await read(key_id), ...changes })
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => db.destroy() }
}
