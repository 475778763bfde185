// examples/console/server.js: an "API Keys" screen for rk_apikeys; setup.sql makes its roles.
//
//   npm ci
//   PGUSER=console PGDATABASE=... PORT=8080 npm start
//
//   PEOPLE   who can sign in: person@tenant and manager or member, with commas   (default ann@acme manager,bob@acme member,eve@globex manager)
//   ORIGIN   the address that browsers see                                       (default http://127.0.0.1:$PORT)
//
// The sign-in is made up: it asks for no password. Everything behind it is meant. A session knows its tenant and its person, and whether the
// person manages all keys of the tenant or only its own (a member). A request that changes something must come from our own page (Origin)
// and carry the session's token.
'use strict';

const { randomBytes, timingSafeEqual } = require('node:crypto');
const { readFileSync } = require('node:fs');
const path = require('node:path');
const fastify = require('fastify');
const database = require('./database.js');
const pages = require('./pages.js');

const PORT = Number(process.env.PORT ?? 8080);
const ORIGIN = process.env.ORIGIN ?? `http://127.0.0.1:${PORT}`;
const PEOPLE = (process.env.PEOPLE ?? 'ann@acme manager,bob@acme member,eve@globex manager').split(',').map((text) => {
  const [, user, tenant, role] = /^(.*@(.*)) (manager|member)$/.exec(text);
  return { user, tenant, member: role === 'member' };
});
const SECURE = ORIGIN.startsWith('https:') ? '; Secure' : '';
const PAGE = 25;
const SESSION_MS = 8 * 3600e3;

const HEADERS = {
  'Cache-Control': 'no-store',
  'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    + "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'same-origin', // no-referrer would take the Origin from our own forms
  'X-Content-Type-Options': 'nosniff',
};

// --- errors -------------------------------------------------------------------------------------------------------------

// What the database says to a person who asked for something that cannot be.
const REFUSALS = { '22021': 400, '22023': 400, '23514': 400, '23502': 400, '22P02': 400, '22007': 400, '22008': 400, '22003': 400, '42704': 404, '55000': 409, '42501': 403 };

class Refusal extends Error {
  constructor(status, message, hint) {
    super(message);
    Object.assign(this, { statusCode: status, hint });
  }
}

const noSuchKey = () => new Refusal(404, 'There is no such API key.', 'It may have been deleted meanwhile.');

// The status, message and hint for an error; what is nobody's business stays in our own log, by its code.
function explain(error) {
  const status = REFUSALS[error.code];
  if (status) return { status, message: error.message, hint: error.hint ?? error.detail };
  if (error instanceof Refusal || error.statusCode < 500) return { status: error.statusCode, message: error.message, hint: error.hint };
  console.error(`${error.code ?? ''} ${error.severity ? 'from the database' : error.stack}`);
  return { status: 500, message: 'The console could not do this.', hint: 'Try again later.' };
}

// --- sessions -----------------------------------------------------------------------------------------------------------

const sessions = new Map();

function signIn(who) {
  for (const [id, { ends }] of sessions) if (ends < Date.now()) sessions.delete(id);
  const id = randomBytes(32).toString('base64url');
  sessions.set(id, { ...who, csrf: randomBytes(32).toString('base64url'), ends: Date.now() + SESSION_MS });
  return id;
}

const cookieOf = (request) => /(?:^|;\s*)session=([\w-]+)/.exec(request.headers.cookie ?? '')?.[1];

function sessionOf(request) {
  const session = sessions.get(cookieOf(request));
  return session && session.ends > Date.now() ? session : undefined;
}

const cookie = (value, age) => `session=${value}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${age}${SECURE}`;

function same(a, b) {
  const [x, y] = [Buffer.from(String(a ?? '')), Buffer.from(b)];
  return x.length === y.length && timingSafeEqual(x, y);
}

// --- requests -----------------------------------------------------------------------------------------------------------

const app = fastify({ bodyLimit: 65536 });

app.removeContentTypeParser('text/plain'); // forms of other sites can send it
app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'string' },
  (request, body, done) => done(null, Object.fromEntries(new URLSearchParams(body))));

app.addHook('onRequest', async (request, reply) => {
  reply.headers(HEADERS);
  // another Host is a name that somebody has pointed at this machine
  if (request.headers.host !== new URL(ORIGIN).host) throw new Refusal(421, 'This address is not the console\'s.');
  request.session = sessionOf(request);
  if (request.method !== 'GET' && request.method !== 'HEAD' && request.headers.origin !== ORIGIN) {
    throw new Refusal(403, 'This request did not come from the console.');
  }
});

// What a signed-in person may ask for; `change` says that it changes something.
const signedIn = { preHandler: async (request, reply) => {
  if (request.session) return undefined;
  if (request.method !== 'GET') throw new Refusal(401, 'You are not signed in any more.', 'Sign in again.');
  return reply.redirect('/sign-in');
} };
const change = { preHandler: async (request, reply) => {
  await signedIn.preHandler(request, reply);
  if (typeof request.body !== 'object' || request.body === null) throw new Refusal(400, 'The request has no fields.');
  if (!same(request.headers['x-csrf-token'] ?? request.body?.csrf, request.session.csrf)) {
    throw new Refusal(403, 'This request did not come from the console\'s own page.', 'Reload the page.');
  }
} };

app.setErrorHandler((error, request, reply) => {
  const { status, message, hint } = explain(error);
  reply.code(status);
  if (request.method !== 'GET' && request.headers['content-type'] === 'application/json') return reply.send({ message, hint });
  return show(reply, pages.failure({ session: request.session, message, hint }));
});
app.setNotFoundHandler((request) => { throw new Refusal(404, 'There is no such page.'); });

