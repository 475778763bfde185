// examples/node/server.js: GET and POST /records over HTTP for whoever has an API key, with node-postgres; see ../records.sql.
//
//   npm ci
//   PGUSER=records_api PGDATABASE=... PORT=8080 node server.js
'use strict';

const http = require('node:http');
const { Pool } = require('pg');

const pool = new Pool(); // from PGHOST, PGUSER…
const BODY_MAX = 65536; // whoever sends more has not authenticated yet
const STATUS = { scope_missing: 403, address_denied: 403, rate_limited: 429, limiter_unavailable: 503 };

// What to answer when the database refuses a key.
function refusal(error) {
  const code = error.message.split(': ').pop();
  const status = STATUS[code] ?? 401;
  const headers = {};
  if (status === 401) headers['WWW-Authenticate'] = 'Bearer';
  if (status === 429) headers['Retry-After'] = Math.ceil(/retry_after_ms=(\d+)/.exec(error.detail)[1] / 1000);
  return { status, body: code, headers };
}

// Runs the action in a transaction that is the key's of the request; commits, or rolls back on an error.
async function authenticated(request, scope, action) {
  const token = /^Bearer (.*)$/.exec(request.headers.authorization ?? '')?.[1] ?? null;
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    await client.query('SELECT rk_apikeys.authenticate($1, $2, $3)', [token, scope, request.socket.remoteAddress]);
    const answer = await action(client);
    await client.query('COMMIT');
    return answer;
  } catch (error) {
    await client.query('ROLLBACK');
    if (error.code === '28000') return refusal(error);
    throw error;
  } finally {
    client.release();
  }
}

// The body of a request; undefined if it is too long.
async function read(request) {
  let body = '';
  if (Number(request.headers['content-length']) > BODY_MAX) return undefined;
  for await (const chunk of request.setEncoding('utf8')) {
    body += chunk;
    if (body.length > BODY_MAX) return undefined;
  }
  return body;
}

const routes = {
  GET: (request) => authenticated(request, 'records:read', async (client) => {
    const { rows } = await client.query('SELECT body FROM records ORDER BY id');
    return { status: 200, body: rows.map((row) => row.body) };
  }),
  POST: async (request) => {
    const body = await read(request);
    if (body === undefined) return { status: 413, body: 'too long', headers: { Connection: 'close' } };
    return authenticated(request, 'records:write', async (client) => {
      await client.query('INSERT INTO records (body) VALUES ($1)', [body]);
      return { status: 201, body: 'added' };
    });
  },
};

http.createServer(async (request, response) => {
  let answer;
  try {
    answer = await (routes[request.method] ?? (() => ({ status: 405, body: 'method' })))(request);
  } catch (error) {
    console.error(error.code);
    answer = { status: 500, body: 'error' };
  }
  response.writeHead(answer.status, { 'Content-Type': 'application/json', ...answer.headers });
  response.end(JSON.stringify(answer.body));
}).listen(process.env.PORT ?? 8080, '127.0.0.1');
