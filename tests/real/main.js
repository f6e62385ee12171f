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

/** Runs one check. Its return value, if any, is a remark for the line. */
async function check(name, body) {
  try {
    const remark = await within(Promise.resolve().then(body), 'this check', CHECK_MS);
    passed += 1;
    console.log(`ok - ${name}${remark ? ` (${remark})` : ''}`);
  } catch (error) {
    failed += 1;
    console.log(`not ok - ${name}`);
    console.log(String(error.stack ?? error).replace(/^/gm, '    '));
  }
}

function finish() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

async function main() {
  setTimeout(() => {
    failed += 1;
    console.log(`not ok - the whole run ends within ${RUN_MS / 1000} s`);
    finish();
  }, RUN_MS);

  for (const name of wanted.length > 0 ? wanted : known) {
    const scope = new Scope();
    const scenario = require(path.join(directory, name));
    // A scenario that cannot even be set up is a failed check, never a skipped one.
    try {
      await scenario({ scope, check: (what, body) => check(`${name}: ${what}`, body) });
    } catch (error) {
      await check(`${name}: runs to its end`, () => Promise.reject(error));
    }
    for (const gate of scope.gates) {
      await check(`${name}: wsbouncer is still up, did not panic, and logged no key`, () => gate.inspect());
    }
    await scope.close();
  }
  finish();
}

main();
