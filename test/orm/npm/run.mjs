// test/orm/npm/run.mjs TOOL: asks one tool what ../checks.txt lists, and prints a line for each check. TOOL.mjs says how the tool does it:
//
//   title, tool   its name, and its package
//   cannot        checks that the tool has no way to do, each with its reason
//   open(where)   connects; where has host, port, database, user, max (connections), and log, which takes the tool's log of queries.
//                 Without log the tool logs as it does by default. Returns the operations below. Times are Dates or texts of ISO 8601.
//
//   create(values), createMany(list)   make keys through the model; return the objects
//   find({ search, sort, limit, offset })   lists keys through the model, sorted by the column sort
//   read(key_id)                       the object of one key
//   save(key_id, changes)              reads the object, changes it and writes it back, as the tool does
//   write(key_id, values)              writes those columns through the model
//   remove(key_id)                     deletes the key through the model
//   rows(sql, values)                  runs SQL with $1, $2, and returns rows
//   verify(token, scope, cost)         the verdict of verify_key()
//   enter(token)                       in one transaction: the verdict of authenticate(raise => false), and the rows of records
//   demand(token)                      in one transaction: authenticate(), which raises, and the rows of records
//   close()
import assert from 'node:assert/strict'
import { readFileSync, writeSync } from 'node:fs'
import { inspect } from 'node:util'

const name = process.argv[2]
const { title, tool, cannot = {}, open } = await import(`./${name}.mjs`)
const { version } = JSON.parse(readFileSync(new URL(`./node_modules/${tool}/package.json`, import.meta.url)))
const env = process.env
const where = { host: env.PGHOST, port: Number(env.PGPORT), database: env.PGDATABASE, max: 2 }

// What the tool prints is kept, because a token must not be in there.
let printed = ''
const say = line => writeSync(1, `${line}\n`)
for (const stream of [process.stdout, process.stderr])
  stream.write = (text, encoding, done) => { printed += text; (done ?? encoding)?.call?.(); return true }

async function check(title, ask) {
  if (cannot[title]) return say(`impossible ${title}: ${cannot[title]}`)
  try {
    const note = await ask()
    say(`ok ${title}${note ? `: ${note}` : ''}`)
  } catch (error) {
    say(`not ok ${title}: ${[error, error.cause].filter(Boolean).map(e => e.message).join('; ').replace(/\s+/g, ' ').slice(0, 600)}`)
    if (env.RK_DEBUG) say(inspect(error, { depth: 5 }).replace(/^/gm, '# '))
  }
}

// --- types ---------------------------------------------------------------------------------------------------------------

const is = {
  text: value => typeof value === 'string',
  texts: value => Array.isArray(value) && value.every(is.text),
  integer: Number.isInteger,
  bigint: value => typeof value === 'bigint' || Number.isInteger(value) || (typeof value === 'string' && /^\d+$/.test(value)),
  boolean: value => typeof value === 'boolean',
  json: value => typeof value === 'object' && !Array.isArray(value),
  time: value => value instanceof Date && !isNaN(value)
}

// Each column is null or of its type. Returns what a reader may not expect.
function typed(row, types) {
  const texts = []
  for (const [column, type] of Object.entries(types)) {
    assert.ok(column in row, `there is no column ${column}`)
    const value = row[column]
    assert.ok(value === null || is[type](value), `${column} is no ${type}: ${inspect(value)}`)
    if (type === 'bigint' && typeof value === 'string') texts.push('a bigint is a string')
  }
  return [...new Set(texts)].join('; ')
}

const keyTypes = {
  key_id: 'text', tenant: 'text', name: 'text', description: 'text', environment: 'text', masked_key: 'text', status: 'text',
  enabled: 'boolean', scopes: 'texts', allowed_cidrs: 'texts', rate_limit: 'integer', metadata: 'json', expires_at: 'time',
  last_used_at: 'time', use_count: 'bigint', replaces: 'text', grace_until: 'time', revoked_at: 'time', revoked_reason: 'text',
  created_at: 'time', created_by: 'text', updated_at: 'time', updated_by: 'text', secret: 'text', family: 'text', owner: 'text'
}
const verdictTypes = {
  valid: 'boolean', code: 'text', key_id: 'text', family: 'text', tenant: 'text', owner: 'text', name: 'text', environment: 'text',
  scopes: 'texts', metadata: 'json', expires_at: 'time', retry_after_ms: 'integer', limit_name: 'text', limit_units: 'bigint',
  limit_remaining: 'bigint', limit_resets_at: 'time'
}

