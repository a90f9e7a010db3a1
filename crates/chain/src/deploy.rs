//! Deployment of all contracts, in the order that gives the published development addresses.
//!
//! The official clients know three addresses on chain 31337; they are the contracts that development
//! account 0 creates with its nonces 2, 6 and 12 on a fresh chain. [`genesis`] signs exactly these
//! transactions (19 of them), which the embedded chain replays; [`deploy`] sends the same steps to
//! any chain.

use alloy_consensus::{SignableTransaction, TxLegacy};
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolConstructor;

use crate::{
    Addresses, ChainClient, ChainError, ContractCall, Receipt, SigningError,
    bindings::{
        BeaconProxy, FineTuningServing, FixedPriceMarket, Flow, InferenceServing, LedgerManager,
        UpgradeableBeacon,
    },
    calls::{fine_tuning, inference, ledger},
    transaction::prepared,
};

/// Published key of development account 0, deployer and owner on chain 31337. Never put value on
/// this account on a public chain.
pub const DEVELOPMENT_KEY_0: &str =
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

/// Chain id of the development network.
pub const DEVELOPMENT_CHAIN_ID: u64 = 31337;

/// Gas price of the genesis transactions, in neuron: 1 billion, above any base fee that a fresh
/// development chain starts with.
pub const GENESIS_GAS_PRICE: u128 = 1_000_000_000;

/// Enough for the largest creation and far below a block's limit.
const GENESIS_GAS_LIMIT: u64 = 8_000_000;

/// Parameters of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeployOptions {
    /// Seconds that refunds stay locked, in both service contracts.
    pub lock_time_s: u64,
    /// Percent of the fee that an unacknowledged deliverable costs.
    pub penalty_percentage: u8,
    /// Storage price in neuron per 256-byte sector.
    pub price_per_sector: U256,
    /// Surplus that Flow starts with, in neuron, for clients that estimate a submission before they
    /// attach the fee.
    pub flow_surplus: U256,
}

impl Default for DeployOptions {
    fn default() -> Self {
        Self {
            lock_time_s: 86_400,
            penalty_percentage: 30,
            // The price of the public turbo network: 33 coins per GiB and 12 months.
            price_per_sector: U256::from(30_733_644_962_u64),
            flow_surplus: U256::from(10).pow(U256::from(18)),
        }
    }
}

/// One deployment: its transactions in order, and where everything ends up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentPlan {
    /// Calls to send one after another, without any other transaction between them.
    pub steps: Vec<ContractCall>,
    /// Contract addresses.
    pub addresses: Addresses,
    /// Fee market that Flow asks.
    pub market: Address,
}

/// Genesis of the development chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// Signed transactions of development account 0, nonces 0 to 18.
    pub transactions: Vec<Bytes>,
    /// Sender of the transactions; needs coins for gas and the Flow surplus.
    pub deployer: Address,
    /// Contract addresses.
    pub addresses: Addresses,
    /// Fee market that Flow asks.
    pub market: Address,
}

/// The steps that an account sends from its nonce `first_nonce` on.
#[must_use]
pub fn plan(deployer: Address, first_nonce: u64, options: &DeployOptions) -> DeploymentPlan {
    let mut steps = Steps {
        deployer,
        first_nonce,
        calls: Vec::new(),
    };

    let ledger_proxy = steps.create_behind_proxy("LedgerManager", &LedgerManager::BYTECODE);
    steps.call(ledger::initialize(ledger_proxy, deployer));

    let inference_proxy =
        steps.create_behind_proxy("InferenceServing", &InferenceServing::BYTECODE);
    steps.call(inference::initialize(
        inference_proxy,
        options.lock_time_s,
        ledger_proxy,
        deployer,
    ));
    steps.register(ledger_proxy, "inference", inference_proxy);

    let fine_tuning_proxy =
        steps.create_behind_proxy("FineTuningServing", &FineTuningServing::BYTECODE);
    steps.call(fine_tuning::initialize(
        fine_tuning_proxy,
        options.lock_time_s,
        ledger_proxy,
        deployer,
        options.penalty_percentage,
    ));
    steps.register(ledger_proxy, "fine-tuning", fine_tuning_proxy);

    let market_arguments = FixedPriceMarket::constructorCall {
        pricePerSector_: options.price_per_sector,
    };
    let market = steps.create(
        "FixedPriceMarket",
        &FixedPriceMarket::BYTECODE,
        market_arguments.abi_encode(),
    );
    let flow_arguments = Flow::constructorCall { market_: market };
    let flow = steps.create("Flow", &Flow::BYTECODE, flow_arguments.abi_encode());
    steps.call(ContractCall::payment(flow, options.flow_surplus));

    DeploymentPlan {
        steps: steps.calls,
        addresses: Addresses {
            ledger: ledger_proxy,
            inference: inference_proxy,
            fine_tuning: fine_tuning_proxy,
            flow: Some(flow),
        },
        market,
    }
}

