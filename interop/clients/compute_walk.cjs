// The walk of both builds of npm @0gfoundation/0g-compute-ts-sdk. What the ES module build cannot do is said where the
// two part.
'use strict'
const crypto = require('crypto')
const fs = require('fs')
const path = require('path')
const AdmZip = require('adm-zip')
const { getAddress } = require('ethers')
const { Cells, waitUntil } = require('./cells.cjs')

const NETWORK = JSON.parse(fs.readFileSync(process.env.INTEROP_NETWORK, 'utf8'))
const PROVIDER = getAddress(NETWORK.provider_address)
const MODEL = 'Qwen2.5-0.5B-Instruct'
const DATASET = 'training_data.jsonl'
const TRAINING = 'training_params.json'
const OG = 10n ** 18n
const BROWSER_HTTP = 'this build bundles the HTTP library for browsers, which has neither Node streams nor buffers'
const USE_STORAGE = 'the default download method, which tries 0G Storage first, or the CommonJS build'

async function connect(build, number) {
    const account = NETWORK.accounts[number]
    const provider = new build.ethers.JsonRpcProvider(NETWORK.rpc_url, undefined, { cacheTimeout: -1 })
    const wallet = new build.ethers.Wallet(account.private_key, provider)
    const broker = await build.sdk.createZGComputeNetworkBroker(wallet)
    return { broker, wallet, provider }
}

async function walk(build) {
    const cells = new Cells(build.client)
    fs.copyFileSync(path.join(process.env.INTEROP_FIXTURES, 'datasets/willow-farm.instruction.jsonl'), DATASET)
    fs.writeFileSync(TRAINING, process.env.INTEROP_TRAINING)
    fs.mkdirSync('audit', { recursive: true })
    const isEsm = build.client === 'esm'

    const { broker, wallet } = await cells.passes(
        'create a broker',
        () => connect(build, build.accounts.user),
        ({ broker }) => broker.fineTuning !== undefined
    )
    const ft = broker.fineTuning
    await fund(cells, broker)
    await discover(cells, ft, isEsm)

    const { stored, hash } = await datasets(cells, build, ft, isEsm)
    const task = await cells.passes(
        'create_task',
        () => ft.createTask(PROVIDER, MODEL, hash, TRAINING),
        (task) => task.length === 36
    )
    await tasks(cells, ft, task)
    await deliveries(cells, build, ft, task, hash, stored, isEsm)
    const adapter = await adapters(cells, broker.inference, task)
    await chat(cells, broker.inference, adapter)
    await inference(cells, build, broker.inference)
    await owner(cells, build, ft)
    await newcomer(cells, build, wallet.address)
}

async function fund(cells, broker) {
    const ledger = broker.ledger
    await cells.passes('ledger.add_ledger', () => ledger.addLedger(3))
    await cells.passes('ledger.get_ledger', () => ledger.getLedger(), (account) => account.availableBalance === 3n * OG)
    await cells.passes('ledger.transfer_fund', () => ledger.transferFund(PROVIDER, 'fine-tuning', OG))
    await cells.passes('acknowledge_provider_signer', () => broker.fineTuning.acknowledgeProviderSigner(PROVIDER))
}

async function discover(cells, ft, isEsm) {
    await cells.passes(
        'list_service',
        () => ft.listService(),
        (services) => services.length === 1 && services[0].url === NETWORK.provider_url
    )
    await cells.passes(
        'list_model',
        () => ft.listModel(),
        (models) => models[0].length > 0 && models[1].length === 0
    )
    await cells.passes('get_account', () => ft.getAccount(PROVIDER), (account) => account.balance === OG && account.acknowledged)
    await cells.passes('get_account_with_detail', () => ft.getAccountWithDetail(PROVIDER), (detail) => detail.refunds.length === 0)
    await cells.passes('get_locked_time', () => ft.getLockedTime(), (seconds) => seconds === 86400n)
    await cells.passes(
        'verify_service',
        () => ft.verifyService(PROVIDER, 'audit'),
        (result) => result.success && result.signerVerification.allMatch && result.composeVerification.passed
    )
    if (isEsm) {
        await cells.clientBug(
            'model_usage',
            /Received an instance of ArrayBuffer/,
            BROWSER_HTTP,
            '`GET /v1/model/desc/{name}` of the provider, or the CommonJS build',
            () => ft.modelUsage(PROVIDER, MODEL, 'usage.zip')
        )
    } else {
        await cells.passes(
            'model_usage',
            () => ft.modelUsage(PROVIDER, MODEL, 'usage.zip'),
            () => new AdmZip('usage.zip').getEntry('README.md') !== null
        )
    }
}

