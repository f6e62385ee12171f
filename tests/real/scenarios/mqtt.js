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
  const config = path.join(scope.directory(), 'mosquitto.conf');
  fs.writeFileSync(config, `listener ${port} 127.0.0.1\nprotocol websockets\nallow_anonymous true\n`);
  const broker = scope.start('/usr/sbin/mosquitto', ['-c', config]);
  await broker.stderr.find((line) => /mosquitto version .* running/.test(line), 'mosquitto runs');
  return `ws://127.0.0.1:${port}`;
}

/** Subscribes, publishes, and waits for the message to come back. Returns the subprotocol that the client saw. */
async function roundTrip(url, options) {
  const client = await within(mqtt.connectAsync(url, { reconnectPeriod: 0, connectTimeout: 5000, ...options }), 'CONNACK');
  try {
    const arrived = new Promise((resolve) => client.on('message', (topic, payload) => resolve([topic, String(payload)])));
    await client.subscribeAsync('rooms/+', { qos: 1 });
    await client.publishAsync('rooms/7', 'hello from mqtt', { qos: 1 });
    assert.deepEqual(await within(arrived, 'the message'), ['rooms/7', 'hello from mqtt']);
    return client.stream.socket.protocol;
  } finally {
    client.end(true);
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
    const protocol = await roundTrip(gate.ws('/mqtt'), { wsOptions: { headers: { 'X-Api-Key': key } } });
    assert.equal(protocol, 'mqtt');
    await gate.logged('tunnel opened', { key: 'sensor', subprotocol: 'mqtt' });
  });
  for (const offered of [['x-api-key', key, 'mqtt'], ['mqtt', 'x-api-key', key]]) {
    const order = offered.map((item) => (item === key ? 'KEY' : item)).join(', ');
    await check(`publish and subscribe with the subprotocols ${order}`, async () => {
      const protocol = await roundTrip(gate.ws('/mqtt'), { createWebsocket: (url) => new WebSocket(url, offered) });
      assert.equal(protocol, 'mqtt');
    });
  }
  await check('a wrong key does not connect', async () => {
    const attempt = roundTrip(gate.ws('/mqtt'), { wsOptions: { headers: { 'X-Api-Key': newKey() } } });
    await assert.rejects(attempt, /401/);
  });
};
