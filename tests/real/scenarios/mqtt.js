'use strict';
// Mosquitto's WebSocket listener, without a login. MQTT clients offer the subprotocol `mqtt` and insist on it.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const mqtt = require('mqtt');
const WebSocket = require('ws');
const { freePort, newKey, within } = require('../support');

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

/** Subscribes, publishes, and waits for the message to come back. Returns the subprotocol that the client saw. */
async function roundTrip(url, { protocols, headers }) {
  let socket; // mqtt.js opens it just so by itself; with our own hands we can offer more, and look at the answer
  const createWebsocket = (target, offered) => (socket = new WebSocket(target, protocols ?? offered, { headers }));
  const client = await within(mqtt.connectAsync(url, { reconnectPeriod: 0, createWebsocket }, false), 'CONNACK');
  try {
    const arrived = new Promise((resolve) => client.on('message', (topic, payload) => resolve([topic, String(payload)])));
    await client.subscribeAsync('rooms/+', { qos: 1 });
    await client.publishAsync('rooms/7', 'hello from mqtt', { qos: 1 });
    assert.deepEqual(await within(arrived, 'the message'), ['rooms/7', 'hello from mqtt']);
    return socket.protocol;
  } finally {
    await client.endAsync();
  }
}

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const broker = await mosquitto(scope);
  const gate = await scope.gate(`
upstream: ${broker}
keys:
  - { id: sensor, secret: ${key} }
`);

  await check('publish and subscribe with X-Api-Key', async () => {
    assert.equal(await roundTrip(gate.ws('/mqtt'), { headers: { 'X-Api-Key': key } }), 'mqtt');
    await gate.logged('tunnel opened', { key: 'sensor', subprotocol: 'mqtt' });
  });
  for (const protocols of [['x-api-key', key, 'mqtt'], ['mqtt', 'x-api-key', key]]) {
    const order = protocols.map((item) => (item === key ? 'KEY' : item)).join(', ');
    await check(`publish and subscribe with the subprotocols ${order}`, async () => {
      assert.equal(await roundTrip(gate.ws('/mqtt'), { protocols }), 'mqtt');
    });
  }
  await check('a wrong key does not connect', async () => {
    await assert.rejects(roundTrip(gate.ws('/mqtt'), { headers: { 'X-Api-Key': newKey() } }));
    await gate.logged('refused', { reason: 'invalid_credential' });
  });
};
