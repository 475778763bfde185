// examples/console/public/console.js: dialogs, and the requests that change something. The secret of a new key exists in one dialog of
// this page and nowhere else; it is gone when the dialog closes or the page is left.
'use strict';

const $ = (selector, within = document) => within.querySelector(selector);
const dialog = (id) => document.getElementById(id);

// Says something to everybody: to a screen reader too.
let hush;
function say(text) {
  const place = $('#say');
  place.textContent = text;
  place.classList.add('shown');
  clearTimeout(hush);
  hush = setTimeout(() => place.classList.remove('shown'), 6000);
}

// Sends a change; returns the answer, or throws what the server says of it.
async function send(path, body) {
  let response, answer;
  try {
    response = await fetch(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'X-CSRF-Token': $('meta[name=csrf]').content },
      body: JSON.stringify(body),
      cache: 'no-store',
    });
    answer = await response.json();
  } catch {
    throw { message: 'The console did not answer.', hint: 'Try again.' };
  }
  if (!response.ok) throw answer;
  return answer;
}

// --- forms in dialogs ---------------------------------------------------------------------------------------------------

function showRefusal(box, refusal) {
  box.hidden = !refusal;
  const [message, hint] = box.querySelectorAll('p');
  message.firstElementChild.textContent = refusal?.message ?? '';
  hint.textContent = refusal?.hint ?? '';
  if (refusal) box.scrollIntoView({ block: 'nearest' });
}

// Runs a form's request; a second press while it is under way does nothing.
async function submit(form, path, body, then) {
  const button = $('[data-submit]', form), box = $('[data-error]', form);
  if (button.getAttribute('aria-busy') === 'true') return;
  showRefusal(box, null);
  button.setAttribute('aria-busy', 'true');
  try {
    await then(await send(path, body));
  } catch (refusal) {
    showRefusal(box, refusal);
  } finally {
    button.removeAttribute('aria-busy');
  }
}

// Whether a list of scopes allows one, as the policies mean it.
const allows = (list, scope) => list.some((one) => one === scope || one === '*' || (one.endsWith(':*') && scope.startsWith(one.slice(0, -1))));

function demand(field, required) {
  if (!field) return; // a member chooses no owner
  field.required = required;
  for (const note of field.closest('.field').querySelectorAll('[data-optional]')) note.hidden = required;
}

// Shows in the form what the policies demand of a key of its environment: all that match count. The database decides.
function obey(box) {
  const { environment, expires, addresses, owner, scopes } = $('form', box).elements;
  const binding = JSON.parse(box.dataset.policies)
    .filter((policy) => [null, environment.value.trim() || box.dataset.environment].includes(policy.environment));
  const [latest] = binding.map((policy) => policy.latest_end).filter(Boolean).sort();
  expires.max = latest ?? '';
  demand(expires, Boolean(latest));
  $('[data-latest]', box).textContent = latest ? `At the latest ${new Date(latest).toLocaleDateString('en-GB', { day: 'numeric', month: 'short', year: 'numeric', timeZone: 'UTC' })}.`
    : 'Empty: never.';
  demand(addresses, binding.some((policy) => policy.require_cidrs));
  demand(owner, binding.some((policy) => policy.require_owner));
  const [fewest] = binding.filter((policy) => policy.keys_left !== null).sort((a, b) => a.keys_left - b.keys_left);
  $('[data-left]', box).textContent = fewest ? `${fewest.keys_left} of ${fewest.max_keys} keys left` : '';

  const lists = binding.map((policy) => policy.allowed_scopes).filter(Boolean);
  const picks = [...new Set(lists.flat())].filter((scope) => lists.every((list) => allows(list, scope))).sort();
  const place = $('[data-picks] div', box), typed = lists.length === 0 || picks.some((scope) => scope.endsWith('*'));
  place.replaceChildren(...picks.map((scope) => {
    const label = document.createElement('label'), input = document.createElement('input');
    Object.assign(input, { type: 'checkbox', name: 'scope', value: scope });
    label.append(input, ` ${scope}`);
    return label;
  }), ...(picks.length ? [] : ['The policies allow none.']));
  $('[data-picks]', box).hidden = lists.length === 0;
  $('[data-words]', box).hidden = !typed;
  $('[data-words] label', box).textContent = lists.length ? 'Other scopes' : 'Scopes';
  if (!typed) scopes.value = '';
  if (addresses.required || owner?.required || lists.length) $('details', box).open = true;
}

let subject; // the key that a dialog is about: its row, or its page's title

const openers = {
  create(box) {
    $('form', box).reset();
    $('details', box).open = false;
    obey(box);
  },
  rotate(box) {
    $('[data-name]', box).textContent = subject.dataset.name;
  },
  transfer(box) {
    $('[data-name]', box).textContent = subject.dataset.name;
    $('#transfer-owner').value = subject.dataset.owner;
  },
  delete(box) {
    $('[data-name]', box).textContent = subject.dataset.name;
    $('[data-masked]', box).textContent = subject.dataset.masked;
  },
};

