//! The contracts against a second description of them, by many actors, in long random plays on a bare EVM.
//!
//! [`model`] says what each call answers, logs and changes; [`play`] compares that with the chain after every step, and
//! checks the invariants of [`invariants`] and the promises of [`probes`] on the chain's own numbers. A play that fails
//! is cut down to the few steps that matter and printed.
//!
//! `ZEROG_FUZZ_CALLS` sets how many steps are taken (a default suits every test run), `ZEROG_FUZZ_SEED` the first seed,
//! `ZEROG_FUZZ_SHRINK` how many replays are spent on shortening a failure, and `ZEROG_CONTRACT_ARTIFACTS` a folder with
//! another build of the contracts.

mod acts;
mod choices;
mod claims;
mod compare;
mod forms;
mod generate;
mod invariants;
mod machine;
mod model;
mod observe;
mod play;
mod probes;
mod random;
mod registry;
mod tour;
mod tour_of_settlements;

use std::{collections::BTreeSet, fmt::Write as _};

use alloy_primitives::{Bytes, FixedBytes, keccak256};
use alloy_sol_types::{Revert, SolError};
use serde_json::Value;

use acts::Step;
use machine::Machine;
use play::{Coverage, random_play, replay, shrink};

/// Steps of one play: long enough for rings to fill and locks to end several times.
const PLAY_STEPS: usize = 400;
const DEFAULT_CALLS: usize = 1_200;
/// Replays that a failure is worth.
const SHRINK_REPLAYS: usize = 300;

/// Errors of the published interface that no sequence of calls raises, and why.
const NEVER_RAISED: [(&str, &str); 8] = [
    (
        "InvalidServiceType(string)",
        "declared, never raised, as published",
    ),
    (
        "ServiceNotRegistered(address)",
        "declared, never raised, as published",
    ),
    (
        "InvalidTEESignature(string)",
        "declared, never raised, as published",
    ),
    (
        "TooManyRefunds(address,address)",
        "P-6: a full list is skipped",
    ),
    (
        "AccountExists(address,address)",
        "the ledger asks before it adds",
    ),
    (
        "TransferToLedgerFailed()",
        "the ledger accepts coins of registered services",
    ),
    (
        "CallFailed()",
        "P-7: kept for a service that fails without a reason; see `registry`",
    ),
    (
        "InvalidLedgerAddress()",
        "initialization only; see `deployment`",
    ),
];

/// Errors that only views or initialization raise, and one that needs 500 services; other tests raise them.
const RAISED_ELSEWHERE: [&str; 6] = [
    "BatchSizeTooLarge(uint256,uint256)",
    "LimitTooLarge(uint256)",
    "LimitTooLarge(uint256,uint256)",
    "NoRecommendedService(string)",
    "LockTimeOutOfRange(uint256)",
    "ServiceRegistryLimitReached(uint256)",
];

fn setting(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text}"))
    })
}

fn report(machine: &Machine, name: &str, steps: Vec<Step>, reason: String) -> ! {
    let all = steps.len();
    let (steps, reason) = shrink(
        machine,
        steps,
        reason,
        setting("ZEROG_FUZZ_SHRINK", SHRINK_REPLAYS),
    );
    let mut text = format!(
        "{name}: {reason}\n{} of {all} steps are needed:\n",
        steps.len()
    );
    for step in steps {
        let _ = writeln!(text, "  {step:?}");
    }
    panic!("{text}");
}

/// Every function succeeds, every event is emitted and every error is raised at least once, each as the model says.
#[test]
fn every_function_event_and_error_is_reached_and_as_described() {
    let machine = Machine::start();
    let mut coverage = Coverage::default();
    let steps = tour::tour(&machine);
    if let Err((index, reason)) = replay(&machine, &steps, &mut coverage) {
        report(&machine, "the tour", steps[..=index].to_vec(), reason);
    }
    let published: Value = serde_json::from_str(include_str!("../published_abi.json")).unwrap();
    let missing = unreached(&machine, &coverage, &published);
    assert!(missing.is_empty(), "the tour does not reach: {missing:#?}");
    println!(
        "tour: {} steps, {} accepted, {} functions, {} events, {} errors; {:?}",
        coverage.steps,
        coverage.accepted,
        coverage.functions.len(),
        coverage.events.len(),
        coverage.errors.len(),
        coverage.probes,
    );
}

