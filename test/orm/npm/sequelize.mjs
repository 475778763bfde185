// test/orm/npm/sequelize.mjs: Sequelize.
import { DataTypes, Op, QueryTypes, Sequelize } from 'sequelize'

export const title = 'Sequelize'
export const tool = 'sequelize'

export async function open({ log, max, ...where }) {
  const options = log ? { logging: log } : {}
  // doc: code
  const db = new Sequelize({ dialect: 'postgres', ...where, username: where.user, pool: { max }, ...options })
  const { ARRAY, BIGINT, BOOLEAN, CIDR, DATE, INTEGER, JSONB, TEXT } = DataTypes
  // Sequelize has no type for an interval, and its driver reads an object.
  const interval = name => ({ type: TEXT, get() { return this.getDataValue(name)?.toPostgres?.() ?? this.getDataValue(name) } })
  const Key = db.define('Key', {
    key_id: { type: TEXT, primaryKey: true }, tenant: TEXT, name: TEXT, description: TEXT, environment: TEXT, masked_key: TEXT,
    status: TEXT, enabled: BOOLEAN, scopes: ARRAY(TEXT), allowed_cidrs: ARRAY(CIDR), rate_limit: INTEGER,
    rate_window: interval('rate_window'), metadata: JSONB, expires_at: DATE, expires_in: interval('expires_in'),
    last_used_at: DATE, use_count: BIGINT, replaces: TEXT, grace_until: DATE, revoked_at: DATE, revoked_reason: TEXT, created_by: TEXT,
    updated_by: TEXT, secret: TEXT, family: TEXT, owner: TEXT
  }, { schema: 'rk_apikeys', tableName: 'orm_keys', createdAt: 'created_at', updatedAt: 'updated_at' })
  const Record = db.define('Record', { id: { type: INTEGER, primaryKey: true }, tenant: TEXT, body: TEXT },
    { tableName: 'records', timestamps: false })

  const create = values => Key.create(values)
  const createMany = list => Key.bulkCreate(list, { returning: true })
  const find = ({ search, sort, limit, offset }) => Key.findAll({
    where: { name: { [Op.iLike]: `%${search}%` } }, order: [sort], limit, offset
  })
  const save = async (key_id, changes) => (await Key.findByPk(key_id)).set(changes).save()
  const write = (key_id, values) => Key.update(values, { where: { key_id } })
  const remove = key_id => Key.destroy({ where: { key_id } })

  const rows = (text, bind, transaction) => db.query(text, { bind, transaction, type: QueryTypes.SELECT })
  const verify = async (token, scope, cost) => (await rows('SELECT * FROM rk_apikeys.verify_key($1, $2, cost => $3)',
    [token, scope, cost]))[0]
  const enter = token => db.transaction(async transaction => {
    const [verdict] = await rows('SELECT * FROM rk_apikeys.authenticate($1, raise => false)', [token], transaction)
    return { verdict, rows: verdict.valid ? await Record.findAll({ order: ['id'], transaction }) : [] }
  })
  // doc: end

  const demand = token => db.transaction(async transaction => {
    await rows('SELECT * FROM rk_apikeys.authenticate($1)', [token], transaction)
    return Record.findAll({ transaction })
  })
  const read = async key_id => (await Key.findByPk(key_id)).get()
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => db.close() }
}
