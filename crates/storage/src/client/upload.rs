//! Upload: root, payment only where needed, segments with proofs, finality.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use alloy_primitives::{Address, B256, Bytes, U256};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use zerog_chain::{ChainClient, ChainError, PreparedTransaction, calls, flow::Submission};

use super::{
    Client, NodeClient, Patience, Peer, Phase, Progress, ProgressCallback, expect_network,
    journal::{Journal, Key, Payment},
};
use crate::{
    CallError, Content, Encryption, Error, FileShape, FileTree,
    content::StoredObject,
    merkle::{SECTOR_BYTES, SEGMENT_BYTES, SEGMENT_SECTORS},
    rpc::EncodedCall,
    rpc_types::{FileInfo, SegmentWithProof},
};

/// Other nodes are tried when one fails; after this many sets of nodes the upload gives up.
const NODE_SETS: usize = 3;
/// Offers of a higher gas price for a payment that the chain calls too cheap.
const REPRICINGS: usize = 5;
/// A node that is busy writing gets this many further calls, with pauses growing to ten seconds.
const BUSY_RETRIES: u32 = 12;
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(10);

/// How a file is stored.
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Encrypt it first.
    pub encryption: Option<Encryption>,
    /// Cut it into objects of at most this many bytes, each with its own root and payment; rounded up to a power of two,
    /// at least 256. Without it the file is one object, whatever its size.
    pub fragment_bytes: Option<u64>,
    /// Opaque bytes in the submission; they do not influence the root.
    pub tags: Bytes,
    /// Whom the submission names as its submitter; the paying wallet by default.
    pub submitter: Option<Address>,
    /// Refuse when an object costs more than this many wei, without gas.
    pub max_fee: Option<U256>,
}

/// What storing a file would cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadCost {
    /// The file's root.
    pub root: B256,
    /// Sectors that are paid for, padding included.
    pub sectors: u64,
    /// The fee in wei at the present price, without gas.
    pub fee: U256,
}

/// A stored file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadOutcome {
    /// The file's root: its name on the network.
    pub root: B256,
    /// Bytes of the file.
    pub size: u64,
    /// Number of the submission that holds it.
    pub sequence: u64,
    /// Whether the network had a submission of it before this upload, so that nothing was paid.
    pub already_present: bool,
    /// The transaction that this upload, or an interrupted one before it, paid with.
    pub tx_hash: Option<B256>,
    /// What that transaction paid, in wei, without gas; zero when nothing was paid.
    pub fee: U256,
}

impl Client {
    /// Root, sectors and fee of a file, without storing it.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::EmptyFile`], [`Error::Chain`].
    pub async fn upload_cost(&self, path: &Path, chain: &ChainClient) -> Result<UploadCost, Error> {
        let path = path.to_owned();
        let tree = blocking(move || FileTree::of_file(&path)).await?;
        let submitter = chain.wallet_address().unwrap_or_default();
        let submission = submission(&tree, Bytes::new(), submitter);
        let fee = chain.flow()?.fee(&submission).await?;
        Ok(UploadCost {
            root: tree.root(),
            sectors: tree.shape().padded_sectors(),
            fee,
        })
    }

    /// Stores the file at `path` as it is, in one object, and returns when the network calls it finalized.
    ///
    /// Nothing is paid when the network already has a submission with this root and size, from whomever, nor when an
    /// earlier upload paid and was interrupted. Files are sent segment by segment; memory does not grow with them.
    /// `chain` needs a wallet only when something has to be paid.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::EmptyFile`], [`Error::FileChanged`] for the file; [`Error::Call`],
    /// [`Error::NoCoverage`], [`Error::WrongChain`], [`Error::WrongFlow`], [`Error::NotSynced`],
    /// [`Error::NotFinalized`] for the network; [`Error::Chain`] for the payment; [`Error::Busy`] and
    /// [`Error::DamagedJournal`] for the journal. After any of them the upload may be run again.
    pub async fn upload_file(
        &self,
        path: &Path,
        chain: &ChainClient,
        progress: ProgressCallback<'_>,
    ) -> Result<UploadOutcome, Error> {
        let outcomes = self
            .upload(path, &UploadOptions::default(), chain, progress)
            .await?;
        Ok(outcomes
            .into_iter()
            .next()
            .expect("a file that is not cut is one object"))
    }

