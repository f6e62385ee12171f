'use strict';
// The two WebSocket libraries of Python, `websockets` and `websocket-client`: the key by header and by subprotocol, a
// ticket in the query, and how each of them tells a refusal.

const assert = require('node:assert/strict');
const path = require('node:path');
const { get, keepSecret, newKey } = require('../support');

const PROGRAM = path.join(__dirname, '..', 'python', 'dial.py');
const PYTHONPATH = path.join(__dirname, '..', '.cache', 'python');
const LIBRARIES = ['websockets', 'websocket-client', 'WebSocketApp'];

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const upstream = await scope.echo();
  const gate = await scope.gate(`
keys:
  - { id: snake, secret: ${key} }
routes:
  - { path: /ws, upstream: "${upstream.url}", tickets: { path: /ticket } }
  - { path: /close, upstream: "${upstream.url}", on_failure: close }
`);
  const dial = async (library, target, more) => {
    const asked = JSON.stringify({ library, url: gate.ws(target), ...more });
    return JSON.parse(await scope.run('/usr/bin/python3', [PROGRAM], { env: { ...process.env, PYTHONPATH } }, asked));
  };
  const header = (secret) => ({ headers: { 'X-Api-Key': secret } });

  for (const library of LIBRARIES) {
    const hello = `hello from ${library}`;
    await check(`${library}: the key as a header`, async () => {
      const { echo } = await dial(library, '/ws', header(key));
      assert.equal(echo, hello);
      assert.equal(upstream.requests.pop().headers['x-auth-key-id'], 'snake');
    });
    await check(`${library}: the key as a subprotocol, before a service that selects none`, async () => {
      const seen = await dial(library, '/ws', { subprotocols: ['x-api-key', key] });
      assert.equal(seen.echo, hello);
      if (library !== 'WebSocketApp') assert.equal(seen.subprotocol, 'x-api-key');
    });
    await check(`${library}: a ticket in the query, once`, async () => {
      const { ticket } = JSON.parse((await get(gate.http('/ticket'), { 'X-Api-Key': key })).body);
      keepSecret(ticket);
      assert.equal((await dial(library, `/ws?ticket=${ticket}`)).echo, hello);
      assert.equal((await dial(library, `/ws?ticket=${ticket}`)).status, 401);
    });
    await check(`${library}: a refusal has its status`, async () => {
      const { status, body, says } = await dial(library, '/ws', header(newKey()));
      assert.equal(status, 401);
      if (library !== 'WebSocketApp') assert.equal(JSON.parse(body).reason, 'invalid_credential');
      return says;
    });
    await check(`${library}: with on_failure: close it has its code`, async () => {
      const { code, reason, says } = await dial(library, '/close', header(newKey()));
      assert.deepEqual({ code, reason }, { code: 4401, reason: 'invalid_credential' });
      return says;
    });
  }
};
