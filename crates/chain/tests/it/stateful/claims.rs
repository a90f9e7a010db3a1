//! Claims of providers for fees, with honest and forged signatures.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use zerog_chain::{fine_tuning, inference};

use super::{acts::Text, machine::Machine};
use crate::support::{fine_tuning_digest, inference_digest, sign};

/// How a signature is made; every way but the first must be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    Honest,
    OverAnotherFee,
    OverAnotherUser,
    ForAnotherContract,
    HighS,
    LowV,
    Compact,
    Empty,
}

/// A claim for one deliverable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) user: Address,
    pub(crate) id: Text,
    pub(crate) secret_bytes: usize,
    /// Of the delivered root; another one must be refused.
    pub(crate) root: Bytes,
    pub(crate) nonce: U256,
    pub(crate) fee: U256,
    pub(crate) signing: Signing,
    /// Development account whose key signs.
    pub(crate) signer: usize,
}

/// A claim for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) user: Address,
    pub(crate) provider: Address,
    pub(crate) nonce: U256,
    pub(crate) fee: U256,
    pub(crate) signing: Signing,
    pub(crate) signer: usize,
}

impl Claim {
    /// The secret that belongs to its length.
    pub(crate) fn secret(&self) -> Bytes {
        vec![7; self.secret_bytes].into()
    }

    pub(crate) fn signed(&self, machine: &Machine) -> fine_tuning::Settlement {
        let mut settlement = fine_tuning::Settlement {
            id: self.id.to_string(),
            encrypted_secret: self.secret(),
            model_root_hash: self.root.clone(),
            nonce: self.nonce,
            signature: Bytes::new(),
            task_fee: self.fee,
            user: self.user,
        };
        let mut said = settlement.clone();
        let mut contract = machine.addresses.fine_tuning;
        match self.signing {
            Signing::OverAnotherFee => said.task_fee = said.task_fee.wrapping_add(U256::from(1)),
            Signing::OverAnotherUser => said.user = contract,
            Signing::ForAnotherContract => contract = machine.addresses.inference,
            _ => {}
        }
        settlement.signature = spell(
            self.signing,
            self.signer,
            fine_tuning_digest(&said, contract),
        );
        settlement
    }
}

/// The items of an inference settlement, each with its signature.
pub(crate) fn signed(
    items: &[Item],
    contract: Address,
    machine: &Machine,
) -> Vec<inference::Settlement> {
    let sign_item = |item: &Item| {
        let mut settlement = inference::Settlement {
            user: item.user,
            provider: item.provider,
            total_fee: item.fee,
            requests_hash: keccak256("requests"),
            nonce: item.nonce,
            signature: Bytes::new(),
        };
        let (mut said, mut place) = (settlement.clone(), contract);
        match item.signing {
            Signing::OverAnotherFee => said.total_fee = said.total_fee.wrapping_add(U256::from(1)),
            Signing::OverAnotherUser => said.user = contract,
            Signing::ForAnotherContract => place = machine.addresses.ledger,
            _ => {}
        }
        settlement.signature = spell(item.signing, item.signer, inference_digest(&said, place));
        settlement
    };
    items.iter().map(sign_item).collect()
}

fn spell(signing: Signing, signer: usize, digest: B256) -> Bytes {
    let mut bytes = sign(signer, digest).to_vec();
    match signing {
        Signing::HighS => {
            let order: U256 = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
                .parse()
                .expect("the order of the curve is a number");
            let s = U256::from_be_slice(&bytes[32..64]);
            bytes[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
            bytes[64] ^= 27 ^ 28;
        }
        Signing::LowV => bytes[64] -= 27,
        Signing::Compact => {
            bytes[32] |= (bytes[64] - 27) << 7;
            bytes.truncate(64);
        }
        Signing::Empty => bytes.clear(),
        _ => {}
    }
    bytes.into()
}
