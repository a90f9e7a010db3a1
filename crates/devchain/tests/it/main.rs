//! The chain as its clients see it: over HTTP, with plain JSON-RPC and with alloy.

mod alloy_client;
mod history;
mod json_rpc;
mod persistence;
mod support;
mod transactions;
