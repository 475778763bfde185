// examples/node/server.js: GET and POST /records over HTTP for whoever has an API key, with node-postgres; see ../records.sql.
//
//   npm ci
//   PGUSER=records_api PGDATABASE=... PORT=8080 node server.js
'use strict';

const http = require('node:http');
const { DatabaseError, Pool } = require('pg');

const pool = new Pool({ connectionTimeoutMillis: 2000 }); // from PGHOST, PGUSER…
pool.on('error', (error) => console.error(error.code)); // an idle connection is lost: the pool has dropped it
const BODY_MAX = 65536;
// The header in which a proxy of your own tells the client's address. Without such a proxy leave it unset: clients can send any header.
const ADDR_HEADER = (process.env.CLIENT_ADDR_HEADER ?? '').toLowerCase();
const AUTHENTICATE = `
  SELECT v.valid, r.status, r.headers, r.body
  FROM rk_apikeys.authenticate($1, $2, rk_apikeys.client_addr($3), raise => false) v,
    rk_apikeys.http_response(CASE WHEN $1 IS NOT NULL THEN v END, $2) r`;
const UNAVAILABLE = {
  status: 503,
  headers: { 'Content-Type': 'application/problem+json', 'Retry-After': '1' },
  body: { type: 'about:blank', title: 'Service Unavailable', status: 503, detail: 'The database cannot be reached now.' },
};

// Runs the action in a transaction that is the key's of the request, or refuses the request. The connection of an error is closed.
async function authenticated(request, scope, action) {
  const token = /^bearer +([ -~]+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? null;
  const address = request.headers[ADDR_HEADER] ?? request.socket.remoteAddress;
  const client = await pool.connect();
  let failed = true;
  try {
    await client.query('BEGIN');
    const { rows: [{ valid, ...response }] } = await client.query(AUTHENTICATE, [token, scope, address]);
    const answer = valid ? await action(client) : {};
    await client.query(valid ? 'COMMIT' : 'ROLLBACK');
    failed = false;
    return { ...response, ...answer };
  } finally {
    client.release(failed);
  }
}

// The body of a request, which may have announced no length.
async function read(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > BODY_MAX) throw Object.assign(new Error('too long'), { status: 413 });
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

const routes = {
  GET: (request) => authenticated(request, 'records:read', async (client) => {
    const { rows } = await client.query('SELECT body FROM records ORDER BY id');
    return { status: 200, body: rows.map((row) => row.body) };
  }),
  POST: (request) => authenticated(request, 'records:write', async (client) => {
    await client.query('INSERT INTO records (body) VALUES ($1)', [await read(request)]);
    return { status: 201, body: 'added' };
  }),
};

async function respond(request) {
  if (Number(request.headers['content-length']) > BODY_MAX) return { status: 413, body: 'too long' };
  if (!routes[request.method]) return { status: 405, body: 'method' };
  try {
    return await routes[request.method](request);
  } catch (error) {
    if (error.status) return { status: error.status, body: error.message };
    // What PostgreSQL has not reported is an error of the connection.
    if (!(error instanceof DatabaseError) || /^(08|57P)/.test(error.code)) return UNAVAILABLE;
    console.error(error.code);
    return { status: 500, body: 'error' };
  }
}

http.createServer(async (request, response) => {
  const { status, headers, body } = await respond(request);
  response.writeHead(status, { 'Content-Type': 'application/json', ...(request.complete ? {} : { Connection: 'close' }), ...headers });
  response.end(JSON.stringify(body));
}).listen(process.env.PORT ?? 8080, '127.0.0.1');
