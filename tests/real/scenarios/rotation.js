'use strict';
// Editing the YAML is the revocation: who lost the right is closed within a second, nobody else notices.

const assert = require('node:assert/strict');
const { assertRefused, connect, newKey, refusal, within } = require('../support');

// One second for wsbouncer, as promised, and half of one for a busy machine.
const SOON_MS = 1500;

/** Sends numbered messages one after another and checks that each comes back, until told how many more to send. */
function keepEchoing(client) {
  let count = 0;
  let last = Infinity;
  const done = (async () => {
    for (; count < last; count += 1) {
      assert.equal(String(await client.ask(`message ${count}`)), `message ${count}`);
    }
    return count;
  })();
  done.catch(() => {}); // seen by whoever calls `stopAfter`
  return { stopAfter(more) { last = count + more; return done; } };
}

module.exports = async ({ scope, check }) => {
  const [leaver, old, next, stayer] = [newKey(), newKey(), newKey(), newKey()];
  const upstream = await scope.echo();
  const yaml = (keys) => `upstream: ${upstream.url}\nkeys:\n${keys.map((key) => `  - ${key}\n`).join('')}`;
  const staying = `{ id: stayer, secret: ${stayer} }`;
  const gate = await scope.gate(yaml([
    `{ id: leaver, secret: ${leaver} }`,
    `{ id: rotating, secrets: [plain: ${old}, plain: ${next}] }`,
    staying,
  ]));
  const withKey = (key) => ({ headers: { 'X-Api-Key': key } });
  const closing = (client) => new Promise((resolve) => {
    client.on('close', (code, reason) => resolve({ code, reason: String(reason), at: performance.now() }));
  });

  const [leaving, onOld, onNext, steady] = await Promise.all(
    [leaver, old, next, stayer].map((key) => connect(gate.ws('/'), withKey(key))),
  );
  for (const client of [leaving, onOld, onNext]) await client.ask('hello');
  const traffic = keepEchoing(steady);

  // Gone: the key `leaver`, and the old secret of `rotating`.
  const closed = Promise.all([closing(leaving), closing(onOld)]);
  const edited = performance.now();
  gate.edit(yaml([`{ id: rotating, secrets: [plain: ${next}] }`, staying]));

  await check('the connection of a removed key is closed with 4401 within about a second', async () => {
    const [{ code, reason, at }] = await within(closed, 'Close frames');
    assert.deepEqual({ code, reason }, { code: 4401, reason: 'revoked' });
    assert.ok(at - edited < SOON_MS, `${Math.round(at - edited)} ms`);
    await gate.logged('tunnel closed', { key: 'leaver', cause: 'revoked', code: 4401 });
    return `${Math.round(at - edited)} ms`;
  });
  await check('so is the one that came in with the removed secret of a rotated key', async () => {
    const [, { code, at }] = await within(closed, 'Close frames');
    assert.equal(code, 4401);
    assert.ok(at - edited < SOON_MS, `${Math.round(at - edited)} ms`);
  });
  await check('the one on the new secret stays', async () => {
    assert.equal(String(await onNext.ask('still here')), 'still here');
  });
  await check("another key's connection echoed all the while", async () => {
    await within(closed, 'Close frames');
    return `${await traffic.stopAfter(100)} messages`;
  });
  await check('the removed key and the removed secret do not open any more', async () => {
    for (const key of [leaver, old]) assertRefused(await refusal(gate.ws('/'), withKey(key)), 401, 'invalid_credential');
  });
  await check('the service was told as well, and keeps the two others', async () => {
    await upstream.closes.find(() => upstream.closes.items.length === 2, 'two Close frames');
    assert.deepEqual(upstream.closes.items, [1001, 1001]);
    assert.equal(upstream.sockets.clients.size, 2);
  });
};
