'use strict';
// `wsbouncer demo` prints lines to paste. They are taken off the screen and run as they stand.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { Arrivals } = require('../support');

const cache = path.join(__dirname, '..', '.cache');
const environment = { ...process.env, PATH: `${path.join(cache, 'node_modules', '.bin')}:${process.env.PATH}` };

module.exports = async ({ scope, check }) => {
  const demo = scope.start(process.env.WSBOUNCER, ['demo', '--listen', '127.0.0.1:0']);
  const printed = async (pattern) => (await demo.says(pattern)).trim();

  // script(1) gives the line a terminal: what programs print, and when, depends on having one.
  const terminal = (line) => scope.start('script', ['-qfec', line, '/dev/null'], { cwd: cache, env: environment });

  await check('the curl line gets a 101', async () => {
    const line = await printed(/^\s*curl /);
    await terminal(line).says(/^HTTP\/1\.1 101 /);
    return line;
  });

  await check('the wscat line echoes what is typed', async () => {
    const line = await printed(/^\s*npx -y wscat /);
    const wscat = terminal(line);
    await wscat.says(/Connected/);
    wscat.child.stdin.write('typed by a person\n');
    await wscat.says(/< typed by a person/);
    return line;
  });

  await check('the JavaScript line opens and echoes in a browser', async () => {
    const line = await printed(/new WebSocket\(/);
    const [where] = (await printed(/^In a browser: open /)).match(/http:[^ ,]+/);
    const page = await scope.page();
    await page.goto(where);
    const frames = new Arrivals();
    page.on('websocket', (ws) => {
      ws.on('framesent', ({ payload }) => frames.push({ sent: payload }));
      ws.on('framereceived', ({ payload }) => frames.push({ received: payload }));
    });
    await page.evaluate(line);
    const { sent } = await frames.find((frame) => frame.sent, 'a frame sent by the line');
    await frames.find((frame) => frame.received === sent, 'its echo');
    return line;
  });

  await check('Ctrl-C ends it, and nothing is left', async () => {
    const [file] = (await printed(/^\s*file /)).match(/\/.*/);
    assert.ok(fs.existsSync(file));
    demo.child.kill('SIGINT');
    assert.equal(await demo.ended, 0);
    assert.ok(!fs.existsSync(path.dirname(file)));
  });
};
