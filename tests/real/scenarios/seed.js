'use strict';
// The question that this project began with: a gorilla/websocket service without authentication, a client that
// authenticates with a plain request first, and a dial that is then expected to be let in.

const assert = require('node:assert/strict');
const path = require('node:path');
const { assertRefused, newKey } = require('../support');

const program = (name) => path.join(__dirname, '..', '.cache', `go-${name}`);

module.exports = async ({ scope, check }) => {
  const address = await scope.start(program('echo'), []).says(/^127\.0\.0\.1:/);
  const key = newKey();
  const gate = await scope.gate(`
upstream: ws://${address}
keys:
  - { id: gopher, secret: ${key} }
`);
  const dial = async (...args) => JSON.parse(await scope.run(program('dial'), ['-url', gate.ws('/ws'), ...args]));

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
};
