'use strict';
// The operator's page in a real browser: what it shows is what happens, what it does is done, and it needs nothing from
// anywhere else.

const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { connect, get, newKey, refusal, within } = require('../support');

const SIZES = { wide: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };

/** A tab on the page that keeps what must not happen: errors, violations of its policy, requests to elsewhere. */
async function open(browser, gate, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const home = `http://${gate.admin}`;
  const wrong = [];
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && wrong.push(message.text()));
  page.on('pageerror', (error) => wrong.push(String(error)));
  page.on('request', (request) => {
    const url = request.url();
    if (!url.startsWith(`${home}/`) && !url.startsWith('data:')) wrong.push(`a request to ${url}`);
  });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective));
  });
  await page.goto(`${home}/`);
  return { page, wrong };
}

/** Waits until an element says this. */
function says(page, selector, text) {
  const has = ([selector, text]) => {
    const shown = [...document.querySelectorAll(selector)].map((node) => node.textContent.trim());
    return shown.some((one) => one.includes(text));
  };
  return page.waitForFunction(has, [selector, text], { timeout: 10_000 }).catch(async () => {
    const shown = await page.evaluate((selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent), selector);
    throw new Error(`${selector} says ${JSON.stringify(shown)}, not ${text}`);
  });
}

function sum(metrics, name, label = '') {
  const lines = metrics.split('\n').filter((line) => line.startsWith(`${name}{`) && line.includes(label));
  return lines.reduce((all, line) => all + Number(line.split(' ').at(-1)), 0);
}

