//! What a verdict is made from.

use alloy_primitives::Address;

use crate::Collateral;
use crate::model_node::ModelNode;
use crate::tls::Connection;

/// What a verdict is made from.
#[derive(Debug, Clone, Default)]
pub struct Evidence<'a> {
    /// Raw body of `/v1/quote`, in any report-data layout.
    pub body: &'a [u8],
    /// Value of the `ZG-Quote-Signature` header.
    pub body_signature: Option<&'a str>,
    /// Collateral for the quote. Not needed for simulated quotes, whose collateral is made here.
    pub collateral: Option<&'a Collateral>,
    /// Why there is no collateral, or no better one, and what to do; for people.
    pub collateral_problem: Option<&'a str>,
    /// Signer registered on chain, if it could be read.
    pub registered_signer: Option<Address>,
    /// Whether the contract owner has acknowledged that signer, if it could be read.
    pub acknowledged: Option<bool>,
    /// The challenge that the quote should answer.
    pub challenge: Option<Challenge>,
    /// How the answer came.
    pub connection: Connection,
    /// Where the registration says that the model runs.
    pub model_node: ModelNode,
    /// Whether all secrets that the caller sends are sealed to [`Verdict::sealing_key`](super::Verdict::sealing_key), so that
    /// it is no matter where TLS ends.
    pub sealed: bool,
}

/// A nonce that the caller sent, with the key that the provider hashes besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The caller's random bytes.
    pub nonce: [u8; 32],
    /// X25519 key of the enclave.
    pub sealing_key: [u8; 32],
}
