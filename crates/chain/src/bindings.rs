//! Contract interfaces, generated from `contracts/artifacts`.
//!
//! One module per contract, with its functions, structs, events, errors and bytecode in the form of
//! `alloy_sol_types`. The other modules of this crate put plain Rust types in front of them.
#![allow(missing_docs, clippy::too_many_arguments)]

pub use beacon_proxy::BeaconProxy;
pub use fine_tuning_serving::FineTuningServing;
pub use fixed_price_market::FixedPriceMarket;
pub use flow::Flow;
pub use inference_serving::InferenceServing;
pub use ledger_manager::LedgerManager;
pub use upgradeable_beacon::UpgradeableBeacon;

/// Each contract has a module of its own, because the generated names of inherited structs collide.
macro_rules! contract {
    ($module:ident, $name:ident, $artifact:literal) => {
        mod $module {
            alloy_sol_types::sol!(
                #[derive(Debug, PartialEq, Eq)]
                $name,
                $artifact
            );
        }
    };
}

contract!(
    ledger_manager,
    LedgerManager,
    "../../contracts/artifacts/LedgerManager.json"
);
contract!(
    inference_serving,
    InferenceServing,
    "../../contracts/artifacts/InferenceServing.json"
);
contract!(
    fine_tuning_serving,
    FineTuningServing,
    "../../contracts/artifacts/FineTuningServing.json"
);
contract!(flow, Flow, "../../contracts/artifacts/Flow.json");
contract!(
    fixed_price_market,
    FixedPriceMarket,
    "../../contracts/artifacts/FixedPriceMarket.json"
);
contract!(
    upgradeable_beacon,
    UpgradeableBeacon,
    "../../contracts/artifacts/UpgradeableBeacon.json"
);
contract!(
    beacon_proxy,
    BeaconProxy,
    "../../contracts/artifacts/BeaconProxy.json"
);
