// Compiles contracts/src with the pinned solc into artifacts/*.json.
//   node build.mjs           write the artifacts
//   node build.mjs --check   compare with the committed ones; exit 1 if a byte differs
// The output holds no paths, times or metadata hash, so equal sources give equal bytes.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const solc = require("solc");
const { keccak256 } = require("js-sha3");

const root = fileURLToPath(new URL(".", import.meta.url));
const artifactsDir = join(root, "artifacts");
const contracts = {
  LedgerManager: "src/LedgerManager.sol",
  InferenceServing: "src/InferenceServing.sol",
  FineTuningServing: "src/FineTuningServing.sol",
  UpgradeableBeacon: "src/proxy/UpgradeableBeacon.sol",
  BeaconProxy: "src/proxy/BeaconProxy.sol",
  FixedPriceMarket: "src/storage/FixedPriceMarket.sol",
  Flow: "src/storage/Flow.sol",
  // Only tests deploy these.
  BrokenServing: "test/BrokenServing.sol",
  Puppet: "test/Puppet.sol",
};
const settings = {
  evmVersion: "cancun",
  viaIR: true,
  optimizer: { enabled: true, runs: 200 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
  debug: { revertStrings: "default" },
};

const sources = { ...readSources("src"), ...readSources("test") };
const artifacts = compile();
if (process.argv.includes("--check")) check();
else write();

/** All Solidity files under a folder, by path relative to this one, sorted. */
function readSources(folder) {
  const found = {};
  const entries = readdirSync(join(root, folder), { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of entries) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) Object.assign(found, readSources(path));
    else if (path.endsWith(".sol")) found[path] = readFileSync(join(root, path), "utf8");
  }
  return found;
}

/** Artifact texts by file name. */
function compile() {
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(Object.entries(sources).map(([path, content]) => [path, { content }])),
    settings: {
      ...settings,
      outputSelection: {
        "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences", "storageLayout", "metadata"] },
      },
    },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  // 2394 is a general advice about transient storage; the locks here are cleared at the end of the call.
  const problems = (output.errors ?? []).filter((problem) => problem.errorCode !== "2394");
  for (const problem of problems) console.error(problem.formattedMessage);
  if (problems.some((problem) => problem.severity === "error")) process.exit(1);

  const result = {};
  for (const [name, path] of Object.entries(contracts)) {
    const compiled = output.contracts[path][name];
    const used = Object.keys(JSON.parse(compiled.metadata).sources).sort();
    const artifact = {
      contractName: name,
      sourceName: path,
      compiler: { name: "solc", version: solc.version() },
      settings,
      sources: Object.fromEntries(used.map((used) => [used, `0x${keccak256(Buffer.from(sources[used], "utf8"))}`])),
      abi: compiled.abi,
      bytecode: `0x${compiled.evm.bytecode.object}`,
      deployedBytecode: `0x${compiled.evm.deployedBytecode.object}`,
      storageLayout: compiled.storageLayout.storage.map(({ label, offset, slot, type }) => ({
        label,
        offset,
        slot,
        type: compiled.storageLayout.types[type].label,
      })),
    };
    const size = (artifact.deployedBytecode.length - 2) / 2;
    console.error(`${name}: ${size} bytes`);
    if (size > 24576) {
      console.error(`${name} is larger than the 24576 bytes that a chain accepts`);
      process.exit(1);
    }
    result[`${name}.json`] = `${JSON.stringify(artifact, null, 1)}\n`;
  }
  return result;
}

function check() {
  const expected = Object.keys(artifacts).sort();
  const present = readdirSync(artifactsDir).sort();
  const different = expected.filter((name) => !present.includes(name) || digest(readFileSync(join(artifactsDir, name), "utf8")) !== digest(artifacts[name]));
  const stray = present.filter((name) => !expected.includes(name));
  for (const name of different) console.error(`differs: artifacts/${name}`);
  for (const name of stray) console.error(`not from any source: artifacts/${name}`);
  if (different.length + stray.length > 0) process.exit(1);
  console.error("artifacts are up to date");
}

function write() {
  rmSync(artifactsDir, { recursive: true, force: true });
  mkdirSync(artifactsDir);
  for (const [name, text] of Object.entries(artifacts)) writeFileSync(join(artifactsDir, name), text);
}

function digest(text) {
  return createHash("sha256").update(text).digest("hex");
}
