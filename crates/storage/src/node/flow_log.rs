//! What was submitted, and following the chain to learn it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use alloy_primitives::{B256, Bytes, U64, b256};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use zerog_chain::flow::{SubmissionNode, Submitted, decode_submit};

use super::Shared;
use crate::{
    CallError, CallFailure, Error, FileShape, merkle::root_of_nodes, rpc::JsonRpc,
    rpc_types::Transaction,
};

/// Selector of Flow's `Submit` event.
const SUBMIT_EVENT: B256 =
    b256!("167ce04d2aa1981994d3a31695da0d785373335b1078cec239a1a3a2c7675555");
/// Public endpoints refuse longer ranges.
const BLOCKS_AT_ONCE: u64 = 1_000;

/// A file that somebody paid for.
#[derive(Clone, Debug)]
pub(super) struct StoredSubmission {
    pub(super) sequence: u64,
    pub(super) root: B256,
    pub(super) shape: FileShape,
    pub(super) start_sector: u64,
    nodes: Vec<SubmissionNode>,
}

impl StoredSubmission {
    pub(super) fn to_transaction(&self) -> Transaction {
        Transaction {
            stream_ids: Vec::new(),
            data: Vec::new(),
            data_merkle_root: self.root,
            merkle_nodes: self
                .nodes
                .iter()
                .map(|node| (u64::from(node.height) + 1, node.root))
                .collect(),
            start_entry_index: self.start_sector,
            size: self.shape.size(),
            seq: self.sequence,
        }
    }
}

/// All submissions, by number and by root.
#[derive(Debug, Default)]
pub(super) struct FlowLog {
    submissions: BTreeMap<u64, StoredSubmission>,
    by_root: HashMap<B256, Vec<u64>>,
    /// Up to where the chain was read.
    position: Option<BlockId>,
    /// Where announced submissions are written down, for a node without a chain.
    journal: Option<File>,
}

/// Number and hash of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct BlockId {
    number: U64,
    hash: B256,
}

impl FlowLog {
    /// The log of a node without a chain: what was announced to it before.
    pub(super) fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("submissions.jsonl");
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(failed)?;
        let mut log = Self::default();
        for line in BufReader::new(&file).lines() {
            // A line that was cut short was never confirmed to whoever announced it.
            if let Ok(submitted) = serde_json::from_str(&line.map_err(failed)?) {
                log.add(&submitted)?;
            }
        }
        log.journal = Some(file);
        Ok(log)
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&StoredSubmission> {
        self.submissions.get(&sequence)
    }

    /// Submissions of a root, oldest first.
    pub(super) fn of_root(&self, root: B256) -> impl Iterator<Item = &StoredSubmission> {
        self.by_root
            .get(&root)
            .into_iter()
            .flatten()
            .filter_map(|sequence| self.submissions.get(sequence))
    }

    /// Number of the next submission.
    pub(super) fn next_sequence(&self) -> u64 {
        self.submissions
            .last_key_value()
            .map_or(0, |(sequence, _)| sequence + 1)
    }

    /// Height and hash of the last block that was read.
    pub(super) fn position(&self) -> (u64, B256) {
        self.position
            .map_or((0, B256::ZERO), |block| (block.number.to(), block.hash))
    }

    /// Takes a submission in; `None` when it is known.
    pub(super) fn add(&mut self, submitted: &Submitted) -> Result<Option<StoredSubmission>, Error> {
        let (sequence, submission) = (submitted.index, &submitted.submission);
        if self.submissions.contains_key(&sequence) {
            return Ok(None);
        }
        let shape = FileShape::new(submission.length)?;
        if submission.nodes.is_empty()
            || submission.sectors() != alloy_primitives::U256::from(shape.padded_sectors())
        {
            tracing::warn!(
                sequence,
                "a submission does not fit its length; nothing can be uploaded for it"
            );
            return Ok(None);
        }
        if sequence != self.next_sequence() && !self.submissions.is_empty() {
            tracing::warn!(
                sequence,
                expected = self.next_sequence(),
                "submissions are missing"
            );
        }
        if let Some(journal) = &mut self.journal {
            let path = || "submissions.jsonl".into();
            let line = serde_json::to_string(submitted).map_err(|error| Error::File {
                path: path(),
                source: error.into(),
            })?;
            journal
                .write_all(format!("{line}\n").as_bytes())
                .and_then(|()| journal.sync_data())
                .map_err(|source| Error::File {
                    path: path(),
                    source,
                })?;
        }
        let stored = StoredSubmission {
            sequence,
            root: root_of_nodes(&submission.nodes),
            shape,
            start_sector: submitted.start_sector,
            nodes: submission.nodes.clone(),
        };
        self.by_root.entry(stored.root).or_default().push(sequence);
        self.submissions.insert(sequence, stored.clone());
        Ok(Some(stored))
    }

