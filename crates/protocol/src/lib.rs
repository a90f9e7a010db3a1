//! Bytes and types that cross a trust or process boundary.
//!
//! Everything two parties must agree on is defined here once: identifiers, task and adapter states, request and
//! response bodies, signed digests, ECIES, HPKE sealing and the encrypted archive. The crate does no I/O beyond the
//! `std::io` readers and writers it is handed, and has no async code. `docs/protocol.md` is the companion text.

pub mod adapter;
pub mod amount;
pub mod ecies;
pub mod fine_tuning_api;
pub mod ids;
pub mod inference_api;
pub mod limits;
pub mod manifest;
pub mod models;
pub mod quote;
pub mod recipient;
pub mod seal;
pub mod sealed_archive;
pub mod secret;
pub mod session_token;
pub mod signing;
pub mod task;
pub mod training_params;

pub use alloy_primitives::{Address, B256, U256};
pub use ids::TaskId;
pub use secret::{FileKey, SecretKey};
