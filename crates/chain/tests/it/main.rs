//! The contracts and the client against the embedded chain: real transactions over JSON-RPC.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are not test functions"
)]

mod artifacts;
mod deliverables;
mod deployment;
mod events;
mod flow;
mod gas;
mod gas_table;
mod inference;
mod ledger;
mod refunds;
mod reverts;
mod stateful;
mod support;
mod transactions;