// --- where a token stands ------------------------------------------------------------------------------------------------

const everything = { depth: Infinity, showHidden: true, maxArrayLength: null, maxStringLength: null }
const holds = (value, token) => inspect(value, everything).includes(token)

const text = error => `${error} ${error.message} ${error.stack} ${error.cause ? text(error.cause) : ''}`

// --- the checks ----------------------------------------------------------------------------------------------------------

say(`tool ${title} ${version}`)
const keys = await open({ ...where, user: 'acme' })
const backend = await open({ ...where, user: 'backend' })
const SHAPE = /^rk_prod_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$/
const nextYear = new Date('2099-12-31T23:59:59.123Z')

// The key as the database has it, but for what the time or the change itself moves.
const stored = async key_id => (await keys.rows(`SELECT to_jsonb(k) - '{description,updated_at,updated_by,expires_in}'::text[] AS key
  FROM rk_apikeys.orm_keys k WHERE key_id = $1`, [key_id]))[0].key
const described = async key_id => (await keys.rows('SELECT description FROM rk_apikeys.keys WHERE key_id = $1', [key_id]))[0].description

// A key made in SQL, with times of microseconds and every setting.
async function made(title) {
  const [key] = await keys.rows(`SELECT key_id, secret FROM rk_apikeys.create_key($1, 'before', '2099-12-31 23:59:59.123456+00', 'prod',
    '{a:read,b:*}', '{192.0.2.0/24,2001:db8::/32}', 5, '1 hour', '{"team": "data", "list": [1, null]}')`, [`${name} ${title}`])
  return key
}

// A key that verifies from anywhere, with a limit.
async function limited(title) {
  const [key] = await keys.rows(`SELECT key_id, secret FROM rk_apikeys.create_key($1, scopes => '{a:read,b:*}', rate_limit => 5,
    rate_window => '1 hour', expires_at => '2099-12-31 23:59:59.123456+00', metadata => '{"team": "data"}')`, [`${name} ${title}`])
  return key
}

let first
await check('create', async () => {
  first = await keys.create({
    name: `${name} one`, description: 'by a model', scopes: ['a:read', 'b:*'], metadata: { team: 'data', deep: { list: [1, null, 'ü'] } },
    allowed_cidrs: ['192.0.2.0/24'], owner: 'ann', expires_at: nextYear
  })
  assert.deepEqual(await keys.rows(`SELECT tenant, name, description, environment, status, scopes::text, metadata::text,
      allowed_cidrs::text, owner, extract(epoch FROM expires_at) * 1000 = $2::bigint AS expires, created_by, replaces, grace_until
    FROM rk_apikeys.keys WHERE key_id = $1`, [first.key_id, nextYear.getTime()]), [{
    tenant: 'acme', name: `${name} one`, description: 'by a model', environment: 'prod', status: 'active', scopes: '{a:read,b:*}',
    metadata: '{"deep": {"list": [1, null, "ü"]}, "team": "data"}', allowed_cidrs: '{192.0.2.0/24}', owner: 'ann', expires: true,
    created_by: 'acme', replaces: null, grace_until: null
  }])
  const defaults = title => keys.rows(`SELECT tenant, environment, description, scopes::text, metadata::text, enabled, expires_at,
      created_at > now() - interval '1 hour' AS recent FROM rk_apikeys.keys WHERE name = $1`, [title])
  const plain = await keys.create({ name: `${name} plain` })
  assert.deepEqual(await defaults(`${name} plain`), [{
    tenant: 'acme', environment: 'prod', description: '', scopes: '{}', metadata: '{}', enabled: true, expires_at: null, recent: true
  }])
  assert.match(plain.secret, SHAPE)
  const nulls = Object.fromEntries(['tenant', 'description', 'environment', 'masked_key', 'status', 'enabled', 'expires_at', 'use_count',
    'replaces', 'created_at', 'created_by', 'updated_at', 'updated_by', 'secret', 'family', 'owner'].map(column => [column, null]))
  await keys.create({ ...nulls, name: `${name} nulls` })
  assert.deepEqual(await defaults(`${name} nulls`), await defaults(`${name} plain`))
})

