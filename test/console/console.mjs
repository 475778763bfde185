// test/console/console.mjs: what the console promises, in Chromium. Prints TAP without numbers, which ../t/060_console.pl counts.
//
//   PORT, PGHOST…   as for the console
//   TOTAL           how many keys acme has
//   IMPORTED        the file with the token of an imported key
//   TOKEN           the file to write the token of a key to that was made here
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import { isDeepStrictEqual } from 'node:util';
import { origin, signIn, startBrowser, startConsole } from './browser.mjs';

const TOKEN = /rk_[a-z]+_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}/;
const axe = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

function ok(verdict, name, seen) {
  console.log(`${verdict ? 'ok' : 'not ok'} ${name}`);
  if (!verdict && seen !== undefined) console.error(`${name}: ${typeof seen === 'string' ? seen : JSON.stringify(seen, null, 1)}`);
}
const is = (seen, expected, name) => ok(isDeepStrictEqual(seen, expected), name, { seen, expected });
const like = (seen, pattern, name) => ok(pattern.test(seen), name, `${seen} is not like ${pattern}`);

// A request as no browser would send it: returns status, headers and body.
const ask = (method, path, headers = {}, body = undefined) => new Promise((resolve, reject) => {
  const request = http.request(origin + path, { method, headers }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (piece) => { text += piece; })
      .on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }));
  });
  request.on('error', reject).end(body);
});

const server = await startConsole();
const browser = await startBrowser();
const complaints = [];

async function newPage(options = {}) {
  const context = await browser.newContext({ permissions: ['clipboard-read', 'clipboard-write'], reducedMotion: 'reduce', ...options });
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  page.on('pageerror', (error) => complaints.push(error.message));
  // a refused request is told of there too
  page.on('console', (message) => { if (message.type() === 'error' && !/status of 4\d\d/.test(message.text())) complaints.push(message.text()); });
  return page;
}

const rows = (page) => page.locator('table.keys tbody tr');
const row = (page, name) => rows(page).filter({ has: page.getByRole('link', { name, exact: true }) });
const names = (page) => page.locator('table.keys tbody th a').allTextContents();
const search = (text, more = '') => `${origin}/keys?search=${encodeURIComponent(text)}${more}`;
const button = (within, name) => within.getByRole('button', { name, exact: true });
const refusal = (dialog) => dialog.locator('[data-error]');
const focused = (page) => page.locator(':focus').evaluate((e) => e.id || e.textContent.trim());

// Opens the dialog and fills in what is given by label.
async function fill(page, values) {
  await button(page, 'Create API Key').click();
  const dialog = page.locator('#create');
  if (Object.keys(values).some((label) => !/name|Description|Expire/.test(label)) && !await dialog.locator('details').evaluate((e) => e.open)) await dialog.getByText('More').click();
  for (const [label, value] of Object.entries(values)) await dialog.locator('input, textarea').and(dialog.getByLabel(label)).fill(value);
  return dialog;
}

// Closes the dialog with the secret, which leads elsewhere.
async function done(page) {
  const loaded = page.waitForEvent('load');
  await button(page, 'Done').click();
  await loaded;
}

// Makes a key and closes the dialog; returns its secret.
async function create(page, values) {
  const dialog = await fill(page, values);
  await button(dialog, 'Create API Key').click();
  const secret = await page.locator('#secret[open] #token').inputValue();
  await done(page);
  return secret;
}

// --- the sign-in and the frame ------------------------------------------------------------------------------------------

const page = await newPage();
await page.goto(origin);
is(new URL(page.url()).pathname, '/sign-in', 'who is not signed in is sent to the sign-in');
await signIn(page, 'ann@acme');
const [cookie] = await page.context().cookies();
is([cookie.httpOnly, cookie.sameSite], [true, 'Strict'], "the session's cookie is HttpOnly and SameSite=Strict");
const navigation = page.getByRole('navigation', { name: 'Main' });
is((await navigation.innerText()).split(/\n+/), ['Widgets & Integration', 'API & Webhook Integration'], 'the navigation leads to the integration');
is(await page.getByRole('heading', { level: 1 }).innerText(), 'API & Webhook Integration', 'its page has its name');
is(await page.locator('.tabs [aria-current=page]').innerText(), 'API Keys', 'the tab is API Keys');

// --- the list -----------------------------------------------------------------------------------------------------------

is(await page.getByRole('columnheader').evaluateAll((all) => all.map((th) => th.innerText.replace(/\s*[↕↑↓]/, ''))),
  ['Name', 'API key', 'Last used', 'Created on', 'Last updated on', 'Actions'], 'the table has its columns');
is(await rows(page).count(), 25, 'a page has 25 keys');
const masks = await page.locator('td.masked').allInnerTexts();
ok(masks.every((mask) => /^(rk_[a-z]+_[0-9A-Za-z]{12}_|sk_live_)\*{8}[0-9A-Za-z]{4}$/.test(mask)), 'keys are masked', masks);
const badges = await page.locator('table.keys [data-status]').allInnerTexts();
ok(badges.length === 25 && badges.every((word) => /^(Active|Grace|Rotated|Disabled|Expired|Revoked)$/.test(word)), 'each has its status in a word', badges);

await page.getByRole('searchbox', { name: 'Search API keys' }).fill('hubspot');
await page.keyboard.press('Enter');
await page.waitForURL(/search=hubspot/);
const hubspots = await names(page);
ok(hubspots.length >= 9 && hubspots.every((name) => name.startsWith('HubSpot')), 'the search finds by name', hubspots);
await page.goto(search('%'));
is(await page.getByText('No API key matches.').count(), 1, 'a search for what is nowhere says so');
await page.goto(search('', '&status=revoked'));
ok((await page.locator('table.keys [data-status]').allInnerTexts()).every((word) => word === 'Revoked'), 'the list can be one of a status');
const ends = await page.locator('table.keys .state .minor').allInnerTexts();
ok(ends.length === await rows(page).count() && ends.every((end) => /^since /.test(end) && Date.parse(end.slice(6)) < Date.now()), 'which says since when', ends);