// Returns the root of the stored dataset and the hash that tasks use.
async function datasets(cells, build, ft, isEsm) {
    const stored = await cells.passes('upload_dataset', () => ft.uploadDataset(DATASET), (root) => root.length === 66)
    await cells.passes(
        'download_dataset',
        () => ft.downloadDataset('again.jsonl', stored),
        () => fs.readFileSync('again.jsonl').equals(fs.readFileSync(DATASET))
    )
    let hash = stored
    if (isEsm) {
        await cells.clientBug(
            'upload_dataset_to_tee',
            /window is not defined/,
            BROWSER_HTTP,
            '`uploadDataset` and the root it returns, or the CommonJS build',
            () => ft.uploadDatasetToTEE(PROVIDER, DATASET)
        )
    } else {
        const expected = build.ethers.keccak256(fs.readFileSync(DATASET))
        const upload = await cells.passes(
            'upload_dataset_to_tee',
            () => ft.uploadDatasetToTEE(PROVIDER, DATASET),
            (upload) => upload.datasetHash === expected
        )
        hash = upload.datasetHash
    }
    // As on a machine where its Python packages are installed; here they are in another environment.
    fs.mkdirSync('bin', { recursive: true })
    fs.writeFileSync('bin/pip', '#!/bin/sh\nexit 0\n', { mode: 0o755 })
    process.env.PATH = `${path.resolve('bin')}:${process.env.PATH}`
    await cells.clientBug(
        'calculate_token',
        /Process exited with code/,
        'asks 0G Storage for the tokenizer under its name at a model hub, and does not ship the script it would run',
        'the Python client, or `0g-compute-cli fine-tuning calculate-token` of ours',
        () => ft.calculateToken(DATASET, MODEL, true)
    )
    await cells.needsPublicNetwork(
        'calculate_token with the token counter',
        /Process exited with code/,
        'fetches a program that is pinned by hash and exists on the public 0G Storage only',
        '`0g-compute-cli fine-tuning calculate-token` of ours',
        () => ft.calculateToken(DATASET, MODEL, false)
    )
    return { stored, hash }
}

async function tasks(cells, ft, task) {
    const found = await cells.passes('get_task', () => ft.getTask(PROVIDER, task), (found) => found.id === task)
    await cells.passes('get_task, the latest', () => ft.getTask(PROVIDER), (found) => found.id === task)
    await cells.passes('list_task', () => ft.listTask(PROVIDER), (found) => found.length === 1 && found[0].id === task)
    await waitFor(ft, task, 'Delivered')
    await cells.passes(
        'create_task, one is unfinished',
        () => ft.createTask(PROVIDER, MODEL, found.datasetHash, TRAINING).catch((error) => error.message),
        (refusal) => refusal.startsWith('Failed to create task: ') && refusal.includes(task)
    )
    await cells.passes(
        'get_log',
        () => ft.getLog(PROVIDER, task),
        (log) => log.includes('creating task') && log.includes('Step: ') && log.includes('completed successfully')
    )
}

async function waitFor(ft, task, state) {
    await waitUntil(`${state} of ${task}`, 240, async () => {
        const { progress } = await ft.getTask(PROVIDER, task)
        if (['Failed', 'Cancelled'].includes(progress) && progress !== state) {
            throw new Error(`the task is ${progress}: ${(await ft.getLog(PROVIDER, task)).slice(-1500)}`)
        }
        return progress === state
    })
}