const show = (reply, page) => reply.type('text/html; charset=utf-8').send(page.toString());

for (const [name, type] of [['console.css', 'text/css'], ['console.js', 'text/javascript'], ['icon.svg', 'image/svg+xml']]) {
  const file = readFileSync(path.join(__dirname, 'public', name));
  app.get(`/${name}`, (request, reply) => reply.header('Cache-Control', 'no-cache').type(`${type}; charset=utf-8`).send(file));
}

app.get('/', (request, reply) => reply.redirect('/keys'));

app.get('/sign-in', (request, reply) => show(reply, pages.signIn({ people: PEOPLE })));

app.post('/sign-in', (request, reply) => {
  const who = PEOPLE.find(({ user }) => user === request.body?.user);
  if (!who) throw new Refusal(400, 'There is no such person.');
  return reply.header('Set-Cookie', cookie(signIn(who), SESSION_MS / 1000)).redirect('/keys', 303);
});

app.post('/sign-out', change, (request, reply) => {
  sessions.delete(cookieOf(request));
  return reply.header('Set-Cookie', cookie('', 0)).redirect('/sign-in', 303);
});

async function list(request, reply, { search, status, owner, sort, direction, after, before }) {
  if (status === 'expiring') [sort, direction] = ['expires_at', 'ascending'];
  sort ??= 'created_at';
  const descending = (direction ?? (sort === 'created_at' ? 'descending' : 'ascending')) === 'descending';
  const view = { search, status, owner, sort, descending };
  let found = { rows: [], owners: [], policies: [] }, error;
  try {
    found = await database.list(request.session, { search: search || null, status: status || null,
      owner: owner === 'none' ? '' : owner?.slice(1) || null, sort, descending, size: PAGE + 1, after: after || null, before: before || null });
  } catch (failed) {
    error = explain(failed);
    reply.code(error.status);
  }
  // one more than is shown tells whether there is another page: behind, or backwards in front
  const { rows } = found, more = rows.length > PAGE;
  if (more) rows.splice(before ? 0 : PAGE, 1);
  const previous = (before ? more : after) && rows[0]?.cursor, next = (before || more) && rows.at(-1)?.cursor;
  return show(reply, pages.list({ session: request.session, view, ...found, previous, next, error }));
}

app.get('/keys', signedIn, (request, reply) => list(request, reply, request.query));

// A search may be a pasted token, so it comes in a body: addresses stay in histories and logs.
app.post('/search', change, async (request, reply) => {
  const { search, status, owner, sort, direction } = request.body;
  const safe = search ? await database.search(request.session, search) : '';
  if (safe === undefined) return list(request, reply, { search, status, owner, sort, direction });
  return reply.redirect(pages.link('/keys', { search: safe, status, owner, sort, direction }), 303);
});
app.get('/search', (request, reply) => reply.redirect('/keys'));

app.get('/keys/:id', signedIn, async (request, reply) => {
  const found = await database.key(request.session, request.params.id);
  if (!found) throw noSuchKey();
  return show(reply, pages.key({ session: request.session, id: request.params.id, ...found }));
});

// The same limits as JSON, for a page that shows what remains.
app.get('/keys/:id/limits', signedIn, async (request) => {
  const found = await database.limits(request.session, request.params.id);
  if (!found) throw noSuchKey();
  return found;
});

// --- actions: each answers JSON -----------------------------------------------------------------------------------------

const words = (text) => String(text ?? '').split(/[\s,]+/).filter(Boolean);
const given = (text) => (text === undefined || text === '' ? null : text);

app.post('/keys', change, async (request, reply) => {
  const { name, description, expires, environment, scopes, addresses, limit, window, owner } = request.body;
  const [made] = await database.create(request.session, {
    name,
    description: given(description),
    expires: given(expires),
    environment: given(environment),
    scopes: words(scopes),
    addresses: words(addresses).length ? words(addresses) : null,
    limit: given(limit),
    window: given(limit) && window,
    owner: given(owner),
  });
  return reply.code(201).send(made);
});

app.post('/keys/:id/rotate', change, async (request, reply) => {
  const [made] = await database.rotate(request.session, request.params.id, request.body.grace);
  return reply.code(201).send(made);
});

app.post('/keys/:id/enabled', change, async (request) => {
  const [row] = await database.enable(request.session, request.params.id, request.body.enabled);
  if (!row) throw noSuchKey();
  return { status: row.status, enabled: row.enabled, badge: pages.badge(row.status).toString(), updated: pages.time(row.updated_at).toString() };
});

app.post('/keys/:id/owner', change, async (request) => {
  const [row] = await database.transfer(request.session, request.params.id, given(request.body.owner));
  if (!row) throw noSuchKey();
  return row;
});

// A member cannot delete: the database refuses it.
app.post('/keys/:id/revoke', change, async (request) => {
  const [row] = await database.revoke(request.session, request.params.id);
  if (!row) throw noSuchKey();
  return row;
});

app.post('/keys/:id/delete', change, async (request) => {
  const [row] = await database.remove(request.session, request.params.id);
  if (!row) throw noSuchKey();
  return row;
});

app.listen({ port: PORT, host: '127.0.0.1' }).then(
  () => console.log(`console: ${ORIGIN}`),
  (error) => { console.error(error.message); process.exit(1); });

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => app.close().then(database.close).finally(() => process.exit(0)));
}
