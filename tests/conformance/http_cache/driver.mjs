// Runs the suite in one process: its origin, and its client through the cache under test.
//
//   node driver.mjs FOLDER RESULTS HOST TESTS [show]
//
// FOLDER is where the package is installed. The first line of the output is the origin's port; the
// cache's base URL is awaited on standard input. Each result goes into the file RESULTS. HOST is said
// to the cache instead of the URL's own, unless it is empty. TESTS, with commas between, run with what they
// depend on; all where it is empty. With `show` the output has what goes over the wire on both sides, in order.

import fs from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import path from 'node:path'
import process from 'node:process'
import readline from 'node:readline/promises'
import { pathToFileURL } from 'node:url'

const [folder, resultsFile, host, named, show] = process.argv.slice(2)
const only = named ? named.split(',') : []
const load = name => import(pathToFileURL(path.join(folder, 'node_modules/http-cache-tests', name)))

// Node closes a connection after five idle seconds, about as long as the suite's pauses take: a request that goes out
// at that moment fails, and its test with it.
const createServer = http.createServer
http.createServer = (...given) => Object.assign(createServer(...given), { keepAliveTimeout: 0 })

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
// An answer that never comes fails its test, not the whole run.
const timeout = 10_000
const fetch = (url, init) => {
  const headers = [...(init?.headers ?? [])]
  if (host) headers.push(['Host', host])
  return nodeFetch(url, { ...init, headers, timeout })
}

const needed = new Set()
function need (id) {
  needed.add(id)
  for (const other of testLookup(suites, id).depends_on ?? []) need(other)
}

only.forEach(need)
if (show) {
  for (const id of only) {
    const test = testLookup(suites, id)
    console.log(`${id}: ${test.name}\n${JSON.stringify(test, null, 2)}\n`)
    test.dump = true
  }
}
const isChosen = test => needed.size === 0 || needed.has(test.id)
const chosen = suites.map(suite => ({ ...suite, tests: suite.tests.filter(isChosen) }))

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

await runTests(chosen, fetch, false, base)
const results = getResults()
const verdict = id => words[determineTestResult(suites, id, results)[2]]
const isGood = id => ['pass', 'yes'].includes(verdict(id))

function detail (test) {
  if (verdict(test.id) !== 'dependency') return results[test.id]?.[1] ?? ''
  const broken = test.depends_on.filter(id => !isGood(id))
  return `builds on ${broken.map(id => `\`${id}\``).join(', ')}`
}

const report = chosen.flatMap(suite => suite.tests.map(test => ({
  id: test.id,
  suite: suite.id,
  name: test.name,
  kind: test.kind ?? 'required',
  browser: test.browser_only === true,
  verdict: verdict(test.id),
  alone: results[test.id] === true,
  detail: detail(test)
})))
fs.writeFileSync(resultsFile, JSON.stringify(report, null, 1))
// The origin and kept connections would go on.
process.exit(0)