await check('secret', async () => {
  assert.match(first.secret, SHAPE)
  assert.equal(first.secret.split('_')[2], first.key_id)
  assert.deepEqual(await backend.rows(`SELECT code FROM rk_apikeys.verify_key($1, client_addr => '192.0.2.1')`, [first.secret]),
    [{ code: 'valid' }])
})

let several
const names = [1, 2, 3].map(i => `${name} bulk ${i}`)
await check('bulk', async () => {
  several = await keys.createMany(names.map(name => ({ name, scopes: [name.replaceAll(' ', ':')] })))
  assert.deepEqual(await keys.rows('SELECT name, status FROM rk_apikeys.keys WHERE name LIKE $1 ORDER BY name', [`${name} bulk %`]),
    names.map(name => ({ name, status: 'active' })))
})

await check('bulk_secret', async () => {
  assert.deepEqual(several.map(key => key.name), names)
  for (const key of several) {
    assert.match(key.secret, SHAPE)
    const [verdict] = await backend.rows('SELECT code, key_id, name FROM rk_apikeys.verify_key($1)', [key.secret])
    assert.deepEqual(verdict, { code: 'valid', key_id: key.key_id, name: key.name })
  }
})

await check('types', async () => {
  const { key_id } = await made('types')
  const row = await keys.read(key_id)
  const note = typed(row, keyTypes)
  assert.deepEqual([row.scopes, row.allowed_cidrs, row.metadata, row.rate_limit, Number(row.use_count), row.expires_at, row.secret],
    [['a:read', 'b:*'], ['192.0.2.0/24', '2001:db8::/32'], { team: 'data', list: [1, null] }, 5, 0, nextYear, null])
  return note
})

await check('interval', async () => {
  const key = await keys.create({ name: `${name} interval`, rate_limit: 7, rate_window: '01:30:00' })
  const { rate_window } = await keys.read(key.key_id)
  const right = /^(01:30:00|30 minutes 1 hours)$/.test(rate_window) || (rate_window.hours === 1 && rate_window.minutes === 30)
  assert.ok(right, inspect(rate_window))
  return typeof rate_window === 'string' ? 'read as a string' : 'read as an object of hours and minutes'
})

await check('list', async () => {
  await keys.rows(`INSERT INTO rk_apikeys.keys (name) SELECT $1 || i FROM generate_series(1, 5) i RETURNING key_id`, [`${name} page `])
  const page = await keys.find({ search: `${name} page`, sort: 'name', limit: 2, offset: 2 })
  assert.deepEqual(page.map(key => key.name), [`${name} page 3`, `${name} page 4`])
})

await check('list_keys', async () => {
  const query = `SELECT name, cursor FROM rk_apikeys.list_keys(search => $1, sort_by => 'name', page_size => 3, after => $2)`
  const page = await keys.rows(query, [`${name} page`, null])
  assert.deepEqual(page.map(key => key.name), [1, 2, 3].map(i => `${name} page ${i}`))
  const next = await keys.rows(query, [`${name} page`, page[2].cursor])
  assert.deepEqual(next.map(key => key.name), [4, 5].map(i => `${name} page ${i}`))
})

await check('save', async () => {
  const { key_id } = await made('save')
  const before = await stored(key_id)
  await keys.save(key_id, { description: 'after' })
  assert.equal(await described(key_id), 'after')
  assert.deepEqual(await stored(key_id), before)
})

await check('save_whole', async () => {
  const { key_id } = await made('save whole')
  const before = await stored(key_id)
  const row = await keys.read(key_id)
  await keys.write(key_id, { ...row, description: 'after' })
  assert.equal(await described(key_id), 'after')
  assert.deepEqual(await stored(key_id), before)
  return keyless(row)
})

// The columns that the tool's object lacks.
function keyless(row) {
  const lacks = [...Object.keys(keyTypes), 'rate_window', 'expires_in'].filter(column => !(column in row))
  return lacks.length ? `without ${lacks.join(' and ')}` : ''
}

await check('refuse_change', async () => {
  const { key_id } = await made('refuse')
  await assert.rejects(async () => keys.write(key_id, { tenant: 'globex' }), error => {
    assert.match(text(error), /column \\?"tenant\\?" of an API key cannot be changed/)
    return true
  })
})

