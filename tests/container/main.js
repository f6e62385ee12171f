// What the image does when it runs as README says. Each check prints a line; the last line counts them.
'use strict';

const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const zlib = require('node:zlib');

const { IMAGE, STORE } = process.env;
const NAME = `wsbouncer-test-${process.pid}`;
const store = ['--root', `${STORE}/store`, '--runroot', `${STORE}/run`, '--storage-driver', 'overlay'];
const engine = [...store, '--runtime', 'runc', '--cgroup-manager=cgroupfs'];
// The flags of README; the network is that of this process, which holds nothing but a loopback.
const readme = ['--read-only', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges', '--memory', '64m'];
const here = ['--network', 'host', '--ulimit', 'nofile=20000:20000', '--ulimit', 'nproc=10000:10000'];

const LONG = 20_000;
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'wsbouncer-container-'));
fs.chmodSync(scratch, 0o755);

// ---- the engine

function podman(...args) {
  const { status, stdout, stderr, error } = spawnSync('podman', [...engine, ...args], {
    encoding: 'utf8', timeout: 60_000, maxBuffer: 64 << 20,
  });
  if (error) throw error;
  return { status, out: stdout, err: stderr, all: `${stdout}${stderr}` };
}

function must(...args) {
  const result = podman(...args);
  assert.strictEqual(result.status, 0, `podman ${args.join(' ')}: ${result.all}`);
  return result.out;
}

const inspect = (format) => must('container', 'inspect', '--format', format, NAME).trim();
const healthcheck = () => podman('healthcheck', 'run', NAME).status;

// ---- the files, laid out as the kubelet lays them out

let generation = 0;

/** Puts the files into a new directory and swings `..data` over to it: one rename changes all of them. */
function mount(directory, files) {
  fs.mkdirSync(directory, { recursive: true, mode: 0o755 });
  const data = `..2026_11_26_10_00_00.${++generation}`;
  fs.mkdirSync(path.join(directory, data), { mode: 0o755 });
  for (const [name, text] of Object.entries(files)) {
    fs.writeFileSync(path.join(directory, data, name), text, { mode: 0o444 });
    const link = path.join(directory, name);
    if (!fs.existsSync(link)) fs.symlinkSync(path.join('..data', name), link);
  }
  const link = path.join(directory, '..data');
  const old = fs.existsSync(link) && fs.readlinkSync(link);
  fs.symlinkSync(data, path.join(directory, '..data_tmp'));
  fs.renameSync(path.join(directory, '..data_tmp'), link);
  if (old) fs.rmSync(path.join(directory, old), { recursive: true });
}

const sha256 = (text) => crypto.createHash('sha256').update(text).digest('hex');
const keys = (owners) =>
  'keys:\n' + Object.entries(owners).map(([id, key]) => `  - { id: ${id}, secrets: [{ sha256: "${sha256(key)}" }] }\n`).join('');

// ---- a service and its client, which know of RFC 6455 what an echo needs

const ACCEPT = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/** Takes one frame of up to 125 bytes off the front. */
function frame(buffer) {
  if (buffer.length < 2) return null;
  const masked = buffer[1] >> 7, length = buffer[1] & 0x7f, start = masked ? 6 : 2;
  assert(length < 126, 'a short frame');
  if (buffer.length < start + length) return null;
  const payload = Buffer.from(buffer.subarray(start, start + length));
  if (masked) payload.forEach((byte, at) => { payload[at] = byte ^ buffer[2 + (at % 4)]; });
  return { opcode: buffer[0] & 0xf, payload, rest: buffer.subarray(start + length) };
}

function encode(opcode, payload, mask) {
  const data = Buffer.from(payload);
  if (!mask) return Buffer.concat([Buffer.from([0x80 | opcode, data.length]), data]);
  const key = crypto.randomBytes(4);
  data.forEach((byte, at) => { data[at] = byte ^ key[at % 4]; });
  return Buffer.concat([Buffer.from([0x80 | opcode, 0x80 | data.length]), key, data]);
}

function frames(socket, head, each) {
  let buffer = head;
  const take = () => {
    for (let next = frame(buffer); next; next = frame(buffer)) {
      buffer = next.rest;
      each(next);
    }
  };
  socket.on('error', () => {});
  socket.on('data', (data) => { buffer = Buffer.concat([buffer, data]); take(); });
  take();
}

function service() {
  const server = http.createServer();
  server.on('upgrade', (request, socket, head) => {
    const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + ACCEPT).digest('base64');
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
    const who = request.headers['x-auth-key-id'], leaked = request.headers['x-api-key'] !== undefined;
    frames(socket, head, ({ opcode, payload }) => {
      if (opcode === 1) socket.write(encode(1, `${who}${leaked ? ' with the key' : ''}: ${payload}`, false));
      if (opcode === 8) socket.end(encode(8, payload, false));
    });
  });
  return new Promise((resolve) => { server.listen(9000, '127.0.0.1', () => resolve(server)); });
}

