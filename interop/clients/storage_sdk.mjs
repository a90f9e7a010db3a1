// npm @0gfoundation/0g-ts-sdk: files of every size that the storage protocol has a vector for, up and down again.
import fs from 'fs'
import { Indexer, ZgFile } from '@0gfoundation/0g-ts-sdk'
import { ethers } from 'ethers'
import cells from './cells.cjs'

const network = JSON.parse(fs.readFileSync(process.env.INTEROP_NETWORK, 'utf8'))
const vectors = JSON.parse(fs.readFileSync(process.env.INTEROP_VECTORS, 'utf8'))
const column = new cells.Cells('storage-ts')
const indexer = new Indexer(network.indexer_url)
// Several wallets, because this client waits whole seconds between its steps.
const wallets = network.accounts.slice(3, 9).map((account) => {
    const provider = new ethers.JsonRpcProvider(network.rpc_url, undefined, { cacheTimeout: -1 })
    return new ethers.Wallet(account.private_key, provider)
})

function content(size, offset = 0) {
    const period = Buffer.from(Array.from({ length: 251 }, (_, i) => ((i * 31 + 7) % 251 ^ offset) & 255))
    return Buffer.alloc(size, period)
}

async function upload(wallet, path, options) {
    const file = await ZgFile.fromFilePath(path)
    try {
        const [result, error] = await indexer.upload(file, network.rpc_url, wallet, options)
        if (error !== null) throw error
        return result
    } finally {
        await file.close()
    }
}

async function download(root, path, proof) {
    const error = await indexer.download(root, path, proof)
    if (error !== null) throw error
    return fs.readFileSync(path)
}

async function roundTrip(wallet, { size, root }) {
    const bytes = content(size)
    fs.writeFileSync(`up-${size}`, bytes)
    await column.passes(
        `${size} bytes`,
        async () => {
            const result = await upload(wallet, `up-${size}`)
            if (result.rootHash !== root) throw new Error(`root ${result.rootHash}`)
            return download(root, `down-${size}`, size % 2 === 1)
        },
        (again) => again.equals(bytes)
    )
    fs.rmSync(`down-${size}`)
}

async function walk() {
    const open = [...vectors.files]
    await Promise.all(
        wallets.map(async (wallet) => {
            for (let next = open.pop(); next !== undefined; next = open.pop()) await roundTrip(wallet, next)
        })
    )
    await column.passes(
        'the same file again',
        async () => {
            const before = await wallets[0].getNonce()
            await upload(wallets[0], 'up-262145')
            return (await wallets[0].getNonce()) - before
        },
        (transactions) => transactions === 0
    )
    await column.passes(
        'an empty file is refused',
        async () => {
            fs.writeFileSync('empty', '')
            return upload(wallets[0], 'empty').then(
                () => 'accepted',
                (error) => error.message
            )
        },
        (message) => message.includes('Failed to create Merkle tree')
    )
    await column.passes(
        'fragments',
        async () => {
            fs.writeFileSync('fragments', content(vectors.fragments.size))
            const result = await upload(wallets[0], 'fragments', { fragmentSize: vectors.fragments.fragment_size })
            if (JSON.stringify(result.rootHashes) !== JSON.stringify(vectors.fragments.roots)) {
                throw new Error(`roots ${result.rootHashes}`)
            }
            const error = await indexer.download(result.rootHashes, 'fragments-again')
            if (error !== null) throw error
            await cells.waitUntil('the file', 10, () => fs.statSync('fragments-again').size === vectors.fragments.size)
            return fs.readFileSync('fragments-again')
        },
        (again) => again.equals(content(vectors.fragments.size))
    )
}

// One file for the others to fetch; its root goes where they look for it.
async function give() {
    fs.writeFileSync('given', content(vectors.shared.size, vectors.shared.offsets[column.client]))
    const { rootHash } = await upload(wallets[0], 'given')
    fs.writeFileSync(`${process.env.INTEROP_SHARED}/${column.client}`, rootHash)
}

// The files that all clients gave.
async function take() {
    await column.passes(
        'files that the other clients stored',
        async () => {
            for (const [client, offset] of Object.entries(vectors.shared.offsets)) {
                const root = fs.readFileSync(`${process.env.INTEROP_SHARED}/${client}`, 'utf8')
                const bytes = await download(root, `taken-${client}`, true)
                if (!bytes.equals(content(vectors.shared.size, offset))) throw new Error(`another file from ${client}`)
            }
        }
    )
}

cells.run({ walk, give, take }[process.argv[2]])
