'use strict';
// socket.io begins with plain requests (long polling) and upgrades to a WebSocket on the way, so its route has
// `http: forward`. The service checks nothing; every request of both kinds shows the key.

const assert = require('node:assert/strict');
const http = require('node:http');
const { Server } = require('socket.io');
const { io } = require('socket.io-client');
const { assertRefused, get, newKey, packaged, within } = require('../support');

/** Echoes with the key's name in front, and counts what came by which way. */
async function service(scope, origin) {
  const requests = [];
  const server = http.createServer();
  const sockets = new Server(server, { cors: { origin } });
  for (const kind of ['request', 'upgrade']) server.on(kind, ({ headers, url }) => requests.push({ kind, headers, url }));
  sockets.on('connection', (socket) => {
    socket.on('echo', (text, answer) => answer(`${socket.request.headers['x-auth-key-id']}: ${text}`));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  scope.defer(() => sockets.close());
  return { url: `ws://127.0.0.1:${server.address().port}`, requests };
}

/** Runs in Node, and in a page beside the library's own bundle: connects, upgrades if it may, asks once. */
function session([url, options]) {
  return new Promise((resolve) => {
    const socket = io(url, { reconnection: false, forceNew: true, ...options });
    const done = (seen) => { socket.disconnect(); resolve(seen); };
    socket.on('connect_error', (error) => done({ error: error.message }));
    socket.on('connect', () => {
      const { engine } = socket.io;
      const ask = () => socket.emit('echo', 'hello', (answer) => done({ answer, by: engine.transport.name }));
      const isThere = engine.transport.name === (options.transports ?? ['websocket'])[0];
      if (isThere) ask();
      else engine.once('upgrade', ask);
    });
  });
}

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const page = await scope.page();
  const { url: upstream, requests } = await service(scope, new URL(page.url()).origin);
  const gate = await scope.gate(`
keys:
  - { id: player, secret: ${key} }
routes:
  - path: /socket.io/*
    upstream: ${upstream}
    http: forward
    timeouts: { handshake: 40s }
    auth: [api_key: { extract_from: [header: X-Api-Key, query: api_key] }]
`);
  const url = gate.http('');
  // Each session says which it is, because the last word of one may come after it is over.
  let run = 0;
  const numbered = (options) => {
    run += 1;
    return { ...options, query: { ...options.query, run } };
  };
  const inNode = (options) => within(session([url, numbered(options)]), 'the answer');
  const inPage = (options) => within(page.evaluate(session, [url, numbered(options)]), 'the answer in the page');
  const extraHeaders = { 'X-Api-Key': key };
  const seen = () => requests.filter((request) => new URL(request.url, url).searchParams.get('run') === String(run));

  await check('Node, extraHeaders: polls first, and upgrades to a WebSocket', async () => {
    assert.deepEqual(await inNode({ extraHeaders }), { answer: 'player: hello', by: 'websocket' });
    const [first, ...rest] = seen();
    assert.equal(first.kind, 'request');
    assert.ok(rest.some(({ kind, url: target }) => kind === 'upgrade' && target.includes('transport=websocket')));
    await gate.logged('tunnel opened', { key: 'player' });
  });
  await check('Node: every request, of both kinds, came with the name and without the key', async () => {
    await inNode({ extraHeaders });
    for (const { headers, url: target } of seen()) {
      assert.equal(headers['x-auth-key-id'], 'player', target);
      assert.equal(headers['x-api-key'], undefined);
    }
  });
  for (const transport of ['polling', 'websocket']) {
    await check(`Node: ${transport} alone`, async () => {
      assert.deepEqual(await inNode({ extraHeaders, transports: [transport] }), { answer: 'player: hello', by: transport });
      const kinds = new Set(seen().map(({ kind }) => kind));
      assert.deepEqual([...kinds], [transport === 'polling' ? 'request' : 'upgrade']);
    });
  }
  await check('a wrong key reaches the service by neither way', async () => {
    for (const transports of [['polling', 'websocket'], ['websocket']]) {
      const { error } = await inNode({ transports, extraHeaders: { 'X-Api-Key': newKey() } });
      assert.match(error, /^(xhr poll|websocket) error$/);
    }
    assertRefused(await get(`${url}/socket.io/?EIO=4&transport=polling`), 401, 'missing_credential');
    assert.deepEqual(seen(), []);
  });

  await page.addScriptTag({ path: packaged('socket.io-client/dist/socket.io.min.js') });
  await check('Chromium, query: { api_key }: polls first, upgrades, and the service sees no key', async () => {
    assert.deepEqual(await inPage({ query: { api_key: key } }), { answer: 'player: hello', by: 'websocket' });
    const all = seen();
    assert.ok(all.some(({ kind }) => kind === 'upgrade'));
    for (const { url: target } of all) assert.ok(!target.includes('api_key'), target);
  });
  await check('Chromium: a wrong key does not connect', async () => {
    const { error } = await inPage({ query: { api_key: newKey() } });
    assert.equal(error, 'xhr poll error');
    assert.deepEqual(seen(), []);
  });
  await check('a key that is taken out of the file disconnects the client', async () => {
    const socket = io(url, { reconnection: false, extraHeaders });
    scope.defer(() => socket.disconnect());
    const gone = new Promise((resolve) => socket.once('disconnect', (reason, details) => resolve([reason, details?.context?.code])));
    await within(new Promise((resolve) => socket.io.on('open', () => socket.io.engine.once('upgrade', resolve))), 'the upgrade');
    gate.edit(`
keys: []
routes:
  - { path: /socket.io/*, upstream: "${upstream}", http: forward }
`);
    const [reason, code] = await within(gone, 'the end');
    assert.equal(reason, 'transport close');
    return `${reason}, ${code}`;
  });
};
