'use strict';
// OCPP 1.6 (security profile 1): a charger dials with its own name at the end of the path, and with HTTP Basic
// authentication, the same name as user. Both ends are a library for it; the one behind wsbouncer checks nothing.

const assert = require('node:assert/strict');
const { RPCClient, RPCServer } = require('ocpp-rpc');
const { assertRefused, newKey, refusal, within } = require('../support');

/** Accepts every charger that boots. */
async function central(scope) {
  const server = new RPCServer({ protocols: ['ocpp1.6'] });
  const seen = [];
  server.auth((accept, _, handshake) => { seen.push(handshake); accept(); });
  server.on('client', (charger) => {
    charger.handle('BootNotification', () => ({ status: 'Accepted', interval: 300, currentTime: '2027-01-01T00:00:00Z' }));
    charger.handle('Heartbeat', () => ({ currentTime: '2027-01-01T00:00:00Z' }));
  });
  const { port } = (await server.listen(0, '127.0.0.1')).address();
  scope.defer(() => server.close({ force: true }));
  return { url: `ws://127.0.0.1:${port}`, seen, server };
}

module.exports = async ({ scope, check }) => {
  const [one, two] = [newKey(), newKey()];
  const service = await central(scope);
  const gate = await scope.gate(`
keys:
  - { id: CP001, secret: ${one} }
  - { id: CP002, secret: ${two} }
routes:
  - path: /ocpp/*
    upstream: ${service.url}
    auth: [api_key: { extract_from: [basic] }]
`);
  const charger = (identity, password) => {
    const client = new RPCClient({
      endpoint: gate.ws('/ocpp'), identity, password, protocols: ['ocpp1.6'], strictMode: true, reconnect: false,
    });
    scope.defer(() => client.close({ force: true }));
    return client;
  };
  const fails = async (identity, password, reason) => {
    await assert.rejects(within(charger(identity, password).connect(), 'the refusal'), { code: 401, message: 'Unauthorized' });
    await gate.logged('refused', { path: `/ocpp/${identity}`, reason });
  };

  await check('a charger with name and password boots, over ocpp1.6', async () => {
    const client = charger('CP001', one);
    await within(client.connect(), 'the connection');
    assert.equal(client.protocol, 'ocpp1.6');
    const boot = { chargePointVendor: 'Vendor', chargePointModel: 'Model' };
    assert.equal((await client.call('BootNotification', boot)).status, 'Accepted');
    await client.call('Heartbeat', {});
    await gate.logged('tunnel opened', { key: 'CP001', subprotocol: 'ocpp1.6' });
  });
  await check('the central system gets the name as X-Auth-Key-Id, and no password', () => {
    const [{ identity, headers, password }] = service.seen;
    assert.equal(identity, 'CP001');
    assert.equal(headers['x-auth-key-id'], 'CP001');
    assert.equal(headers.authorization, undefined);
    assert.equal(password, undefined);
  });
  await check('a wrong password is refused', () => fails('CP002', newKey(), 'invalid_credential'));
  await check("another charger's password is refused: name and password belong together", () => fails('CP002', one, 'invalid_credential'));
  await check('an unknown charger is refused', () => fails('CP003', one, 'invalid_credential'));
  await check('no password is refused, with a challenge that names Basic', async () => {
    const answer = await refusal(gate.ws('/ocpp/CP004'), { protocols: ['ocpp1.6'] });
    assertRefused(answer, 401, 'missing_credential');
    assert.match(answer.headers['www-authenticate'], /^Basic realm=/);
  });
  await check('a charger that is taken out of the file is disconnected; the library says 4401', async () => {
    const client = charger('CP002', two);
    await within(client.connect(), 'the connection');
    const closed = new Promise((resolve) => client.once('disconnect', resolve));
    gate.edit(`
keys:
  - { id: CP001, secret: ${one} }
routes:
  - { path: /ocpp/*, upstream: "${service.url}", auth: [api_key: { extract_from: [basic] }] }
`);
    const { code, reason } = await within(closed, 'the close');
    assert.deepEqual({ code, reason: String(reason) }, { code: 4401, reason: 'revoked' });
  });
};
