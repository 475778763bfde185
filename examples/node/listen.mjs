// examples/node/listen.mjs: prints each committed event once, by events_since() and LISTEN; needs rk_apikeys.notify on, and a role that may
// read events.
//
// The file that CURSOR_FILE names keeps the cursor over a restart. Without the file the first event is the oldest. A notification says only
// that there are events, so one that is lost loses none.
import { readFile, rename, writeFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';

const file = process.env.CURSOR_FILE ?? 'listen.cursor';
let cursor = await readFile(file, 'utf8').catch(() => null);

const told = ({ event, key_id: keyId }) => console.log(keyId ? `${event} ${keyId}` : event);

// Keep the cursor with what you do of the events: best in one transaction of your own database.
async function follow(client) {
  for (;;) {
    const { rows } = await client.query('SELECT event, key_id, cursor FROM rk_apikeys.events_since($1)', [cursor]);
    if (rows.length === 0) return;
    rows.forEach(told);
    cursor = rows.at(-1).cursor;
    await writeFile(`${file}.new`, cursor);
    await rename(`${file}.new`, file);
  }
}

// From PGHOST, PGUSER…; returns when the connection is lost.
async function listen() {
  const client = new pg.Client({ application_name: 'listen', keepAlive: true });
  let connected = true;
  let wake;
  const lost = new Promise((resolve) => { client.once('end', resolve); }).then(() => { connected = false; });
  client.on('error', (error) => console.error(error.message));
  client.on('notification', () => wake?.());
  await client.connect();
  await client.query('LISTEN rk_apikeys');
  console.log('listening');
  while (connected) {
    const woken = new Promise((resolve) => { wake = resolve; });
    await follow(client);
    await Promise.race([woken, lost, wait(60000, null, { ref: false })]);
  }
}

for (;;) {
  await listen().catch((error) => console.error(error.message || error.code));
  await wait(1000);
}
