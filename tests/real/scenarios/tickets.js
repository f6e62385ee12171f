'use strict';
// A page fetches a ticket with its key, and dials with the ticket: in the query, as a subprotocol, as a cookie. The
// gate is another origin than the page, so the browser's rules for that (CORS, SameSite) have their say.

const assert = require('node:assert/strict');
const { dialInPage, keepSecret, newKey } = require('../support');

/** Runs in the page: what `fetch` lets page code know. */
async function fetchInPage([url, options]) {
  try {
    const response = await fetch(url, options);
    const headers = { type: response.headers.get('content-type'), id: response.headers.get('x-request-id') };
    return { status: response.status, ...headers, body: await response.json() };
  } catch (error) {
    return { error: `${error.name}: ${error.message}` };
  }
}

module.exports = async ({ scope, check }) => {
  const [key, leaver] = [newKey(), newKey()];
  const upstream = await scope.echo();
  const page = await scope.page();
  const home = new URL(page.url()).origin;
  // 127.0.0.1 with another port is another origin of the same site; localhost is another site.
  const other = await page.context().newPage();
  await other.goto(await scope.origin());
  const friend = await page.context().newPage();
  await friend.goto(await scope.origin());
  const foreign = await page.context().newPage();
  await foreign.goto((await scope.origin()).replace('127.0.0.1', 'localhost'));
  const origins = [home, new URL(friend.url()).origin, new URL(foreign.url()).origin];
  const yaml = (keys) => `
keys:
${keys.map((line) => `  - ${line}`).join('\n')}
routes:
${Object.entries({
    ws: '',
    secure: ', cookie: secure_ticket',
    plain: ', cookie: { name: plain_ticket, secure: false }',
    bound: ', bind: [origin]',
  }).map(([name, more]) => `
  - path: /${name}
    upstream: ${upstream.url}
    on_failure: close
    allowed_origins: ${JSON.stringify(origins)}
    tickets: { path: /${name}/ticket${more} }`).join('')}
`;
  const staying = `{ id: page, secret: ${key} }`;
  const gate = await scope.gate(yaml([staying, `{ id: leaver, secret: ${leaver} }`]));
  const ask = (from, target, secret, more = {}) =>
    from.evaluate(fetchInPage, [gate.http(target), { method: 'POST', headers: { 'X-Api-Key': secret }, ...more }]);
  const ticket = async (from, target, secret = key, more) => {
    const answer = await ask(from, target, secret, more);
    assert.equal(answer.status, 200, JSON.stringify(answer));
    return keepSecret(answer.body.ticket);
  };
  const opens = async (from, target, protocols) => {
    const socket = await dialInPage(from, gate.ws(target), protocols);
    assert.equal(await socket.ask('by ticket'), 'by ticket');
    return socket;
  };
  const refused = async (from, target, reason, protocols) => {
    const { code, reason: word } = await (await dialInPage(from, gate.ws(target), protocols)).closed();
    assert.deepEqual([code, word], [4401, reason]);
  };

  await check('fetch() of another origin gets a ticket, and reads all of the answer', async () => {
    const { body, type, status, id } = await ask(page, '/ws/ticket', key);
    keepSecret(body.ticket);
    assert.equal(status, 200);
    assert.equal(type, 'application/json');
    assert.equal(body.expires_in, 30);
    assert.match(body.ticket, /^[\w-]{40,}$/);
    await gate.logged('ticket issued', { key: 'page', id });
  });
  await check('new WebSocket(url + "?ticket=" + ticket) opens once, and the service sees no ticket', async () => {
    const one = await ticket(page, '/ws/ticket');
    const socket = await opens(page, `/ws?room=7&ticket=${one}`);
    const { url, headers } = upstream.requests.pop();
    assert.equal(url, '/ws?room=7');
    assert.equal(headers['x-auth-key-id'], 'page');
    await refused(page, `/ws?ticket=${one}`, 'invalid_credential');
    await gate.logged('refused', { key: 'page', cause: 'the ticket was used already' });
    await socket.close();
  });
  await check('new WebSocket(url, ["ticket", ticket]) opens once, and selects ticket', async () => {
    const one = await ticket(page, '/ws/ticket');
    const socket = await opens(page, '/ws', ['ticket', one]);
    assert.equal(await socket.protocol(), 'ticket');
    assert.equal(upstream.requests.pop().headers['sec-websocket-protocol'], undefined);
    await refused(page, '/ws', 'invalid_credential', ['ticket', one]);
    await socket.close();
  });

  const include = { credentials: 'include' };
  for (const [name, what] of [['plain', 'secure: false'], ['secure', 'Secure, over http://127.0.0.1']]) {
    await check(`cookie (${what}): fetch with credentials, then new WebSocket(url), once`, async () => {
      await page.context().addCookies([{ name: 'theme', value: 'dark', url: gate.http('/') }]);
      await ticket(page, `/${name}/ticket`, key, include);
      const [stored] = (await page.context().cookies(gate.http(`/${name}`))).filter((cookie) => cookie.name === `${name}_ticket`);
      assert.deepEqual([stored.httpOnly, stored.sameSite, stored.path, stored.secure], [true, 'Strict', `/${name}`, name === 'secure']);
      assert.equal(await page.evaluate(() => document.cookie.includes('ticket')), false, 'page code does not see it');
      const socket = await opens(page, `/${name}`);
      assert.equal(upstream.requests.pop().headers.cookie, 'theme=dark');
      await refused(page, `/${name}`, 'invalid_credential');
      await socket.close();
      await page.context().clearCookies();
    });
  }
  await check('cookie: without credentials: "include" it is not kept, and the dial shows nothing', async () => {
    await ticket(page, '/plain/ticket');
    await refused(page, '/plain', 'missing_credential');
  });
  await check('cookie: a page of another site does not get it kept, even with "include"; its ticket works in the query', async () => {
    const one = await ticket(foreign, '/plain/ticket', key, include);
    await refused(foreign, '/plain', 'missing_credential');
    await (await opens(foreign, `/plain?ticket=${one}`)).close();
  });
  await check('cookie: what a page of the same site was given, a page of another site does not send', async () => {
    await ticket(page, '/plain/ticket', key, include);
    await refused(foreign, '/plain', 'missing_credential');
    await (await opens(page, '/plain')).close();
    await page.context().clearCookies();
  });

  await check('a refusal can be read by an allowed page: status, problem, and the id to ask about', async () => {
    const { status, type, id, body } = await ask(page, '/ws/ticket', newKey());
    assert.deepEqual([status, type, body.reason], [401, 'application/problem+json', 'invalid_credential']);
    assert.equal(body.request_id, id);
    await gate.logged('refused', { id, reason: 'invalid_credential' });
    return JSON.stringify(body);
  });
  await check('another page is failed by its browser, and never sends the key', async () => {
    const { error } = await ask(other, '/ws/ticket', key);
    assert.match(error, /^TypeError: Failed to fetch/);
    // The preflight: the line has no key, as it would for a request that showed one.
    await gate.logged('refused', { reason: 'origin_not_allowed', origin: new URL(other.url()).origin, key: undefined });
    return error;
  });
  await check('bind: [origin]: a ticket is of no use to another allowed page, and still good for its own', async () => {
    const one = await ticket(page, '/bound/ticket');
    await refused(friend, `/bound?ticket=${one}`, 'invalid_credential');
    await (await opens(page, `/bound?ticket=${one}`)).close();
  });

  await check('to revoke the key closes what its ticket opened, with 4401 revoked, and kills the unused ones', async () => {
    const [used, unused] = [await ticket(page, '/ws/ticket', leaver), await ticket(page, '/ws/ticket', leaver)];
    const kept = await opens(page, `/ws?ticket=${await ticket(page, '/ws/ticket')}`);
    const socket = await opens(page, `/ws?ticket=${used}`);
    gate.edit(yaml([staying]));
    const { code, reason, wasClean } = await socket.closed();
    assert.deepEqual({ code, reason, wasClean }, { code: 4401, reason: 'revoked', wasClean: true });
    await refused(page, `/ws?ticket=${unused}`, 'invalid_credential');
    assert.equal(await kept.ask('still here'), 'still here');
  });
};