await check('delete', async () => {
  const { key_id } = await made('delete')
  await keys.remove(key_id)
  assert.deepEqual(await keys.rows('SELECT name FROM rk_apikeys.keys WHERE key_id = $1', [key_id]), [])
})

await check('verify', async () => {
  const { key_id, secret } = await limited('verify')
  const verdict = await backend.verify(secret, 'a:read', 4)
  const notes = [typed(verdict, verdictTypes)]
  assert.deepEqual([verdict.valid, verdict.code, verdict.key_id, verdict.family, verdict.tenant, verdict.environment, verdict.scopes,
    verdict.metadata, verdict.expires_at, verdict.retry_after_ms, Number(verdict.limit_units), Number(verdict.limit_remaining)],
  [true, 'valid', key_id, key_id, 'acme', 'prod', ['a:read', 'b:*'], { team: 'data' }, nextYear, null, 5, 1])
  assert.ok(is.text(verdict.limit_name) && is.time(verdict.limit_resets_at))
  const refused = await backend.verify(secret, 'a:read', 4)
  typed(refused, verdictTypes)
  assert.deepEqual([refused.valid, refused.code], [false, 'rate_limited'])
  assert.ok(refused.retry_after_ms > 0)
  return notes.join('')
})

await check('transaction', async () => {
  const { key_id, secret } = await limited('transaction')
  const { verdict, rows } = await backend.enter(secret)
  typed(verdict, verdictTypes)
  assert.deepEqual([verdict.valid, verdict.key_id, rows.map(row => row.body)], [true, key_id, ['a1', 'a2']])
  // on each connection of the pool
  for (const after of await Promise.all([1, 2, 3, 4].map(() => backend.rows(`SELECT rk_apikeys.current_key_id() AS key_id,
    (SELECT count(*)::int FROM records) AS records`, []))))
    assert.deepEqual(after, [{ key_id: null, records: 0 }])
})

await check('refused', async () => {
  printed = ''
  const { verdict, rows } = await backend.enter(env.RK_UNKNOWN)
  assert.deepEqual([verdict.valid, verdict.code, verdict.key_id, rows], [false, 'unknown', null, []])
  assert.ok(!holds(verdict, env.RK_UNKNOWN), 'the token is in the verdict')
  assert.ok(!printed.includes(env.RK_UNKNOWN), 'the token was printed')
})

await check('raise', async () => {
  printed = ''
  let error
  await backend.demand(env.RK_UNKNOWN).catch(caught => { error = caught })
  assert.ok(error, 'there was no error')
  for (const after of await Promise.all([1, 2, 3, 4].map(() => backend.rows('SELECT 1 AS one', [])))) assert.deepEqual(after, [{ one: 1 }])
  assert.ok(holds(error, '28000'), `no SQLSTATE 28000: ${text(error)}`)
  const stands = [text(error).includes(env.RK_UNKNOWN) && 'text', holds(error, env.RK_UNKNOWN) && 'object',
    printed.includes(env.RK_UNKNOWN) && 'output'].filter(Boolean).join(', ') || 'nowhere'
  return stands + (holds(error, 'code=unknown') ? '' : '; the error has no DETAIL')
})

await check('query_log', async () => {
  let log = ''
  printed = ''
  const logged = await open({ ...where, user: 'backend', log: line => { log += `${inspect(line, { depth: 5 })}\n` } })
  await logged.enter(env.RK_UNKNOWN)
  await logged.close()
  log += printed
  assert.ok(log.includes('authenticate'), 'there is no log')
  return log.includes(env.RK_UNKNOWN) ? 'shown' : 'not shown'
})

await check('bouncer', async () => {
  const through = { ...where, port: Number(env.RK_BOUNCER) }
  const pooled = { keys: await open({ ...through, user: 'acme' }), backend: await open({ ...through, user: 'backend' }) }
  const key = await pooled.keys.create({ name: `${name} bouncer` })
  assert.match(key.secret, SHAPE)
  for (let i = 0; i < 3; i++) {
    const { verdict, rows } = await pooled.backend.enter(key.secret)
    assert.deepEqual([verdict.code, rows.map(row => row.body)], ['valid', ['a1', 'a2']])
    assert.deepEqual(await pooled.backend.rows('SELECT count(*)::int AS records FROM records', []), [{ records: 0 }])
  }
  await pooled.keys.close()
  await pooled.backend.close()
})

await keys.close()
await backend.close()