const value = { name: 'th a', key_id: 'code', last_used_at: 'td:nth-of-type(2) time', created_at: 'td:nth-of-type(3) time', updated_at: 'td:nth-of-type(4) time' };
for (const [by, title] of [['name', 'Name'], ['key_id', 'API key'], ['last_used_at', 'Last used'], ['created_at', 'Created on'], ['updated_at', 'Last updated on']]) {
  await page.goto(`${origin}/keys?sort=${by === 'name' ? 'key_id' : 'name'}`);
  // dates begin with the newest, the rest with A
  for (const direction of by.endsWith('_at') ? ['descending', 'ascending'] : ['ascending', 'descending']) {
    await page.getByRole('columnheader', { name: title }).getByRole('link').focus();
    await page.keyboard.press('Enter');
    await page.waitForURL(new RegExp(`sort=${by}&direction=${direction}`));
    const seen = await page.locator(`table.keys tbody tr ${value[by]}`)
      .evaluateAll((all, id) => all.map((e) => e.dateTime ?? (id ? e.closest('tr').dataset.key : e.textContent)), by === 'key_id');
    const sorted = [...seen].sort();
    if (direction === 'descending') sorted.reverse();
    ok(seen.length > 20 && isDeepStrictEqual(seen, sorted), `sorted by ${title}, ${direction}`, seen);
    is(await page.locator('[aria-sort]').evaluateAll((all) => all.map((th) => [th.className, th.ariaSort])), [[by, direction]], `and says so: ${title}, ${direction}`);
  }
}

await page.goto(`${origin}/keys?sort=name`);
const keys = [], firsts = [];
for (;;) {
  const ids = await rows(page).evaluateAll((all) => all.map((tr) => tr.dataset.key));
  firsts.push(ids[0]);
  keys.push(...ids);
  const next = page.getByRole('link', { name: 'Next' });
  if (!await next.count()) break;
  await next.click();
  await page.waitForFunction((id) => document.querySelector('table.keys tbody tr')?.dataset.key !== id, ids[0]);
}
is([keys.length, new Set(keys).size], [Number(process.env.TOTAL), Number(process.env.TOTAL)], 'the pages have each key once');
const backwards = [];
for (let n = firsts.length; n > 0; n--) {
  await page.locator(`table.keys tbody tr:first-child[data-key="${firsts[n - 1]}"]`).waitFor();
  backwards.unshift(await rows(page).first().getAttribute('data-key'));
  if (n > 1) await page.getByRole('link', { name: 'Previous' }).click();
}
is(backwards, firsts, 'and the way back passes the same pages');
is(await page.getByRole('link', { name: 'Previous' }).count(), 0, 'there is nothing before the first');
like(await page.locator('.pages').innerText(), new RegExp(`^${process.env.TOTAL} keys ·`), 'each page tells how many keys there are');
await page.goto(search('hubspot', '&status=active'));
like(await page.locator('.pages').innerText(), new RegExp(`^${await rows(page).count()} keys ·`), 'and how many match');

// --- a key is made ------------------------------------------------------------------------------------------------------

await page.goto(`${origin}/keys`);
await button(page, 'Create API Key').focus();
await page.keyboard.press('Enter');
is(await focused(page), 'name', 'the dialog opens by keyboard, at the name');
await page.keyboard.press('Escape');
is([await page.locator('dialog[open]').count(), await focused(page)], [0, 'Create API Key'], 'Escape closes it and gives the focus back');

let answers = [];
page.on('response', (response) => { if (response.request().method() === 'POST') answers.push(response); });
let dialog = await fill(page, { 'API key name': '  Checkout of the shop ', Description: 'Pays baskets', 'Expire date (optional)': '2099-12-31',
  Environment: 'stage', 'Rate limit': '5', Scopes: 'pay:read, pay:write', Addresses: '192.0.2.7 2001:db8::/32' });
await dialog.getByLabel('API key name').focus();
await page.keyboard.press('Enter');
const shown = page.locator('#secret');
await shown.getByText('API Key Created Successfully').waitFor();
ok(true, 'Enter makes the key, and its success is told');
is(answers.map((r) => [r.status(), r.headers()['cache-control']]), [[201, 'no-store']], 'the answer with the secret is not to be stored');
const secret = await page.getByLabel('Secret key').inputValue();
like(secret, new RegExp(`^${TOKEN.source}$`), 'the secret is shown');
writeFileSync(process.env.TOKEN, secret, { mode: 0o600 });
await page.keyboard.press('Escape');
is(await shown.evaluate((e) => e.open), true, 'one Escape does not lose it');
await button(page, 'Copy Secret Key').click();
await page.getByText('Copied to the clipboard.').waitFor();
is(await page.evaluate(() => navigator.clipboard.readText()), secret, 'Copy Secret Key copies it');
const [download] = await Promise.all([page.waitForEvent('download'), button(page, 'Download Key').click()]);
is([readFileSync(await download.path(), 'utf8'), download.suggestedFilename()], [`${secret}\n`, `${secret.split('_')[2]}.key`], 'Download Key downloads it');
await done(page);
is((await names(page))[0], 'Checkout of the shop', 'the list has the key');
ok(!(await page.content()).includes(secret), 'and not its secret');

const found = async () => { await page.goto(search('Checkout of the shop')); return rows(page).count(); };
await page.reload();
ok(!(await page.content()).includes(secret), 'a reload does not bring it back');
is(await found(), 1, 'and makes no second key');
await page.goBack();
await page.goBack();
ok(!(await page.content()).includes(secret) && !await page.locator('dialog[open]').count(), 'the back button neither');
answers = [];
await page.goto(`${origin}/keys`);
dialog = await fill(page, { 'API key name': 'Left open' });
await button(dialog, 'Create API Key').dblclick();
await page.getByText('API Key Created Successfully').waitFor();
const left = await page.getByLabel('Secret key').inputValue();
is(answers.length, 1, 'a double click makes one key');
await page.reload();
is([await page.locator('dialog[open]').count(), (await page.content()).includes(left)], [0, false], 'a reload with the dialog open loses the secret');
await page.goto(search('Left open'));
is(await rows(page).count(), 1, 'and makes no second key either');
await page.goto(`${origin}/keys`);
await button(await fill(page, { 'API key name': 'Gone away' }), 'Create API Key').click();
await page.getByText('API Key Created Successfully').waitFor();
await page.goto(`${origin}/sign-in`);
await page.goBack();
is(await page.locator('#token').inputValue(), '', 'nor does history keep it, when the page is left with the dialog open');