module.exports = async ({ scope, check }) => {
  const [old, fresh, other] = [newKey(), newKey(), newKey()];
  const upstream = await scope.echo();
  const rules = `admin: 127.0.0.1:0
keys:
  - { id: dashboard, secrets: [{ plain: ${old}, valid_until: 2099-01-01 }, { plain: ${fresh} }] }
  - { id: worker, secret: ${other} }
routes:
  - { name: chat, path: /chat, upstream: "${upstream.url}" }
  - { name: feed, path: /feed, upstream: "${upstream.url}" }
`;
  const gate = await scope.gate(rules);
  const browser = await scope.browser();
  const { page, wrong } = await open(browser, gate, { viewport: SIZES.wide });
  const dial = (target, key) => connect(gate.ws(target), { headers: { 'X-Api-Key': key } });
  const clients = [];

  await check('the page opens, says that all is well, and that nobody is there', async () => {
    await says(page, '#state', 'ready');
    await says(page, '#no-tunnels', 'Nobody is connected.');
  });

  await check('a tunnel opens and its row appears; numbers are those of /metrics', async () => {
    for (const [target, key] of [['/chat', old], ['/feed', old], ['/feed', other]]) clients.push(await dial(target, key));
    for (const client of clients) await client.ask('hello from somebody');
    await says(page, '#tunnels tbody tr', 'worker');
    await page.waitForFunction(() => document.querySelectorAll('#tunnels tbody tr').length === 3);
    for (const key of ['wrong', 'wrong again']) await refusal(gate.ws('/chat'), { headers: { 'X-Api-Key': key } });
    await refusal(gate.ws('/chat'));
    await says(page, '#refused', '3 since start');
    const { body } = await get(`http://${gate.admin}/metrics`);
    await says(page, '#open', String(sum(body, 'wsbouncer_tunnels_open')));
    await says(page, '#opened', `${sum(body, 'wsbouncer_tunnels_opened_total')} opened since start`);
    await says(page, '#refused', `${sum(body, 'wsbouncer_refusals_total')} since start`);
    const [up, down] = ['up', 'down'].map((way) => sum(body, 'wsbouncer_bytes_total', `direction="${way}"`));
    await says(page, '#relayed', `${up} B up, ${down} B down`);
    await says(page, '#p50', 'p50');
    return `${up} bytes up, ${down} down`;
  });

  await check('a refusal shows up by its reason', async () => {
    await says(page, '#legend-rate li', 'invalid_credential');
    await says(page, '#legend-rate li', '2 in all');
    await says(page, '#legend-rate li', 'missing_credential');
  });

  await check('of two secrets the one in use is shown as such', async () => {
    const rows = () => page.$$eval('#keys tbody tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
    await says(page, '#keys tbody tr', 'no: in use');
    const [first, second, third] = await rows();
    assert.deepEqual([first[0], first[2], first[7]], ['dashboard', '2', 'no: in use']);
    assert.deepEqual([second[0], second[2], second[7]], ['', '0', 'too early to tell']);
    assert.equal(third[0], 'worker');
    await page.check('#rotating');
    await page.waitForFunction(() => document.querySelectorAll('#keys tbody tr').length === 2);
    await page.uncheck('#rotating');
  });

  await check('the button closes exactly that tunnel, with 4000, after a question', async () => {
    const closed = once(clients[2], 'close');
    const button = page.locator('#tunnels tbody tr', { hasText: 'worker' }).getByRole('button');
    await button.click();
    await page.click('#confirm-no');
    assert.equal(clients[2].readyState, 1, 'a no is a no');
    await button.click();
    await page.click('#confirm-yes');
    const [code, reason] = await within(closed, 'the close');
    assert.deepEqual([code, String(reason)], [4000, 'closed_by_operator']);
    await page.waitForFunction(() => document.querySelectorAll('#tunnels tbody tr').length === 2);
    assert.deepEqual(clients.map((client) => client.readyState), [1, 1, 3]);
    await gate.logged('tunnel closed', { cause: 'closed_by_operator', code: 4000, key: 'worker' });
  });

  await check('all of one key are closed together', async () => {
    const closed = clients.slice(0, 2).map((client) => once(client, 'close'));
    await page.fill('#of-key', 'dashboard');
    await says(page, '#close-key', 'Close all 2 of this key');
    await page.click('#close-key');
    await page.click('#confirm-yes');
    for (const [code] of await within(Promise.all(closed), 'the closes')) assert.equal(code, 4000);
    await says(page, '#no-tunnels', 'This key has no tunnel.');
    await page.fill('#of-key', '');
  });

  await check('a broken file is shown as check prints it, and a mended one clears it', async () => {
    gate.edit(rules.replace('keys:', 'kyes:'));
    await says(page, '#state', 'old rules in force');
    const printed = spawnSync(process.env.WSBOUNCER, ['check', gate.config]).stderr.toString();
    assert.match(printed, /did you mean/);
    assert.equal((await page.textContent('#notices pre')).trim(), printed.trim());
    await says(page, '#history tbody tr', 'problem');
    await page.evaluate(() => window.scrollTo(0, 0));
    await page.screenshot({ path: path.join(shots(), 'broken.png') });
    gate.edit(rules);
    await says(page, '#state', 'ready');
    assert.equal(await page.isVisible('#notices'), false);
  });

  await check('a change that needs a restart is said, and a reload can be asked for', async () => {
    gate.edit(rules.replace('admin: 127.0.0.1:0', 'admin: off'));
    await says(page, '#state', 'restart needed');
    gate.edit(rules);
    await says(page, '#state', 'ready');
    const loads = () => page.locator('#history tbody tr').count();
    const before = await loads();
    await page.click('#reload');
    await page.waitForFunction((before) => document.querySelectorAll('#history tbody tr').length > before, before);
  });

  await check('it fits, in both sizes and themes', async () => {
    for (const key of [old, fresh, other]) clients.push(await dial('/chat', key));
    for (const [size, viewport] of Object.entries(SIZES)) {
      for (const colorScheme of ['light', 'dark']) {
        const tab = await open(browser, gate, { viewport, colorScheme });
        await says(tab.page, '#tunnels tbody tr', 'worker');
        await says(tab.page, '#opened', '6 opened');
        const [inner, whole] = await tab.page.evaluate(() => [window.innerWidth, document.documentElement.scrollWidth]);
        assert.ok(whole <= inner, `${size}: ${whole} px in ${inner}`);
        await tab.page.screenshot({ path: path.join(shots(), `${size}-${colorScheme}.png`), fullPage: true });
        assert.deepEqual(tab.wrong, []);
        await tab.page.context().close();
      }
    }
    return shots();
  });

  await check('nothing went wrong in it, and nothing came from elsewhere', async () => {
    assert.deepEqual(wrong, []);
    assert.deepEqual(await page.evaluate(() => window.violations), []);
    const foreign = await page.evaluate(() => fetch('http://127.0.0.1:1/').then(() => 'got it', () => 'refused'));
    assert.equal(foreign, 'refused');
    assert.deepEqual(await page.evaluate(() => window.violations), ['connect-src'], 'the policy is in force');
  });

  await check('where there is a token, the page asks for it and keeps it in the tab', async () => {
    const token = newKey();
    const guarded = await scope.gate(rules.replace('admin: 127.0.0.1:0', `admin: { address: 127.0.0.1:0, token: { plain: ${token} } }`));
    const { page } = await open(browser, guarded);
    await page.fill('#token', 'not-the-token-0123456789');
    await page.click('#login button');
    await page.waitForSelector('#login-error:not([hidden])');
    await page.fill('#token', token);
    await page.click('#login button');
    await says(page, '#state', 'ready');
    await says(page, '#keys tbody tr', 'worker');
    const kept = await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]);
    assert.deepEqual(kept, [1, 0, '']);
    await page.reload();
    await says(page, '#state', 'ready');
    assert.equal(await page.isVisible('#login'), false);
  });
};

let directory;

/** Where screenshots go. */
function shots() {
  directory ??= process.env.SCREENSHOTS ?? fs.mkdtempSync(path.join(os.tmpdir(), 'wsbouncer-screenshots-'));
  fs.mkdirSync(directory, { recursive: true });
  return directory;
}
