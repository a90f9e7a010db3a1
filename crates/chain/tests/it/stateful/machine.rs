//! The contracts on a bare EVM: no blocks, no signatures of transactions, no gas price, and a clock that is set.

use std::{fs, path::Path};

use alloy_primitives::{Address, Bytes, Log, U256};
use alloy_sol_types::{SolCall, SolConstructor, sol};
use zerog_chain::{
    Addresses, ContractCall,
    bindings::{
        BeaconProxy, FineTuningServing, InferenceServing, LedgerManager, UpgradeableBeacon,
    },
    calls,
    deploy::{self, DeployOptions},
};
use zerog_devchain::{BareEvm, CallEnd, Executed, accounts::ACCOUNTS};

use crate::support::LOCK_TIME_S;

sol!(
    #[derive(Debug, PartialEq, Eq)]
    Puppet,
    "../../contracts/artifacts/Puppet.json"
);

const CHAIN_ID: u64 = 31_337;
const START_S: u64 = 1_750_000_000;

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Return data, or revert data.
    pub(crate) result: Result<Bytes, Bytes>,
    /// Empty after a revert.
    pub(crate) logs: Vec<Log>,
}

/// The three published contracts, a second inference contract that is not registered yet, and two puppets.
#[derive(Clone)]
pub(crate) struct Machine {
    evm: BareEvm,
    pub(crate) addresses: Addresses,
    pub(crate) second_inference: Address,
    pub(crate) puppets: [Address; 2],
}

impl Machine {
    /// Everything deployed as in the genesis of the development chain; development accounts have coins.
    pub(crate) fn start() -> Self {
        let mut evm = BareEvm::new(CHAIN_ID, START_S);
        for account in ACCOUNTS {
            evm.fund(account.address, U256::from(1) << 140);
        }
        let deployer = ACCOUNTS[0].address;
        let plan = deploy::plan(deployer, 0, &DeployOptions::default());
        let mut machine = Self {
            evm,
            addresses: plan.addresses,
            second_inference: Address::ZERO,
            puppets: [Address::ZERO; 2],
        };
        let artifacts = std::env::var_os("ZEROG_CONTRACT_ARTIFACTS");
        for mut step in plan.steps {
            if let (None, Some(folder)) = (step.to, &artifacts) {
                replace_code(&mut step, Path::new(folder));
            }
            machine.deploy_step(deployer, &step);
        }
        machine.second_inference = machine.deploy_second_inference(deployer);
        for index in 0..2 {
            machine.puppets[index] = machine.create(deployer, Puppet::BYTECODE.clone());
            let payment = ContractCall::payment(machine.puppets[index], U256::from(1) << 100);
            machine.deploy_step(deployer, &payment);
        }
        machine
    }

    /// The implementation of the first one, behind a proxy of its own.
    fn deploy_second_inference(&mut self, deployer: Address) -> Address {
        let beacon = UpgradeableBeacon::constructorCall {
            // The inference implementation is what the plan's transaction 4 creates.
            implementation_: deployer.create(4),
        };
        let beacon = self.create(
            deployer,
            creation(&UpgradeableBeacon::BYTECODE, &beacon.abi_encode()),
        );
        let proxy = BeaconProxy::constructorCall {
            beacon,
            data: Bytes::new(),
        };
        let proxy = self.create(
            deployer,
            creation(&BeaconProxy::BYTECODE, &proxy.abi_encode()),
        );
        let initialize =
            calls::inference::initialize(proxy, LOCK_TIME_S, self.addresses.ledger, deployer);
        self.deploy_step(deployer, &initialize);
        proxy
    }

    /// Beacon of the published inference contract.
    pub(crate) fn inference_beacon(&self) -> Address {
        // What the plan's transaction 5 creates.
        ACCOUNTS[0].address.create(5)
    }

    fn deploy_step(&mut self, deployer: Address, step: &ContractCall) {
        let outcome = self.transact(deployer, step.to, step.value, step.data.clone());
        assert!(outcome.result.is_ok(), "{}: {outcome:?}", step.name);
    }

    pub(crate) fn create(&mut self, deployer: Address, code: Bytes) -> Address {
        let address = deployer.create(self.evm.nonce(deployer));
        let outcome = self.transact(deployer, None, U256::ZERO, code);
        assert!(outcome.result.is_ok(), "{outcome:?}");
        assert!(self.evm.has_code(address));
        address
    }

    /// Present time in Unix seconds.
    pub(crate) fn now(&self) -> u64 {
        self.evm.timestamp
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.evm.timestamp += seconds;
    }

    /// Executes a transaction and keeps its effects.
    pub(crate) fn transact(
        &mut self,
        from: Address,
        to: Option<Address>,
        value: U256,
        data: Bytes,
    ) -> Outcome {
        outcome(self.evm.transact(from, to, value, data).unwrap())
    }

    /// Executes a call as `from` without keeping its effects.
    fn call(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, Bytes> {
        outcome(self.evm.call(from, to, U256::ZERO, data).unwrap()).result
    }

    /// What a view answers as an unknown caller, or its revert data.
    pub(crate) fn view<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Bytes> {
        self.view_as(Address::ZERO, to, call)
    }

    /// The same for views that look at the caller.
    pub(crate) fn view_as<C: SolCall>(
        &self,
        from: Address,
        to: Address,
        call: &C,
    ) -> Result<C::Return, Bytes> {
        self.call(from, to, call.abi_encode().into())
            .map(|data| C::abi_decode_returns(&data).expect("a view answers in its own types"))
    }

    /// Coins of an account, in neuron.
    pub(crate) fn coins(&self, address: Address) -> U256 {
        self.evm.balance(address)
    }
}

fn creation(code: &Bytes, arguments: &[u8]) -> Bytes {
    [code.as_ref(), arguments].concat().into()
}

fn outcome(executed: Executed) -> Outcome {
    let result = match executed.end {
        CallEnd::Returned(data) => Ok(data),
        CallEnd::Reverted(data) => Err(data),
        CallEnd::Halted(reason) => panic!("the call halts: {reason}"),
    };
    Outcome {
        result,
        logs: executed.logs,
    }
}

/// Takes the code of a creation from another build of the contracts, e.g. one with a rule broken on purpose.
fn replace_code(step: &mut ContractCall, folder: &Path) {
    let known: [(&str, &Bytes); 3] = [
        ("LedgerManager", &LedgerManager::BYTECODE),
        ("InferenceServing", &InferenceServing::BYTECODE),
        ("FineTuningServing", &FineTuningServing::BYTECODE),
    ];
    let Some((name, _)) = known
        .into_iter()
        .find(|(name, code)| *name == step.name && step.data == **code)
    else {
        return;
    };
    let text = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let artifact: serde_json::Value = serde_json::from_str(&text).unwrap();
    step.data = artifact["bytecode"].as_str().unwrap().parse().unwrap();
}