// --- toggle, rotate, delete ---------------------------------------------------------------------------------------------

await page.goto(search('Left open'));
const toggle = page.getByRole('switch', { name: 'Enabled: Left open' });
is(await toggle.getAttribute('aria-checked'), 'true', 'the toggle is on');
await toggle.click();
await page.locator('#say', { hasText: 'Left open is disabled.' }).waitFor();
is([await toggle.getAttribute('aria-checked'), await page.locator('.badge').innerText()], ['false', 'Disabled'], 'it switches off, in words too');
await page.reload();
is(await toggle.getAttribute('aria-checked'), 'false', 'and stays off');
await toggle.focus();
await page.keyboard.press('Space');
await page.locator('#say', { hasText: 'Left open is enabled.' }).waitFor();
is([await toggle.getAttribute('aria-checked'), await page.locator('.badge').innerText()], ['true', 'Active'], 'the keyboard switches it on again');

await button(page, 'Rotate Left open').click();
dialog = page.locator('#rotate');
like(await dialog.innerText(), /Left open gets a successor/, 'the rotation names the key');
await dialog.getByLabel('The old key keeps working for').selectOption('1 hour');
await button(dialog, 'Rotate key').click();
await page.getByText('API Key Rotated Successfully').waitFor();
const rotated = await page.getByLabel('Secret key').inputValue();
ok(TOKEN.test(rotated) && rotated !== left, 'its successor has another secret');
await done(page);
is(page.url(), `${origin}/keys/${rotated.split('_')[2]}`, 'its page follows');
ok(!(await page.content()).includes(rotated), 'which is shown once too');
await page.getByRole('link', { name: left.split('_')[2] }).click();
is(await page.locator('.title .badge').innerText(), 'Grace', 'the old key is in grace');
const until = await page.locator('.facts div', { hasText: 'In grace until' }).locator('time').getAttribute('datetime');
ok(Math.abs(Date.parse(until) - Date.now() - 3600e3) < 60e3, 'for as long as was chosen', until);

await page.goto(search('Gone away'));
const gone = await rows(page).getAttribute('data-key');
await button(page, 'Delete Gone away').click();
dialog = page.locator('#delete');
like(await dialog.innerText(), /Gone away \(rk_prod_.*\*{8}.*\) stops working/, 'the confirmation names the key');
is(await focused(page), 'Cancel', 'and stands at Cancel');
await page.keyboard.press('Enter');
is(await rows(page).count(), 1, 'Cancel keeps it');
await button(page, 'Delete Gone away').click();
await button(dialog, 'Delete key').click();
await page.locator('#say', { hasText: 'Gone away was deleted.' }).waitFor();
is(await rows(page).count(), 0, 'the key is gone');
await page.goto(`${origin}/keys/${gone}`);
like(await page.locator('table.events').innerText(), /deleted[^]*created/, 'its history stays');

// --- a key's page -------------------------------------------------------------------------------------------------------

await page.goto(search('HubSpot Sync – Prod'));
await page.getByRole('link', { name: 'HubSpot Sync – Prod' }).click();
is(await page.locator('table.events tbody td:nth-child(2)').allInnerTexts(), ['updated', 'enabled', 'disabled', 'created'], "a key's page has its history");
like(await page.locator('.changes').first().innerText(), /^description: Copies .* → Copies .* touch it$/, 'with what was changed');
const drawing = page.getByRole('img', { name: /^Uses per day over the last 30 days: \d+ used, \d+ refused$/ });
is(await drawing.count(), 1, 'a chart tells its use in words too');
await page.getByText('As a table').click();
const uses = await page.locator('table.plain tbody td:nth-child(2)').allInnerTexts();
is([uses.length, await drawing.locator('rect.uses').count()], [30, uses.filter(Number).length], 'each day has its bar, and its row in a table');
const total = uses.reduce((sum, text) => sum + Number(text), 0);
like(await page.locator('.legend.uses').innerText(), new RegExp(`^Used: ${total.toLocaleString('en')}$`), 'and they add up');

// --- refusals of the database -------------------------------------------------------------------------------------------

await page.goto(`${origin}/keys`);
for (const [code, values, pattern] of [
  ['22023', { 'API key name': 'x', 'Expire date (optional)': '2020-01-01' }, /is in the past: 2020-01-01.*\n+.*revoke or disable it/],
  ['23514', { 'API key name': 'x', Scopes: 'Pay' }, /invalid scope of an API key: "Pay"\n+Use words of/i],
  ['23514', { 'API key name': ' ' }, /name of an API key is empty/i],
  ['22P02', { 'API key name': 'x', Addresses: '10.0.0.300' }, /10\.0\.0\.300/],
  ['22P02', { 'API key name': 'x', 'Rate limit': 'ten' }, /ten/]]) {
  dialog = await fill(page, values);
  await button(dialog, 'Create API Key').click();
  await refusal(dialog).waitFor();
  like(await refusal(dialog).innerText(), pattern, `${code} is told next to the form: ${Object.values(values).at(-1)}`);
  is([await refusal(dialog).getAttribute('role'), await dialog.getByLabel('API key name').inputValue()], ['alert', values['API key name']], 'as an alert, and the form stays');
  await button(dialog, 'Cancel').click();
}
await create(page, { 'API key name': 'Twice' });
await page.goto(search('Twice'));
const other = await page.context().newPage();
await other.goto(search('Twice'));
await button(other, 'Rotate Twice').click();
await button(other, 'Rotate key').click();
await other.getByText('API Key Rotated Successfully').waitFor();
await button(page, 'Rotate Twice').click();
dialog = page.locator('#rotate');
await button(dialog, 'Rotate key').click();
await refusal(dialog).waitFor();
like(await refusal(dialog).innerText(), /it was rotated already\n+Rotate its successor/, '55000 is told: two rotations');
await other.goto(search('Twice', '&status=grace'));
await button(other, 'Delete Twice').click();
await button(other, 'Delete key').click();
await other.getByText('No API key matches.').waitFor();
await button(dialog, 'Rotate key').click();
await dialog.getByText('does not exist').waitFor();
like(await refusal(dialog).innerText(), /API key ".*" does not exist\n+The key id is/, '42704 is told: a key that is gone');
await button(dialog, 'Cancel').click();
await page.getByRole('switch').click();
await page.locator('#say', { hasText: 'There is no such API key.' }).waitFor();
is(await page.getByRole('switch').getAttribute('aria-checked'), 'true', 'a toggle that fails stays');
await other.close();
is((await page.goto(`${origin}/keys?sort=digest`)).status(), 400, 'a sort that is none is refused');
like(await page.getByRole('alert').innerText(), /cannot sort by "digest"\n+Use name/i, 'with what the database says');
is((await page.goto(`${origin}/keys?after=nonsense`)).status(), 400, 'so is a cursor that is none');
is((await page.goto(`${origin}/nothing`)).status(), 404, 'and a page that is none');