async function deliveries(cells, build, ft, task, hash, stored, isEsm) {
    await cells.passes(
        'download_model_from_0g_storage',
        () => ft.downloadModelFrom0GStorage(PROVIDER, task, 'stored.bin'),
        () => fs.statSync('stored.bin').size > 100_000
    )
    if (isEsm) {
        await cells.clientBug(
            'download_lora_from_tee',
            /stream\.on is not a function/,
            BROWSER_HTTP,
            '`downloadModelFrom0GStorage`, or the CommonJS build',
            () => ft.downloadLoRAFromTEE(PROVIDER, task, 'only.bin', { maxRetries: 0 })
        )
        await cells.clientBug(
            'acknowledge_model, tee',
            /stream\.on is not a function/,
            BROWSER_HTTP,
            USE_STORAGE,
            () => ft.acknowledgeModel(PROVIDER, task, 'tee.bin', { downloadMethod: 'tee', teeMaxRetries: 0 })
        )
        await ft.acknowledgeDeliverable(PROVIDER, task)
    } else {
        await cells.passes(
            'download_lora_from_tee',
            () => ft.downloadLoRAFromTEE(PROVIDER, task, 'only.bin'),
            () => digest('only.bin') === digest('stored.bin')
        )
        await cells.passes(
            'acknowledge_model, tee',
            () => ft.acknowledgeModel(PROVIDER, task, 'tee.bin', { downloadMethod: 'tee' }),
            () => digest('tee.bin') === digest('stored.bin')
        )
    }
    await waitFor(ft, task, 'Finished')
    await cells.passes('decrypt_model', () => ft.decryptModel(PROVIDER, task, 'stored.bin', 'model.zip'), () => isAdapter('model.zip'))

    const second = await ft.createTask(PROVIDER, 'mock-model', hash, TRAINING)
    await waitFor(ft, second, 'Delivered')
    await cells.passes(
        'acknowledge_model, 0g-storage',
        () => ft.acknowledgeModel(PROVIDER, second, 'storage.bin', { downloadMethod: '0g-storage' }),
        () => fs.statSync('storage.bin').size > 100_000
    )
    await waitFor(ft, second, 'Finished')
    await ft.decryptModel(PROVIDER, second, 'storage.bin', 'second.zip')
    if (!isAdapter('second.zip')) throw new Error('the second archive is no adapter')

    const third = await cells.passes('create_task on a stored dataset', () => ft.createTask(PROVIDER, MODEL, stored, TRAINING))
    await waitFor(ft, third, 'Delivered')
    await cells.passes(
        'acknowledge_model, auto',
        () => ft.acknowledgeModel(PROVIDER, third, 'auto.bin'),
        () => fs.statSync('auto.bin').size > 100_000
    )
    await waitFor(ft, third, 'Finished')
    const fourth = await ft.createTask(PROVIDER, MODEL, hash, TRAINING)
    await waitFor(ft, fourth, 'Delivered')
    await cells.passes('acknowledge_deliverable', () => ft.acknowledgeDeliverable(PROVIDER, fourth))
    await waitFor(ft, fourth, 'Finished')

    const longRun = { ...JSON.parse(fs.readFileSync(TRAINING, 'utf8')), max_steps: 5000, num_train_epochs: 100 }
    fs.writeFileSync('long.json', JSON.stringify(longRun))
    const fifth = await ft.createTask(PROVIDER, MODEL, hash, 'long.json')
    await cells.passes(
        'cancel_task',
        () => ft.cancelTask(PROVIDER, fifth),
        async (text) => text === `task ${fifth} cancelled` && (await ft.getTask(PROVIDER, fifth)).progress === 'Cancelled'
    )
}

function digest(file) {
    return crypto.createHash('sha256').update(fs.readFileSync(file)).digest('hex')
}

function isAdapter(file) {
    const zip = new AdmZip(file)
    return ['output_model/adapter_config.json', 'output_model/adapter_model.safetensors'].every(
        (name) => zip.getEntry(name) !== null
    )
}

