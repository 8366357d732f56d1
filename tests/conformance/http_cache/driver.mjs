// Runs the suite in one process: its origin, and its client through the cache under test.
//
//   node driver.mjs FOLDER RESULTS [HOST [ID]]
//
// FOLDER is where the package is installed. The first line of the output is the origin's port; the
// cache's base URL is awaited on standard input. Each result goes into the file RESULTS. HOST is said
// to the cache instead of the URL's own. With ID, that test alone runs, and the output shows what
// went over the wire on both sides, in order; what it depends on runs before it, in silence.

import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import process from 'node:process'
import readline from 'node:readline/promises'
import { pathToFileURL } from 'node:url'

const [folder, resultsFile, host, id] = process.argv.slice(2)
const load = name => import(pathToFileURL(path.join(folder, 'node_modules/http-cache-tests', name)))

// The origin takes its settings from npm's variables, listens when loaded, and announces its port.
process.env.npm_config_protocol = 'http'
process.env.npm_config_port = '0'
process.env.npm_config_pidfile = '/dev/null'
const port = await new Promise(resolve => {
  const print = console.log
  console.log = line => {
    console.log = print
    resolve(line.match(/:(\d+)\/$/)[1])
  }
  load('server/server.mjs')
})
console.log(port)

const input = readline.createInterface({ input: process.stdin })
const base = await new Promise(resolve => input.once('line', resolve))
input.close()

const { runTests, getResults } = await load('client/runner.mjs')
const { determineTestResult, testLookup } = await load('lib/display.mjs')
// As the suite's own command line has it: all suites and the one for Surrogate-Control.
const suites = (await load('tests/index.mjs')).default
suites.push((await load('tests/surrogate-control.mjs')).default)

const nodeFetch = createRequire(path.join(folder, 'package.json'))('node-fetch')
const fetch = host
  ? (url, init) => nodeFetch(url, { ...init, headers: [...(init?.headers ?? []), ['Host', host]] })
  : nodeFetch

const needed = new Set()
function need (id) {
  needed.add(id)
  for (const other of testLookup(suites, id).depends_on ?? []) need(other)
}

function chosen () {
  if (!id) return suites
  need(id)
  const test = testLookup(suites, id)
  console.log(`${id}: ${test.name}\n${JSON.stringify(test, null, 2)}\n`)
  test.dump = true
  return suites.map(suite => ({ ...suite, tests: suite.tests.filter(test => needed.has(test.id)) }))
}

// The suite says what a result means by a symbol.
const words = {
  '✅': 'pass',
  '⛔️': 'fail',
  '⚠️': 'suboptimal',
  Y: 'yes',
  N: 'no',
  '🔹': 'setup',
  '↻': 'retry',
  '⚪️': 'dependency',
  '⁉️': 'harness',
  '-': 'untested'
}

await runTests(chosen(), fetch, false, base)
const results = getResults()
const report = suites.flatMap(suite => suite.tests.filter(test => !id || needed.has(test.id)).map(test => ({
  id: test.id,
  suite: suite.id,
  name: test.name,
  kind: test.kind ?? 'required',
  browser: test.browser_only === true,
  verdict: words[determineTestResult(suites, test.id, results)[2]],
  alone: results[test.id] === true,
  detail: results[test.id]?.[1] ?? ''
})))
fs.writeFileSync(resultsFile, JSON.stringify(report, null, 1))
// The origin and kept connections would go on.
process.exit(0)
