// ethers v6 against a fresh chain with development methods: node ethers.mjs RPC_URL
import assert from "node:assert/strict";
import { Contract, ContractFactory, JsonRpcProvider, NonceManager, Wallet, parseEther } from "ethers";

const key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
// Blocks come faster than the 250 ms for which ethers remembers answers.
const provider = new JsonRpcProvider(process.argv[2], undefined, { polling: true, pollingInterval: 50, cacheTimeout: -1 });
const wallet = new Wallet(key, provider);

assert.equal((await provider.getNetwork()).chainId, 31337n);
assert.equal(await provider.getBalance(new Wallet("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d").address), parseEther("10000"));
const fees = await provider.getFeeData();
assert.ok(fees.gasPrice > 0n && fees.maxFeePerGas >= fees.maxPriorityFeePerGas);

// Adds one to slot 0, logs the sum under topic 0x2a, returns it.
const init = "0x601980600b6000396000f3" + "60005460010180600055600052602a60206000a160206000f3";
const abi = ["function count() returns (uint256)"];
const counter = await new ContractFactory(abi, init, wallet).deploy();
await counter.waitForDeployment();
const address = await counter.getAddress();
assert.ok((await provider.getCode(address)).length > 2);

const seen = new Promise((resolve) => provider.on({ address }, resolve));
const sent = await counter.count();
const receipt = await sent.wait();
assert.equal(receipt.status, 1);
assert.equal(receipt.logs.length, 1);
assert.equal((await seen).transactionHash, sent.hash);
provider.removeAllListeners();
assert.equal(await counter.count.staticCall(), 2n);
assert.equal(BigInt(await provider.getStorage(address, 0)), 1n);
assert.equal((await provider.getLogs({ address, fromBlock: 0 })).length, 1);
assert.equal((await provider.getBlock("latest", true)).prefetchedTransactions[0].hash, sent.hash);
assert.equal((await provider.getTransaction(sent.hash)).blockNumber, receipt.blockNumber);
assert.equal(await counter.count.staticCall({ blockTag: receipt.blockNumber - 1 }), 1n);

// Twenty parallel sends arrive in any order.
const sender = new NonceManager(wallet);
const parallel = await Promise.all(Array.from({ length: 20 }, () => sender.sendTransaction({ to: address, gasLimit: 100000 })));
assert.ok((await Promise.all(parallel.map((one) => one.wait()))).every((one) => one.status === 1));
assert.equal(await counter.count.staticCall(), 22n);

const code = async (promise) => promise.then(() => "none", (error) => error.code);
assert.equal(await code(wallet.sendTransaction({ to: address, nonce: 0, gasLimit: 100000 })), "NONCE_EXPIRED");
assert.equal(await code(wallet.sendTransaction({ to: address, value: parseEther("100000") })), "INSUFFICIENT_FUNDS");
const reverter = await new ContractFactory([], "0x600d80600b6000396000f363deadbeef6000526004601cfd", wallet).deploy();
await reverter.waitForDeployment();
const failing = new Contract(await reverter.getAddress(), ["function run()", "error Unused()"], wallet);
const revert = await failing.run.staticCall().catch((error) => error);
assert.equal(revert.code, "CALL_EXCEPTION");
assert.equal(revert.data, "0xdeadbeef");
assert.equal(await code(failing.run()), "CALL_EXCEPTION");
const mined = await failing.run({ gasLimit: 100000 });
assert.equal(await code(mined.wait()), "CALL_EXCEPTION");

const snapshot = await provider.send("evm_snapshot", []);
const before = (await provider.getBlock("latest")).timestamp;
await provider.send("evm_increaseTime", [86400]);
await provider.send("evm_mine", []);
assert.ok((await provider.getBlock("latest")).timestamp >= before + 86400);
assert.equal(await provider.send("evm_revert", [snapshot]), true);
provider.destroy();
console.log("ethers: ok");