// The form's fields, with the picked scopes among the typed ones.
function formOf(form) {
  const data = new FormData(form);
  return { ...Object.fromEntries(data), scopes: [...data.getAll('scope'), data.get('scopes')].join(' ') };
}

const submits = {
  create: (form) => submit(form, '/keys', formOf(form), (made) => {
    dialog('create').close();
    showSecret('API Key Created Successfully', form.elements.name.value.trim(), made, () => location.assign('/keys'));
  }),
  rotate: (form) => submit(form, `/keys/${subject.dataset.key}/rotate`, { grace: form.elements.grace.value }, (made) => {
    dialog('rotate').close();
    showSecret('API Key Rotated Successfully', subject.dataset.name, made, () => location.assign(`/keys/${made.key_id}`));
  }),
  transfer: (form) => submit(form, `/keys/${subject.dataset.key}/owner`, { owner: form.elements.owner.value.trim() }, ({ name }) => {
    sessionStorage.setItem('say', `The owner of ${name} was changed.`);
    location.reload();
  }),
  delete: (form) => submit(form, `/keys/${subject.dataset.key}/${form.dataset.action}`, {}, ({ name }) => {
    dialog('delete').close();
    sessionStorage.setItem('say', `${name} was ${form.dataset.action}d.`);
    if (subject.tagName === 'TR') location.reload();
    else location.assign('/keys');
  }),
};

for (const [id, run] of Object.entries(submits)) {
  const box = dialog(id);
  box?.addEventListener('submit', (event) => {
    event.preventDefault();
    run(event.target);
  });
}

// --- the secret ---------------------------------------------------------------------------------------------------------

let saved, leave;

function showSecret(title, name, made, then) {
  const box = dialog('secret');
  $('[data-title]', box).textContent = title;
  $('[data-name]', box).textContent = name;
  $('[data-told]', box).textContent = '';
  $('#token').value = made.secret;
  box.dataset.id = made.key_id;
  saved = false;
  leave = then;
  box.showModal();
  $('#secret-title').focus();
}

function forget() {
  const box = dialog('secret');
  if (!box) return;
  $('#token').value = '';
  $('#token').defaultValue = '';
}

function tell(text) {
  $('[data-told]', dialog('secret')).textContent = text;
}

const secret = dialog('secret');
if (secret) {
  $('[data-copy]', secret).addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText($('#token').value);
      saved = true;
      tell('Copied to the clipboard.');
    } catch {
      $('#token').select();
      tell('The browser does not let the page copy. The key is selected: copy it with the keyboard.');
    }
  });
  $('[data-download]', secret).addEventListener('click', () => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([`${$('#token').value}\n`], { type: 'text/plain' }));
    link.download = `${secret.dataset.id}.key`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    saved = true;
    tell(`Downloaded as ${link.download}.`);
  });
  $('[data-done]', secret).addEventListener('click', () => secret.close());
  // the first Escape may be a slip
  secret.addEventListener('cancel', (event) => {
    if (saved) return;
    event.preventDefault();
    saved = true;
    tell('You have neither copied nor downloaded the key. Press Escape again to close all the same.');
  });
  secret.addEventListener('close', () => {
    forget();
    leave();
  });
  addEventListener('pagehide', forget);
}

// --- clicks -------------------------------------------------------------------------------------------------------------

async function toggle(button) {
  const { key, name } = button.closest('[data-key]').dataset;
  const enabled = button.getAttribute('aria-checked') !== 'true';
  if (button.getAttribute('aria-busy') === 'true') return;
  button.setAttribute('aria-busy', 'true');
  try {
    const answer = await send(`/keys/${key}/enabled`, { enabled });
    const row = button.closest('tr') ?? document;
    button.setAttribute('aria-checked', answer.enabled);
    $('[data-status]', row).outerHTML = answer.badge;
    $('[data-updated]', row).innerHTML = answer.updated;
    say(`${name} is ${answer.enabled ? 'enabled' : 'disabled'}.`);
  } catch (refusal) {
    say([refusal.message, refusal.hint].filter(Boolean).join(' '));
  } finally {
    button.removeAttribute('aria-busy');
  }
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.open) {
    const box = dialog(button.dataset.open);
    subject = button.closest('[data-key]');
    openers[button.dataset.open](box);
    showRefusal($('[data-error]', box), null);
    box.showModal();
  } else if ('close' in button.dataset) button.closest('dialog').close();
  else if ('toggle' in button.dataset) toggle(button);
});

dialog('create')?.querySelector('#environment').addEventListener('input', () => obey(dialog('create')));
for (const id of ['#status', '#owner']) $(id)?.addEventListener('change', (event) => event.target.form.requestSubmit());

const news = sessionStorage.getItem('say');
if (news) {
  sessionStorage.removeItem('say');
  setTimeout(() => say(news), 100); // a live region tells of what changes after it is there
}
