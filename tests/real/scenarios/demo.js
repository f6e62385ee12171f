'use strict';
// `wsbouncer demo` prints lines to paste. They are taken off the screen and run as they stand.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { Arrivals } = require('../support');

const cache = path.join(__dirname, '..', '.cache'); // npx finds wscat in its node_modules, and fetches nothing

module.exports = async ({ scope, check }) => {
  const demo = scope.start(process.env.WSBOUNCER, ['demo', '--listen', '127.0.0.1:0']);
  const printed = async (pattern) => (await demo.says(pattern)).trim();
  const reloads = (count) =>
    demo.lines.find(() => demo.lines.items.filter((line) => / reloaded /.test(line)).length === count, `reload ${count}`);
  // script(1) gives the line a terminal: what programs print, and when, depends on having one.
  const terminal = (line) => scope.start('script', ['-qfec', line, '/dev/null'], { cwd: cache });

  await check('the curl line with the key gets a 101', async () => {
    await terminal(await printed(/^ +curl .*X-Api-Key/)).says(/^HTTP\/1\.1 101 /);
  });
  await check('the curl line without it gets a 401, and why', async () => {
    const curl = terminal(await printed(/^ +curl (?!.*X-Api-Key)/));
    await curl.says(/^HTTP\/1\.1 401 /);
    await curl.says(/"reason":"missing_credential"/);
  });
  await check('the wscat line echoes what is typed', async () => {
    const wscat = terminal(await printed(/^ +npx .*wscat /));
    await wscat.says(/Connected/);
    wscat.child.stdin.write('typed by a person\n');
    await wscat.says(/< typed by a person/);
  });

  const page = await scope.page();
  const console = new Arrivals();
  page.on('console', (message) => console.push(message.text()));
  await check('the JavaScript line, in the console of the page that demo names, opens and echoes', async () => {
    await page.goto(/http:[^\s,]+/.exec(await printed(/In a browser: open /))[0]);
    await page.evaluate(await printed(/^ +ws = new WebSocket\(/));
    await console.find((line) => line === 'echo: hello', 'the echo');
  });
  await check('the line that deletes the key closes that connection with 4401', async () => {
    await scope.run('sh', ['-c', await printed(/^ +sed /)]);
    await console.find((line) => line.startsWith('closed: 4401'), 'the Close frame');
    await reloads(1);
  });
  await check('the line that undoes it lets it in again', async () => {
    await scope.run('sh', ['-c', await printed(/^ +mv /)]);
    await reloads(2);
    await terminal(await printed(/^ +curl .*X-Api-Key/)).says(/^HTTP\/1\.1 101 /);
  });

  await check('told to stop, demo ends with exit code 0 and takes its file away', async () => {
    const [file] = /\/.*/.exec(await printed(/^ +file /));
    assert.ok(fs.existsSync(file), file);
    demo.child.kill('SIGINT');
    assert.equal(await demo.ended, 0);
    assert.ok(!fs.existsSync(path.dirname(file)), path.dirname(file));
  });
};
