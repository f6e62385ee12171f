'use strict';
// A service on a unix socket: nothing on the machine reaches it but by way of wsbouncer.

const assert = require('node:assert/strict');
const path = require('node:path');
const { assertRefused, connect, newKey, refusal } = require('../support');

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const socket = path.join(scope.directory(), 'app.sock');
  const upstream = await scope.echo({ socket });
  const gate = await scope.gate(`
keys:
  - { id: neighbour, secret: ${key} }
upstreams:
  app: ${upstream.url}
routes:
  - { path: /named, upstream: app }
  - { path: /inline, upstream: "${upstream.url}" }
  - { path: /nobody, upstream: "unix:${socket}.missing" }
`);
  const headers = { 'X-Api-Key': key };

  for (const target of ['/named', '/inline']) {
    await check(`${target.slice(1)} upstream: opens and echoes`, async () => {
      const client = await connect(gate.ws(target), { headers });
      assert.equal(String(await client.ask('over a socket file')), 'over a socket file');
      client.close();
      const seen = upstream.requests.pop().headers;
      assert.equal(seen['x-auth-key-id'], 'neighbour');
      assert.equal(seen['x-api-key'], undefined);
    });
  }
  await check('no key, no way in', async () => {
    assertRefused(await refusal(gate.ws('/named')), 401, 'missing_credential');
  });
  await check('a socket file that is not there is a 502', async () => {
    assertRefused(await refusal(gate.ws('/nobody'), { headers }), 502, 'upstream_unreachable');
  });
};