/// Signed genesis transactions of the development chain (31337). Equal options give equal bytes.
///
/// # Errors
/// [`ChainError::Signing`].
pub fn genesis(options: &DeployOptions) -> Result<Genesis, ChainError> {
    let signer: PrivateKeySigner = DEVELOPMENT_KEY_0
        .parse()
        .expect("the published development key is a valid key");
    let plan = plan(signer.address(), 0, options);
    let mut transactions = Vec::with_capacity(plan.steps.len());
    for (nonce, step) in (0_u64..).zip(plan.steps) {
        let transaction = TxLegacy {
            chain_id: Some(DEVELOPMENT_CHAIN_ID),
            nonce,
            gas_price: GENESIS_GAS_PRICE,
            gas_limit: GENESIS_GAS_LIMIT,
            to: step.to.into(),
            value: step.value,
            input: step.data,
        };
        let signature = signer
            .sign_hash_sync(&transaction.signature_hash())
            .map_err(|error| SigningError::refused("a genesis transaction", &error))?;
        transactions.push(prepared(transaction, signature).raw);
    }
    Ok(Genesis {
        transactions,
        deployer: signer.address(),
        addresses: plan.addresses,
        market: plan.market,
    })
}

/// Deploys everything with the client's wallet, which becomes the owner, and returns where it is. The
/// client's own addresses do not matter. The wallet must send nothing else meanwhile.
///
/// # Errors
/// As [`ChainClient::send`]; [`ChainError::MalformedAnswer`] if a contract ended up elsewhere, which
/// another transaction of the same wallet causes.
pub async fn deploy(
    client: &ChainClient,
    options: &DeployOptions,
) -> Result<DeploymentPlan, ChainError> {
    let deployer = client.wallet_address().ok_or(ChainError::NoWallet)?;
    let first_nonce = client.pending_nonce().await?;
    let plan = plan(deployer, first_nonce, options);
    for (nonce, step) in (first_nonce..).zip(&plan.steps) {
        let expected = step.to.is_none().then(|| deployer.create(nonce));
        let Receipt {
            contract_address,
            transaction_hash,
            ..
        } = client.send(step.clone()).await?;
        check_address(step.name, expected, contract_address, transaction_hash)?;
    }
    Ok(plan)
}

fn check_address(
    name: &str,
    expected: Option<Address>,
    found: Option<Address>,
    transaction: B256,
) -> Result<(), ChainError> {
    if expected.is_none() || expected == found {
        return Ok(());
    }
    Err(ChainError::MalformedAnswer {
        method: format!("creation of {name} in {transaction}"),
        reason: format!(
            "expected at {expected:?}, found at {found:?}; the wallet sent something else meanwhile"
        ),
    })
}

/// Collects steps and knows the address of each creation.
struct Steps {
    deployer: Address,
    first_nonce: u64,
    calls: Vec<ContractCall>,
}

impl Steps {
    fn create(&mut self, name: &'static str, code: &Bytes, arguments: Vec<u8>) -> Address {
        let nonce = self.first_nonce + self.calls.len() as u64;
        let data = [code.as_ref(), &arguments].concat().into();
        self.calls.push(ContractCall {
            name,
            to: None,
            value: U256::ZERO,
            data,
        });
        self.deployer.create(nonce)
    }

    /// Implementation, beacon and proxy; returns the proxy, which is what everybody calls.
    fn create_behind_proxy(&mut self, name: &'static str, code: &Bytes) -> Address {
        let implementation = self.create(name, code, Vec::new());
        let arguments = UpgradeableBeacon::constructorCall {
            implementation_: implementation,
        };
        let beacon = self.create(
            "UpgradeableBeacon",
            &UpgradeableBeacon::BYTECODE,
            arguments.abi_encode(),
        );
        let arguments = BeaconProxy::constructorCall {
            beacon,
            data: Bytes::new(),
        };
        self.create(
            "BeaconProxy",
            &BeaconProxy::BYTECODE,
            arguments.abi_encode(),
        )
    }

    fn call(&mut self, call: ContractCall) {
        self.calls.push(call);
    }

    fn register(&mut self, ledger_proxy: Address, service_type: &str, service: Address) {
        let description = format!("{service_type} serving service v1.0");
        self.call(ledger::register_service(
            ledger_proxy,
            service_type,
            "v1.0",
            service,
            &description,
        ));
        self.call(ledger::set_recommended_service(
            ledger_proxy,
            service_type,
            "v1.0",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks;

    #[test]
    fn genesis_creates_the_published_addresses() {
        let genesis = genesis(&DeployOptions::default()).unwrap();
        assert_eq!(genesis.addresses, networks::DEVNET.addresses);
        assert_eq!(genesis.market, networks::DEVNET_MARKET);
        assert_eq!(genesis.transactions.len(), 19);
    }

    #[test]
    fn genesis_is_the_same_every_time() {
        let options = DeployOptions::default();
        assert_eq!(genesis(&options).unwrap(), genesis(&options).unwrap());
    }
}