    /// As [`upload_file`](Self::upload_file), with options; one outcome for each object, in the order of the file.
    ///
    /// # Errors
    ///
    /// Also [`Error::InvalidRecipient`] and [`Error::FeeTooHigh`].
    pub async fn upload(
        &self,
        path: &Path,
        options: &UploadOptions,
        chain: &ChainClient,
        progress: ProgressCallback<'_>,
    ) -> Result<Vec<UploadOutcome>, Error> {
        let objects = {
            let (path, options) = (path.to_owned(), options.clone());
            blocking(move || objects(&path, &options)).await?
        };
        let total_bytes = objects.iter().map(StoredObject::length).sum();
        let mut before = 0;
        let mut outcomes = Vec::with_capacity(objects.len());
        for object in objects {
            let report = |phase, done_bytes| {
                progress(Progress {
                    phase,
                    done_bytes: before + done_bytes,
                    total_bytes,
                })
            };
            let length = object.length();
            let outcome = self.upload_object(object, options, chain, &report).await?;
            outcomes.push(outcome);
            before += length;
        }
        Ok(outcomes)
    }

    async fn upload_object(
        &self,
        object: StoredObject,
        options: &UploadOptions,
        chain: &ChainClient,
        report: &(impl Fn(Phase, u64) + Sync),
    ) -> Result<UploadOutcome, Error> {
        report(Phase::Hashing, 0);
        let source = Arc::new(blocking(move || Source::new(object)).await?);
        let tree = &source.tree;
        let submitter = options
            .submitter
            .or_else(|| chain.wallet_address())
            .unwrap_or_default();
        let wanted = Wanted {
            submission: submission(tree, options.tags.clone(), submitter),
            root: tree.root(),
            max_fee: options.max_fee,
        };
        let flow = chain.flow()?.address();
        let key = Key {
            chain_id: chain.chain_id(),
            flow,
            root: tree.root(),
            size: tree.shape().size(),
        };
        let slot = Arc::clone(self.uploads.lock().entry(key).or_default());
        let mut memory = slot.lock().await;
        let mut journal = Journal::open(self.options.journal_dir.as_deref(), key, &mut memory)?;

        let mut dropped = Vec::new();
        let mut submission: Option<PaidSubmission> = None;
        loop {
            let peers = self.covering_peers(&dropped).await?;
            let result = async {
                let paid = match submission {
                    Some(paid) => paid,
                    None => {
                        check_network(&peers, chain).await?;
                        *submission.insert(
                            find_or_pay(&wanted, &peers, chain, &mut journal, report).await?,
                        )
                    }
                };
                if !paid.finalized {
                    self.store(&source, &peers, paid, report).await?;
                }
                Ok(paid)
            };
            match result.await {
                Ok(paid) => {
                    report(Phase::Finalizing, key.size);
                    let payment = journal.payment().cloned();
                    journal.close();
                    return Ok(UploadOutcome {
                        root: key.root,
                        size: key.size,
                        sequence: paid.sequence,
                        already_present: payment.is_none(),
                        tx_hash: payment.as_ref().map(|payment| payment.hash),
                        fee: payment.map_or(U256::ZERO, |payment| payment.fee),
                    });
                }
                // Another set of nodes may do better; the payment stays what it is.
                Err(Error::Call(error)) if dropped.len() + 1 < NODE_SETS => {
                    let failing = peers.iter().find(|peer| peer.node.origin() == error.url);
                    match failing {
                        Some(peer)
                            if self
                                .covering_peers(&with(&dropped, &peer.url))
                                .await
                                .is_ok() =>
                        {
                            tracing::warn!(%error, "a storage node fails; others take its place");
                            dropped.push(peer.url.clone());
                        }
                        _ => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the nodes know the submission, uploads what they lack, waits until they finalize it.
    async fn store(
        &self,
        source: &Arc<Source>,
        peers: &[Peer],
        paid: PaidSubmission,
        report: &(impl Fn(Phase, u64) + Sync),
    ) -> Result<(), Error> {
        report(Phase::Syncing, 0);
        let tree = &source.tree;
        let mut infos = Vec::with_capacity(peers.len());
        for peer in peers {
            infos.push(self.wait_for_submission(tree, peer, paid).await?);
        }
        let tasks = self.tasks(tree, peers, &infos);
        let total: u64 = tree.shape().size();
        let replicas = tasks
            .iter()
            .map(|task| task.bytes(tree))
            .sum::<u64>()
            .max(1);
        let done = AtomicU64::new(0);
        report(Phase::Transferring, 0);
        stream::iter(tasks)
            .map(|task| {
                let (source, done) = (Arc::clone(source), &done);
                async move {
                    let bytes = task.bytes(&source.tree);
                    // Reading, checking and encoding are work for other threads than the one that talks.
                    let call = blocking(move || {
                        let segments: Vec<SegmentWithProof> = task
                            .indices
                            .into_iter()
                            .map(|index| source.segment(index))
                            .collect::<Result<_, _>>()?;
                        Ok(NodeClient::encode_upload(paid.sequence, &segments))
                    })
                    .await?;
                    upload_patiently(&peers[task.peer], &call).await?;
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    // With several replicas more bytes move than the file has; the report stays in file bytes.
                    report(
                        Phase::Transferring,
                        (u128::from(done) * u128::from(total) / u128::from(replicas)) as u64,
                    );
                    Ok::<(), Error>(())
                }
            })
            .buffer_unordered(self.options.parallel_calls.max(1))
            .try_collect::<()>()
            .await?;
        report(Phase::Finalizing, total);
        for peer in peers {
            self.wait_for_finality(tree.root(), peer, paid.sequence)
                .await?;
        }
        Ok(())
    }

    async fn wait_for_submission(
        &self,
        tree: &FileTree,
        peer: &Peer,
        paid: PaidSubmission,
    ) -> Result<FileInfo, Error> {
        let mut patience = Patience::new(self.options.poll_interval, self.options.sync_timeout);
        loop {
            if let Some(info) = peer.node.file_info_by_sequence(paid.sequence).await? {
                let (root, size) = (tree.root(), tree.shape().size());
                if info.tx.data_merkle_root != root || info.tx.size != size {
                    let reason = format!("submission {} is another file there", paid.sequence);
                    return Err(malformed(peer, "zgs_getFileInfoByTxSeq", reason));
                }
                return Ok(info);
            }
            if !patience.pause().await {
                return Err(Error::NotSynced {
                    sequence: paid.sequence,
                    transaction: paid.transaction,
                    url: peer.node.origin(),
                    waited: patience.limit,
                });
            }
        }
    }

    async fn wait_for_finality(&self, root: B256, peer: &Peer, sequence: u64) -> Result<(), Error> {
        let mut patience = Patience::new(self.options.poll_interval, self.options.finality_timeout);
        loop {
            let info = peer.node.file_info_by_sequence(sequence).await?;
            if info.is_some_and(|info| info.finalized) {
                return Ok(());
            }
            if !patience.pause().await {
                return Err(Error::NotFinalized {
                    root,
                    url: peer.node.origin(),
                    waited: patience.limit,
                });
            }
        }
    }

    /// Which segments go to which node in which call.
    fn tasks(&self, tree: &FileTree, peers: &[Peer], infos: &[FileInfo]) -> Vec<Task> {
        let per_call = self.options.segments_per_call.max(1);
        let mut by_peer: Vec<std::vec::IntoIter<Task>> = peers
            .iter()
            .zip(infos)
            .enumerate()
            .map(|(number, (peer, info))| {
                let first_segment = info.tx.start_entry_index / SEGMENT_SECTORS;
                let wanted: Vec<u64> = (0..tree.shape().segments())
                    .filter(|index| !info.finalized && peer.shard.holds(first_segment + index))
                    .collect();
                let calls: Vec<Task> = wanted
                    .chunks(per_call)
                    .map(|indices| Task {
                        peer: number,
                        indices: indices.to_vec(),
                    })
                    .collect();
                calls.into_iter()
            })
            .collect();
        // Taking turns keeps all nodes busy.
        let mut tasks = Vec::new();
        loop {
            let round: Vec<Task> = by_peer.iter_mut().filter_map(Iterator::next).collect();
            if round.is_empty() {
                return tasks;
            }
            tasks.extend(round);
        }
    }
}

/// A submission that is on chain.
#[derive(Clone, Copy, Debug)]
struct PaidSubmission {
    sequence: u64,
    /// Whether the nodes have the whole file already.
    finalized: bool,
    transaction: Option<B256>,
}

/// Segments for one call.
struct Task {
    peer: usize,
    indices: Vec<u64>,
}

impl Task {
    fn bytes(&self, tree: &FileTree) -> u64 {
        self.indices
            .iter()
            .map(|index| tree.shape().file_bytes(*index) as u64)
            .sum()
    }
}

/// The objects that a file is stored as. Blocking.
fn objects(path: &Path, options: &UploadOptions) -> Result<Vec<StoredObject>, Error> {
    let mut object = StoredObject::open(path)?;
    if let Some(encryption) = &options.encryption {
        let shape = FileShape::new(object.length())?;
        let plain = FileTree::read(shape, &object).map_err(|source| object.failed(source))?;
        object = object.encrypted(encryption.cipher(&plain)?);
    }
    match options.fragment_bytes {
        Some(bytes) => object.fragments(
            bytes
                .max(SECTOR_BYTES as u64)
                .checked_next_power_of_two()
                .unwrap_or(u64::MAX),
        ),
        None => Ok(vec![object]),
    }
}

/// The object being uploaded.
struct Source {
    object: StoredObject,
    tree: FileTree,
}

impl Source {
    /// Hashes the object. Blocking.
    fn new(object: StoredObject) -> Result<Self, Error> {
        let shape = FileShape::new(object.length())?;
        let tree = FileTree::read(shape, &object).map_err(|source| object.failed(source))?;
        Ok(Self { object, tree })
    }

    /// Reads a segment and makes sure that it is still the one that was hashed.
    fn segment(&self, index: u64) -> Result<SegmentWithProof, Error> {
        let shape = self.tree.shape();
        let mut data = vec![0; shape.segment_bytes(index)];
        self.object
            .read_exact_at(
                &mut data[..shape.file_bytes(index)],
                index * SEGMENT_BYTES as u64,
            )
            .map_err(|source| self.object.failed(source))?;
        if shape.segment_root(index, &data) != self.tree.segment_root(index) {
            return Err(Error::FileChanged {
                path: self.object.path().to_owned(),
            });
        }
        let (root, proof) = (self.tree.root(), self.tree.proof(index));
        Ok(SegmentWithProof {
            root,
            data,
            index,
            proof,
            file_size: shape.size(),
        })
    }
}

async fn upload_patiently(peer: &Peer, call: &EncodedCall) -> Result<(), CallError> {
    let mut pause = Duration::from_millis(100);
    let mut retries = 0;
    loop {
        let error = match peer.node.upload_encoded(call).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Both say that the node has what we want it to have.
        if error.says("already uploaded and finalized")
            || error.says("segment has already been uploaded")
        {
            return Ok(());
        }
        let limit = if error.says("too many data writing") {
            BUSY_RETRIES
        } else {
            3
        };
        if !error.is_passing() || retries >= limit {
            return Err(error);
        }
        retries += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_BUSY_PAUSE);
    }
}

/// Money goes only to the known contract of the known chain, whatever an indexer says.
async fn check_network(peers: &[Peer], chain: &ChainClient) -> Result<(), Error> {
    let flow = chain.flow()?.address();
    for peer in peers {
        let identity = peer.node.status().await?.network_identity;
        expect_network(peer, &identity, chain.chain_id(), flow)?;
    }
    Ok(())
}

/// A submission of this file: one that the nodes know, else one that was paid before, else a new one.
async fn find_or_pay(
    wanted: &Wanted,
    peers: &[Peer],
    chain: &ChainClient,
    journal: &mut Journal<'_>,
    report: &(impl Fn(Phase, u64) + Sync),
) -> Result<PaidSubmission, Error> {
    let mut known: Option<FileInfo> = None;
    let mut all_finalized = true;
    for peer in peers {
        let info = peer.node.file_info(wanted.root).await?;
        // The root does not bind the size, so another size is another file.
        let info = info.filter(|info| info.tx.size == wanted.submission.length && !info.pruned);
        all_finalized &= info.as_ref().is_some_and(|info| info.finalized);
        known = match (known, info) {
            (Some(known), Some(info)) if info.finalized && !known.finalized => Some(info),
            (known, info) => known.or(info),
        };
    }
    if let Some(info) = known {
        // A node's word alone is not a payment: it may follow a chain that was replaced since.
        if info.tx.seq < chain.flow()?.submissions().await? {
            return Ok(PaidSubmission {
                sequence: info.tx.seq,
                finalized: all_finalized,
                transaction: journal.payment().map(|payment| payment.hash),
            });
        }
        tracing::warn!(
            sequence = info.tx.seq,
            "a storage node names a submission that the chain does not have"
        );
    }
    report(Phase::Paying, 0);
    let (sequence, hash) = match resume_payment(chain, journal).await? {
        Some(paid) => paid,
        None => pay(wanted, chain, journal).await?,
    };
    Ok(PaidSubmission {
        sequence,
        finalized: false,
        transaction: Some(hash),
    })
}

/// The submission of a payment in the journal, if it was or still can be mined.
async fn resume_payment(
    chain: &ChainClient,
    journal: &mut Journal<'_>,
) -> Result<Option<(u64, B256)>, Error> {
    let Some(payment) = journal.payment().cloned() else {
        return Ok(None);
    };
    let known_block = chain.block(payment.known_block).await?;
    if known_block.is_none_or(|block| block.hash != payment.known_block_hash) {
        tracing::warn!(transaction = %payment.hash, "the chain was replaced since this payment; it is forgotten");
        journal.set_payment(None)?;
        return Ok(None);
    }
    let prepared = PreparedTransaction::from_raw(payment.raw.clone())?;
    if chain.receipt(payment.hash).await?.is_none() {
        if chain.wallet_address() == Some(payment.submitter) {
            chain.resume(std::slice::from_ref(&prepared)).await?;
        }
        tracing::info!(transaction = %payment.hash, "an earlier payment of this file is sent again");
        match chain.broadcast(&prepared).await {
            Ok(_) => {}
            // Another transaction took its place, so it can never be mined.
            Err(ChainError::NonceUsed { .. }) => {
                journal.set_payment(None)?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    settle(chain, journal, payment).await
}

async fn pay(
    wanted: &Wanted,
    chain: &ChainClient,
    journal: &mut Journal<'_>,
) -> Result<(u64, B256), Error> {
    let submitter = chain.wallet_address().ok_or(ChainError::NoWallet)?;
    let flow = chain.flow()?;
    let fee = flow.fee(&wanted.submission).await?;
    if let Some(limit) = wanted.max_fee.filter(|limit| fee > *limit) {
        return Err(Error::FeeTooHigh { fee, limit });
    }
    let known = chain.latest_block().await?;
    let mut prepared = chain
        .prepare(calls::flow::submit(flow.address(), &wanted.submission, fee))
        .await?;
    for attempt in 0.. {
        let payment = Payment {
            submitter,
            raw: prepared.raw.clone(),
            hash: prepared.hash,
            fee,
            known_block: known.number,
            known_block_hash: known.hash,
            sequence: None,
        };
        if let Err(error) = journal.set_payment(Some(payment.clone())) {
            chain.release(&prepared).await?;
            return Err(error);
        }
        match chain.broadcast(&prepared).await {
            Ok(_) => {
                return settle(chain, journal, payment).await?.ok_or_else(|| {
                    Error::Chain(ChainError::TransactionFailed {
                        hash: prepared.hash,
                        reason: None,
                    })
                });
            }
            // Refused for its price, it is not in any pool, so the dearer one takes its place in the journal.
            Err(ChainError::Underpriced { .. }) if attempt < REPRICINGS => {
                prepared = chain.reprice(&prepared).await?
            }
            Err(error) => {
                let never_sent = matches!(
                    error,
                    ChainError::NonceUsed { .. }
                        | ChainError::Underpriced { .. }
                        | ChainError::InsufficientFunds { .. }
                );
                if never_sent {
                    journal.set_payment(None)?;
                    chain.release(&prepared).await?;
                }
                return Err(error.into());
            }
        }
    }
    unreachable!("the loop over attempts ends by returning")
}

/// Waits for a broadcast payment and notes its submission; `None` when it failed, so that another one is in order.
async fn settle(
    chain: &ChainClient,
    journal: &mut Journal<'_>,
    mut payment: Payment,
) -> Result<Option<(u64, B256)>, Error> {
    if let Some(sequence) = payment.sequence {
        return Ok(Some((sequence, payment.hash)));
    }
    let receipt = match chain.wait(payment.hash).await {
        Ok(receipt) => receipt,
        Err(error @ ChainError::TransactionFailed { .. }) => {
            journal.set_payment(None)?;
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    let submitted = chain.flow()?.submitted(&receipt).into_iter().next();
    payment.sequence = submitted.map(|submitted| submitted.index);
    let Some(sequence) = payment.sequence else {
        journal.set_payment(None)?;
        return Ok(None);
    };
    let hash = payment.hash;
    journal.set_payment(Some(payment))?;
    Ok(Some((sequence, hash)))
}

/// What shall be on chain.
struct Wanted {
    submission: Submission,
    root: B256,
    max_fee: Option<U256>,
}

fn submission(tree: &FileTree, tags: Bytes, submitter: Address) -> Submission {
    Submission {
        length: tree.shape().size(),
        tags,
        nodes: tree.submission_nodes(),
        submitter,
    }
}

/// Runs CPU or disk work off the reactor.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn malformed(peer: &Peer, method: &'static str, reason: String) -> Error {
    let failure = crate::CallFailure::Malformed(reason);
    CallError {
        url: peer.node.origin(),
        method,
        failure,
    }
    .into()
}

fn with(urls: &[String], url: &str) -> Vec<String> {
    urls.iter().cloned().chain([url.to_owned()]).collect()
}
