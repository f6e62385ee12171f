'use strict';
// permessage-deflate is negotiated end to end: wsbouncer passes the offer, the answer and the compressed frames.

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { connect, newKey } = require('../support');

const MIB = 1024 * 1024;
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const payloads = {
  random: (size) => crypto.randomBytes(size),
  compressible: (size) => Buffer.alloc(size, 'the gate stands '),
};

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const upstream = await scope.echo({ deflate: { threshold: 0 } });
  const gate = await scope.gate(`
upstream: ${upstream.url}
keys:
  - { id: packer, secret: ${key} }
`);
  const open = () => connect(gate.ws('/'), { headers: { 'X-Api-Key': key }, perMessageDeflate: { threshold: 0 } });
  const client = await open();

  await check('the extension is negotiated on both sides', () => {
    assert.match(client.extensions, /permessage-deflate/);
    assert.match([...upstream.sockets.clients][0].extensions, /permessage-deflate/);
  });

  for (const [kind, make] of Object.entries(payloads)) {
    await check(`${kind} messages of 0 to 1 MiB arrive intact, both ways`, async () => {
      for (const size of [0, 1, 125, 126, 65_535, 65_536, 300_000, MIB]) {
        const sent = make(size);
        const received = await client.ask(sent);
        assert.equal(sha256(upstream.messages.items.pop()), sha256(sent), `${size} bytes up`);
        assert.equal(sha256(received), sha256(sent), `${size} bytes down`);
      }
    });
  }

  await check('1 MiB of text crosses compressed, both ways', async () => {
    const other = await open();
    await other.ask(payloads.compressible(MIB));
    other.close();
    const closed = await gate.logged('tunnel closed', { up_messages: 1 });
    for (const bytes of [closed.up_bytes, closed.down_bytes]) assert.ok(bytes > 0 && bytes < MIB / 50, `${bytes} bytes`);
    return `${closed.up_bytes} bytes up, ${closed.down_bytes} bytes down`;
  });

  await check('256 messages in flight at once keep their order', async () => {
    const sent = Array.from({ length: 256 }, (_, n) => payloads[n % 2 ? 'random' : 'compressible'](n * 97));
    const received = [];
    const all = new Promise((resolve) => client.on('message', (data) => received.push(data) === sent.length && resolve()));
    sent.forEach((message) => client.send(message));
    await all;
    assert.deepEqual(received.map(sha256), sent.map(sha256));
  });
  client.close();
};
