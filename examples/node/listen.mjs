// examples/node/listen.mjs: hears of each committed change of a key, by LISTEN; needs rk_apikeys.notify on, and a role that may connect.
//
// Nothing is kept for who is not connected: so on each connection forget what you remember of keys, or read key_events.
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';

const connected = () => console.log('listening');
const changed = ({ event, key_id: keyId }) => console.log(`${event} ${keyId}`);

// From PGHOST, PGUSER…; returns when the connection is lost.
async function listen() {
  const client = new pg.Client({ application_name: 'listen', keepAlive: true });
  const lost = new Promise((resolve) => { client.once('end', resolve); });
  client.on('error', (error) => console.error(error.message));
  client.on('notification', ({ payload }) => changed(JSON.parse(payload)));
  await client.connect();
  await client.query('LISTEN rk_apikeys');
  connected();
  await lost;
}

for (;;) {
  await listen().catch((error) => console.error(error.message || error.code));
  await wait(1000);
}
