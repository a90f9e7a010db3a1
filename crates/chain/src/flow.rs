//! The storage Flow contract: order and fees of stored files (`docs/protocol.md`, storage).

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolEvent;
use serde::{Deserialize, Serialize};

use crate::{
    ChainClient, ChainError, Receipt,
    bindings::{FixedPriceMarket, Flow as abi},
    calls::flow as calls,
};

const NAME: &str = "Flow";

/// One power-of-two subtree of a padded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmissionNode {
    /// Merkle root.
    pub root: B256,
    /// Covers 2^height sectors of 256 bytes; below 64.
    pub height: u8,
}

/// One file to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Exact bytes of the file.
    pub length: u64,
    /// Opaque; empty for all known clients.
    pub tags: Bytes,
    /// Largest subtrees first.
    pub nodes: Vec<SubmissionNode>,
    /// Account that the event names; not zero.
    pub submitter: Address,
}

impl Submission {
    /// Sectors of the padded file.
    #[must_use]
    pub fn sectors(&self) -> U256 {
        self.nodes
            .iter()
            .map(|node| U256::ONE << usize::from(node.height))
            .fold(U256::ZERO, U256::saturating_add)
    }
}

/// What the contract said of one submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Position among all submissions (transaction sequence number of storage nodes).
    pub index: u64,
    /// First sector.
    pub start_sector: u64,
    /// Sectors of the padded file.
    pub sectors: u64,
    /// keccak256 over the subtree roots.
    pub identity: B256,
    /// Account named as submitter.
    pub submitter: Address,
    /// The submission itself.
    pub submission: Submission,
}

/// Reads and writes of Flow.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    client: &'a ChainClient,
    address: Address,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(client: &'a ChainClient, address: Address) -> Self {
        Self { client, address }
    }

    /// Address of the contract.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Contract that names the price.
    ///
    /// # Errors
    /// A failed read.
    pub async fn market(&self) -> Result<Address, ChainError> {
        self.client
            .call(NAME, self.address, None, &abi::marketCall {})
            .await
    }

    /// Price of one 256-byte sector, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn price_per_sector(&self) -> Result<U256, ChainError> {
        let market = self.market().await?;
        let call = FixedPriceMarket::pricePerSectorCall {};
        self.client
            .call("storage fee market", market, None, &call)
            .await
    }

    /// Fee of a submission at the present price, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn fee(&self, submission: &Submission) -> Result<U256, ChainError> {
        let price = self.price_per_sector().await?;
        price
            .checked_mul(submission.sectors())
            .ok_or_else(|| ChainError::MalformedAnswer {
                method: "pricePerSector".to_owned(),
                reason: format!("the price {price} is absurd"),
            })
    }

    /// Submissions so far.
    ///
    /// # Errors
    /// A failed read.
    pub async fn submissions(&self) -> Result<u64, ChainError> {
        let count = self
            .client
            .call(NAME, self.address, None, &abi::numSubmissionsCall {})
            .await?;
        Ok(count.saturating_to())
    }

    /// Pays for and adds one file.
    ///
    /// # Errors
    /// As [`ChainClient::send`]; [`ChainError::MalformedAnswer`] if the receipt holds no submission.
    pub async fn submit(
        &self,
        submission: &Submission,
    ) -> Result<(Submitted, Receipt), ChainError> {
        let fee = self.fee(submission).await?;
        let receipt = self
            .client
            .send(calls::submit(self.address, submission, fee))
            .await?;
        let submitted = self
            .submitted(&receipt)
            .into_iter()
            .next()
            .ok_or_else(no_event)?;
        Ok((submitted, receipt))
    }

    /// Pays for and adds several files in one transaction.
    ///
    /// # Errors
    /// As [`Flow::submit`].
    pub async fn batch_submit(
        &self,
        submissions: &[Submission],
    ) -> Result<(Vec<Submitted>, Receipt), ChainError> {
        let mut fee = U256::ZERO;
        let price = self.price_per_sector().await?;
        for submission in submissions {
            fee = fee.saturating_add(price.saturating_mul(submission.sectors()));
        }
        let receipt = self
            .client
            .send(calls::batch_submit(self.address, submissions, fee))
            .await?;
        let submitted = self.submitted(&receipt);
        if submitted.len() != submissions.len() {
            return Err(no_event());
        }
        Ok((submitted, receipt))
    }

    /// Submissions in a receipt, in order.
    #[must_use]
    pub fn submitted(&self, receipt: &Receipt) -> Vec<Submitted> {
        receipt
            .logs
            .iter()
            .filter(|log| log.address == self.address)
            .filter_map(|log| decode_submit(&log.topics, &log.data))
            .collect()
    }
}

/// Reads a `Submit` event; `None` for any other event.
#[must_use]
pub fn decode_submit(topics: &[B256], data: &[u8]) -> Option<Submitted> {
    if topics.first() != Some(&abi::Submit::SIGNATURE_HASH) {
        return None;
    }
    let event = abi::Submit::decode_raw_log(topics.iter().copied(), data).ok()?;
    let mut nodes = Vec::with_capacity(event.submission.nodes.len());
    for node in &event.submission.nodes {
        nodes.push(SubmissionNode {
            root: node.root,
            height: u8::try_from(node.height).ok()?,
        });
    }
    Some(Submitted {
        index: u64::try_from(event.submissionIndex).ok()?,
        start_sector: u64::try_from(event.startPos).ok()?,
        sectors: u64::try_from(event.length).ok()?,
        identity: event.identity,
        submitter: event.sender,
        submission: Submission {
            length: u64::try_from(event.submission.length).ok()?,
            tags: event.submission.tags,
            nodes,
            submitter: event.sender,
        },
    })
}

fn no_event() -> ChainError {
    ChainError::MalformedAnswer {
        method: "Flow.submit".to_owned(),
        reason: "the receipt does not hold the expected Submit events".to_owned(),
    }
}

impl From<Submission> for abi::Submission {
    fn from(submission: Submission) -> Self {
        let nodes = submission
            .nodes
            .into_iter()
            .map(|node| abi::SubmissionNode {
                root: node.root,
                height: U256::from(node.height),
            })
            .collect();
        Self {
            data: abi::SubmissionData {
                length: U256::from(submission.length),
                tags: submission.tags,
                nodes,
            },
            submitter: submission.submitter,
        }
    }
}
