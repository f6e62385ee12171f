'use strict';
// Sends every message back. Node's `ws`, without the bounds of its own that some cases would run into, and without the
// size below which it deflates nothing where contexts are not taken over: an answer that is not deflated where the
// question was is one that the runner cannot read (groups 13.2 and 13.5 to 13.7).

const WebSocket = require('ws');

const server = new WebSocket.Server({
  host: '127.0.0.1', port: 0, perMessageDeflate: { threshold: 0 },
  maxPayload: 0, maxFragments: 0, maxBufferedChunks: 0,
});
server.on('connection', (client) => {
  client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
  client.on('error', () => {}); // what `ws` refuses it has closed by itself
});
server.on('listening', () => console.log(server.address().port));
