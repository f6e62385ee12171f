'use strict';
// graphql-transport-ws: the library sends what identifies the client as `connectionParams`, in its first message. Here
// the key is in there, and the server behind knows nothing of keys.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { buildSchema } = require('graphql');
const { createClient } = require('graphql-ws');
const { useServer } = require('graphql-ws/use/ws');
const WebSocket = require('ws');
const { newKey, within } = require('../support');

const SCHEMA = buildSchema(`
  type Query { me: String }
  type Subscription { count(to: Int!): Int }
`);

/** A server as the library's own guide has it: whoever reaches it is served. */
async function graphql(scope) {
  const inits = [];
  const sockets = new WebSocket.Server({ port: 0, host: '127.0.0.1' });
  const server = useServer({
    schema: SCHEMA,
    onConnect: ({ connectionParams }) => { inits.push(connectionParams); },
    context: ({ extra }) => ({ me: extra.request.headers['x-auth-key-id'] }),
    roots: {
      query: { me: (_, { me }) => me },
      subscription: { async* count({ to }) { for (let count = 1; count <= to; count += 1) yield { count }; } },
    },
  }, sockets);
  await new Promise((resolve) => sockets.on('listening', resolve));
  scope.defer(() => {
    sockets.clients.forEach((client) => client.terminate());
    return server.dispose();
  });
  return { url: `ws://127.0.0.1:${sockets.address().port}`, inits };
}

/** One operation from begin to end: all its results, and how often the client dialled for them. */
async function results(options, query) {
  let dials = 0;
  const client = createClient({ webSocketImpl: WebSocket, ...options, on: { connecting: () => { dials += 1; } } });
  try {
    const all = [];
    for await (const { data, errors } of client.iterate({ query })) {
      assert.equal(errors, undefined);
      all.push({ ...data });
    }
    return { all, dials };
  } catch ({ code, reason }) {
    return { code, reason, dials };
  } finally {
    await client.dispose();
  }
}

/** The same in a page, with the library as its package ships it to browsers. */
async function resultsInPage([url, token, query]) {
  const { createClient } = await import('/client.js');
  const client = createClient({ url, connectionParams: { token } });
  try {
    const all = [];
    for await (const { data } of client.iterate({ query })) all.push(data);
    return { all };
  } catch ({ code, reason, wasClean }) {
    return { code, reason, wasClean };
  } finally {
    client.dispose();
  }
}

/** A page with the library's files beside it. */
async function pageWithLibrary(scope) {
  const directory = path.dirname(require.resolve('graphql-ws/client'));
  const server = http.createServer(({ url }, response) => {
    const file = path.join(directory, path.basename(url));
    if (url === '/') return response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html>');
    if (!fs.existsSync(file)) return response.writeHead(404).end();
    return response.writeHead(200, { 'Content-Type': 'text/javascript' }).end(fs.readFileSync(file));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  scope.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const page = await scope.page();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  return page;
}

module.exports = async ({ scope, check }) => {
  const key = newKey();
  const server = await graphql(scope);
  const route = (place) => `upstream: ${server.url}, auth: [api_key: { extract_from: [${place}] }]`;
  const gate = await scope.gate(`
keys:
  - { id: reader, secret: ${key} }
routes:
  - { path: /graphql, ${route('first_message: graphql-transport-ws')} }
  - { path: /hurried, ${route('first_message: { preset: graphql-transport-ws, timeout: 300ms }')} }
`);
  const url = gate.ws('/graphql');
  const count = [{ count: 1 }, { count: 2 }, { count: 3 }];

  await check('connectionParams { token }: a query is answered, and the server knows the key by its name', async () => {
    const { all } = await within(results({ url, connectionParams: { token: key } }, '{ me }'), 'the result');
    assert.deepEqual(all, [{ me: 'reader' }]);
    assert.deepEqual(server.inits.pop(), { token: key });
    await gate.logged('tunnel opened', { key: 'reader', subprotocol: 'graphql-transport-ws' });
  });
  await check('"Bearer KEY" is a token too, and a subscription yields all its results', async () => {
    const token = `Bearer ${key}`;
    const { all } = await within(results({ url, connectionParams: { token } }, 'subscription { count(to: 3) }'), 'the results');
    assert.deepEqual(all, count);
  });
  await check('a wrong token is 4401, which the library takes as final: it dials once', async () => {
    const seen = await within(results({ url, connectionParams: { token: newKey() } }, '{ me }'), 'the close event');
    assert.deepEqual(seen, { code: 4401, reason: 'invalid_credential', dials: 1 });
  });
  await check('no connectionParams at all is 4401 missing_credential', async () => {
    const { code, reason } = await within(results({ url }, '{ me }'), 'the close event');
    assert.deepEqual({ code, reason }, { code: 4401, reason: 'missing_credential' });
  });
  await check('connectionParams that do not come in time are 4408', async () => {
    const connectionParams = () => new Promise(() => {});
    const options = { url: gate.ws('/hurried'), connectionParams, retryAttempts: 0 };
    const { code, reason } = await within(results(options, '{ me }'), 'the close event');
    assert.deepEqual({ code, reason }, { code: 4408, reason: 'request_timeout' });
  });
  await check('the server heard of no one else', () => {
    assert.deepEqual(server.inits, [{ token: `Bearer ${key}` }]);
  });

  const page = await pageWithLibrary(scope);
  await check('in Chromium: a subscription yields all its results', async () => {
    const { all } = await within(page.evaluate(resultsInPage, [url, key, 'subscription { count(to: 3) }']), 'the results');
    assert.deepEqual(all, count);
  });
  await check('in Chromium: a wrong token is 4401', async () => {
    const seen = await within(page.evaluate(resultsInPage, [url, newKey(), '{ me }']), 'the close event');
    assert.deepEqual(seen, { code: 4401, reason: 'invalid_credential', wasClean: true });
    return JSON.stringify(seen);
  });
};
