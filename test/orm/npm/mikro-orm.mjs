// test/orm/npm/mikro-orm.mjs: MikroORM.
import { BigIntType, EntitySchema, MikroORM } from '@mikro-orm/postgresql'

export const title = 'MikroORM'
export const tool = '@mikro-orm/core'

export async function open({ log, max, database, ...where }) {
  const options = log ? { debug: ['query', 'query-params'], logger: log, colors: false } : {}
  // doc: code
  const text = { type: 'text', nullable: true }
  const time = { type: 'Date', columnType: 'timestamptz', nullable: true }
  const interval = { type: 'interval', nullable: true }
  const number = { type: new BigIntType('bigint'), nullable: true }
  const Key = new EntitySchema({
    name: 'Key', schema: 'rk_apikeys', tableName: 'orm_keys', properties: {
      key_id: { type: 'text', primary: true, defaultRaw: 'NULL' }, tenant: text, name: text, description: text, environment: text,
      masked_key: text, status: text, enabled: { type: 'boolean', nullable: true }, scopes: { type: 'string[]', nullable: true },
      allowed_cidrs: { type: 'string[]', columnType: 'cidr[]', nullable: true }, rate_limit: { type: 'integer', nullable: true },
      rate_window: interval, metadata: { type: 'json', nullable: true }, expires_at: time, expires_in: interval, last_used_at: time,
      use_count: number, replaces: text, grace_until: time, revoked_at: time, revoked_reason: text, created_by: text,
      created_at: { ...time, onCreate: () => new Date() }, updated_by: text, secret: { ...text, defaultRaw: 'NULL' }, family: text,
      updated_at: { ...time, onCreate: () => new Date(), onUpdate: () => new Date() }, owner: text
    }
  })
  // Without a table: it says how the columns of a verdict are read.
  const Verdict = new EntitySchema({
    name: 'Verdict', expression: 'none', properties: {
      valid: { type: 'boolean' }, code: text, key_id: text, family: text, tenant: text, owner: text, name: text, environment: text,
      scopes: { type: 'string[]' }, metadata: { type: 'json' }, expires_at: time, retry_after_ms: { type: 'integer' }, limit_name: text,
      limit_units: number, limit_remaining: number, limit_resets_at: time
    }
  })
  const Record = new EntitySchema({
    name: 'Record', tableName: 'records', properties: { id: { type: 'integer', primary: true }, tenant: text, body: text }
  })
  const orm = await MikroORM.init({ ...where, dbName: database, pool: { min: 0, max }, entities: [Key, Record, Verdict], ...options })
  const em = () => orm.em.fork()

  const createMany = async list => {
    const here = em()
    const keys = list.map(values => here.create(Key, values))
    await here.persistAndFlush(keys)
    return keys
  }
  const create = async values => (await createMany([values]))[0]
  const read = async key_id => ({ ...await em().findOne(Key, key_id) })
  const find = ({ search, sort, limit, offset }) => em().find(Key, { name: { $ilike: `%${search}%` } },
    { orderBy: { [sort]: 'asc' }, limit, offset })
  const save = async (key_id, changes) => {
    const here = em()
    here.assign(await here.findOneOrFail(Key, key_id), changes)
    await here.flush()
  }
  const write = (key_id, values) => em().nativeUpdate(Key, { key_id }, values)
  const remove = key_id => em().nativeDelete(Key, { key_id })

  const verify = async (token, scope, cost) => em().map(Verdict, (await em().execute(
    'SELECT * FROM rk_apikeys.verify_key(?, ?, cost => ?)', [token, scope, cost]))[0])
  const enter = token => em().transactional(async tx => {
    const verdict = tx.map(Verdict, (await tx.execute('SELECT * FROM rk_apikeys.authenticate(?, raise => false)', [token]))[0])
    return { verdict, rows: verdict.valid ? await tx.find(Record, {}, { orderBy: { id: 'asc' } }) : [] }
  })
  // doc: end

  const demand = token => em().transactional(async tx => {
    await tx.execute('SELECT * FROM rk_apikeys.authenticate(?)', [token])
    return tx.find(Record, {})
  })
  const rows = (sql, values) => {
    const given = []
    return em().execute(sql.replace(/\$(\d+)/g, (_, n) => { given.push(values[n - 1]); return '?' }), given)
  }
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => orm.close() }
}
