'use strict';
// What every scenario needs: programs that end with it, the proxy under test, an echo upstream, a client that
// reports refusals. Nothing here sleeps: what must come is waited for, with a deadline.

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { chromium } = require('playwright-core');
const WebSocket = require('ws');

const PATIENCE_MS = 10_000; // for anything local; generous because CI machines are small

// Debian's Chromium, with its calls home off; --no-sandbox because CI runs as root.
const CHROMIUM = '/usr/bin/chromium';
const CHROMIUM_FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

// Whatever way this process ends, nothing it started stays behind.
const running = new Set();
const directories = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

/** A file of an npm package that its `exports` do not name, such as a bundle for browsers. */
function packaged(file) {
  return path.join(__dirname, '.cache', 'node_modules', file);
}

/** Fails, saying what did not happen, when `promise` takes too long. */
function within(promise, what, ms = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Items that arrive one by one; `find` waits for the first that matches, old or new. */
class Arrivals {
  items = [];
  #waiting = new Set();

  push(item) {
    this.items.push(item);
    for (const look of this.#waiting) look(item);
  }

  find(matches, what, ms) {
    let look;
    const found = new Promise((resolve) => {
      look = (item) => matches(item) && resolve(item);
      this.items.forEach(look);
      this.#waiting.add(look);
    });
    return within(found, what, ms).finally(() => this.#waiting.delete(look));
  }
}

function eachLine(stream, take) {
  let rest = '';
  stream.setEncoding('utf8').on('data', (chunk) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop();
    lines.forEach(take);
  }).on('end', () => rest && take(rest));
}

/** What one scenario started; `close` ends all of it, the latest first. */
class Scope {
  #closers = [];
  gates = [];

  defer(close) {
    this.#closers.push(close);
  }

  async close() {
    for (const close of this.#closers.reverse()) await close();
  }

  directory() {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'wsbouncer-real-'));
    directories.add(directory);
    return directory;
  }

  /** Starts a program. Its lines are kept; it is killed when the scenario ends. */
  start(command, args, options = {}) {
    const child = spawn(command, args, options);
    running.add(child);
    const lines = new Arrivals(); // of both streams
    const stdout = [];
    eachLine(child.stdout, (line) => stdout.push(line) && lines.push(line));
    eachLine(child.stderr, (line) => lines.push(line));
    const ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => resolve(code ?? signal));
    }).finally(() => running.delete(child));
    ended.catch(() => {}); // whoever waits for it sees the error
    this.defer(async () => {
      child.kill('SIGKILL');
      await ended.catch(() => {});
    });
    /** Waits for a line like this one; a program that ends without saying it has failed. */
    const says = (pattern) => Promise.race([
      lines.find((line) => pattern.test(line), `${path.basename(command)} says ${pattern}`),
      ended.then((how) => {
        throw new Error(`${path.basename(command)} ended with ${how} and said: ${lines.items.join('\n')}`);
      }),
    ]);
    return { child, lines, stdout, ended, says };
  }

  /** Runs a program to its end and returns its stdout; anything but exit code 0 is an error. */
  async run(command, args, options, stdin = '') {
    const program = this.start(command, args, options);
    program.child.stdin.end(stdin);
    const how = await within(program.ended, command);
    if (how !== 0) throw new Error(`${command} ended with ${how}: ${program.lines.items.join('\n')}`);
    return program.stdout.join('\n');
  }

  /**
   * Starts wsbouncer with this YAML (listen and admin are added), and with these variables besides, and waits until
   * it listens.
   */
  async gate(yaml, env = {}) {
    const gate = new Gate(this, yaml, env);
    this.gates.push(gate);
    await gate.listening();
    return gate;
  }

  /**
   * A Node `ws` echo server that remembers what it saw. `select` chooses the subprotocol (by default none,
   * as most services do), `socket` is a path to listen on instead of a port, `deflate` turns compression on.
   */
  async echo({ select = () => false, socket, deflate = false } = {}) {
    const server = http.createServer((_, response) => response.writeHead(404).end());
    const sockets = new WebSocket.Server({ server, handleProtocols: select, perMessageDeflate: deflate });
    const requests = [];
    const messages = new Arrivals();
    const closes = new Arrivals();
    sockets.on('connection', (client, request) => {
      requests.push(request);
      client.on('message', (data, binary) => {
        messages.push(data);
        client.send(data, { binary });
      });
      client.on('close', (code) => closes.push(code));
    });
    await new Promise((resolve) => (socket ? server.listen(socket, resolve) : server.listen(0, '127.0.0.1', resolve)));
    this.defer(() => {
      sockets.clients.forEach((client) => client.terminate());
      server.close();
    });
    const url = socket ? `unix:${socket}` : `ws://127.0.0.1:${server.address().port}`;
    return { url, requests, messages, closes, sockets };
  }

  /** An empty page on a loopback origin of its own: what page code may do depends on where it comes from. */
  async origin() {
    const server = http.createServer((_, response) => {
      response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html><title>page</title>');
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    this.defer(() => {
      server.closeAllConnections();
      server.close();
    });
    return `http://127.0.0.1:${server.address().port}`;
  }

  /** A browser tab on a page of its own origin. */
  async page() {
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
    this.defer(() => browser.close());
    // In a context that lets a scenario open more pages beside it.
    const page = await (await browser.newContext()).newPage();
    await page.goto(await this.origin());
    return page;
  }

  /** Chromium as a service: its DevTools endpoint, which has no login. Returns its port and path. */
  async devtools() {
    const profile = this.directory();
    const args = [...CHROMIUM_FLAGS, '--remote-debugging-port=0', `--user-data-dir=${profile}`, 'about:blank'];
    this.start(CHROMIUM, args, { env: { ...process.env, TMPDIR: profile } }); // killed, it leaves a file there
    const [port, target] = await appears(path.join(profile, 'DevToolsActivePort'), /^(\d+)\n(\S+)$/);
    return { port, target };
  }
}

/** wsbouncer itself, with its log read as it is written. */
class Gate {
  #program;
  #log = new Arrivals();
  #garbage = [];

  constructor(scope, yaml, env) {
    this.config = path.join(scope.directory(), 'wsbouncer.yaml');
    this.edit(yaml);
    // At trace level, so that a key that slips into any log line is found by `inspect`.
    const args = ['serve', '--config', this.config, '--log-format', 'json', '--log-level', 'trace'];
    this.#program = scope.start(process.env.WSBOUNCER, args, { env: { ...process.env, ...env } });
    eachLine(this.#program.child.stderr, (line) => {
      try {
        this.#log.push(JSON.parse(line));
      } catch {
        this.#garbage.push(line);
      }
    });
  }

  /** Replaces the file in one step, as editors do. */
  edit(yaml) {
    const draft = `${this.config}.new`;
    fs.writeFileSync(draft, `listen: 127.0.0.1:0\nadmin: off\n${yaml}`);
    fs.renameSync(draft, this.config);
  }

  async listening() {
    this.address = JSON.parse(await this.#program.says(/"message":"listening"/)).listen;
  }

  ws(target) {
    return `ws://${this.address}${target}`;
  }

  http(target) {
    return `http://${this.address}${target}`;
  }

  /** Waits for the log event with this message and these fields. */
  logged(message, fields = {}) {
    const matches = (event) =>
      event.message === message && Object.entries(fields).every(([name, value]) => event[name] === value);
    return this.#log.find(matches, `log event ${message} ${JSON.stringify(fields)}`);
  }

  /** What it logged last of the things that explain a failed check. */
  excuses() {
    const telling = this.#log.items.filter(({ level, message }) => /WARN|ERROR/.test(level) || /refused|failed/.test(message));
    return [...telling.slice(-3).map((event) => JSON.stringify(event)), ...this.#garbage];
  }

  /** Whatever a scenario did, these hold at its end. */
  inspect() {
    assert.equal(this.#program.child.exitCode ?? this.#program.child.signalCode, null, 'wsbouncer is running');
    assert.deepEqual(this.#garbage, [], 'stderr is JSON lines and nothing else');
    const leaks = this.#program.lines.items.filter((line) => keys.some((key) => line.includes(key)));
    assert.deepEqual(leaks, [], 'no log line holds a key');
  }
}

const keys = [];

/** A fresh key; none of them may ever be seen in a log, encoded or not. */
function newKey() {
  return keepSecret(`key-${crypto.randomBytes(20).toString('hex')}`);
}

/** The same for secrets that others make. */
function keepSecret(secret) {
  keys.push(secret, base64url(secret));
  return secret;
}

function base64url(text) {
  return Buffer.from(text).toString('base64url');
}

/** Waits for a file that another program is about to write, and returns what `pattern` captures in it. */
async function appears(file, pattern) {
  const end = Date.now() + PATIENCE_MS;
  while (Date.now() < end) {
    const match = fs.existsSync(file) && pattern.exec(fs.readFileSync(file, 'utf8'));
    if (match) return match.slice(1);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`${file} did not appear`);
}

/** For the one program that cannot bind port 0 and say which it got. */
async function freePort() {
  const server = net.createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Dials with Node's `ws`. `ask` on the open connection sends a message and waits for the next one. */
function dial(url, { protocols = [], ...options } = {}) {
  const client = new WebSocket(url, protocols, options);
  const gone = new AbortController();
  client.on('close', (code) => gone.abort(new Error(`closed with ${code}`)));
  client.ask = async (message) => {
    client.send(message);
    const [answer] = await within(once(client, 'message', { signal: gone.signal }), 'an answer');
    return answer;
  };
  const settled = new Promise((resolve, reject) => {
    client.on('open', () => resolve({ client }));
    client.on('error', reject);
    client.on('unexpected-response', (_, response) => resolve(readAll(response)));
  });
  return within(settled, `dialling ${new URL(url).pathname}`);
}

/** Dials, and must get in. */
async function connect(url, options) {
  const { client, status, body } = await dial(url, options);
  if (!client) throw new Error(`refused with ${status}: ${body}`);
  return client;
}

/** Dials, and must not get in. Returns the HTTP answer, as `get` does. */
async function refusal(url, options) {
  const { client, ...answer } = await dial(url, options);
  if (client) throw new Error('it opened');
  return answer;
}

async function readAll(response) {
  const chunks = [];
  for await (const chunk of response) chunks.push(chunk);
  return { status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks).toString() };
}

/** Runs in a page: what page code can do with a WebSocket, and all that it can see of it. */
function socketInPage([url, protocols]) {
  const ws = protocols ? new WebSocket(url, protocols) : new WebSocket(url);
  const events = [];
  let protocol;
  const opened = new Promise((resolve) => {
    ws.onopen = () => { events.push('open'); protocol = ws.protocol; resolve(); };
  });
  const closed = new Promise((resolve) => {
    ws.onerror = () => events.push('error');
    ws.onclose = ({ code, reason, wasClean }) => {
      events.push('close');
      resolve({ events, ...(protocol !== undefined && { protocol }), code, reason, wasClean });
    };
  });
  const ended = closed.then((seen) => { throw new Error(`it closed: ${JSON.stringify(seen)}`); });
  ended.catch(() => {});
  const messages = [];
  const waiting = [];
  ws.onmessage = ({ data }) => (waiting.length > 0 ? waiting.shift()(data) : messages.push(data));
  const heard = () => Promise.race([
    messages.length > 0 ? messages.shift() : new Promise((resolve) => waiting.push(resolve)), ended,
  ]);
  const ask = async (message) => {
    await Promise.race([opened, ended]);
    ws.send(message);
    return heard();
  };
  return { ws, closed, ask, heard };
}

/**
 * Page code dials. `closed` waits for the end and tells what the page saw until then: its events in their order,
 * `ws.protocol` when it opened, and the three fields of the close event.
 */
async function dialInPage(page, url, protocols) {
  const socket = await page.evaluateHandle(socketInPage, [url, protocols]);
  return {
    ask: (message) => within(socket.evaluate(({ ask }, text) => ask(text), message), 'an answer for the page'),
    heard: () => within(socket.evaluate(({ heard }) => heard()), 'a message for the page'),
    protocol: () => socket.evaluate(({ ws }) => ws.protocol),
    closed: () => within(socket.evaluate(({ closed }) => closed), 'the close event'),
    close: () => socket.evaluate(({ ws }) => ws.close()),
  };
}

/** A plain HTTP GET. */
function get(url, headers = {}) {
  const answer = new Promise((resolve, reject) => {
    http.get(url, { headers, agent: false }, (response) => resolve(readAll(response))).on('error', reject);
  });
  return within(answer, `GET ${new URL(url).pathname}`);
}

/** Checks that an answer is this refusal, in full, and returns its problem document. */
function assertRefused({ status, headers, body }, expectedStatus, reason) {
  assert.equal(status, expectedStatus, body);
  assert.equal(String(headers['content-type'] ?? headers['Content-Type']), 'application/problem+json');
  const problem = JSON.parse(body);
  assert.equal(problem.status, expectedStatus);
  assert.equal(problem.reason, reason);
  return problem;
}

module.exports = {
  Arrivals, Scope, assertRefused, base64url, connect, dialInPage, freePort, get, keepSecret, newKey,
  packaged, refusal, within,
};