// --- what a key may be called -------------------------------------------------------------------------------------------

const evil = `<script>pwned=1</script>"'><img src=x onerror="pwned=2">&amp;{{x}}`;
await page.goto(`${origin}/keys`);
await create(page, { 'API key name': evil, Description: evil });
is((await names(page))[0], evil, 'a name of markup is text in the list');
await button(page, `Delete ${evil}`).click();
is(await page.locator('#delete-note strong').innerText(), evil, 'in the confirmation');
await button(page.locator('#delete'), 'Cancel').click();
await page.getByRole('switch', { name: `Enabled: ${evil}` }).click();
await page.locator('#say', { hasText: evil }).waitFor();
await page.getByRole('link', { name: evil }).click();
await page.getByRole('heading', { name: 'History' }).waitFor();
is([await page.locator('h1').evaluate((e) => e.firstChild.textContent.trim()), await page.locator('.description').innerText()], [evil, evil], "on the key's page");
ok((await page.locator('.changes').last().innerText()).includes(evil), 'and in its history');
await page.goto(search(evil));
is(await page.getByRole('searchbox').inputValue(), evil, 'so is a search');
await page.goto(`${origin}/keys?sort=${encodeURIComponent(evil)}`);
await page.getByRole('alert').waitFor();
is([await page.evaluate(() => typeof pwned), await page.locator('main img, main script').count()], ['undefined', 0], 'and none of it runs');

// --- a search for a token -----------------------------------------------------------------------------------------------

// Sends a search from the list, and returns the addresses of all requests until its page is there.
async function paste(text) {
  await page.goto(`${origin}/keys`);
  const seen = [];
  const note = (request) => seen.push(request.url());
  page.on('request', note);
  await page.getByRole('searchbox').fill(text);
  const loaded = page.waitForEvent('load');
  await page.keyboard.press('Enter');
  await loaded;
  page.off('request', note);
  return [...seen, page.url()].map(decodeURIComponent).join(' ');
}

const pasted = await create(page, { 'API key name': 'Pasted' });
let addresses = await paste(` ${pasted} `);
is(await names(page), ['Pasted'], 'a pasted token finds its key');
ok(!addresses.includes(pasted.slice(-49, -10)), 'and stands in no address', addresses);
addresses = await paste(await row(page, 'Pasted').locator('code').innerText());
is(await names(page), ['Pasted'], 'so does its mask');
const imported = readFileSync(process.env.IMPORTED, 'utf8');
addresses = await paste(imported);
is(await names(page), ['Imported'], 'so does the token of an imported key');
like(await row(page, 'Imported').locator('code').innerText(), /^sk_live_\*{8}cdef$/, 'whose mask shows its start');
ok(!addresses.includes(imported.slice(8, -4)), 'which stands in no address', addresses);
const nobodys = 'sk_live_nobodyknowsthis';
addresses = await paste(nobodys);
is(await page.getByText('No API key matches.').count(), 1, 'what may be the token of another product finds nothing');
ok(!addresses.includes(nobodys), 'and stands in no address', addresses);
is(await page.getByRole('searchbox').inputValue(), nobodys, 'but in its field');
await page.goto(`${origin}/search`);
is(new URL(page.url()).pathname, '/keys', 'the address of a search leads to the list');

// --- people -------------------------------------------------------------------------------------------------------------

const ownersOf = (of) => of.locator('table.keys tbody .owner').evaluateAll((all) => all.map((e) => e.lastChild.textContent));
const ownerFilter = (of) => of.getByLabel('Owner', { exact: true }).and(of.locator('select'));
// Picks from a list over the keys, which loads them anew.
async function pick(on, label, option) {
  const loaded = on.waitForEvent('load');
  await on.getByLabel(label, { exact: true }).and(on.locator('select')).selectOption(option);
  await loaded;
}

await page.goto(`${origin}/keys`);
is(await ownerFilter(page).locator('option').allInnerTexts(), ['All owners', 'ann@acme', 'bob@acme', 'ci@acme', 'No owner'], 'a manager can choose from the owners');
await pick(page, 'Owner', 'bob@acme');
let seen = await ownersOf(page);
is([seen.length, new Set(seen)], [25, new Set(['bob@acme'])], 'and sees the keys of one');
await page.getByRole('link', { name: 'Next' }).click();
await page.getByRole('link', { name: 'Previous' }).waitFor();
seen = await ownersOf(page);
is([seen.length, new Set(seen), await ownerFilter(page).inputValue()], [await rows(page).count(), new Set(['bob@acme']), '=bob@acme'], 'on the next page too');
const [bobs] = await rows(page).evaluateAll((all) => all.map((tr) => tr.dataset.key));
await pick(page, 'Owner', 'No owner');
is([await rows(page).count(), await ownersOf(page)], [25, []], 'or the keys of nobody');
await page.goto(`${origin}/keys/${bobs}`);
await page.locator('.facts').getByRole('link', { name: 'bob@acme' }).click();
await page.waitForURL(/owner=/);
is(new Set(await ownersOf(page)), new Set(['bob@acme']), 'the owner of a key leads to its other keys');
await page.goto(search('HubSpot Sync – Prod'));
await page.getByRole('link', { name: 'HubSpot Sync – Prod' }).click();
is(await page.locator('table.events tbody td:nth-child(3)').allInnerTexts(), ['bob@acme', 'bob@acme', 'bob@acme', 'ann@acme'], 'the history tells who did it');
const factOf = (on, term) => on.locator('.facts div').filter({ has: on.getByText(term, { exact: true }) }).locator('dd').innerText();
like(`${await factOf(page, 'Created')} ${await factOf(page, 'Last updated')}`, /by ann@acme [^]*by bob@acme$/, 'and so do the facts');