/** A handshake: an open connection, or the answer that refused it. */
function connect(key) {
  return new Promise((resolve, reject) => {
    const headers = {
      Upgrade: 'websocket', Connection: 'Upgrade', 'Sec-WebSocket-Version': '13',
      'Sec-WebSocket-Key': crypto.randomBytes(16).toString('base64'), ...(key && { 'X-Api-Key': key }),
    };
    const request = http.request({ host: '127.0.0.1', port: 8080, path: '/ws', headers, agent: false, timeout: LONG });
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('error', reject);
    request.on('response', (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text) => { body += text; })
        .on('end', () => resolve({ status: response.statusCode, reason: JSON.parse(body).reason }));
    });
    request.on('upgrade', (response, socket, head) => {
      socket.setTimeout(0);
      const waiting = [], come = [];
      const connection = {
        status: 101,
        closed: null,
        end: new Promise((ended) => { socket.on('close', () => ended(connection.closed)); }),
        say: (text) => socket.write(encode(1, text, true)),
        hear: () => within('a message', new Promise((heard) => { come.length ? heard(come.shift()) : waiting.push(heard); })),
        drop: () => socket.destroy(),
      };
      frames(socket, head, ({ opcode, payload }) => {
        if (opcode === 8) {
          connection.closed = { code: payload.readUInt16BE(0), reason: payload.subarray(2).toString() };
          socket.end(encode(8, payload, true));
        } else if (opcode === 1) {
          waiting.length ? waiting.shift()(payload.toString()) : come.push(payload.toString());
        }
      });
      resolve(connection);
    });
    request.end();
  });
}

async function echoes(connection, id, text) {
  connection.say(text);
  assert.strictEqual(await connection.hear(), `${id}: ${text}`);
}

// ---- waiting

function within(what, promise, time = LONG) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`not in ${time} ms: ${what}`)), time); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function eventually(what, holds) {
  const deadline = Date.now() + LONG;
  for (;;) {
    const value = await holds();
    if (value) return value;
    assert(Date.now() < deadline, `did not happen in ${LONG} ms: ${what}`);
    await new Promise((resume) => { setTimeout(resume, 20); });
  }
}

// ---- checks

let passed = 0, failed = 0;
async function check(name, run) {
  try {
    const note = await run();
    passed += 1;
    console.log(`ok - ${name}${note ? `: ${note}` : ''}`);
  } catch (error) {
    failed += 1;
    console.log(`not ok - ${name}\n${error.stack.replace(/^/gm, '    ')}`);
  }
}

const MB = 1_000_000;
const resident = () => Number(/VmRSS:\s+(\d+)/.exec(status())[1]) / 1000;
let pid;
const status = () => fs.readFileSync(`/proc/${pid}/status`, 'utf8');
const field = (name) => new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status())[1].trim();
const wsbouncer = (extra, ...args) => podman('run', '--rm', ...readme, ...here, ...extra, IMAGE, ...args);
const rules = path.join(scratch, 'rules'), secret = path.join(scratch, 'keys');
const DRAIN = 10;

