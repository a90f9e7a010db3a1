//! The chain as its clients see it: over HTTP, with plain JSON-RPC and with alloy.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod alloy_client;
mod history;
mod json_rpc;
mod persistence;
mod support;
mod transactions;