/// What of the contracts' own interface was not reached.
fn unreached(machine: &Machine, coverage: &Coverage, published: &Value) -> Vec<String> {
    let contracts = [
        ("LedgerManager", machine.addresses.ledger),
        ("FineTuningServing", machine.addresses.fine_tuning),
        ("InferenceServing", machine.addresses.inference),
    ];
    let excused: BTreeSet<&str> = NEVER_RAISED
        .iter()
        .map(|(signature, _)| *signature)
        .chain(RAISED_ELSEWHERE)
        .collect();
    // The ledger calls these for its users; called by others they are refused.
    let internal = [
        "addAccount",
        "deleteAccount",
        "processRefund",
        "requestRefundAll",
        "spendFund",
        "initialize",
    ];
    let mut missing = Vec::new();
    for (name, address) in contracts {
        assert!(published[name].is_object());
        let artifact = crate::artifacts::artifact(name);
        for (signature, item) in crate::artifacts::items(&artifact, "function") {
            let changes = matches!(
                item["stateMutability"].as_str(),
                Some("nonpayable" | "payable")
            );
            let function = signature.split('(').next().unwrap();
            let is_internal = internal.contains(&function)
                || (signature == "depositFund(address,address,uint256)");
            let selector = FixedBytes::from_slice(&keccak256(&signature)[..4]);
            if changes && !is_internal && !coverage.functions.contains(&(address, selector)) {
                missing.push(format!("{name}.{signature}"));
            }
        }
        for (signature, _) in crate::artifacts::items(&artifact, "event") {
            let is_excused = signature.starts_with("BatchBalanceUpdated")
                || signature.starts_with("Initialized(")
                || signature.starts_with("ContractInitialized(");
            if !is_excused && !coverage.events.contains(&keccak256(&signature)) {
                missing.push(format!("{name}: event {signature}"));
            }
        }
        for (signature, _) in crate::artifacts::items(&artifact, "error") {
            let selector = FixedBytes::from_slice(&keccak256(&signature)[..4]);
            let is_reached = coverage.errors.contains_key(&selector);
            if !is_reached && !excused.contains(signature.as_str()) {
                missing.push(format!("{name}: error {signature}"));
            }
        }
    }
    for text in [
        "Ownable: caller is not the owner",
        "Ownable: new owner is the zero address",
        "ReentrancyGuard: reentrant call",
    ] {
        let data: Bytes = Revert::from(text).abi_encode().into();
        if !coverage.texts.contains(&data) {
            missing.push(format!("the text {text}"));
        }
    }
    missing
}

/// Long random plays.
#[test]
fn random_plays_keep_every_promise() {
    let machine = Machine::start();
    let calls = setting("ZEROG_FUZZ_CALLS", DEFAULT_CALLS);
    let first_seed = setting("ZEROG_FUZZ_SEED", 1) as u64;
    let mut coverage = Coverage::default();
    let opening = tour::opening(&machine);
    let mut seed = first_seed;
    while coverage.steps < calls {
        match random_play(&machine, seed, PLAY_STEPS, &opening, &mut coverage) {
            Ok(has_spent) => assert!(has_spent, "a poor play: nobody was paid with seed {seed}"),
            Err((steps, reason)) => report(&machine, &format!("seed {seed}"), steps, reason),
        }
        seed += 1;
    }
    println!(
        "{} steps in {} plays, {} accepted, {} functions, {} events, {} errors; {:?}",
        coverage.steps,
        seed - first_seed,
        coverage.accepted,
        coverage.functions.len(),
        coverage.events.len(),
        coverage.errors.len(),
        coverage.probes,
    );
    assert!(
        coverage.accepted * 3 > coverage.steps && coverage.accepted < coverage.steps,
        "{} of {} steps were accepted",
        coverage.accepted,
        coverage.steps
    );
    let probes = coverage.probes;
    assert!(
        probes.refunds > 0 && probes.closed_gates > 0,
        "a poor choice of states: {probes:?}"
    );
}