async function image() {
  const { Size: size, Config: config } = JSON.parse(must('image', 'inspect', IMAGE))[0];
  await check('the image is smaller than 20 MB to pull', () => {
    const saved = path.join(scratch, 'image');
    must('save', '--format', 'oci-dir', '--output', saved, IMAGE);
    const layers = fs.readdirSync(path.join(saved, 'blobs/sha256')).map((name) => path.join(saved, 'blobs/sha256', name));
    const packed = layers.reduce((sum, file) => {
      const bytes = fs.readFileSync(file);
      return sum + (bytes.readUInt16BE(0) === 0x1f8b ? bytes : zlib.gzipSync(bytes)).length;
    }, 0) / MB;
    fs.rmSync(saved, { recursive: true });
    assert(packed < 20, `${packed} MB`);
    return `${packed.toFixed(1)} MB compressed, ${(size / MB).toFixed(1)} MB on disk`;
  });
  await check('it is made for one program and not for root', () => {
    assert.deepStrictEqual(config.Entrypoint, ['/wsbouncer']);
    assert.strictEqual(config.User, '65532:65532');
    assert.strictEqual(config.StopSignal, 'SIGTERM');
  });
  await check('there is no shell in it, and no other program', () => {
    for (const shell of ['sh', '/bin/sh', '/bin/bash', '/busybox/sh']) {
      const { status, all } = podman('run', '--rm', ...readme, ...here, '--entrypoint', shell, IMAGE, '-c', 'true');
      assert(status === 127 || /no such file|not found/i.test(all), `${shell}: ${status} ${all}`);
    }
    const root = must('create', IMAGE).trim();
    const tar = spawnSync('sh', ['-c', `podman ${engine.join(' ')} export ${root} | tar -tvf -`], { encoding: 'utf8', maxBuffer: 64 << 20 });
    must('rm', root);
    const programs = tar.stdout.split('\n').filter((line) => /^-..x/.test(line)).map((line) => line.trim().split(/\s+/)[5]);
    const foreign = programs.filter((name) => !/\.so(\.|$)|^usr\/lib\/x86_64-linux-gnu\/|^usr\/lib64\//.test(name));
    assert.deepStrictEqual(foreign, ['wsbouncer']);
  });
  await check('it says what went into it', () => {
    const root = must('create', IMAGE).trim();
    const file = 'usr/share/doc/wsbouncer/wsbouncer.cdx.json';
    const tar = spawnSync('sh', ['-c', `podman ${engine.join(' ')} export ${root} | tar -xOf - ${file}`], { encoding: 'utf8', maxBuffer: 64 << 20 });
    must('rm', root);
    const sbom = JSON.parse(tar.stdout);
    assert.deepStrictEqual([sbom.bomFormat, sbom.metadata.component.name], ['CycloneDX', 'wsbouncer']);
    const names = sbom.components.map(({ name }) => name);
    for (const name of ['hyper', 'tokio', 'yaml_serde', 'zeroize']) assert(names.includes(name), name);
    assert(sbom.components.every(({ hashes, licenses }) => hashes && licenses), 'each with its digest and licence');
    return `${names.length} crates`;
  });
  await check('a bad file is refused with 2, and check runs in it', () => {
    mount(rules, { 'wsbouncer.yaml': 'listen: 0.0.0.0:8080\nupstrem: ws://127.0.0.1:9000\n' });
    const volume = ['-v', `${rules}:/etc/wsbouncer:ro`];
    const result = wsbouncer(volume);
    assert.strictEqual(result.status, 2, result.all);
    assert.match(result.all, /upstrem.*upstream/s);
    assert.strictEqual(wsbouncer(volume, 'check', '/etc/wsbouncer/wsbouncer.yaml').status, 2);
  });
}

async function running() {
  const keep = `wsb_keep_${crypto.randomBytes(20).toString('hex')}`, old = `wsb_old_${crypto.randomBytes(20).toString('hex')}`;
  const fresh = `wsb_new_${crypto.randomBytes(20).toString('hex')}`;
  mount(rules, {
    'wsbouncer.yaml': `listen: 0.0.0.0:8080\nkey_files: [../keys/keys.yaml]\nupstream: ws://127.0.0.1:9000\ndrain: { timeout: ${DRAIN}s, spread: 4s }\n`,
  });
  mount(secret, { 'keys.yaml': keys({ keep, old }) });

  let line;
  await check('it starts as README says', async () => {
    const begin = Date.now();
    must('run', '-d', '--name', NAME, ...readme, ...here, '-v', `${rules}:/etc/wsbouncer:ro`, '-v', `${secret}:/etc/keys:ro`, IMAGE);
    line = await eventually('it listens', () => {
      const lines = podman('logs', NAME).all.split('\n').filter((text) => text.startsWith('{')).map((text) => JSON.parse(text));
      return lines.find((entry) => JSON.stringify(entry).includes('"listening"'));
    });
    pid = Number(inspect('{{.State.Pid}}'));
    // Field 22 of stat: hundredths of a second after the machine's start (proc(5)).
    const ticks = Number(fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[19]);
    const up = Number(fs.readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1000;
    const own = Date.parse(line.timestamp) - (Date.now() - up + ticks * 10);
    return `${Date.now() - begin} ms with the engine, ${Math.max(0, Math.round(own / 10) * 10)} of them since its process began`;
  });
  await check('it runs as 65532, with no capability and no way to one', () => {
    assert.match(field('Uid'), /^65532\s+65532\s+65532\s+65532$/);
    assert.match(field('Gid'), /^65532\s/);
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) assert.match(field(set), /^0+$/, set);
    assert.strictEqual(field('NoNewPrivs'), '1');
    const root = fs.readFileSync(`/proc/${pid}/mountinfo`, 'utf8').split('\n').find((line) => line.split(' ')[4] === '/');
    assert.match(root.split(' ')[5], /^ro\b/);
  });
  await check('a crash of it writes no core', () => {
    const limits = fs.readFileSync(`/proc/${pid}/limits`, 'utf8');
    assert.match(limits, /^Max core file size\s+0\s+0\s/m);
  });
  await check('its memory is limited to 64 MB', () => {
    const groups = fs.readFileSync(`/proc/${pid}/cgroup`, 'utf8').trim().split('\n').map((line) => line.split(':'));
    const [, , own] = groups.find(([, kinds]) => kinds === 'memory') ?? groups.find(([, kinds]) => kinds === '');
    const files = [`/sys/fs/cgroup/memory${own}/memory.limit_in_bytes`, `/sys/fs/cgroup${own}/memory.max`];
    const file = files.find((name) => fs.existsSync(name));
    assert(file, `no limit at ${files.join(' nor ')}`);
    assert.strictEqual(fs.readFileSync(file, 'utf8').trim(), String(64 << 20));
    return `idle: ${resident().toFixed(1)} MB resident`;
  });
  await check('it lets in as many as that is enough for', () => {
    const { room, room_by: by } = line.fields ?? line;
    assert.strictEqual(by, 'memory');
    assert(room > 1000 && room < 2500, room);
    return `${room} connections`;
  });
  await check('the health check of the image says yes', () => { assert.strictEqual(healthcheck(), 0); });
  let kept, lost;
  await check('a key opens, and the service sees who it is', async () => {
    [kept, lost] = [await connect(keep), await connect(old)];
    assert.deepStrictEqual([kept.status, lost.status], [101, 101]);
    await echoes(kept, 'keep', 'hello');
    await echoes(lost, 'old', 'hello');
  });
  await check('without a key, or with a wrong one, 401', async () => {
    assert.deepStrictEqual(await connect(), { status: 401, reason: 'missing_credential' });
    assert.deepStrictEqual(await connect('wrong'), { status: 401, reason: 'invalid_credential' });
  });
  await check('a thousand open connections fit in', async () => {
    const open = [];
    while (open.length < 1000) open.push(...(await Promise.all(Array.from({ length: 50 }, () => connect(keep)))));
    assert(open.every((connection) => connection.status === 101));
    await echoes(open[999], 'keep', 'the last one');
    const held = resident();
    open.forEach((connection) => connection.drop());
    return `${held.toFixed(1)} MB resident`;
  });
  await check('a Secret that is swapped under it revokes and admits', async () => {
    const swapped = Date.now();
    mount(secret, { 'keys.yaml': keys({ keep, fresh }) });
    assert.deepStrictEqual(await within('the old key is closed', lost.end), { code: 4401, reason: 'revoked' });
    const took = Date.now() - swapped;
    assert.strictEqual((await connect(old)).status, 401);
    const admitted = await connect(fresh);
    await echoes(admitted, 'fresh', 'rotated');
    admitted.drop();
    await echoes(kept, 'keep', 'still here');
    return `closed after ${took} ms`;
  });
  await check('a Secret with a fault in it changes nothing', async () => {
    mount(secret, { 'keys.yaml': 'keys: [ {\n' });
    await eventually('the log says so', () => podman('logs', NAME).all.includes('reload failed'));
    await echoes(kept, 'keep', 'still here');
    assert.strictEqual((await connect(fresh)).status, 101);
    assert.strictEqual(healthcheck(), 0);
    mount(secret, { 'keys.yaml': keys({ keep, fresh }) });
    await eventually('it recovers', () => podman('logs', NAME).all.split('"reloaded"').length >= 3);
  });
  await check('the log holds no key', () => {
    const { all } = podman('logs', NAME);
    for (const key of [keep, old, fresh]) assert(!all.includes(key));
  });
  await check('SIGTERM drains: unhealthy at once, 1012, exit code 0 in time', async () => {
    // So many that the spread of the closes leaves time to look.
    const open = [kept, ...(await Promise.all(Array.from({ length: 40 }, () => connect(keep))))];
    const begin = Date.now();
    must('kill', '--signal', 'TERM', NAME);
    await eventually('the drain begins', () => podman('logs', NAME).all.includes('"draining"'));
    assert.notStrictEqual(healthcheck(), 0);
    assert.strictEqual(inspect('{{.State.Status}}'), 'running', 'the answer was its own');
    const ends = await within('all are closed', Promise.all(open.map((connection) => connection.end)));
    assert(ends.every((end) => end?.code === 1012), JSON.stringify(ends));
    assert.strictEqual(must('wait', NAME).trim(), '0');
    const took = (Date.now() - begin) / 1000;
    assert(took < DRAIN, `${took} s`);
    return `${took.toFixed(1)} s`;
  });
  await check('the health check says no when nothing runs', () => { assert.notStrictEqual(healthcheck(), 0); });
}

(async () => {
  const server = await service();
  try {
    await image();
    await running();
  } finally {
    if (failed) console.log(podman('logs', NAME).all);
    podman('rm', '--force', '--time', '0', NAME);
    server.close();
    fs.rmSync(scratch, { recursive: true, force: true });
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
})();
