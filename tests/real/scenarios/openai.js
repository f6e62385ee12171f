'use strict';
// config/examples/openai-realtime.yaml as it is shipped, before a stand-in for the vendor: the page holds a key that
// can be taken back, the vendor gets its own. The call is the one that the vendor's guide shows for pages.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const WebSocket = require('ws');
const { connect, dialInPage, newKey } = require('../support');

const EXAMPLE = path.join(__dirname, '..', '..', '..', 'config', 'examples', 'openai-realtime.yaml');

/** Speaks as the vendor does: 401 without its key, `realtime` selected, and an event before anything is asked. */
async function vendor(scope, key) {
  const requests = [];
  const server = http.createServer((_, response) => response.writeHead(404).end());
  const sockets = new WebSocket.Server({ noServer: true, handleProtocols: () => 'realtime' });
  server.on('upgrade', (request, socket, head) => {
    requests.push(request);
    if (request.headers.authorization !== `Bearer ${key}`) {
      socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
      return;
    }
    sockets.handleUpgrade(request, socket, head, (client) => {
      const model = new URL(request.url, 'ws://vendor').searchParams.get('model');
      client.on('message', () => client.send(JSON.stringify({ type: 'session.updated', session: { model } })));
      client.send(JSON.stringify({ type: 'session.created', session: { model } }));
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  scope.defer(() => {
    sockets.clients.forEach((client) => client.terminate());
    server.close();
  });
  return { url: `ws://127.0.0.1:${server.address().port}`, requests };
}

/** The shipped file, with these parts put in place of its own; each has to be there. */
function adapted(parts) {
  let yaml = fs.readFileSync(EXAMPLE, 'utf8');
  for (const [own, other] of parts) {
    assert.equal(yaml.split(own).length, 2, `${own} once in the example`);
    yaml = yaml.replace(own, other);
  }
  return yaml;
}

module.exports = async ({ scope, check }) => {
  const [key, vendorKey] = [newKey(), newKey()];
  const service = await vendor(scope, vendorKey);
  const page = await scope.page();
  const [secret] = /\{ sha256: "\w+" \}/.exec(fs.readFileSync(EXAMPLE, 'utf8'));
  const yaml = (own) => adapted([
    ['listen: 127.0.0.1:8080\n', ''], // the harness has its own
    ['openai: ws://127.0.0.1:9443', `openai: ${service.url}`],
    ['https://voice.example.com"]', `${new URL(page.url()).origin}"]`],
    [secret, `{ plain: ${own} }`],
  ]);
  const gate = await scope.gate(yaml(key), { OPENAI_API_KEY: vendorKey });
  const url = gate.ws('/v1/realtime?model=gpt-realtime');
  const items = (own) => ['realtime', `openai-insecure-api-key.${own}`, 'openai-beta.realtime-v1'];

  const socket = await dialInPage(page, url, items(key));
  await check("in Chromium, the vendor's call opens a session with a key of our own", async () => {
    const { type, session } = JSON.parse(await socket.heard());
    assert.deepEqual({ type, session }, { type: 'session.created', session: { model: 'gpt-realtime' } });
    assert.equal(await socket.protocol(), 'realtime');
    assert.equal(JSON.parse(await socket.ask('{"type":"session.update"}')).type, 'session.updated');
    await gate.logged('tunnel opened', { key: 'voice-page', route: 'realtime' });
  });
  await check('the vendor gets its own key, the project of ours, and nothing else of it', () => {
    const { headers, url: target, rawHeaders } = service.requests.pop();
    assert.equal(headers.authorization, `Bearer ${vendorKey}`);
    assert.equal(headers['openai-project'], 'proj_example');
    assert.equal(headers['sec-websocket-protocol'], 'realtime, openai-beta.realtime-v1');
    assert.equal(headers['x-auth-key-id'], undefined);
    assert.equal(target, '/v1/realtime?model=gpt-realtime');
    assert.ok(!rawHeaders.some((text) => text.includes(key)));
  });
  await check('a server that says Authorization: Bearer, with our key, gets the same', async () => {
    const client = await connect(url, { headers: { Authorization: `Bearer ${key}`, 'OpenAI-Project': 'proj_stolen' } });
    client.close();
    const { headers } = service.requests.pop();
    assert.equal(headers.authorization, `Bearer ${vendorKey}`);
    assert.equal(headers['openai-project'], 'proj_example');
  });
  await check("a wrong key is 4401 in the page, and so is the vendor's own", async () => {
    for (const wrong of [newKey(), vendorKey]) {
      const { code, reason } = await (await dialInPage(page, url, items(wrong))).closed();
      assert.deepEqual([code, reason], [4401, 'invalid_credential']);
    }
    assert.equal(service.requests.length, 0, 'the vendor heard nothing of it');
  });
  await check('another key in the file: the session of the page ends with 4401 revoked', async () => {
    gate.edit(yaml(newKey()));
    const { code, reason, wasClean } = await socket.closed();
    assert.deepEqual({ code, reason, wasClean }, { code: 4401, reason: 'revoked', wasClean: true });
  });
};
