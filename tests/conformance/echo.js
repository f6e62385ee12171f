'use strict';
// Sends every message back. Node's `ws`, without the bounds of its own that some cases would run into.

const WebSocket = require('ws');

const server = new WebSocket.Server({
  host: '127.0.0.1', port: 0, perMessageDeflate: true, maxPayload: 0, maxFragments: 0, maxBufferedChunks: 0,
});
server.on('connection', (client) => {
  client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
  client.on('error', () => {}); // what `ws` refuses it has closed by itself
});
server.on('listening', () => console.log(server.address().port));
