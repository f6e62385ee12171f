'use strict';
// What page code learns of a refusal: 1006 and nothing else, unless the route says `on_failure: close` or `auto`.
// Every check prints what Chromium showed.

const assert = require('node:assert/strict');
const { assertRefused, connect, dialInPage, freePort, newKey, refusal } = require('../support');

const shown = (seen) => JSON.stringify(seen);
/** All that a page sees of a refusal that is a Close frame, and of one that is not. */
const told = (protocol, code, reason) => ({ events: ['open', 'close'], protocol, code, reason, wasClean: true });
const untold = { events: ['error', 'close'], code: 1006, reason: '', wasClean: false };

module.exports = async ({ scope, check }) => {
  const [key, busy] = [newKey(), newKey()];
  const upstream = await scope.echo();
  const page = await scope.page();
  const home = new URL(page.url()).origin;
  const console = [];
  page.on('console', (message) => console.push(message.text()));
  const gate = await scope.gate(`
keys:
  - { id: page, secret: ${key} }
  - { id: busy, secret: ${busy}, max_connections: 1 }
upstreams: { echo: "${upstream.url}", dead: "ws://127.0.0.1:${await freePort()}" }
routes:
  - { path: /close, upstream: echo, on_failure: close }
  - { path: /auto, upstream: echo, on_failure: auto }
  - { path: /http, upstream: echo }
  - { path: /dead, upstream: dead, on_failure: close }
  - { path: /elsewhere, upstream: echo, on_failure: close, allowed_origins: ["https://elsewhere.test"] }
  - { path: /scoped, upstream: echo, on_failure: close, allowed_origins: ["${home}"] }
  - path: /prefix
    upstream: echo
    on_failure: close
    auth: [api_key: { extract_from: [subprotocol: { preset: openai }] }]
`);
  const seenBy = async (target, protocols) => (await dialInPage(page, gate.ws(target), protocols)).closed();
  const sees = (what, target, protocols, expected) => check(what, async () => {
    const seen = await seenBy(target, protocols);
    assert.deepEqual(seen, expected);
    return shown(seen);
  });
  const pair = (secret) => ['x-api-key', secret];
  const openai = (secret) => `openai-insecure-api-key.${secret}`;

  await sees('a wrong key is 4401 invalid_credential, after an open event', '/close', pair(newKey()), told('x-api-key', 4401, 'invalid_credential'));
  await sees('no key is 4401 missing_credential', '/close', undefined, told('', 4401, 'missing_credential'));
  await sees('no key, with subprotocols: the first is selected', '/close', ['chat', 'v2'], told('chat', 4401, 'missing_credential'));
  await sees('a wrong key beside another subprotocol: that one is selected', '/close', ['chat', ...pair(newKey())], told('chat', 4401, 'invalid_credential'));
  await sees('a page of another origin is 4403 origin_not_allowed', '/elsewhere', pair(key), told('x-api-key', 4403, 'origin_not_allowed'));
  await sees('two keys are 4400 conflicting_credentials', '/prefix', ['realtime', openai(key), openai(busy)], told('realtime', 4400, 'conflicting_credentials'));
  await sees('a service that is not there is 4502 upstream_unreachable', '/dead', pair(key), told('x-api-key', 4502, 'upstream_unreachable'));
  await sees('auto: a page is told by code', '/auto', pair(newKey()), told('x-api-key', 4401, 'invalid_credential'));
  await check('auto: a client that is no browser is told by status', async () => {
    assertRefused(await refusal(gate.ws('/auto'), { headers: { 'X-Api-Key': newKey() } }), 401, 'invalid_credential');
  });

  await check('one connection too many is 4429 too_many_connections, and the first stays', async () => {
    const first = await dialInPage(page, gate.ws('/scoped'), pair(busy));
    assert.equal(await first.ask('one'), 'one');
    const seen = await seenBy('/scoped', pair(busy));
    assert.deepEqual(seen, told('x-api-key', 4429, 'too_many_connections'));
    assert.equal(await first.ask('two'), 'two');
    await first.close();
    const { code, wasClean } = await first.closed();
    assert.deepEqual({ code, wasClean }, { code: 1005, wasClean: true });
    return shown(seen);
  });
  await check('the same for a Node client that asks for close codes', async () => {
    const client = await connect(gate.ws('/close'), { headers: { 'X-Api-Key': newKey() } });
    const [code, reason] = await new Promise((resolve) => client.on('close', (...end) => resolve(end)));
    assert.deepEqual([code, String(reason)], [4401, 'invalid_credential']);
  });

  // What a page is never told, whatever the route says.
  await sees('http: a wrong key is 1006', '/http', pair(newKey()), untold);
  await sees('a path without a route is 1006: there is no route to say otherwise', '/nowhere', pair(key), untold);
  await check('http: the console of the developer tools says more, though not of a 401', () => {
    const line = (path) => console.find((text) => text.includes(`'${gate.ws(path)}'`)).replace(/^.*failed: /, '');
    assert.match(line('/http'), /HTTP Authentication failed/);
    assert.match(line('/nowhere'), /Unexpected response code: 404/);
    return `${line('/http')} / ${line('/nowhere')}`;
  });
  await check('close: a lone prefix item leaves nothing to select, and Chromium takes no 101 like that: 1006', async () => {
    const seen = await seenBy('/prefix', [openai(key)]);
    assert.deepEqual(seen, untold);
    await gate.logged('refused', { path: '/prefix', reason: 'bad_handshake', code: 4400 });
    const line = console.findLast((text) => text.includes(`'${gate.ws('/prefix')}'`));
    assert.match(line, /no response was received/);
    return `${shown(seen)}, console: ${line.replace(/^.*failed: /, '')}`;
  });
  await sees('close: with a real one beside it, the page is told', '/prefix', ['realtime', openai(newKey())], told('realtime', 4401, 'invalid_credential'));

  await check('the service heard of nobody but the one that was let in', () => {
    assert.equal(upstream.requests.length, 1);
  });
};
