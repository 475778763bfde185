// test/console/browser.mjs: what the console's tests and its screenshots share: the console itself, and Debian's Chromium.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

// Starts the console on $PORT and waits until it listens; returns its process.
export async function startConsole() {
  const server = spawn(process.execPath, [fileURLToPath(new URL('../../examples/console/server.js', import.meta.url))],
    { stdio: ['ignore', 'pipe', 'inherit'] });
  process.on('exit', () => server.kill());
  await new Promise((resolve, reject) => {
    server.stdout.on('data', resolve);
    server.on('exit', (status) => reject(new Error(`the console ended with status ${status}`)));
  });
  return server;
}

export const origin = `http://127.0.0.1:${process.env.PORT}`;

export const startBrowser = () => chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--disable-gpu', '--disable-dev-shm-usage', '--font-render-hinting=none'],
});

export async function signIn(page, person) {
  await page.goto(`${origin}/sign-in`);
  await page.getByLabel(person).check();
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.waitForURL('**/keys');
}
