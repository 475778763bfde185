// test/orm/npm/typeorm.mjs: TypeORM.
import 'reflect-metadata'
import { DataSource, EntitySchema, ILike } from 'typeorm'

export const title = 'TypeORM'
export const tool = 'typeorm'

export async function open({ log, max, user, ...where }) {
  const options = log ? { logging: true, logger: logger(log) } : {}
  // doc: code
  const text = { type: 'text', nullable: true }
  // INSERT returns the columns that have a default.
  const made = { ...text, default: () => 'NULL' }
  const time = { type: 'timestamptz', nullable: true }
  const Key = new EntitySchema({
    name: 'Key', schema: 'rk_apikeys', tableName: 'orm_keys', columns: {
      key_id: { ...made, primary: true }, tenant: text, name: text, description: text, environment: text,
      masked_key: text, status: text, enabled: { type: 'boolean', nullable: true }, scopes: { ...text, array: true },
      allowed_cidrs: { type: 'cidr', array: true, nullable: true }, rate_limit: { type: 'integer', nullable: true },
      rate_window: { type: 'interval', nullable: true }, metadata: { type: 'jsonb', nullable: true }, expires_at: time,
      expires_in: { type: 'interval', nullable: true }, last_used_at: time, use_count: { type: 'bigint', nullable: true }, replaces: text,
      grace_until: time, revoked_at: time, revoked_reason: text, created_at: { ...time, createDate: true }, created_by: text,
      updated_at: { ...time, updateDate: true }, updated_by: text,
      secret: made, family: text, owner: text
    }
  })
  const Record = new EntitySchema({
    name: 'Record', tableName: 'records', columns: { id: { type: 'integer', primary: true }, tenant: text, body: text }
  })
  const db = await new DataSource({
    type: 'postgres', ...where, username: user, poolSize: max, entities: [Key, Record], ...options
  }).initialize()
  const keys = db.getRepository(Key)

  const create = values => keys.save(values)
  const createMany = list => keys.save(list)
  const read = key_id => keys.findOneBy({ key_id })
  const find = ({ search, sort, limit, offset }) => keys.find({
    where: { name: ILike(`%${search}%`) }, order: { [sort]: 'ASC' }, take: limit, skip: offset
  })
  const save = async (key_id, changes) => keys.save({ ...await read(key_id), ...changes })
  const write = (key_id, values) => keys.update({ key_id }, values)
  const remove = key_id => keys.delete({ key_id })

  const verify = async (token, scope, cost) => (await db.query('SELECT * FROM rk_apikeys.verify_key($1, $2, cost => $3)',
    [token, scope, cost]))[0]
  const enter = token => db.transaction(async tx => {
    const [verdict] = await tx.query('SELECT * FROM rk_apikeys.authenticate($1, raise => false)', [token])
    return { verdict, rows: verdict.valid ? await tx.find(Record, { order: { id: 'ASC' } }) : [] }
  })
  // doc: end

  const demand = token => db.transaction(async tx => {
    await tx.query('SELECT * FROM rk_apikeys.authenticate($1)', [token])
    return tx.find(Record)
  })
  const rows = (sql, values) => db.query(sql, values)
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => db.destroy() }
}

const logger = log => new Proxy({}, { get: (_, name) => (...what) => { if (name.startsWith('logQuery')) log(what.slice(0, 2)) } })
