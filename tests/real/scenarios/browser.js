'use strict';
// A real browser cannot set a header on a WebSocket, and fails the connection when it offered subprotocols and the
// server selected none. So the key rides in Sec-WebSocket-Protocol, and wsbouncer answers for services that do not.

const assert = require('node:assert/strict');
const { assertRefused, base64url, newKey, refusal } = require('../support');

const kubernetes = (key) => [`base64url.bearer.authorization.k8s.io.${base64url(key)}`];
const openai = (key) => [`openai-insecure-api-key.${key}`];

// What page code offers for each carrier, and the ws.protocol it must get from a service that selects nothing:
// the pair's marker, else the first of the rest.
const carriers = [
  { name: 'pair', place: 'pair: x-api-key', items: (key) => ['x-api-key', key], rest: [], protocol: 'x-api-key' },
  { name: 'kubernetes', place: 'preset: kubernetes', items: kubernetes, rest: ['chat'], protocol: 'chat' },
  { name: 'openai', place: 'preset: openai', items: openai, rest: ['realtime'], protocol: 'realtime' },
  { name: 'deepgram', place: 'preset: deepgram', items: (key) => ['token', key], rest: [], protocol: 'token' },
  { name: 'bearer', place: 'preset: bearer', items: (key) => ['Bearer', key], rest: [], protocol: 'Bearer' },
];

/** Runs in the page: dials, sends one message, and tells all that page code can see. */
function openInPage([url, protocols]) {
  return new Promise((resolve) => {
    const ws = protocols ? new WebSocket(url, protocols) : new WebSocket(url);
    ws.onopen = () => ws.send('hello from a page');
    ws.onmessage = ({ data }) => {
      resolve({ opened: true, protocol: ws.protocol, echo: data });
      ws.close();
    };
    ws.onclose = ({ code }) => resolve({ opened: false, code });
  });
}

/** Two routes for a carrier: to a service that selects no subprotocol, and to one that does. */
function routes({ name, place }) {
  const auth = `[api_key: { extract_from: [subprotocol: { ${place} }] }]`;
  return `
  - { path: /silent/${name}, upstream: silent, auth: ${auth} }
  - { path: /choosing/${name}, upstream: choosing, auth: ${auth} }`;
}

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const silent = await scope.echo();
  // Chooses the last item it was offered: whatever wsbouncer forgot to take out would be chosen, and seen.
  const choosing = await scope.echo({ select: (offered) => [...offered].pop() });
  const page = await scope.page();
  const home = new URL(page.url()).origin;
  const elsewhere = await scope.origin();
  const gate = await scope.gate(`
keys:
  - { id: page, secret: ${key} }
upstreams: { silent: "${silent.url}", choosing: "${choosing.url}" }
routes:
  - { path: /default, upstream: silent }
  - { path: /query, upstream: silent, auth: [api_key: { extract_from: [query: api_key] }] }
  - path: /cookie
    upstream: silent
    auth: [api_key: { extract_from: [cookie: session] }]
    allowed_origins: ["${home}"]
${carriers.map(routes).join('')}
`);
  const open = (target, protocols) => page.evaluate(openInPage, [gate.ws(target), protocols]);

  await check('new WebSocket(url, ["x-api-key", key]) opens with the default places', async () => {
    const seen = await open('/default', ['x-api-key', key]);
    assert.deepEqual(seen, { opened: true, protocol: 'x-api-key', echo: 'hello from a page' });
    const [request] = silent.requests.splice(0);
    assert.equal(request.headers['sec-websocket-protocol'], undefined);
    assert.equal(request.headers['x-auth-key-id'], 'page');
  });

  for (const { name, items, rest, protocol } of carriers) {
    await check(`${name}: opens before a service that selects no subprotocol`, async () => {
      const seen = await open(`/silent/${name}`, [...rest, ...items(key)]);
      assert.deepEqual(seen, { opened: true, protocol, echo: 'hello from a page' });
      const [request] = silent.requests.splice(0);
      assert.equal(request.headers['sec-websocket-protocol'], rest.length > 0 ? rest.join(', ') : undefined);
      return `ws.protocol is ${protocol}`;
    });
    await check(`${name}: a service that selects one is obeyed`, async () => {
      const seen = await open(`/choosing/${name}`, ['chat.v1', 'chat.v2', ...items(key)]);
      assert.deepEqual(seen, { opened: true, protocol: 'chat.v2', echo: 'hello from a page' });
    });
    await check(`${name}: a wrong key does not open`, async () => {
      const seen = await open(`/silent/${name}`, [...rest, ...items(newKey())]);
      assert.deepEqual(seen, { opened: false, code: 1006 });
      await gate.logged('refused', { path: `/silent/${name}`, reason: 'invalid_credential', origin: home });
    });
  }

  for (const [name, items] of Object.entries({ kubernetes, openai })) {
    await check(`${name}: a lone prefix item does not open, and the refusal shows the call that works`, async () => {
      assert.deepEqual(await open(`/silent/${name}`, items(key)), { opened: false, code: 1006 });
      // Page code cannot read an HTTP answer; a developer with any other client can.
      const problem = assertRefused(await refusal(gate.ws(`/silent/${name}`), { protocols: items(key) }), 400, 'bad_handshake');
      assert.match(problem.detail, /new WebSocket\(/);
      return problem.detail;
    });
  }

  await check('no credential at all does not open', async () => {
    assert.deepEqual(await open('/default'), { opened: false, code: 1006 });
    await gate.logged('refused', { path: '/default', reason: 'missing_credential' });
  });

  silent.requests.length = 0;
  await check('a key in the query opens, and the service does not see it', async () => {
    const seen = await open(`/query?room=7&api_key=${key}&lang=en`);
    assert.deepEqual(seen, { opened: true, protocol: '', echo: 'hello from a page' });
    assert.equal(silent.requests.pop().url, '/query?room=7&lang=en');
  });

  await page.evaluate((value) => { document.cookie = `theme=dark`; document.cookie = `session=${value}`; }, key);
  await check('a key in a cookie opens from an allowed origin, and the service sees only the other cookies', async () => {
    const seen = await open('/cookie');
    assert.deepEqual(seen, { opened: true, protocol: '', echo: 'hello from a page' });
    assert.equal(silent.requests.pop().headers.cookie, 'theme=dark');
  });
  await check('the same cookie does not open from another origin', async () => {
    await page.goto(elsewhere); // same host, another port: the browser sends the cookie all the same
    assert.deepEqual(await open('/cookie'), { opened: false, code: 1006 });
    await gate.logged('refused', { path: '/cookie', reason: 'origin_not_allowed', origin: elsewhere });
  });
};
