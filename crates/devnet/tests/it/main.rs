//! End-to-end tests with the real binaries: the command line against a running network, and a provider that is killed in
//! every state.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cli_walk;
mod demo;
mod device;
#[path = "../../../sdk/tests/it/device_signer.rs"]
#[allow(dead_code, reason = "here the person at the device always confirms")]
mod device_signer;
mod disk;
mod examples;
mod handover;
mod json_output;
mod kill;
mod ports;
mod provider_process;
mod serve;
mod storage_client;
mod support;
