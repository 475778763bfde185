// test/console/screenshots.mjs FOLDER: a picture of each screen of the console, wide and narrow, light and dark. See script/console.
import path from 'node:path';
import { origin, signIn, startBrowser, startConsole } from './browser.mjs';

const [folder] = process.argv.slice(2);
const WIDE = { width: 1440, height: 900 }, NARROW = { width: 360, height: 780 };

const open = (page, name) => page.getByRole('button', { name, exact: true }).click();

async function create(page) {
  await open(page, 'Create API Key');
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('API key name').fill('HubSpot Sync – Prod');
  await dialog.getByLabel('Description').fill('Copies contacts every hour');
  return dialog;
}

const screens = {
  list: () => {},
  create: async (page) => {
    const dialog = await create(page);
    await dialog.getByText('More').click();
    await dialog.getByLabel('Environment').fill('prod');
    await dialog.getByLabel('Scopes').fill('contacts:read contacts:write');
  },
  created: async (page) => {
    const dialog = await create(page);
    await dialog.getByRole('button', { name: 'Create API Key' }).click();
    await page.getByRole('button', { name: 'Copy Secret Key' }).click();
    await page.getByText('Copied to the clipboard').waitFor();
  },
  'sign-in': (page) => page.goto(`${origin}/sign-in`),
  rotate: async (page) => {
    await page.getByRole('button', { name: /^Rotate HubSpot Sync – Prod/ }).first().click();
  },
  delete: async (page) => {
    await page.getByRole('button', { name: /^Delete HubSpot Sync – Prod/ }).first().click();
  },
  key: async (page) => {
    await page.getByRole('link', { name: 'HubSpot Sync – Prod' }).last().click();
    await page.getByRole('heading', { name: 'History' }).waitFor();
  },
};

// name, screen, size, colours, what the list shows first, whether the picture goes below the fold; the one that makes a key comes last
const pictures = [
  ['list-wide-light', 'list', WIDE, 'light'],
  ['list-narrow-dark', 'list', NARROW, 'dark'],
  ['create-wide-dark', 'create', WIDE, 'dark'],
  ['create-narrow-light', 'create', NARROW, 'light'],
  ['rotate-wide-light', 'rotate', WIDE, 'light', '?search=hubspot&sort=name'],
  ['sign-in-narrow-light', 'sign-in', NARROW, 'light'],
  ['delete-narrow-dark', 'delete', NARROW, 'dark', '?search=hubspot'],
  ['key-wide-dark', 'key', WIDE, 'dark', '?search=hubspot&sort=name', true],
  ['key-narrow-light', 'key', NARROW, 'light', '?search=hubspot&sort=name', true],
  ['created-wide-light', 'created', WIDE, 'light'],
];

const server = await startConsole();
const browser = await startBrowser();
for (const [name, screen, viewport, colorScheme, query = '', fullPage = false] of pictures) {
  const context = await browser.newContext({ viewport, colorScheme, locale: 'en-GB', reducedMotion: 'reduce', permissions: ['clipboard-read', 'clipboard-write'] });
  const page = await context.newPage();
  await signIn(page, 'ann@acme');
  await page.goto(`${origin}/keys${query}`);
  await screens[screen](page);
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage });
  await context.close();
}
await browser.close();
server.kill();
