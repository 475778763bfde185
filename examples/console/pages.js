// examples/console/pages.js: the pages. html`…` escapes what is put into it, unless it came from html`…` itself, so that a key may be
// called what it likes.
'use strict';

class Markup {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
}

const ESCAPES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

function render(value) {
  if (value instanceof Markup) return value.text;
  if (Array.isArray(value)) return value.map(render).join('');
  if (value === undefined || value === null || value === false) return '';
  return String(value).replace(/[&<>"']/g, (character) => ESCAPES[character]);
}

const html = (strings, ...values) =>
  new Markup(strings.reduce((text, string, i) => text + render(values[i - 1]) + string));

// --- parts --------------------------------------------------------------------------------------------------------------

const icon = (path) => html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true"><path d="${path}"/></svg>`;
const ICONS = {
  key: icon('M12.5 2.5a5 5 0 0 0-4.8 6.4L2.5 14v3.5H6V15h2v-2h2l1.1-1.2A5 5 0 1 0 12.5 2.5zM13.8 6.2h.01'),
  plus: icon('M10 4v12M4 10h12'),
  search: icon('M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11zM13 13l4 4'),
  rotate: icon('M16 6.5A7 7 0 0 0 3.6 7.5M3.5 3.5v4h4M4 13.5a7 7 0 0 0 12.4-1M16.5 16.5v-4h-4'),
  person: icon('M10 3.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM4 16.5a6 6 0 0 1 12 0'),
  trash: icon('M3.5 5.5h13M8 5.5V3.5h4v2M5.5 5.5l.7 11h7.6l.7-11M8.5 8.5v5M11.5 8.5v5'),
  copy: icon('M7 7h9.5v9.5H7zM4.5 13H3.5V3.5H13v1'),
  download: icon('M10 3v10M6 9.5l4 4 4-4M3.5 16.5h13'),
  close: icon('M5 5l10 10M15 5L5 15'),
  done: icon('M4 10.5l4 4 8-9'),
  warning: icon('M10 3l8 13.5H2zM10 8v4M10 14.3h.01'),
};

const STATUS = { active: 'Active', grace: 'Grace', rotated: 'Rotated', disabled: 'Disabled', expired: 'Expired', revoked: 'Revoked' };
const badge = (status) => html`<span class="badge ${status}" data-status>${STATUS[status] ?? status}</span>`;

const day = (date) => date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short', year: 'numeric', timeZone: 'UTC' });
const minute = (date) => date.toISOString().slice(11, 16);
const time = (date, none = 'Never') => (date
  ? html`<time datetime="${date.toISOString()}">${day(date)} <span class="minor">${minute(date)}</span></time>`
  : html`<span class="minor">${none}</span>`);

// An address with the parameters that are set; a list is a parameter that comes several times.
function link(path, query) {
  const pairs = Object.entries(query).flatMap(([name, value]) => (Array.isArray(value) ? value.map((one) => [name, one])
    : value === undefined || value === '' ? [] : [[name, value]]));
  return pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path;
}

const alert = ({ message, hint }) => html`
  <div class="alert" role="alert">${ICONS.warning}<div><p><strong>${message}</strong></p>${hint && html`<p>${hint}</p>`}</div></div>`;

// --- the frame ----------------------------------------------------------------------------------------------------------

const document = ({ title, session, body }) => html`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
${session && html`<meta name="csrf" content="${session.csrf}">`}
<title>${title}</title>
<link rel="icon" href="/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/console.css">
<script src="/console.js" defer></script>
</head>
<body>
${body}
</body>
</html>
`;

const frame = ({ title, session, main }) => document({ title: `${title} · Console`, session, body: html`
<a class="skip" href="#main">Skip to content</a>
<header class="bar">
  <a class="brand" href="/keys">${ICONS.key}<span>Console</span></a>
  <form class="who" method="post" action="/sign-out">
    <input type="hidden" name="csrf" value="${session.csrf}">
    <span class="tenant"><span class="visually-hidden">Signed in as </span>${session.user}</span>
    <button class="quiet">Sign out</button>
  </form>
</header>
<div class="frame">
  <nav class="side" aria-label="Main">
    <p class="group" id="group">Widgets &amp; Integration</p>
    <ul aria-labelledby="group"><li><a href="/keys" aria-current="true">API &amp; Webhook Integration</a></li></ul>
  </nav>
  <main id="main" tabindex="-1">${main}</main>
</div>
<p id="say" class="toast" role="status" aria-live="polite"></p>` });

const keysOf = ({ member }) => (member ? 'My API keys' : 'API Keys');

const heading = (session) => html`
<h1>API &amp; Webhook Integration</h1>
<nav class="tabs" aria-label="API &amp; Webhook Integration"><a href="/keys" aria-current="page">${keysOf(session)}</a></nav>`;

const signIn = ({ people }) => document({ title: 'Sign in · Console', body: html`
<main class="door">
  <div class="card">
    <p class="brand">${ICONS.key}<span>Console</span></p>
    <h1>Sign in</h1>
    <p class="minor">This sign-in is made up: choose who you are. A product brings its own.</p>
    <form method="post" action="/sign-in">
      <fieldset><legend>Person</legend>
        ${people.map(({ user, tenant, member }, i) => html`<label class="choice"><input type="radio" name="user" value="${user}" ${i === 0 && html`checked`} required>
          <span>${user} <span class="minor">${member ? 'only its own keys' : `all keys of ${tenant}`}</span></span></label>`)}
      </fieldset>
      <button class="primary wide">Sign in</button>
    </form>
  </div>
</main>` });

const failure = ({ session, message, hint }) => {
  const main = html`${alert({ message, hint })}<p><a href="/keys">Go to the API keys</a></p>`;
  return session ? frame({ title: 'Not done', session, main: html`${heading(session)}${main}` })
    : document({ title: 'Not done · Console', body: html`<main class="door"><div class="card"><h1>Console</h1>${main}</div></main>` });
};

// --- dialogs ------------------------------------------------------------------------------------------------------------

const top = (id, title) => html`
  <header><h2 id="${id}-title">${title}</h2>
    <button type="button" class="square" data-close aria-label="Close">${ICONS.close}</button></header>`;
const refusal = html`<div class="alert" role="alert" data-error hidden>${ICONS.warning}<div><p><strong></strong></p><p></p></div></div>`;

const ownersList = (owners) => html`<datalist id="owners">${owners.map((owner) => html`<option value="${owner}">`)}</datalist>`;

// console.js shows what the policies of the chosen environment demand.
const createDialog = ({ member }, policies, environment) => html`
<dialog id="create" aria-labelledby="create-title" data-policies="${JSON.stringify(policies)}" data-environment="${environment}">
  <form method="dialog" data-action="/keys" autocomplete="off">
    ${top('create', 'Create API Key')}
    <div class="body">
      <p class="minor" role="status" data-left></p>
      <p class="field"><label for="name">API key name</label>
        <input id="name" name="name" required maxlength="200" autofocus placeholder="HubSpot Sync – Prod"></p>
      <p class="field"><label for="description">Description <span class="minor">(optional)</span></label>
        <textarea id="description" name="description" rows="2" maxlength="2000" placeholder="What uses this key, and who answers for it"></textarea></p>
      <p class="field"><label for="expires">Expire date <span class="minor" data-optional>(optional)</span></label>
        <input id="expires" name="expires" type="date" aria-describedby="expires-help">
        <span class="help" id="expires-help">The key stops working when this day begins (UTC). <span data-latest></span></span></p>
      <details><summary>More</summary>
        <div class="two">
          <p class="field"><label for="environment">Environment</label>
            <input id="environment" name="environment" list="environments" placeholder="prod" spellcheck="false" autocapitalize="none">
            <datalist id="environments"><option>prod<option>stage<option>dev</datalist></p>
          <p class="field"><label for="limit">Rate limit</label>
            <span class="join"><input id="limit" name="limit" inputmode="numeric" placeholder="No limit">
              <label class="visually-hidden" for="window">Rate limit is per</label>
              <select id="window" name="window"><option value="1 second">a second<option value="1 minute" selected>a minute<option value="1 hour">an hour<option value="1 day">a day</select></span></p>
        </div>
        ${!member && html`<p class="field"><label for="new-owner">Owner</label>
          <input id="new-owner" name="owner" list="owners" maxlength="200" spellcheck="false" autocapitalize="none" aria-describedby="new-owner-help">
          <span class="help" id="new-owner-help">The person who may manage the key too. <span data-optional>Empty: only managers.</span></span></p>`}
        <fieldset class="field" data-picks hidden><legend>Scopes</legend><div></div></fieldset>
        <p class="field" data-words><label for="scopes">Scopes</label>
          <input id="scopes" name="scopes" placeholder="contacts:read contacts:write" spellcheck="false" autocapitalize="none" aria-describedby="scopes-help">
          <span class="help" id="scopes-help">What the key may do; blanks or commas between them.</span></p>
        <p class="field"><label for="addresses">Addresses</label>
          <input id="addresses" name="addresses" placeholder="203.0.113.0/24 2001:db8::/32" spellcheck="false" autocapitalize="none" aria-describedby="addresses-help">
          <span class="help" id="addresses-help">Networks that may use the key. <span data-optional>Empty: any.</span></span></p>
      </details>
      ${refusal}
    </div>
    <footer><button type="button" data-close>Cancel</button><button class="primary" data-submit>Create API Key</button></footer>
  </form>
</dialog>`;

const secretDialog = html`
<dialog id="secret" aria-labelledby="secret-title" aria-describedby="secret-note">
  <form method="dialog">
    <header><h2 id="secret-title" tabindex="-1"><span class="tick">${ICONS.done}</span><span data-title>API Key Created Successfully</span></h2></header>
    <div class="body">
      <p id="secret-note">Copy or download the secret of <strong data-name></strong> now. It is shown this once, and nobody can get it back.</p>
      <p class="field"><label for="token">Secret key</label>
        <textarea id="token" class="token" rows="2" readonly spellcheck="false"></textarea></p>
      <div class="buttons">
        <button type="button" class="primary" data-copy>${ICONS.copy}Copy Secret Key</button>
        <button type="button" data-download>${ICONS.download}Download Key</button>
      </div>
      <p class="told minor" role="status" data-told></p>
    </div>
    <footer><button type="button" data-done>Done</button></footer>
  </form>
</dialog>`;

const rotateDialog = html`
<dialog id="rotate" aria-labelledby="rotate-title">
  <form method="dialog">
    ${top('rotate', 'Rotate API key')}
    <div class="body">
      <p><strong data-name></strong> gets a successor with the same settings and a new secret.</p>
      <p class="field"><label for="grace">The old key keeps working for</label>
        <select id="grace" name="grace"><option value="0">No time: it ends at once<option value="1 hour">1 hour<option value="24 hours" selected>24 hours<option value="7 days">7 days<option value="30 days">30 days</select></p>
      ${refusal}
    </div>
    <footer><button type="button" data-close>Cancel</button><button class="primary" data-submit>Rotate key</button></footer>
  </form>
</dialog>`;

const transferDialog = html`
<dialog id="transfer" aria-labelledby="transfer-title">
  <form method="dialog">
    ${top('transfer', 'Change owner')}
    <div class="body">
      <p class="field"><label for="transfer-owner">Owner of <span data-name></span></label>
        <input id="transfer-owner" name="owner" list="owners" maxlength="200" placeholder="The tenant" spellcheck="false" autocapitalize="none" aria-describedby="transfer-help">
        <span class="help" id="transfer-help">The person who may manage the key too. Empty: only managers.</span></p>
      ${refusal}
    </div>
    <footer><button type="button" data-close>Cancel</button><button class="primary" data-submit>Change owner</button></footer>
  </form>
</dialog>`;

// A member ends its key by a revocation.
const deleteDialog = ({ member }) => html`
<dialog id="delete" role="alertdialog" aria-labelledby="delete-title" aria-describedby="delete-note">
  <form method="dialog" data-action="${member ? 'revoke' : 'delete'}">
    ${top('delete', member ? 'Revoke API key?' : 'Delete API key?')}
    <div class="body">
      <p id="delete-note"><strong data-name></strong> (<code data-masked></code>) stops working at once. This cannot be undone. Its history stays.</p>
      ${refusal}
    </div>
    <footer><button type="button" data-close autofocus>Cancel</button><button class="danger" data-submit>${member ? 'Revoke' : 'Delete'} key</button></footer>
  </form>
</dialog>`;

// --- the list -----------------------------------------------------------------------------------------------------------

const COLUMNS = [['name', 'Name'], ['key_id', 'API key'], ['last_used_at', 'Last used'], ['created_at', 'Created on'], ['updated_at', 'Last updated on']];

// When a key ends or has ended, by its status; nothing for one that lives for ever.
function end({ status, expires_at: expires, grace_until: grace, revoked_at: revoked, expiring, late }) {
  const at = { revoked, rotated: grace, grace }[status] ?? expires;
  const word = { revoked: 'since', rotated: 'since', expired: 'since', grace: 'ends' }[status] ?? 'expires';
  return at && html` <span class="${expiring ? 'badge soon' : 'minor'}">${expiring ? 'expires soon:' : word} ${day(at)}</span>
    ${late && html`<br><span class="badge late">still used on ${day(new Date(late))}</span>`}`;
}

const over = (status) => ['revoked', 'rotated', 'expired'].includes(status);

const actions = ({ member }, row, words) => html`
  <button type="button" class="switch" role="switch" aria-checked="${String(row.enabled)}" data-toggle aria-label="Enabled: ${row.name}" ${over(row.status) && html`disabled`}
    title="Enable or disable"><span></span>${words && 'Enabled'}</button>
  <button type="button" class="${!words && 'square'}" data-open="rotate" aria-label="Rotate ${row.name}" title="Rotate" ${over(row.status) && html`disabled`}>${ICONS.rotate}${words && 'Rotate'}</button>
  ${words && !member && html`<button type="button" data-open="transfer" aria-label="Change owner of ${row.name}">${ICONS.person}Owner</button>`}
  <button type="button" class="${!words && 'square'}" data-open="delete" aria-label="${member ? 'Revoke' : 'Delete'} ${row.name}" title="${member ? 'Revoke' : 'Delete'}" ${member && row.revoked_at && html`disabled`}>${ICONS.trash}${words && (member ? 'Revoke' : 'Delete')}</button>`;

const line = (session, row) => html`
<tr role="row" data-key="${row.key_id}" data-name="${row.name}" data-masked="${row.masked_key}">
  <th role="rowheader" scope="row"><a href="/keys/${row.key_id}">${row.name}</a>
    <span class="state">${badge(row.status)}${end(row)}</span>${row.owner && !session.member && html`<span class="minor owner"><span class="visually-hidden">Owner: </span>${row.owner}</span>`}</th>
  <td role="cell" class="masked"><code>${row.masked_key}</code></td>
  <td role="cell" data-label="Last used">${time(row.last_used_at)}</td>
  <td role="cell" data-label="Created on">${time(row.created_at)}</td>
  <td role="cell" data-label="Last updated on" data-updated>${time(row.updated_at)}</td>
  <td role="cell" class="actions" data-label="Actions"><div>${actions(session, row)}</div></td>
</tr>`;

// A list to choose from in the form over the keys.
const choice = (id, label, chosen, options) => html`<label class="visually-hidden" for="${id}">${label}</label>
    <select id="${id}" name="${id}">${options.map(([value, word]) => html`<option value="${value}" ${value === (chosen ?? '') && html`selected`}>${word}</option>`)}</select>`;

function list({ session, view, rows, count, owners, policies, environment, previous, next, error }) {
  const { search, status, owner, sort, descending } = view;
  const here = { search, status, owner, sort, direction: descending ? 'descending' : 'ascending' };
  const columns = COLUMNS.map(([by, title]) => {
    const current = by === sort;
    // dates are first wanted from the newest
    const direction = current ? !descending : by.endsWith('_at');
    if (status === 'expiring') return html`<th role="columnheader" scope="col" class="${by}">${title}</th>`; // sorted by when they do
    return html`<th role="columnheader" scope="col" class="${by}" ${current && html`aria-sort="${here.direction}"`}>
      <a href="${link('/keys', { search, status, owner, sort: by, direction: direction ? 'descending' : 'ascending' })}">${title}<span class="arrow" aria-hidden="true">${current ? (descending ? '↓' : '↑') : '↕'}</span></a></th>`;
  });
  const none = search || status || owner
    ? html`<p class="empty"><strong>No API key matches.</strong> <a href="/keys">Show all</a></p>`
    : html`<p class="empty"><strong>No API keys yet.</strong> Create one for the first integration.</p>`;
  return frame({ title: keysOf(session), session, main: html`
${heading(session)}
<div class="tools">
  <form role="search" method="post" action="/search" class="find" autocomplete="off">
    <input type="hidden" name="csrf" value="${session.csrf}">
    <label class="visually-hidden" for="search">Search API keys</label>
    <span class="search">${ICONS.search}<input id="search" type="search" name="search" value="${search}" placeholder="Search name, description, key id or key"></span>
    ${choice('status', 'Status', status, [['', 'All statuses'], ...Object.entries(STATUS), ['expiring', 'Expiring soon']])}
    ${!session.member && choice('owner', 'Owner', owner, [['', 'All owners'], ...owners.map((name) => [`=${name}`, name]), ['none', 'No owner']])}
    <input type="hidden" name="sort" value="${sort}"><input type="hidden" name="direction" value="${here.direction}">
    <button>Search</button>
  </form>
  <button type="button" class="primary" data-open="create">${ICONS.plus}Create API Key</button>
</div>
${error && alert(error)}
${rows.length ? html`
<div class="sheet"><table role="table" class="keys">
  <caption class="visually-hidden">API keys of ${session.tenant}; times are UTC. A column's heading sorts by it.</caption>
  <thead role="rowgroup"><tr role="row">${columns}<th role="columnheader" scope="col" class="actions">Actions</th></tr></thead>
  <tbody role="rowgroup">${rows.map((row) => line(session, row))}</tbody>
</table></div>` : !error && none}
<nav class="pages" aria-label="Pages">
  <span class="minor">${rows.length > 0 && `${count.toLocaleString('en')} ${count === 1 ? 'key' : 'keys'} · times in UTC`}</span>
  ${previous && html`<a class="button" rel="prev" href="${link('/keys', { ...here, before: previous })}">Previous</a>`}
  ${next && html`<a class="button" rel="next" href="${link('/keys', { ...here, after: next })}">Next</a>`}
</nav>
${createDialog(session, policies, environment)}${ownersList(owners)}${secretDialog}${rotateDialog}${deleteDialog(session)}` });
}

// --- a key's page -------------------------------------------------------------------------------------------------------

// The smallest round number that is not below another one.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((digit) => digit * power >= value && digit * power % 1 === 0) * power;
}

// Bars for what was used and, on top, refused.
function bars(days, title, kind, width, height) {
  const [left, right, bottom, above] = [48, 16, 24, 8];
  const tick = round(Math.max(4, ...days.map((d) => d.uses + d.denials)) / 4);
  const y = (value) => above + (height - above - bottom) * (1 - value / (4 * tick));
  const slot = (width - left - right) / days.length;
  const short = (text) => day(new Date(text)).replace(/ \d{4}$/, '');
  const bar = (i, series, from, to) => to > from
    && html`<rect class="${series}" x="${(left + (i + 0.16) * slot).toFixed(1)}" width="${(slot * 0.68).toFixed(1)}" y="${y(to).toFixed(1)}" height="${(y(from) - y(to)).toFixed(1)}"/>`;
  return html`
  <svg class="${kind}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">
    ${[0, 1, 2, 3, 4].map((n) => html`<line class="${n ? 'grid' : 'axis'}" x1="${left}" x2="${width}" y1="${y(n * tick)}" y2="${y(n * tick)}"/><text x="${left - 8}" y="${y(n * tick) + 4}" text-anchor="end">${(n * tick).toLocaleString('en')}</text>`)}
    ${days.map((d, i) => html`<g><title>${short(d.day)}: ${d.uses} used, ${d.denials} refused</title><rect class="reach" x="${(left + i * slot).toFixed(1)}" y="${above}" width="${slot.toFixed(1)}" height="${height - above - bottom}"/>${bar(i, 'uses', 0, d.uses)}${bar(i, 'denials', d.uses, d.uses + d.denials)}</g>`)}
    ${days.map((d, i) => i % 7 === 1 && html`<text x="${(left + (i + 0.5) * slot).toFixed(1)}" y="${height - 6}" text-anchor="middle">${short(d.day)}</text>`)}
  </svg>`;
}

// The use per day as a picture, of which the style sheet shows the one that fits, and as a table.
function chart(days) {
  const uses = days.reduce((sum, d) => sum + d.uses, 0), denials = days.reduce((sum, d) => sum + d.denials, 0);
  const title = `Uses per day over the last ${days.length} days: ${uses} used, ${denials} refused`;
  return html`
<figure class="chart">
  ${bars(days, title, 'roomy', 1060, 240)}${bars(days, title, 'tight', 320, 190)}
  <figcaption><span class="legend uses">Used: ${uses.toLocaleString('en')}</span><span class="legend denials">Refused: ${denials.toLocaleString('en')}</span></figcaption>
  <details><summary>As a table</summary><div class="scroll" tabindex="0" role="region" aria-label="Uses per day"><table class="plain">
    <thead><tr><th scope="col">Day</th><th scope="col">Used</th><th scope="col">Refused</th></tr></thead>
    <tbody>${days.map((d) => html`<tr><th scope="row">${day(new Date(d.day))}</th><td>${d.uses}</td><td>${d.denials}</td></tr>`)}</tbody></table></div></details>
</figure>`;
}

// Whose units they are, and how many there are for how long.
const binds = ({ own, owner, environment }) => (own ? 'This key' : `All keys${owner ? ` of ${owner}` : ''}${environment ? ` in ${environment}` : ''}`);
const span = (window) => window.replace(/^@ /, '').replace(/\bmins?\b/, (word) => word.replace('min', 'minute')).replace(/\bsecs?\b/, (word) => word.replace('sec', 'second'));
const allowed = ({ units, rate_window: window, period }) =>
  `${units.toLocaleString('en')} ${window ? `in ${span(window)}` : period === 'total' ? 'in total' : `a ${period}`}`;

// A quota begins anew at the end of its period; a rate limit has all its units again at that time.
function left({ units, remaining, rate_window: window, resets_at: resets }) {
  const words = html`${remaining.toLocaleString('en')} of ${units.toLocaleString('en')} left`;
  if (!resets || (window && remaining >= units)) return words;
  return window ? html`${words}, all again at ${minute(resets)}` : html`${words}, resets on <time datetime="${resets.toISOString()}">${day(resets).replace(/ \d{4}$/, '')}</time>`;
}

// The bar only repeats the words.
const limitRow = (limit) => html`
  <tr role="row"><th role="rowheader" scope="row"><strong>${limit.name === 'rate_limit' ? 'Rate limit' : limit.name}</strong>${!limit.always && html`<br><span class="minor">Only for requests that name it</span>`}</th>
  <td role="cell" data-label="For">${binds(limit)}</td><td role="cell" data-label="Allowed">${allowed(limit)}</td>
  <td role="cell" data-label="Left"><div class="left ${limit.remaining === 0 ? 'none' : limit.remaining * 10 < limit.units && 'low'}"><span>${left(limit)}</span>
    <svg class="level" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect class="rail" width="100" height="1"/><rect width="${(100 * Math.min(limit.remaining, limit.units) / limit.units).toFixed(2)}" height="1"/></svg></div></td></tr>`;

const limitsTable = (limits) => limits.length > 0 && html`
<section aria-labelledby="limits"><h2 id="limits">Limits</h2>
<div class="sheet"><table role="table" class="limits">
  <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Limit</th><th role="columnheader" scope="col">For</th><th role="columnheader" scope="col">Allowed</th><th role="columnheader" scope="col">Left</th></tr></thead>
  <tbody role="rowgroup">${limits.map(limitRow)}</tbody>
</table></div></section>`;

// A setting's value as the history has it, which is JSON.
function plain(value) {
  if (value === null || value === undefined) return 'none';
  if (/^\d{4}-\d\d-\d\dT[\d:.]+[-+]\d\d:\d\d$/.test(value)) return time(new Date(value));
  if (Array.isArray(value)) return value.join(', ') || 'none';
  return typeof value === 'object' ? JSON.stringify(value) : String(value) || 'empty';
}

// An event tells of a column its old and new value; of what is no column, the value.
function change(value) {
  if (!['old', 'new'].some((word) => word in Object(value))) return plain(value);
  if (!('new' in value)) return html`<del>${plain(value.old)}</del>`;
  return html`${'old' in value && html`<del>${plain(value.old)}</del> → `}<ins>${plain(value.new)}</ins>`;
}

const changed = (changes) => Object.entries(changes ?? {}).map(([what, value]) => html`
  <li><span class="minor">${what.replaceAll('_', ' ')}:</span> ${change(value)}</li>`);

const fact = (term, value) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`;

function key({ session, id, key: row, days, events, limits, owners }) {
  const facts = row && html`
<dl class="facts">
  ${fact('Environment', row.environment)}
  ${!session.member && fact('Owner', html`<a href="${link('/keys', { owner: row.owner === null ? 'none' : `=${row.owner}` })}">${row.owner ?? 'No owner'}</a>`)}
  ${fact('Expires', html`${time(row.expires_at)}${row.expiring && html`<br><span class="badge soon">soon</span>`}`)}
  ${fact('Last used', html`${time(row.last_used_at)}${row.last_used_addr && html`<br><span class="minor">from ${row.last_used_addr}</span>`}`)}
  ${fact('Uses', row.use_count.toLocaleString('en'))}
  ${fact('Scopes', row.scopes.length ? row.scopes.map((scope) => html`<code class="chip">${scope}</code> `) : 'None')}
  ${fact('Addresses', row.allowed_cidrs ? row.allowed_cidrs.map((net) => html`<code class="chip">${net}</code> `) : 'Any')}
  ${fact('Rate limit', row.rate_limit ? `${row.rate_limit.toLocaleString('en')} in ${row.rate_window.replace(/^@ /, '')}` : 'None')}
  ${row.grace_until && fact('In grace until', time(row.grace_until))}
  ${row.replaces && fact('Successor of', html`<a href="/keys/${row.replaces}"><code>${row.replaces}</code></a>`)}
  ${row.parent && fact('Made by key', html`<a href="/keys/${row.parent}"><code>${row.parent}</code></a>`)}
  ${row.revoked_at && fact('Revoked', html`${time(row.revoked_at)}${row.revoked_reason && html`<br>${row.revoked_reason}`}`)}
  ${fact('Created', html`${time(row.created_at)}<br><span class="minor">by ${row.created_by_user ?? row.created_by}</span>`)}
  ${fact('Last updated', html`<span data-updated>${time(row.updated_at)}</span><br><span class="minor">by ${row.updated_by_user ?? row.updated_by}</span>`)}
</dl>`;
  return frame({ title: row ? row.name : `Deleted key ${id}`, session, main: html`
<nav class="crumbs" aria-label="Breadcrumb"><a href="/keys">${keysOf(session)}</a> <span aria-hidden="true">/</span> <span aria-current="page">${row ? row.name : id}</span></nav>
${row ? html`
<div class="title" data-key="${row.key_id}" data-name="${row.name}" data-masked="${row.masked_key}" data-owner="${row.owner}">
  <div><h1>${row.name} ${badge(row.status)}</h1><p><code>${row.masked_key}</code></p></div>
  <div class="actions"><div>${actions(session, row, true)}</div></div>
</div>
${row.late && alert({ message: `A request still used this key on ${day(new Date(row.late))} after it had ended.`, hint: 'Find out who still has the key.' })}
${row.description && html`<p class="description">${row.description}</p>`}
${facts}` : html`<div class="title"><h1>Deleted key <code>${id}</code></h1></div><p>The key is gone. Its history stays.</p>`}
${row && limitsTable(limits)}
<section aria-labelledby="use"><h2 id="use">Use per day</h2>${chart(days)}</section>
<section aria-labelledby="history"><h2 id="history">History</h2>
<div class="sheet"><table role="table" class="events">
  <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">When</th><th role="columnheader" scope="col">Event</th><th role="columnheader" scope="col">By</th><th role="columnheader" scope="col">Changes</th></tr></thead>
  <tbody role="rowgroup">${events.map((e) => html`<tr role="row"><td role="cell" data-label="When">${time(e.occurred_at)}</td><td role="cell" data-label="Event"><strong>${e.event.replaceAll('_', ' ')}</strong></td><td role="cell" data-label="By">${e.end_user ?? e.actor}${e.principal && html` <span class="minor">with key ${e.principal}</span>`}</td><td role="cell" data-label="Changes"><ul class="changes">${changed(e.changes)}</ul></td></tr>`)}</tbody>
</table></div></section>
${row && html`${secretDialog}${rotateDialog}${!session.member && html`${transferDialog}${ownersList(owners)}`}${deleteDialog(session)}`}` });
}

module.exports = { badge, failure, key, link, list, signIn, time };