async function adapters(cells, inference, task) {
    const name = `ft-Qwen2-5-0-5B-Instruct-${task.slice(0, 12)}`
    const states = []
    await cells.passes(
        'lora.deploy_adapter',
        () => inference.deployAdapter(PROVIDER, MODEL, task, { wait: true, timeoutSeconds: 180, onProgress: (state) => states.push(state) }),
        (deployed) => deployed.message.length > 0 && states.length > 0
    )
    await cells.passes(
        'lora.deploy_adapter_by_name',
        () => inference.deployAdapterByName(PROVIDER, name, { wait: true }),
        (deployed) => deployed.message === 'Adapter is already deployed and active!'
    )
    await cells.passes(
        'lora.list_adapters',
        () => inference.listAdapters(PROVIDER),
        (found) => found.some((one) => one.adapterName === name && one.taskId === task)
    )
    await cells.passes('lora.get_adapter_status', () => inference.getAdapterStatus(PROVIDER, name), (status) => status.state === 'active')
    await cells.passes('lora.resolve_adapter_name', () => inference.resolveAdapterName(PROVIDER, task, MODEL), (found) => found === name)
    return name
}

async function chat(cells, inference, adapter) {
    await cells.passes(
        'lora.chat',
        () => inference.chatWithFineTunedModel(PROVIDER, adapter, 'Who are you?', { systemPrompt: 'You are a helpful assistant.' }),
        (reply) => typeof reply.choices[0].message.content === 'string' && reply.model === adapter
    )
    const metadata = await cells.passes(
        'inference.get_service_metadata',
        () => inference.getServiceMetadata(PROVIDER),
        (metadata) => metadata.endpoint === `${NETWORK.provider_url}/v1/proxy` && metadata.model === MODEL
    )
    const headers = await cells.passes(
        'inference.get_request_headers',
        () => inference.getRequestHeaders(PROVIDER),
        (headers) => headers.Authorization.startsWith('Bearer app-sk-')
    )
    const reply = await cells.passes(
        'chat by HTTP',
        () => postChat(metadata.endpoint, headers, adapter),
        (reply) => reply.status === 200
    )
    const { usage } = await reply.json()
    await cells.passes(
        'inference.process_response',
        () => inference.processResponse(PROVIDER, reply.headers.get('ZG-Res-Key'), JSON.stringify(usage)),
        (valid) => valid === true
    )
}

function postChat(endpoint, headers, model) {
    return fetch(`${endpoint}/chat/completions`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', ...headers },
        body: JSON.stringify({ model, messages: [{ role: 'user', content: 'Hello!' }], max_tokens: 8 }),
    })
}

async function inference(cells, build, one) {
    await cells.passes('inference.list_service', () => one.listService(), (services) => services.length === 1)
    await cells.passes('inference.acknowledge_provider_signer', () => one.acknowledgeProviderSigner(PROVIDER))
    await cells.passes('inference.check_provider_signer_status', () => one.checkProviderSignerStatus(PROVIDER), (status) => status.isAcknowledged)
    await cells.passes('inference.get_account_with_detail', () => one.getAccountWithDetail(PROVIDER), ([account]) => account.balance >= 2n * OG)
    await cells.passes('inference.get_provider_models', () => one.getProviderModels(PROVIDER), (models) => models.models[0].id === MODEL)
    await cells.passes(
        'inference.verify_service',
        () => one.verifyService(PROVIDER, 'audit'),
        (result) => result.success && result.signerVerification.allMatch && result.composeVerification.passed
    )
    await cells.passes(
        'inference.download_quote_report',
        () => one.downloadQuoteReport(PROVIDER, 'quote.json'),
        () => 'report_data' in JSON.parse(fs.readFileSync('quote.json', 'utf8'))
    )
    await cells.passes('inference.get_secret', async () => {
        const key = await one.requestProcessor.createApiKey(PROVIDER, { tokenId: 3 })
        return { key, status: await chatStatus(key.rawToken) }
    }, ({ status }) => status === 200)
    const key = await one.requestProcessor.createApiKey(PROVIDER, { tokenId: 4 })
    await cells.passes(
        'inference.revoke_api_key',
        () => one.revokeApiKey(PROVIDER, 4),
        () => waitUntil('the revocation', 30, async () => (await chatStatus(key.rawToken)) === 401)
    )
    await cells.passes('inference.start_auto_funding', async () => {
        await one.startAutoFunding(PROVIDER, { interval: 60_000, bufferMultiplier: 2 })
        one.stopAutoFunding(PROVIDER)
    })
    await cells.passes('inference.revoke_all_tokens', () => one.revokeAllTokens(PROVIDER))
    await cells.passes(
        'inference.get_request_headers after revoke_all_tokens',
        async () => {
            const { broker } = await connect(build, build.accounts.user)
            const headers = await broker.inference.getRequestHeaders(PROVIDER)
            return postChat(`${NETWORK.provider_url}/v1/proxy`, headers, MODEL)
        },
        (reply) => reply.status === 200
    )
}

