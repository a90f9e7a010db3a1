//! The contracts and the client against the embedded chain: real transactions over JSON-RPC.

mod artifacts;
mod deliverables;
mod deployment;
mod events;
mod flow;
mod gas;
mod inference;
mod ledger;
mod properties;
mod refunds;
mod support;
mod transactions;
