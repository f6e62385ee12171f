'use strict';
// Runs the scenarios one after another and counts. One line a check, then the totals.

const fs = require('node:fs');
const path = require('node:path');
const { Scope, within } = require('./support');

// A hang must end as a failure, not as a silent CI job.
const CHECK_MS = 30_000;
const RUN_MS = 240_000;

const directory = path.join(__dirname, 'scenarios');
const known = fs.readdirSync(directory).map((file) => path.basename(file, '.js')).sort();
const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !known.includes(name));
if (unknown.length > 0) {
  console.error(`no scenario called ${unknown.join(', ')}; there are: ${known.join(', ')}`);
  process.exit(2);
}

let passed = 0;
let failed = 0;

function fail(name, error, excuses = []) {
  failed += 1;
  console.log(`not ok - ${name}`);
  console.log(String(error.stack ?? error).replace(/^/gm, '    '));
  for (const line of excuses) console.log(`    wsbouncer logged: ${line}`);
}

/** Runs one check. Its return value, if any, is a remark for the line. */
async function check(scope, name, body) {
  try {
    const remark = await within(Promise.resolve().then(body), 'this check', CHECK_MS);
    passed += 1;
    console.log(`ok - ${name}${remark ? ` (${remark})` : ''}`);
  } catch (error) {
    fail(name, error, scope.gates.flatMap((gate) => gate.excuses()));
  }
}

function finish() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

async function run(name) {
  const scope = new Scope();
  const named = (what, body) => check(scope, `${name}: ${what}`, body);
  try {
    await require(path.join(directory, name))({ scope, check: named });
  } catch (error) {
    // A scenario that cannot even be set up is a failed check, never a skipped one.
    await named('runs to its end', () => Promise.reject(error));
  }
  for (const gate of scope.gates) {
    await named('wsbouncer is still up, did not panic, and logged no key', () => gate.inspect());
  }
  await scope.close();
}

async function main() {
  const late = new Error(`not within ${RUN_MS / 1000} s`);
  setTimeout(() => { fail('the whole run comes to its end', late); finish(); }, RUN_MS);
  process.on('unhandledRejection', (error) => fail('nothing fails unseen', error));

  for (const name of wanted.length > 0 ? wanted : known) await run(name);
  finish();
}

main();
