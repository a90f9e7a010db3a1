// One line of JSON for every method that a client ran: the counterpart of cells.py.
'use strict'
const fs = require('fs')

class Stop extends Error {}

class Cells {
    constructor(client) {
        this.client = client
    }

    // Runs `work`, which must not throw, and `check` on its value; returns the value.
    async passes(method, work, check) {
        const started = Date.now()
        let value
        try {
            value = await work()
            if (check !== undefined && !(await check(value))) {
                throw new Error(`unexpected value: ${show(value)}`)
            }
        } catch (error) {
            console.error(error)
            this.write(method, 'fail', started, { reason: describe(error) })
            throw new Stop(method)
        }
        this.write(method, 'pass', started, {})
        return value
    }

    // Runs `work`, which must fail with `expected` because of the client itself. A client that suddenly works here
    // fails the suite, so that the table never blames it wrongly.
    async clientBug(method, expected, why, instead, work) {
        await this.mustFail(method, 'client bug', expected, why, instead, work)
    }

    // Runs `work`, which must fail with `expected` because it goes to a machine of the public network.
    async needsPublicNetwork(method, expected, why, instead, work) {
        await this.mustFail(method, 'needs a public network', expected, why, instead, work)
    }

    async mustFail(method, result, expected, why, instead, work) {
        const started = Date.now()
        let value
        try {
            value = await work()
        } catch (error) {
            if (expected.test(describe(error))) {
                this.write(method, result, started, { reason: why, instead })
                return
            }
            console.error(error)
            this.write(method, 'fail', started, { reason: `expected ${expected}, got ${describe(error)}` })
            throw new Stop(method)
        }
        this.write(method, 'fail', started, { reason: `expected ${expected}, but it worked: ${show(value)}` })
        throw new Stop(method)
    }

    write(method, result, started, more) {
        const seconds = (Date.now() - started) / 1000
        const cell = { client: this.client, method, result, ...more, seconds }
        fs.appendFileSync(process.env.INTEROP_RESULTS, JSON.stringify(cell) + '\n')
        console.log(`${seconds.toFixed(2).padStart(7)} s  ${result.padEnd(8)} ${method}`)
    }
}

function show(value) {
    return JSON.stringify(value, (_, member) => (typeof member === 'bigint' ? member.toString() : member))?.slice(0, 1000)
}

function describe(error) {
    return `${error?.name ?? 'Error'}: ${error?.message ?? String(error)}`.slice(0, 2000)
}

async function waitUntil(what, timeoutSeconds, attempt, intervalMilliseconds = 500) {
    const deadline = Date.now() + timeoutSeconds * 1000
    for (;;) {
        const value = await attempt()
        if (value) return value
        if (Date.now() > deadline) throw new Error(`waited ${timeoutSeconds} s for ${what}`)
        await new Promise((resolve) => setTimeout(resolve, intervalMilliseconds))
    }
}

// Ends the process, also when a client left a timer running, with 1 when a step failed that others rest on.
function run(walk) {
    walk().then(
        () => process.exit(0),
        (error) => {
            console.error(error instanceof Stop ? `stopped at ${error.message}` : error)
            process.exit(1)
        }
    )
}

module.exports = { Cells, describe, run, waitUntil }