async function chatStatus(token) {
    const reply = await postChat(`${NETWORK.provider_url}/v1/proxy`, { Authorization: `Bearer ${token}` }, MODEL)
    await reply.text()
    return reply.status
}

// The two calls that the contracts give to their owner; the network's owner acknowledges again by itself.
async function owner(cells, build, ft) {
    const { broker } = await connect(build, 0)
    await cells.passes('revoke_tee_signer_acknowledgement', () => broker.fineTuning.revokeTEESignerAcknowledgement(PROVIDER))
    await waitUntil('the service to be back', 30, async () => (await ft.listService()).length === 1)
    await cells.passes('acknowledge_tee_signer_by_owner', () => broker.fineTuning.acknowledgeTEESignerByOwner(PROVIDER))
}

// What a user meets who does the steps in another order.
async function newcomer(cells, build, other) {
    const { broker } = await connect(build, build.accounts.newcomer)
    const ledger = broker.ledger
    await cells.passes('ledger.deposit_fund', () => ledger.depositFund(8))
    await cells.passes('ledger.deposit_fund_for', () => ledger.depositFundFor(other, 2))
    await cells.passes('ledger.list_ledger', () => ledger.ledger.listLedger(), (ledgers) => ledgers.some((one) => one[0] === other))
    await ledger.transferFund(PROVIDER, 'fine-tuning', OG)
    await ledger.transferFund(PROVIDER, 'inference', 2n * OG)
    await cells.passes(
        'ledger.get_ledger_with_detail',
        () => ledger.ledger.getLedgerWithDetail(),
        ({ infers, fines }) => infers[0][1] === 2n * OG && fines[0][1] === OG
    )
    await cells.passes('ledger.get_providers_with_balance', () => ledger.getProvidersWithBalance('inference'), (found) => found.length === 1)
    await cells.passes('ledger.retrieve_fund', () => ledger.retrieveFund('fine-tuning'))
    await cells.passes('ledger.retrieve_fund_from_provider', () => ledger.retrieveFundFromProvider('inference', PROVIDER))
    const detail = await broker.fineTuning.getAccountWithDetail(PROVIDER)
    if (detail.refunds[0].amount !== OG) throw new Error('the refund is not listed')
}

// After the lock time: the money comes back into the ledger and out of it.
async function refunds(build) {
    const cells = new Cells(build.client)
    const { broker, wallet, provider } = await connect(build, build.accounts.newcomer)
    const ledger = broker.ledger
    const before = (await ledger.getLedger()).availableBalance
    await cells.passes(
        'ledger.retrieve_fund after the lock time',
        async () => {
            await ledger.retrieveFund('fine-tuning')
            await ledger.retrieveFund('inference')
        },
        async () => (await ledger.getLedger()).availableBalance === before + 3n * OG
    )
    const balance = await provider.getBalance(wallet.address)
    await cells.passes(
        'ledger.refund',
        () => ledger.refund(2),
        async () => (await provider.getBalance(wallet.address)) > balance + (19n * OG) / 10n
    )
    // The contracts delete a ledger by themselves when its last money leaves it, and refuse to before.
    await cells.passes(
        'ledger.delete_ledger',
        () => ledger.deleteLedger().then(() => 'deleted with money in it', (error) => error.message),
        (refusal) => refusal.includes('MustWithdrawAllFundsFirst')
    )
    await ledger.refund(Number((await ledger.getLedger()).totalBalance / OG))
    const gone = await ledger.getLedger().then(() => 'still there', (error) => error.message)
    if (gone === 'still there') throw new Error('the emptied ledger is still there')
}

module.exports = { walk, refunds }
