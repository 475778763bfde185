// test/orm/npm/knex.mjs: Knex.
import knex from 'knex'

export const title = 'Knex'
export const tool = 'knex'

export async function open({ log, max, ...where }) {
  // doc: code
  const db = knex({ client: 'pg', connection: where, pool: { min: 0, max } })
  const keys = () => db('rk_apikeys.orm_keys')

  const create = async values => (await keys().insert(values, ['key_id', 'name', 'secret']))[0]
  const createMany = list => keys().insert(list, ['key_id', 'name', 'secret'])
  const read = key_id => keys().where({ key_id }).first()
  const find = ({ search, sort, limit, offset }) => keys().whereILike('name', `%${search}%`).orderBy(sort).limit(limit).offset(offset)
  const write = (key_id, values) => keys().where({ key_id }).update(values)
  const remove = key_id => keys().where({ key_id }).delete()

  const verify = async (token, scope, cost) => (await db.raw('SELECT * FROM rk_apikeys.verify_key(?, ?, cost => ?)',
    [token, scope, cost])).rows[0]
  const enter = token => db.transaction(async tx => {
    const { rows: [verdict] } = await tx.raw('SELECT * FROM rk_apikeys.authenticate(?, raise => false)', [token])
    return { verdict, rows: verdict.valid ? await tx('records').orderBy('id') : [] }
  })
  // doc: end

  const demand = token => db.transaction(async tx => {
    await tx.raw('SELECT * FROM rk_apikeys.authenticate(?)', [token])
    return tx('records')
  })
  // Knex's own parameters are ? and :name.
  const rows = async (text, values) => (await db.raw(text.replace(/\$(\d+)/g, ':p$1'),
    Object.fromEntries(values.map((value, i) => [`p${i + 1}`, value])))).rows
  const save = async (key_id, changes) => write(key_id, { ...await read(key_id), ...changes })
  if (log) db.on('query', log)
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => db.destroy() }
}
