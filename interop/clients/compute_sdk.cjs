// npm @0gfoundation/0g-compute-ts-sdk through require().
'use strict'
const sdk = require('@0gfoundation/0g-compute-ts-sdk')
const { ethers } = require('ethers')
const { run } = require('./cells.cjs')
const phases = require('./compute_walk.cjs')

run(() => phases[process.argv[2]]({ client: 'cjs', sdk, ethers, accounts: { user: 5, newcomer: 8 } }))