    /// Forgets everything: the chain is another one now. Segments stay, they are named by content.
    fn reset(&mut self) {
        self.submissions.clear();
        self.by_root.clear();
        self.position = None;
    }
}

pub(super) async fn chain_id(chain: &JsonRpc) -> Result<u64, Error> {
    let id: U64 = chain.call_patiently("eth_chainId", &[(); 0]).await?;
    Ok(id.to())
}

/// Reads submissions from the chain.
pub(super) struct Follower {
    shared: Arc<Shared>,
    chain: JsonRpc,
    start_block: u64,
    poll_interval: Duration,
}

#[derive(Deserialize)]
struct EventLog {
    topics: Vec<B256>,
    data: Bytes,
}

impl Follower {
    pub(super) fn new(
        shared: Arc<Shared>,
        chain: JsonRpc,
        start_block: u64,
        poll_interval: Duration,
    ) -> Self {
        Self {
            shared,
            chain,
            start_block,
            poll_interval,
        }
    }

    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut failing = false;
        loop {
            tokio::select! {
                // An error means that the handle was dropped, which is a stop as well.
                _ = stopped.changed() => return,
                () = self.shared.asked_in_vain.notified() => {}
                () = tokio::time::sleep(self.poll_interval) => {}
            }
            match self.catch_up().await {
                Ok(()) => failing = false,
                Err(error) => {
                    // Once per outage: polling is frequent.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the storage node cannot follow the chain");
                    }
                }
            }
        }
    }

    /// Reads all new blocks; starts afresh when the chain is not the one that was read before.
    pub(super) async fn catch_up(&mut self) -> Result<(), Error> {
        let latest = self
            .block("latest".to_owned())
            .await?
            .ok_or_else(|| self.malformed("no latest block"))?;
        let mut position = self.shared.log.read().position;
        if position == Some(latest) {
            return Ok(());
        }
        if let Some(known) = position {
            let same = known.number <= latest.number
                && self.block(format!("{:#x}", known.number)).await? == Some(known);
            if !same {
                tracing::warn!(
                    block = known.number.to::<u64>(),
                    "the chain was replaced; reading it again"
                );
                self.shared.log.write().reset();
                position = None;
            }
        }
        let mut from = position.map_or(self.start_block, |block| block.number.to::<u64>() + 1);
        let latest_number: u64 = latest.number.to();
        while from <= latest_number {
            let to = latest_number.min(from + BLOCKS_AT_ONCE - 1);
            let end = if to == latest_number {
                Some(latest)
            } else {
                self.block(format!("{to:#x}")).await?
            };
            let filter = json!([{
                "address": self.shared.identity.flow_address,
                "topics": [SUBMIT_EVENT],
                "fromBlock": format!("{from:#x}"),
                "toBlock": format!("{to:#x}"),
            }]);
            let logs: Vec<EventLog> = self.chain.call_patiently("eth_getLogs", &filter).await?;
            let shared = Arc::clone(&self.shared);
            crate::client::blocking(move || {
                for log in logs {
                    match decode_submit(&log.topics, &log.data) {
                        Some(submitted) => match shared.admit(&submitted) {
                            // Nothing of this size can be uploaded here; later submissions can.
                            Err(Error::EmptyFile | Error::FileTooLarge { .. }) => {}
                            result => result?,
                        },
                        None => tracing::warn!("a Submit event cannot be read"),
                    }
                }
                shared.log.write().position = end;
                Ok(())
            })
            .await?;
            from = to + 1;
        }
        Ok(())
    }

    async fn block(&self, tag: String) -> Result<Option<BlockId>, Error> {
        Ok(self
            .chain
            .call_patiently("eth_getBlockByNumber", &(tag, false))
            .await?)
    }

    fn malformed(&self, reason: &str) -> Error {
        let failure = CallFailure::Malformed(reason.to_owned());
        CallError {
            url: self.chain.origin(),
            method: "eth_getBlockByNumber",
            failure,
        }
        .into()
    }
}
