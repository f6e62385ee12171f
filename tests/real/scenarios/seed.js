'use strict';
// The question that this project began with: a gorilla/websocket service without authentication, a client that
// authenticates with a plain request first, and a dial that is then expected to be let in.

const assert = require('node:assert/strict');
const path = require('node:path');
const { assertRefused, keepSecret, newKey } = require('../support');

const program = (name) => path.join(__dirname, '..', '.cache', `go-${name}`);

module.exports = async ({ scope, check }) => {
  const address = await scope.start(program('echo'), []).says(/^127\.0\.0\.1:/);
  const key = newKey();
  const gate = await scope.gate(`
keys:
  - { id: gopher, secret: ${key} }
routes:
  - { path: /ws, upstream: "ws://${address}" }
  - path: /jar
    upstream: ws://${address}
    tickets: { path: /login, cookie: { name: gate, secure: false } }
  - path: /tls
    upstream: ws://${address}
    tickets: { path: /tls/login, cookie: gate }
`);
  const dialAt = async (target, ...args) => JSON.parse(await scope.run(program('dial'), ['-url', gate.ws(target), ...args]));
  const dial = (...args) => dialAt('/ws', ...args);

  await check('a gorilla dial with X-Api-Key gets through to a gorilla server', async () => {
    const { dial: answer } = await dial('-key', key, '-message', 'let me in');
    assert.equal(answer.status, 101);
    assert.equal(answer.echo, 'let me in');
    await gate.logged('tunnel opened', { key: 'gopher' });
  });

  const mistaken = await dial('-key', key, '-get-first');
  await check('an authenticated plain GET gets a 426 that explains the mistake', async () => {
    const problem = assertRefused(mistaken.get, 426, 'upgrade_required');
    assert.match(problem.detail, /key is good/);
    assert.match(problem.detail, /key must ride on the upgrade itself/);
    assert.deepEqual(mistaken.get.headers['Sec-Websocket-Version'], ['13']);
    return problem.detail;
  });
  await check('the dial after it, without the key, gets a 401', async () => {
    const problem = assertRefused(mistaken.dial, 401, 'missing_credential');
    assert.match(problem.detail, /x-api-key/i);
    assert.ok(mistaken.dial.headers['Www-Authenticate']);
    await gate.logged('refused', { reason: 'missing_credential' });
  });
  await check('a wrong key gets a 401', async () => {
    const { dial: answer } = await dial('-key', newKey());
    assertRefused(answer, 401, 'invalid_credential');
  });

  // What the question hoped for: log in over HTTP, keep the cookies, and dial.
  const jar = await dialAt('/jar', '-key', key, '-login', gate.http('/login'));
  await check('with a ticket route, an authenticated GET puts a ticket into the cookie jar', () => {
    assert.equal(jar.get.status, 200, jar.get.body);
    const { ticket } = JSON.parse(jar.get.body);
    keepSecret(ticket);
    assert.ok(jar.get.headers['Set-Cookie'][0].startsWith(`gate=${ticket};`));
  });
  await check('and a plain gorilla dial with that jar gets through', async () => {
    assert.equal(jar.dial.status, 101, jar.dial.body);
    assert.equal(jar.dial.echo, 'hello from gorilla');
    await gate.logged('tunnel opened', { key: 'gopher', route: '/jar' });
  });
  await check('once: the next dial with the used cookie gets a 401', async () => {
    assertRefused(jar.again, 401, 'invalid_credential');
    await gate.logged('refused', { key: 'gopher', cause: 'the ticket was used already' });
  });
  await check('without the GET before it, the dial gets a 401 that names the ticket route', async () => {
    const { dial: answer } = await dialAt('/jar');
    assert.match(assertRefused(answer, 401, 'missing_credential').detail, /a ticket from POST \/login/);
  });
  await check("a wrong key with the GET gets a 401, and the jar holds nothing", async () => {
    const { get, dial: answer } = await dialAt('/jar', '-key', newKey(), '-login', gate.http('/login'));
    assertRefused(get, 401, 'invalid_credential');
    assertRefused(answer, 401, 'missing_credential');
  });
  await check("without TLS, Go's jar keeps a Secure cookie (the default) to itself", async () => {
    const { get, dial: answer } = await dialAt('/tls', '-key', key, '-login', gate.http('/tls/login'));
    keepSecret(JSON.parse(get.body).ticket);
    assertRefused(answer, 401, 'missing_credential');
  });
};
