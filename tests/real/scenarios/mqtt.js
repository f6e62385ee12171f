'use strict';
// Mosquitto's WebSocket listener, without a login. MQTT clients offer the subprotocol `mqtt` and insist on it.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const mqtt = require('mqtt');
const WebSocket = require('ws');
const { freePort, get, keepSecret, newKey, packaged, within } = require('../support');

async function mosquitto(scope) {
  const port = await freePort();
  const directory = scope.directory();
  const config = path.join(directory, 'mosquitto.conf');
  // Without the IPv4 line it listens on every interface, and without a second listener (here a socket file, which
  // only root's own mosquitto may create in a private directory) Debian's version ends at once.
  fs.writeFileSync(config, `
user root
listener 0 ${directory}/mosquitto.sock
listener ${port} 127.0.0.1
socket_domain ipv4
protocol websockets
allow_anonymous true
`);
  await scope.start('/usr/sbin/mosquitto', ['-c', config]).says(/mosquitto version .* running/);
  return `ws://127.0.0.1:${port}`;
}

/** Subscribes, publishes, and waits for the message to come back. `options` are those of mqtt.js. */
async function roundTrip(url, options) {
  const client = await within(mqtt.connectAsync(url, { reconnectPeriod: 0, ...options }, false), 'CONNACK');
  try {
    await echoed(client);
  } finally {
    await client.endAsync();
  }
}

async function echoed(client) {
  const arrived = new Promise((resolve) => client.once('message', (topic, payload) => resolve([topic, String(payload)])));
  await client.subscribeAsync('rooms/+', { qos: 1 });
  await client.publishAsync('rooms/7', 'hello from mqtt', { qos: 1 });
  assert.deepEqual(await within(arrived, 'the message'), ['rooms/7', 'hello from mqtt']);
}

/** Runs in a page, beside mqtt.js as its package ships it to browsers. */
async function roundTripInPage([url, pair]) {
  const createWebsocket = (target, protocols) => new WebSocket(target, [...protocols, ...pair]);
  const client = mqtt.connect(url, { reconnectPeriod: 0, ...(pair && { createWebsocket }) });
  const failed = new Promise((resolve) => client.on('close', () => resolve('closed')));
  const arrived = new Promise((resolve) => client.on('message', (_, payload) => resolve(String(payload))));
  client.on('connect', async () => {
    await client.subscribeAsync('pages/+', { qos: 1 });
    client.publish('pages/7', 'hello from a page');
  });
  const outcome = await Promise.race([arrived, failed]);
  client.end(true);
  return outcome;
}

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const broker = await mosquitto(scope);
  const gate = await scope.gate(`
keys:
  - { id: sensor, secret: ${key} }
routes:
  - { path: /mqtt, upstream: "${broker}", tickets: { path: /ticket } }
`);
  const url = gate.ws('/mqtt');
  const withKey = (secret) => ({ wsOptions: { headers: { 'X-Api-Key': secret } } });
  const ticket = async () => {
    const { body } = await get(gate.http('/ticket'), { 'X-Api-Key': key });
    return keepSecret(JSON.parse(body).ticket);
  };
  /** mqtt.js does not say why; the log does. */
  const refused = async (target, options, fields) => {
    await assert.rejects(roundTrip(target, options), { message: "Couldn't connect to server" });
    await gate.logged('refused', { status: 401, ...fields });
  };

  await check('wsOptions: { headers: { "X-Api-Key": KEY } }', async () => {
    await roundTrip(url, withKey(key));
    await gate.logged('tunnel opened', { key: 'sensor', subprotocol: 'mqtt' });
  });
  // mqtt.js offers `mqtt` alone; whoever wants to offer more opens the socket for it.
  for (const [order, offer] of [['after', (own) => [...own, 'x-api-key', key]], ['before', (own) => ['x-api-key', key, ...own]]]) {
    await check(`createWebsocket: the pair x-api-key, KEY ${order} the library's own mqtt, which is selected`, async () => {
      let socket;
      await roundTrip(url, { createWebsocket: (target, own) => (socket = new WebSocket(target, offer(own))) });
      assert.equal(socket.protocol, 'mqtt');
    });
  }
  await check('a ticket in the query of the URL', async () => {
    await roundTrip(`${url}?ticket=${await ticket()}`);
    await gate.logged('ticket issued', { key: 'sensor' });
  });
  await check('a ticket is used up: mqtt.js cannot come back with the same URL', async () => {
    const once = `${url}?ticket=${await ticket()}`;
    await roundTrip(once);
    await refused(once, {}, { cause: 'the ticket was used already' });
  });
  await check('transformWsUrl gives a reconnect the next ticket', async () => {
    const tickets = [await ticket(), await ticket()];
    const transformWsUrl = (target) => `${target}?ticket=${tickets.shift()}`;
    const client = await within(mqtt.connectAsync(url, { reconnectPeriod: 1, transformWsUrl }, false), 'CONNACK');
    try {
      await echoed(client);
      const again = new Promise((resolve) => client.once('connect', resolve));
      client.stream.destroy(); // as a lost network would
      await within(again, 'the second CONNACK');
      await echoed(client);
      assert.equal(tickets.length, 0);
    } finally {
      await client.endAsync();
    }
  });
  await check('a wrong key does not connect', () => refused(url, withKey(newKey()), { cause: 'unknown key' }));

  const page = await scope.page();
  await page.addScriptTag({ path: packaged('mqtt/dist/mqtt.min.js') });
  const inPage = (...args) => within(page.evaluate(roundTripInPage, args), 'the outcome in the page');
  await check('in Chromium: createWebsocket with the pair, and a ticket in the query', async () => {
    assert.equal(await inPage(url, ['x-api-key', key]), 'hello from a page');
    assert.equal(await inPage(`${url}?ticket=${await ticket()}`), 'hello from a page');
  });
  await check('in Chromium: a wrong key closes', async () => {
    assert.equal(await inPage(url, ['x-api-key', newKey()]), 'closed');
  });
};
