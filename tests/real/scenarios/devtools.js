'use strict';
// Chromium's DevTools protocol: whoever reaches its port owns the browser, and it has no login.

const assert = require('node:assert/strict');
const { chromium } = require('playwright-core');
const { assertRefused, connect, get, newKey, refusal, within } = require('../support');

const GET_VERSION = JSON.stringify({ id: 1, method: 'Browser.getVersion' });

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const { port, target } = await scope.devtools();
  const gate = await scope.gate(`
keys:
  - { id: robot, secret: ${key} }
upstreams:
  kept: ws://127.0.0.1:${port}
  rewritten: { url: "ws://127.0.0.1:${port}", host: upstream }
routes:
  - { host: kept.test, upstream: kept }
  - { host: rewritten.test, upstream: rewritten }
  - { host: localhost, upstream: kept, http: forward }
  - { upstream: kept }
`);
  const command = async (headers) => {
    const client = await connect(gate.ws(target), { headers });
    const { result } = JSON.parse(await client.ask(GET_VERSION));
    client.close();
    return result;
  };

  await check('GET /json/version answers without wsbouncer', async () => {
    assert.equal((await get(`http://127.0.0.1:${port}/json/version`)).status, 200);
  });
  await check('GET /json/version is refused with 426, with and without the key', async () => {
    const url = `http://${gate.address}/json/version`;
    assertRefused(await get(url), 426, 'upgrade_required');
    assertRefused(await get(url, { 'X-Api-Key': key }), 426, 'upgrade_required');
  });
  await check('Browser.getVersion works with the key', async () => {
    const { product } = await command({ 'X-Api-Key': key });
    assert.match(product, /Chrome/);
    return product;
  });
  await check('Browser.getVersion fails without the key', async () => {
    assertRefused(await refusal(gate.ws(target)), 401, 'missing_credential');
  });

  // DevTools answers only to a Host that is localhost or an address, against DNS rebinding.
  await check("the service's own refusal of a foreign Host is passed through", async () => {
    const { status, body } = await refusal(gate.ws(target), { headers: { 'X-Api-Key': key, Host: 'kept.test' } });
    assert.equal(status, 500);
    assert.match(body, /Host header/);
  });
  await check('`host: upstream` gives it the Host that it wants', async () => {
    const { product } = await command({ 'X-Api-Key': key, Host: 'rewritten.test' });
    assert.match(product, /Chrome/);
  });

  // Clients find the URL to dial by plain HTTP, which a route can let through. Chromium builds that URL from the Host.
  const [, gatePort] = gate.address.split(':');
  const forwarded = `http://localhost:${gatePort}`;
  await check('http: forward: GET /json/list with the key is answered, with URLs that lead through the gate', async () => {
    const { status, body } = await get(`${forwarded}/json/list`, { 'X-Api-Key': key });
    assert.equal(status, 200);
    const [{ webSocketDebuggerUrl }] = JSON.parse(body).filter(({ type }) => type === 'page');
    assert.ok(webSocketDebuggerUrl.startsWith(`ws://localhost:${gatePort}/devtools/page/`), webSocketDebuggerUrl);
    const client = await connect(webSocketDebuggerUrl, { headers: { 'X-Api-Key': key } });
    const answer = await client.ask(JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression: '6 * 7' } }));
    client.close();
    assert.equal(JSON.parse(answer).result.result.value, 42);
    assertRefused(await refusal(webSocketDebuggerUrl), 401, 'missing_credential');
    return webSocketDebuggerUrl.replace(/[0-9A-F]{32}/, 'ID');
  });
  await check('http: forward: GET /json/list without the key is refused with 401', async () => {
    assertRefused(await get(`${forwarded}/json/list`), 401, 'missing_credential');
  });
  await check('Playwright, given the address and the key, finds its way and drives the browser', async () => {
    const browser = await within(chromium.connectOverCDP(forwarded, { headers: { 'X-Api-Key': key } }), 'the connection');
    const page = await browser.newPage();
    assert.equal(await page.evaluate(() => 6 * 7), 42);
    await page.close();
    await browser.close(); // only the connection
  });
  await check('Playwright without the key does not', async () => {
    await assert.rejects(within(chromium.connectOverCDP(forwarded), 'the refusal'), /401/);
  });
};
