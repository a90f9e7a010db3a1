//! The SDK against the embedded chain with the real contracts, and against a scripted provider.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod chat;
mod datasets;
mod deliverables;
mod device;
mod device_signer;
mod endpoint;
mod hardware;
mod lies;
mod other_brokers;
mod provider_quirks;
mod support;
mod surface;