const nobody = `o'neil <script>pwned=4</script>"@acme`;
await page.goto(`${origin}/keys`);
await create(page, { 'API key name': 'For somebody', 'Owner': nobody });
is((await ownersOf(page))[0], nobody, 'a manager makes a key for somebody, whose name is text');
ok((await ownerFilter(page).locator('option').allInnerTexts()).includes(nobody), 'among the owners too');
await page.getByRole('link', { name: 'For somebody' }).click();
await button(page, 'Change owner of For somebody').focus();
await page.keyboard.press('Enter');
is(await page.getByRole('dialog', { name: 'Change owner' }).getByLabel('Owner of For somebody').inputValue(), nobody, 'the dialog for the owner opens by keyboard and has its name');
const newOwner = page.getByRole('combobox', { name: 'Owner of For somebody' });
await newOwner.fill('bob@acme');
await page.keyboard.press('Enter');
await page.locator('#say', { hasText: 'The owner of For somebody was changed.' }).waitFor();
is(await factOf(page, 'Owner'), 'bob@acme', 'a manager gives a key to somebody else');
like(await page.locator('.changes').first().innerText(), /^owner: o'neil .* → bob@acme$/, 'which the history tells');
await button(page, 'Change owner of For somebody').click();
await newOwner.evaluate((e) => e.removeAttribute('maxlength'));
await newOwner.fill('x'.repeat(201));
await page.keyboard.press('Enter');
await refusal(page.locator('#transfer')).waitFor();
like(await refusal(page.locator('#transfer')).innerText(), /owner/i, 'a refusal is told in the dialog');
await page.goto(`${origin}/keys?status=expiring&sort=name`);
is(await page.locator('table.keys .badge.soon').count(), await rows(page).count(), 'keys that expire soon say so');
const soonest = (await page.locator('table.keys .badge.soon').allInnerTexts()).map((text) => Date.parse(text.replace('expires soon: ', '')));
ok(soonest.length > 1 && soonest.every((at, i) => at >= Date.now() - 864e5 && at < Date.now() + 30 * 864e5 && (i === 0 || at >= soonest[i - 1])),
  'within 30 days, the soonest first', soonest);
like(await page.locator('.pages').innerText(), new RegExp(`^${soonest.length} keys ·`), 'with their number');

// --- a member -----------------------------------------------------------------------------------------------------------

const member = await newPage();
await signIn(member, 'bob@acme');
like(await member.title(), /^My API keys/, 'a member sees my keys');
is([await member.locator('.tabs').innerText(), await ownerFilter(member).count(), await member.locator('.owner').count()], ['My API keys', 0, 0], 'without a word of owners');
like(await member.locator('.pages').innerText(), /^\d\d keys ·/, 'and how many they are');
await member.goto(search('For somebody'));
is(await names(member), ['For somebody'], 'the key that it was given is among them');
await member.goto(`${origin}/keys`);
await button(member, 'Create API Key').click();
await member.locator('#create').getByText('More').click();
is(await member.getByLabel('Owner').count(), 0, 'it chooses no owner');
await button(member.locator('#create'), 'Cancel').click();
const own = await create(member, { 'API key name': "Bob's script" });
const ownId = own.split('_')[2];
await row(member, "Bob's script").getByRole('link').click();
is(await member.locator('table.events tbody td:nth-child(3)').allInnerTexts(), ['bob@acme'], 'and makes a key');
await page.goto(`${origin}/keys/${ownId}`);
is(await factOf(page, 'Owner'), 'bob@acme', 'which is its own');

await page.goto(`${origin}/keys?owner=${encodeURIComponent('=ann@acme')}`);
const anns = await rows(page).first().getAttribute('data-key');
is((await member.goto(`${origin}/keys/${anns}`)).status(), 404, "another person's key is no key");
for (const query of ['owner=%3Dann%40acme', 'owner=none', `search=${anns}`]) {
  await member.goto(`${origin}/keys?${query}`);
  is(await rows(member).count(), 0, `nor is it found: ${query}`);
}
const membersCookie = `session=${(await member.context().cookies())[0].value}`;
const membersCsrf = await member.locator('meta[name=csrf]').getAttribute('content');
const asMember = (path, body) => ask('POST', path, { Origin: origin, Cookie: membersCookie, 'X-CSRF-Token': membersCsrf, 'Content-Type': 'application/json' }, body)
  .then(({ status }) => status);
for (const [action, body, status] of [['enabled', '{"enabled":false}', 404], ['rotate', '{"grace":"0"}', 404], ['revoke', '{}', 404],
  ['owner', '{"owner":"bob@acme"}', 403], ['delete', '{}', 403]]) {
  is(await asMember(`/keys/${anns}/${action}`, body), status, `nor changed: ${action}`);
}
is(await asMember(`/keys/${ownId}/delete`, '{}'), 403, 'a member deletes no key, not its own either');
is(await asMember(`/keys/${ownId}/owner`, '{"owner":"ann@acme"}'), 403, 'nor gives it away');
is(await asMember('/keys', '{"name":"forged","owner":"ann@acme"}'), 403, 'nor makes one for another person');
await page.goto(`${origin}/keys/${anns}`);
is(await page.locator('table.events tbody tr').count(), 1, 'nothing of it has happened to the key');
await member.goto(`${origin}/keys`);
await button(member, "Revoke Bob's script").click();
await button(member.locator('#delete'), 'Revoke key').click();
await member.locator('#say', { hasText: "Bob's script was revoked." }).waitFor();
is(await row(member, "Bob's script").locator('.badge').innerText(), 'Revoked', 'but it revokes its own');
await signIn(member, 'zoë <script>');
is([await rows(member).count(), await member.getByText('No API keys yet.').count()], [0, 1], 'a member without keys sees none');
await create(member, { 'API key name': 'Strange' });
await member.getByRole('link', { name: 'Strange' }).click();
is([await member.locator('.tenant').evaluate((e) => e.lastChild.textContent), await member.locator('table.events tbody td:nth-child(3)').innerText(), await member.evaluate(() => typeof pwned)],
  [`zoë <script>pwned=3</script>"'@acme`, `zoë <script>pwned=3</script>"'@acme`, 'undefined'], 'whatever it is called, its name is text');
await member.context().close();

// --- limits -------------------------------------------------------------------------------------------------------------

const limitRows = (on) => on.locator('table.limits tbody tr');
const cells = (on) => limitRows(on).evaluateAll((all) => all.map((tr) => [...tr.children].map((cell) => cell.innerText.replace(/\s+/g, ' ').trim())));
await page.goto(search('HubSpot Sync – Prod'));
await page.getByRole('link', { name: 'HubSpot Sync – Prod' }).click();
await page.getByRole('heading', { name: 'Limits' }).waitFor();
is((await cells(page)).map(([name, whose, units]) => [name, whose, units]), [['Rate limit', 'This key', '600 in 1 minute'], ['monthly', 'All keys', '100,000 a month'],
  ['per_minute', 'All keys', '1,000 in 1 minute'], ['exports Only for requests that name it', 'All keys', '10 in 1 hour']], 'a key has its limits, its own one first');
const [own600, monthly, , exports10] = (await cells(page)).map((cell) => cell[3]);
like(monthly, /^18,766 of 100,000 left, resets on 1 [A-Z][a-z]+$/, 'a quota says what remains, and until when');
is([own600, exports10], ['600 of 600 left', '10 of 10 left'], 'a rate limit says what remains');
is(Number(await limitRows(page).nth(1).locator('.level rect').last().getAttribute('width')), 18.77, 'the bar is as long as that');
const hubspot = new URL(page.url()).pathname;
const managersCookie = `session=${(await page.context().cookies())[0].value}`;
const answer = await ask('GET', `${hubspot}/limits`, { Cookie: managersCookie });
is([answer.status, answer.headers['content-type'], JSON.parse(answer.text).map(({ name, units, remaining, always }) => [name, units, remaining, always])],
  [200, 'application/json; charset=utf-8', [['rate_limit', 600, 600, true], ['monthly', 100000, 18766, true], ['per_minute', 1000, 1000, true], ['exports', 10, 10, false]]],
  'a program gets them as JSON');
like(JSON.parse(answer.text)[1].resets_at, /^20\d\d-\d\d-01T00:00:00\.000Z$/, 'with the time');
is((await ask('GET', '/keys/000000000000/limits', { Cookie: managersCookie })).status, 404, 'but not of a key that is not there');
is((await ask('GET', `${hubspot}/limits`)).status, 302, 'nor if it is not signed in');
await page.goto(`${origin}/keys?search=HubSpot+Sync+%E2%80%93+Dev`);
await page.getByRole('link', { name: 'HubSpot Sync – Dev' }).click();
await page.getByRole('heading', { name: 'Limits' }).waitFor();
is((await cells(page)).find(([name]) => name === 'dev').slice(0, 3), ['dev', 'All keys in dev', '1,000 a month'], 'a limit of an environment binds the keys there');
const visitor = await newPage();
await signIn(visitor, 'eve@globex');
is((await ask('GET', `${hubspot}/limits`, { Cookie: `session=${(await visitor.context().cookies())[0].value}` })).status, 404, "another tenant's key has none");
await rows(visitor).first().getByRole('link').first().click();
await visitor.getByRole('heading', { name: 'History' }).waitFor();
is([await visitor.getByRole('heading', { name: 'Limits' }).count(), await factOf(visitor, 'Rate limit')], [0, 'None'], 'where nothing is limited, nothing is said');
await signIn(visitor, 'bob@acme');
await rows(visitor).first().getByRole('link').first().click();
await visitor.getByRole('heading', { name: 'Limits' }).waitFor();
ok((await cells(visitor)).some(([name, , , left]) => name === 'monthly' && /^18,766 of 100,000 left/.test(left)), 'a member sees what binds its key', await cells(visitor));
await visitor.context().close();

// --- policies -----------------------------------------------------------------------------------------------------------

const eve = await newPage();
await signIn(eve, 'eve@globex');
await button(eve, 'Create API Key').click();
const form = eve.locator('#create');
const far = (days) => new Date(Date.now() + days * 864e5).toISOString().slice(0, 10);
const expires = eve.getByLabel('Expire date'), left1 = Number((await eve.locator('[data-left]').innerText()).match(/^(\d+) of 120 keys left$/)?.[1]);
ok(left1 > 0, 'the form tells how many keys are left', left1);
ok([far(90), far(89)].includes(await expires.getAttribute('max')), 'until when a key may live', await expires.getAttribute('max'));
like(await expires.evaluate((e) => document.getElementById(e.getAttribute('aria-describedby')).innerText), /At the latest \d+ \w+ 20\d\d\.$/, 'in words too');
is([await expires.evaluate((e) => e.required), await eve.getByLabel('Addresses').evaluate((e) => e.required), await eve.getByLabel('Owner').and(eve.locator('#new-owner')).evaluate((e) => e.required)],
  [true, true, false], 'what it must have');
is(await form.getByRole('group', { name: 'Scopes' }).getByRole('checkbox').evaluateAll((all) => all.map((e) => e.labels[0].innerText.trim())),
  ['billing:read', 'contacts:read', 'contacts:write', 'orders:read'], 'and the scopes to pick from, by name');
is(await eve.locator('#scopes').isVisible(), false, 'of which none has to be typed');
const order = [];
for (let n = 0; n < 30 && order.at(-1) !== 'Create API Key'; n++) {
  const at = await eve.evaluate(() => ((e) => e.id || e.value || e.textContent.trim())(document.activeElement));
  if (at !== order.at(-1)) order.push(at);
  await eve.keyboard.press('Tab');
}
is(order, ['name', 'description', 'expires', 'More', 'environment', 'limit', 'window', 'new-owner', 'billing:read', 'contacts:read', 'contacts:write', 'orders:read', 'addresses', 'Cancel', 'Create API Key'],
  'the keyboard passes all of it in the order of the form');
await eve.getByLabel('API key name').fill('Within the policy');
await button(form, 'Create API Key').click();
is(await focused(eve), 'expires', 'the browser asks for what is missing');
await expires.fill(far(120));
await eve.getByLabel('Addresses').fill('192.0.2.0/24');
await form.getByLabel('contacts:read').focus();
await eve.keyboard.press('Space');
await form.getByLabel('orders:read').check();
await button(form, 'Create API Key').click();
is([await form.evaluate((e) => e.open), await focused(eve)], [true, 'expires'], 'and for an earlier end');
await expires.evaluate((e) => e.removeAttribute('max'));
await button(form, 'Create API Key').click();
await refusal(form).waitFor();
like(await refusal(form).innerText(), /expires_at|max_lifetime/, 'who gets past the browser is refused by the database');
await expires.fill(far(30));
await button(form, 'Create API Key').click();
await eve.getByText('API Key Created Successfully').waitFor();
await done(eve);
await eve.getByRole('link', { name: 'Within the policy' }).click();
is(await eve.locator('.facts .chip').allInnerTexts(), ['contacts:read', 'orders:read', '192.0.2.0/24'], 'a key within the policy is made, with the scopes that were picked');
await eve.goto(`${origin}/keys`);
is(await eve.locator('[data-left]').textContent(), '', 'the form is filled when it opens');
await button(eve, 'Create API Key').click();
is(await eve.locator('[data-left]').innerText(), `${left1 - 1} of 120 keys left`, 'and one key less is left');
await eve.context().close();

await page.goto(`${origin}/keys`);
await button(page, 'Create API Key').click();
const dialogBox = page.locator('#create'), environment = page.getByLabel('Environment');
const demands = async () => [await page.locator('#expires').evaluate((e) => e.required), await page.locator('#new-owner').evaluate((e) => e.required),
  await dialogBox.getByRole('checkbox').evaluateAll((all) => all.map((e) => e.value)), await page.locator('#scopes').isVisible()];
like(await page.locator('[data-left]').innerText(), /^\d+ of 300 keys left$/, "another tenant has its own policy");
await dialogBox.getByText('More').click();
is(await demands(), [false, false, [], true], 'which demands nothing');
await environment.fill('dev');
is(await demands(), [true, true, ['billing:read', 'contacts:*', 'search:read'], true], 'but of an environment it does: scopes can be typed too where one stands for many');
is([await page.locator('#scopes').evaluate((e) => e.labels[0].innerText), (await page.locator('[data-left]').innerText()).replace(/^\d+/, 'n')], ['Other scopes', 'n of 100 keys left'], 'and the strictest policy counts');
await page.getByLabel('API key name').fill('For tests');
await page.locator('#expires').fill(far(20));
await page.locator('#new-owner').fill('ann@acme');
await dialogBox.getByLabel('billing:read').check();
await page.locator('#scopes').fill('contacts:write');
await button(dialogBox, 'Create API Key').click();
await page.getByText('API Key Created Successfully').waitFor();
await done(page);
await page.getByRole('link', { name: 'For tests' }).click();
is(await page.locator('.facts .chip').allInnerTexts(), ['billing:read', 'contacts:write'], 'picked and typed scopes come together');
await page.goto(`${origin}/keys`);
await button(page, 'Create API Key').click();
await dialogBox.getByText('More').click();
await environment.fill('dev');
await environment.fill('');
is(await demands(), [false, false, [], true], 'and without that environment all is as before');
await button(dialogBox, 'Cancel').click();
const bob = await newPage();
await signIn(bob, 'bob@acme');
await button(bob, 'Create API Key').click();
await bob.locator('#create').getByText('More').click();
await bob.getByLabel('Environment').fill('dev');
is([await bob.locator('#expires').evaluate((e) => e.required), await bob.getByRole('checkbox').count(), await bob.locator('[data-left]').textContent()], [true, 3, ''],
  "a member is told of the policy too, but not of how many keys others have");
await bob.context().close();

// --- a key that is used after its end -----------------------------------------------------------------------------------

await page.goto(search('HubSpot Sync – US'));
const used = far(-2).slice(8).replace(/^0/, '');
like(await row(page, 'HubSpot Sync – US').innerText(), new RegExp(`still used on ${used} `), 'the list warns of a key that somebody still used after its end');
is(await page.locator('.badge.late').count(), 1, 'and of no other');
await page.getByRole('link', { name: 'HubSpot Sync – US' }).click();
like(await page.getByRole('alert').innerText(), new RegExp(`^A request still used this key on ${used} \\w+ 20\\d\\d after it had ended\\.\n+Find out`), 'so does its page');
like(await page.locator('table.events tbody tr').first().innerText(), /used after end[^]*day: 20\d\d-\d\d-\d\d$/, 'and its history tells the day');

// --- requests that are not ours -----------------------------------------------------------------------------------------

await page.goto(search('Left open', '&status=active'));
const target = await rows(page).getAttribute('data-key');
const csrf = await page.locator('meta[name=csrf]').getAttribute('content');
const stranger = await newPage();
await signIn(stranger, 'eve@globex');
const theirs = { cookie: `session=${(await stranger.context().cookies())[0].value}`, csrf: await stranger.locator('meta[name=csrf]').getAttribute('content') };
const right = { Origin: origin, Cookie: `session=${cookie.value}`, 'X-CSRF-Token': csrf, 'Content-Type': 'application/json' };
const without = (name) => Object.fromEntries(Object.entries(right).filter(([header]) => header !== name));
const off = (headers) => ask('POST', `/keys/${target}/enabled`, headers, '{"enabled":false}').then(({ status }) => status);
is(await off(without('X-CSRF-Token')), 403, 'a change without the token is refused');
is(await off({ ...right, 'X-CSRF-Token': theirs.csrf }), 403, "with another session's token");
is(await off(without('Origin')), 403, 'without an Origin');
is(await off({ ...right, Origin: 'https://evil.example' }), 403, 'from another Origin');
is(await off({ ...right, Origin: 'null' }), 403, 'from a frame that hides its Origin');
is(await off({ ...right, Host: 'evil.example' }), 421, 'under another Host');
is(await off(without('Cookie')), 401, 'without the session');
is(await off({ ...right, 'Content-Type': 'text/plain' }), 415, 'as a form of another site can send it');
for (const body of ['null', '1', '"text"', '']) {
  is((await ask('POST', `/keys/${target}/enabled`, right, body)).status, 400, `nor with the body ${body || 'of no length'}`);
  is((await ask('POST', '/keys', right, body)).status, 400, 'neither does such a body make a key');
}
is((await ask('POST', `/keys/${target}/enabled`, without('Content-Type'))).status, 400, 'nor without a body');
is((await ask('POST', '/keys', right, '{"name":"a\\u0000b"}')).status, 400, 'nor with a character that is none');
is((await ask('GET', '/keys?search=%00', { Cookie: right.Cookie })).status, 400, 'a search for such a character is refused');
is((await ask('GET', '/keys/%00', { Cookie: right.Cookie })).status, 400, 'and a key of such a name');
await page.reload();
is(await page.getByRole('switch').getAttribute('aria-checked'), 'true', 'none of them changed the key');
is(await off(right), 200, 'with all of it the change is made');
is((await ask('POST', '/sign-in', { Origin: 'https://evil.example', 'Content-Type': 'application/x-www-form-urlencoded' }, 'user=ann@acme')).status, 403, 'nobody is signed in from another site');

const neighbour = { ...right, Cookie: theirs.cookie, 'X-CSRF-Token': theirs.csrf };
is((await ask('GET', `/keys/${target}`, { Cookie: theirs.cookie })).status, 404, "the neighbour's key is no key");
for (const [action, body] of [['enabled', '{"enabled":true}'], ['rotate', '{"grace":"0"}'], ['owner', '{"owner":"eve@globex"}'], ['delete', '{}']]) {
  is((await ask('POST', `/keys/${target}/${action}`, neighbour, body)).status, 404, `nor can it be changed: ${action}`);
}
await stranger.goto(search('Left open'));
is(await rows(stranger).count(), 0, 'nor found');

for (const path of ['/sign-in', '/keys', `/keys/${target}`, '/nothing', '/console.js']) {
  const { headers } = await ask('GET', path, { Cookie: right.Cookie });
  const policy = headers['content-security-policy'] ?? '';
  ok(/default-src 'none'/.test(policy) && /frame-ancestors 'none'/.test(policy) && !/unsafe-|\*|data:/.test(policy), `${path} has a strict Content-Security-Policy`, policy);
}
is((await ask('GET', '/keys', { Cookie: right.Cookie })).headers['cache-control'], 'no-store', 'pages are not stored');

// --- for everybody ------------------------------------------------------------------------------------------------------

await page.goto(`${origin}/keys`);
await page.keyboard.press('Tab');
is(await focused(page), 'Skip to content', 'the first Tab leads past the navigation');
await page.keyboard.press('Enter');
is(await focused(page), 'main', 'into the content');

// the colours do not depend on the width
for (const [colorScheme, width] of [['light', 1440], ['dark', 360]]) {
  const eye = await newPage({ colorScheme, viewport: { width, height: 800 } });
  await eye.addInitScript({ path: axe });
  const look = async (screen) => {
    const violations = await eye.evaluate(async () => (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) => `${n.target} ${n.any[0]?.message ?? ''}`).slice(0, 3)]));
    is(violations, [], `${screen}, ${colorScheme}, ${width} px: axe finds nothing`);
    ok(await eye.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${screen}, ${colorScheme}, ${width} px: fits`);
  };
  await eye.goto(`${origin}/sign-in`);
  await look('sign-in');
  await signIn(eye, 'ann@acme');
  await look('list');
  await fill(eye, { 'API key name': `Seen by axe, ${colorScheme} ${width}`, Scopes: 'Wrong' });
  await button(eye.locator('#create'), 'Create API Key').click();
  await refusal(eye.locator('#create')).waitFor();
  await look('create');
  await eye.getByLabel('Scopes').fill('');
  await button(eye.locator('#create'), 'Create API Key').click();
  await eye.getByText('API Key Created Successfully').waitFor();
  await look('created');
  await done(eye);
  await button(eye, `Delete Seen by axe, ${colorScheme} ${width}`).click();
  await look('delete');
  await eye.goto(search('HubSpot Sync – Prod'));
  await eye.getByRole('link', { name: 'HubSpot Sync – Prod' }).click();
  await eye.getByRole('heading', { name: 'History' }).waitFor();
  await eye.getByText('As a table').click();
  await look('key');
  await button(eye, 'Change owner of HubSpot Sync – Prod').click();
  await look('owner');
  await eye.goto(`${origin}/keys?status=expiring`);
  await look('expiring soon');
  await eye.goto(`${origin}/keys?sort=status`);
  await look('list by status');
  await signIn(eye, 'bob@acme');
  await look('my keys');
  await button(eye, 'Create API Key').click();
  await look('create my key');
  await signIn(eye, 'eve@globex');
  await button(eye, 'Create API Key').click();
  await look('create within a policy');
  await signIn(eye, 'ann@acme');
  await eye.goto(search('HubSpot Sync – US'));
  await look('used after its end');
  await eye.getByRole('link', { name: 'HubSpot Sync – US' }).click();
  await look('a key used after its end');
  await eye.context().close();
}

await button(page, 'Sign out').click();
await page.waitForURL('**/sign-in');
is((await ask('GET', '/keys', { Cookie: right.Cookie })).status, 302, 'after the sign-out the cookie opens nothing');
is(complaints, [], "the browser complained of nothing, the policy's violations included");

await browser.close();
server.kill();
console.log('done');
