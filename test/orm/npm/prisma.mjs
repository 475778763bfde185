// test/orm/npm/prisma.mjs: Prisma, with its driver adapter, that is without a program of its own.
import { PrismaPg } from '@prisma/adapter-pg'
import { PrismaClient } from './generated/index.js'

export const title = 'Prisma'
export const tool = 'prisma'
export const cannot = {
  interval: 'Prisma has no type for an interval; its model leaves the column out, and raw SQL reads rate_window::text'
}

export async function open({ log, ...where }) {
  const options = log ? { log: [{ emit: 'event', level: 'query' }] } : {}
  // doc: code
  const prisma = new PrismaClient({ adapter: new PrismaPg(where), ...options })
  const select = { key_id: true, name: true, secret: true }

  const create = data => prisma.key.create({ data, select })
  const createMany = data => prisma.key.createManyAndReturn({ data, select })
  const read = key_id => prisma.key.findUnique({ where: { key_id } })
  const find = ({ search, sort, limit, offset }) => prisma.key.findMany({
    where: { name: { contains: search, mode: 'insensitive' } }, orderBy: { [sort]: 'asc' }, take: limit, skip: offset
  })
  const write = (key_id, data) => prisma.key.update({ where: { key_id }, data })
  const remove = key_id => prisma.key.delete({ where: { key_id } })

  const verify = async (token, scope, cost) => (await prisma.$queryRaw`SELECT *
    FROM rk_apikeys.verify_key(${token}, ${scope}, cost => ${cost})`)[0]
  const enter = token => prisma.$transaction(async tx => {
    const [verdict] = await tx.$queryRaw`SELECT * FROM rk_apikeys.authenticate(${token}, raise => false)`
    return { verdict, rows: verdict.valid ? await tx.record.findMany({ orderBy: { id: 'asc' } }) : [] }
  })
  // doc: end

  const demand = token => prisma.$transaction(async tx => {
    await tx.$queryRaw`SELECT * FROM rk_apikeys.authenticate(${token})`
    return tx.record.findMany()
  })
  const rows = (sql, values) => prisma.$queryRawUnsafe(sql, ...values)
  const save = async (key_id, changes) => write(key_id, { ...await read(key_id), ...changes })
  if (log) prisma.$on('query', log)
  return { create, createMany, read, find, save, write, remove, rows, verify, enter, demand, close: () => prisma.$disconnect() }
}
