// npm @0gfoundation/0g-compute-ts-sdk through import.
import * as sdk from '@0gfoundation/0g-compute-ts-sdk'
import { ethers } from 'ethers'
import cells from './cells.cjs'
import phases from './compute_walk.cjs'

cells.run(() => phases[process.argv[2]]({ client: 'esm', sdk, ethers, accounts: { user: 6, newcomer: 9 } }))
