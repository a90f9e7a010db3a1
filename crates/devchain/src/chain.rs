//! The chain: state, blocks, time, and the ways to move them.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use alloy_consensus::{
    Transaction as _, TxEnvelope, constants::KECCAK_EMPTY, transaction::Recovered,
};
use alloy_eips::{
    BlockId, BlockNumberOrTag, Encodable2718,
    eip1559::{BaseFeeParams, calc_next_block_base_fee},
};
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rpc_types_eth::{
    Filter, Log as RpcLog, Transaction, TransactionReceipt, TransactionRequest,
};
use revm::{
    Context, DatabaseCommit, DatabaseRef, ExecuteEvm, MainBuilder, MainContext,
    context::{BlockEnv, result::ExecutionResult},
    context_interface::block::BlobExcessGasAndPrice,
    database::{CacheDB, EmptyDB},
    state::{AccountInfo, EvmState},
};

use crate::{
    Clock, Error, Options, RpcError,
    block::{AccountChange, MinedBlock, Position, SlotChange},
    execution,
    log::{BalanceOverride, BlockRecord, ChainLog, Record, RecordedTransaction},
    queue::Queue,
};

/// What a client adds to the base fee as its tip, and what fee history reports as every reward.
pub(crate) const TIP_WEI: u64 = 1_000_000_000;
const GENESIS_BASE_FEE_WEI: u64 = 1_000_000_000;
/// The BLOCKHASH instruction reaches this far back.
const REACHABLE_BLOCK_HASHES: u64 = 256;
/// `evm_snapshot` keeps only a height, so this bounds nothing but forgotten ids.
const MAX_SNAPSHOTS: usize = 1_024;

type State = CacheDB<EmptyDB>;

/// What a block does: balances set by hand, then at most one transaction.
#[derive(Default)]
struct BlockBody {
    balance_overrides: Vec<BalanceOverride>,
    transaction: Option<Recovered<TxEnvelope>>,
}

struct Snapshot {
    id: u64,
    height: u64,
    time_offset_s: i64,
    next_timestamp: Option<u64>,
}

/// A mined transaction, or one that waits for an earlier nonce.
pub(crate) enum Located<'a> {
    Mined(&'a Transaction),
    Queued(&'a Recovered<TxEnvelope>),
}

pub(crate) struct Chain {
    chain_id: u64,
    gas_limit: u64,
    state: State,
    blocks: Vec<MinedBlock>,
    number_by_hash: HashMap<B256, u64>,
    block_by_transaction: HashMap<B256, u64>,
    queue: Queue,
    snapshots: Vec<Snapshot>,
    next_snapshot_id: u64,
    /// Set when time stands still between explicit moves.
    manual_time: Option<u64>,
    time_offset_s: i64,
    next_timestamp: Option<u64>,
    log: Option<ChainLog>,
    log_failed: bool,
}

/// What a transfer to an account without code costs, whatever happens before it.
const PLAIN_TRANSFER_GAS: u64 = 21_000;

impl Chain {
    /// Builds the genesis and then, with a data directory, executes the recorded blocks again.
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let mut chain = Self::genesis(options)?;
        if let Some(directory) = &options.data_dir {
            let (log, records) =
                ChainLog::open(directory, options.chain_id, chain.tip().header.hash)?;
            for record in records {
                chain.replay(record, &log)?;
            }
            chain.log = Some(log);
        }
        // Time never runs backwards, also not where the recorded blocks were mined ahead of the clock.
        let tip_time = chain.tip().header.timestamp;
        match options.clock {
            Clock::Manual => chain.manual_time = Some(tip_time),
            Clock::System => chain.time_offset_s = tip_time.saturating_sub(unix_time()) as i64,
        }
        Ok(chain)
    }

    fn genesis(options: &Options) -> Result<Self, Error> {
        let mut chain = Self {
            chain_id: options.chain_id,
            gas_limit: options.block_gas_limit,
            state: State::default(),
            blocks: Vec::new(),
            number_by_hash: HashMap::new(),
            block_by_transaction: HashMap::new(),
            queue: Queue::default(),
            snapshots: Vec::new(),
            next_snapshot_id: 1,
            manual_time: None,
            time_offset_s: 0,
            next_timestamp: None,
            log: None,
            log_failed: false,
        };
        let funded = options
            .funded_accounts
            .iter()
            .map(|&(address, balance)| BalanceOverride { address, balance })
            .collect();
        let refused = |index, reason: RpcError| Error::Genesis {
            index,
            reason: reason.message,
        };
        let body = BlockBody {
            balance_overrides: funded,
            transaction: None,
        };
        chain
            .execute(body, options.genesis_timestamp)
            .map_err(|reason| refused(0, reason))?;
        for (index, raw) in options.genesis_transactions.iter().enumerate() {
            let transaction =
                execution::decode_transaction(raw).map_err(|reason| refused(index, reason))?;
            let body = BlockBody {
                transaction: Some(transaction),
                ..Default::default()
            };
            chain
                .execute(body, options.genesis_timestamp)
                .map_err(|reason| refused(index, reason))?;
            let succeeded = chain
                .tip()
                .transaction
                .as_ref()
                .is_some_and(|(_, receipt)| receipt.inner.status());
            if !succeeded {
                return Err(Error::Genesis {
                    index,
                    reason: "the transaction reverts".to_owned(),
                });
            }
        }
        Ok(chain)
    }

    fn replay(&mut self, record: Record, log: &ChainLog) -> Result<(), Error> {
        let damaged = || Error::NotAChainLog {
            path: log.path().to_owned(),
        };
        match record {
            Record::Block(record) => {
                let number = self.blocks.len() as u64;
                let mut transactions = record.transactions.into_iter();
                let transaction = match transactions.next() {
                    Some(recorded) => Some(recover_recorded(&recorded).ok_or_else(damaged)?),
                    None => None,
                };
                let body = BlockBody {
                    balance_overrides: record.balance_overrides,
                    transaction,
                };
                let mismatch = |found| Error::ReplayMismatch {
                    number,
                    found,
                    recorded: record.hash,
                };
                self.execute(body, record.timestamp)
                    .map_err(|_| mismatch(B256::ZERO))?;
                let found = self.tip().header.hash;
                if found != record.hash {
                    return Err(mismatch(found));
                }
            }
            Record::Rollback { height } => {
                if height >= self.blocks.len() as u64 {
                    return Err(damaged());
                }
                self.roll_back(height);
            }
        }
        Ok(())
    }

    // ---- reading ----

    pub(crate) fn tip(&self) -> &MinedBlock {
        self.blocks
            .last()
            .expect("the genesis block is made before the chain is handed out")
    }

    pub(crate) fn tip_number(&self) -> u64 {
        self.tip().header.number
    }

    pub(crate) fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub(crate) fn block(&self, number: u64) -> Option<&MinedBlock> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn block_by_hash(&self, hash: B256) -> Option<&MinedBlock> {
        self.block(*self.number_by_hash.get(&hash)?)
    }

    /// Blocks from `number` on; empty beyond the tip.
    pub(crate) fn blocks_from(&self, number: u64) -> &[MinedBlock] {
        usize::try_from(number)
            .ok()
            .and_then(|start| self.blocks.get(start..))
            .unwrap_or_default()
    }

    /// Resolves a tag. Mining is immediate, so "pending", "safe" and "finalized" are the newest block.
    pub(crate) fn number(&self, tag: BlockNumberOrTag) -> Option<u64> {
        match tag {
            BlockNumberOrTag::Earliest => Some(0),
            BlockNumberOrTag::Number(number) => (number <= self.tip_number()).then_some(number),
            _ => Some(self.tip_number()),
        }
    }

    pub(crate) fn resolve(&self, id: BlockId) -> Result<u64, RpcError> {
        match id {
            BlockId::Number(tag) => self.number(tag),
            BlockId::Hash(hash) => self.number_by_hash.get(&hash.block_hash).copied(),
        }
        .ok_or_else(|| RpcError::new(-32001, "header not found"))
    }

    pub(crate) fn transaction(&self, hash: B256) -> Option<Located<'_>> {
        match self.mined(hash) {
            Some((transaction, _)) => Some(Located::Mined(transaction)),
            None => self.queue.get(hash).map(Located::Queued),
        }
    }

    pub(crate) fn receipt(&self, hash: B256) -> Option<&TransactionReceipt> {
        self.mined(hash).map(|(_, receipt)| receipt)
    }

    fn mined(&self, hash: B256) -> Option<&(Transaction, TransactionReceipt)> {
        self.block(*self.block_by_transaction.get(&hash)?)?
            .transaction
            .as_ref()
    }

    /// The account after block `number`.
    pub(crate) fn account(&self, address: Address, number: u64) -> AccountInfo {
        let first_change = self
            .blocks_from(number + 1)
            .iter()
            .find_map(|block| find_change(block, address));
        match first_change {
            Some(change) => change.before.clone(),
            None => account(&self.state, address),
        }
    }

    pub(crate) fn code(&self, address: Address, number: u64) -> Bytes {
        let hash = self.account(address, number).code_hash;
        if hash == KECCAK_EMPTY {
            return Bytes::new();
        }
        let Ok(code) = self.state.code_by_hash_ref(hash);
        code.original_bytes()
    }

    pub(crate) fn storage(&self, address: Address, slot: U256, number: u64) -> U256 {
        let first_change = self.blocks_from(number + 1).iter().find_map(|block| {
            find_change(block, address)?
                .slots
                .iter()
                .find(|change| change.slot == slot)
                .map(|change| change.before)
        });
        first_change.unwrap_or_else(|| {
            let Ok(value) = self.state.storage_ref(address, slot);
            value
        })
    }

    /// The next nonce of the account, counting the transactions that will be mined without a gap.
    pub(crate) fn pending_nonce(&self, address: Address) -> u64 {
        self.queue
            .pending_nonce(address, account(&self.state, address).nonce)
    }

    pub(crate) fn next_base_fee(&self) -> u64 {
        let header = &self.tip().header;
        calc_next_block_base_fee(
            header.gas_used,
            header.gas_limit,
            header.base_fee_per_gas.unwrap_or(GENESIS_BASE_FEE_WEI),
            BaseFeeParams::ethereum(),
        )
    }

    /// Matching logs of the blocks `from..=to`, in order.
    ///
    /// # Errors
    ///
    /// When there are more than `max_logs`.
    pub(crate) fn logs(
        &self,
        filter: &Filter,
        from: u64,
        to: u64,
        max_logs: usize,
    ) -> Result<Vec<&RpcLog>, RpcError> {
        let mut found = Vec::new();
        let count = (to + 1).saturating_sub(from);
        for block in self
            .blocks_from(from)
            .iter()
            .take(usize::try_from(count).unwrap_or(usize::MAX))
        {
            if !filter.matches_bloom(block.header.logs_bloom) {
                continue;
            }
            let matching = block.logs().iter().filter(|log| {
                filter.matches_address(log.inner.address)
                    && filter.matches_topics(log.inner.topics())
            });
            found.extend(matching);
            if found.len() > max_logs {
                return Err(RpcError::limit(format!(
                    "query returned more than {max_logs} results; try with the block range {from} to {}",
                    block.header.number.saturating_sub(1)
                )));
            }
        }
        Ok(found)
    }

    // ---- calls ----

    /// Executes `request` on the state after block `number` without keeping its effects.
    pub(crate) fn call(
        &self,
        request: &TransactionRequest,
        number: u64,
        gas_limit: u64,
    ) -> Result<ExecutionResult, RpcError> {
        let mut block = self.block_environment(self.next_time());
        block.number = U256::from(number);
        if number < self.tip_number() {
            let header = &self
                .block(number)
                .ok_or_else(|| RpcError::new(-32001, "header not found"))?
                .header;
            block.timestamp = U256::from(header.timestamp);
        }
        self.execute_call(request, block, self.state_after(number), gas_limit)
    }

    /// A gas limit, at most 1.5 % above the smallest one, with which `request` succeeds after block `number`.
    ///
    /// Other nodes estimate with that tolerance too, and clients that add nothing of their own live on it: by the time of
    /// their block another transaction may have made theirs a little more expensive.
    pub(crate) fn estimate_gas(
        &self,
        request: &TransactionRequest,
        number: u64,
    ) -> Result<u64, RpcError> {
        let limit = request.gas.unwrap_or(self.gas_limit).min(self.gas_limit);
        let state = self.state_after(number);
        let run = |gas| {
            // A transaction sent now would be in the next block.
            let block = self.block_environment(self.next_time());
            self.execute_call(request, block, CacheDB::new(&state), gas)
        };
        let first = run(limit)?;
        let used = first.tx_gas_used();
        let refunded = match &first {
            ExecutionResult::Success { gas, .. } => gas.final_refunded(),
            _ => 0,
        };
        execution::call_output(first, limit)?;
        let suffices = |gas| matches!(run(gas), Ok(ExecutionResult::Success { .. }));
        if suffices(used) {
            let room = if used == PLAIN_TRANSFER_GAS {
                0
            } else {
                used / 70
            };
            return Ok((used + room).min(limit));
        }
        // A call forwards at most 63/64 of the gas, and sending value needs a stipend of 2300 at hand.
        let (mut too_little, mut enough) = (used, limit);
        let guess = (used + refunded + 2_300) * 64 / 63;
        if guess < enough {
            if suffices(guess) {
                enough = guess;
            } else {
                too_little = guess;
            }
        }
        while enough - too_little > 1.max(enough / 64) {
            let middle = (too_little * 2).min(too_little + (enough - too_little) / 2);
            if suffices(middle) {
                enough = middle;
            } else {
                too_little = middle;
            }
        }
        Ok(enough)
    }

    fn execute_call<D: DatabaseRef<Error = std::convert::Infallible>>(
        &self,
        request: &TransactionRequest,
        block: BlockEnv,
        state: CacheDB<D>,
        gas_limit: u64,
    ) -> Result<ExecutionResult, RpcError> {
        let Ok(caller) = state.basic_ref(execution::caller(request));
        let nonce = caller.unwrap_or_default().nonce;
        let environment = execution::call_environment(
            request,
            self.chain_id,
            nonce,
            gas_limit.min(self.gas_limit),
        );
        let configuration = execution::call_configuration(self.chain_id, environment.value);
        let mut evm = Context::mainnet()
            .with_db(state)
            .with_cfg(configuration)
            .with_block(block)
            .build_mainnet();
        evm.transact(environment)
            .map(|outcome| outcome.result)
            .map_err(|error| execution::refusal(&error))
    }

    /// The state after block `number`: the newest one with the blocks above it undone.
    fn state_after(&self, number: u64) -> CacheDB<&State> {
        let mut state = CacheDB::new(&self.state);
        for block in self.blocks_from(number + 1).iter().rev() {
            undo(&mut state, block);
        }
        state
    }

    fn block_environment(&self, timestamp: u64) -> BlockEnv {
        BlockEnv {
            number: U256::from(self.blocks.len()),
            timestamp: U256::from(timestamp),
            gas_limit: self.gas_limit,
            basefee: self
                .blocks
                .last()
                .map_or(GENESIS_BASE_FEE_WEI, |_| self.next_base_fee()),
            prevrandao: Some(B256::ZERO),
            blob_excess_gas_and_price: Some(BlobExcessGasAndPrice {
                excess_blob_gas: 0,
                blob_gasprice: 1,
            }),
            ..Default::default()
        }
    }

    // ---- moving ----

    /// Takes in a signed transaction: mines it at once, or keeps it until its nonce comes. A transaction that reverts
    /// is mined with status 0.
    pub(crate) fn send(&mut self, raw: &[u8]) -> Result<B256, RpcError> {
        let transaction = execution::decode_transaction(raw)?;
        let hash = *transaction.tx_hash();
        let (sender, nonce) = (transaction.signer(), transaction.nonce());
        if transaction.chain_id().is_some_and(|id| id != self.chain_id) {
            return Err(RpcError::server(execution::INVALID_CHAIN_ID));
        }
        if transaction.gas_limit() > self.gas_limit {
            return Err(RpcError::server(execution::EXCEEDS_BLOCK_GAS));
        }
        if self.transaction(hash).is_some() {
            return Err(RpcError::server("already known"));
        }
        let next_nonce = account(&self.state, sender).nonce;
        if nonce < next_nonce {
            return Err(RpcError::server(execution::nonce_too_low(
                next_nonce, nonce,
            )));
        }
        if nonce > next_nonce {
            self.queue.insert(transaction, next_nonce)?;
            return Ok(hash);
        }
        self.mine(BlockBody {
            transaction: Some(transaction),
            ..Default::default()
        })?;
        // It may have been queued before the account's nonce was set back.
        self.queue.take(sender, nonce);
        while let Some(waiting) = self.queue.take(sender, account(&self.state, sender).nonce) {
            let waiting_hash = *waiting.tx_hash();
            if let Err(reason) = self.mine(BlockBody {
                transaction: Some(waiting),
                ..Default::default()
            }) {
                tracing::warn!(transaction = %waiting_hash, %reason, "a queued transaction is dropped");
                break;
            }
        }
        Ok(hash)
    }

    /// Mines an empty block.
    pub(crate) fn mine_empty(&mut self) -> Result<(), RpcError> {
        self.mine(BlockBody::default())
    }

    /// Sets a balance. The change is a block of its own, so that history and roll-back stay exact.
    pub(crate) fn set_balance(&mut self, address: Address, balance: U256) -> Result<(), RpcError> {
        let balance_overrides = vec![BalanceOverride { address, balance }];
        self.mine(BlockBody {
            balance_overrides,
            transaction: None,
        })
    }

    /// Moves the clock forward; returns by how much it is ahead in all, in seconds.
    pub(crate) fn increase_time(&mut self, seconds: u64) -> Result<i64, RpcError> {
        self.time_offset_s = i64::try_from(seconds)
            .ok()
            .and_then(|seconds| self.time_offset_s.checked_add(seconds))
            .filter(|offset| *offset < MAX_TIME as i64)
            .ok_or_else(|| RpcError::invalid_params("the clock cannot be moved that far"))?;
        Ok(self.time_offset_s)
    }

    /// The next block gets this timestamp, and the clock goes on from there.
    pub(crate) fn set_next_timestamp(&mut self, timestamp: u64) -> Result<(), RpcError> {
        let tip = self.tip().header.timestamp;
        if timestamp < tip || timestamp > MAX_TIME {
            return Err(RpcError::invalid_params(format!(
                "timestamp {timestamp} is before the last block's, {tip}"
            )));
        }
        self.next_timestamp = Some(timestamp);
        self.time_offset_s = timestamp as i64 - self.clock() as i64;
        Ok(())
    }

    /// The timestamp that a block mined now would get, in seconds.
    pub(crate) fn next_time(&self) -> u64 {
        let now = self
            .next_timestamp
            .unwrap_or_else(|| self.clock().saturating_add_signed(self.time_offset_s));
        now.max(self.blocks.last().map_or(0, |tip| tip.header.timestamp))
    }

    fn clock(&self) -> u64 {
        self.manual_time.unwrap_or_else(unix_time)
    }

    pub(crate) fn snapshot(&mut self) -> u64 {
        let id = self.next_snapshot_id;
        self.next_snapshot_id += 1;
        if self.snapshots.len() == MAX_SNAPSHOTS {
            self.snapshots.remove(0);
        }
        self.snapshots.push(Snapshot {
            id,
            height: self.tip_number(),
            time_offset_s: self.time_offset_s,
            next_timestamp: self.next_timestamp,
        });
        id
    }

    /// Goes back to a snapshot, which is used up with all later ones; returns the height, or nothing for an unknown
    /// id. Waiting transactions are forgotten.
    pub(crate) fn revert(&mut self, id: u64) -> Result<Option<u64>, RpcError> {
        let Some(position) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else {
            return Ok(None);
        };
        let height = self.snapshots[position].height;
        self.record(&Record::Rollback { height })?;
        self.roll_back(height);
        let snapshot = &self.snapshots[position];
        self.time_offset_s = snapshot.time_offset_s;
        self.next_timestamp = snapshot.next_timestamp;
        self.snapshots.truncate(position);
        self.queue.clear();
        Ok(Some(height))
    }

    /// Waits until all blocks are on the disk.
    pub(crate) fn flush(&self) -> std::io::Result<()> {
        self.log.as_ref().map_or(Ok(()), ChainLog::sync)
    }

    fn mine(&mut self, body: BlockBody) -> Result<(), RpcError> {
        if self.log_failed {
            return Err(log_failure());
        }
        let timestamp = self.next_time();
        let balance_overrides = body.balance_overrides.clone();
        self.execute(body, timestamp)?;
        self.next_timestamp = None;
        if self.log.is_some() {
            let block = self.tip();
            let transactions =
                block
                    .transaction
                    .iter()
                    .map(|(transaction, _)| RecordedTransaction {
                        sender: transaction.inner.signer(),
                        raw: transaction.inner.inner().encoded_2718().into(),
                    });
            let record = Record::Block(BlockRecord {
                timestamp,
                hash: block.header.hash,
                balance_overrides,
                transactions: transactions.collect(),
            });
            self.record(&record)?;
        }
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<(), RpcError> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        log.append(record).map_err(|error| {
            tracing::error!(path = %log.path().display(), %error, "the chain log cannot be written; the chain stops");
            self.log_failed = true;
            log_failure()
        })
    }

    /// Executes a block on top of the chain. Nothing changes when its transaction is refused.
    fn execute(&mut self, body: BlockBody, timestamp: u64) -> Result<(), RpcError> {
        let environment = self.block_environment(timestamp);
        let base_fee = environment.basefee;
        let mut changes = Vec::with_capacity(body.balance_overrides.len());
        let mut executed = None;
        if let Some(transaction) = body.transaction {
            let mut evm = Context::mainnet()
                .with_db(&mut self.state)
                .with_cfg(execution::configuration(self.chain_id))
                .with_block(environment)
                .build_mainnet();
            let outcome = evm
                .transact(execution::transaction_environment(&transaction))
                .map_err(|error| execution::refusal(&error))?;
            changes = account_changes(&self.state, &outcome.state);
            self.state.commit(outcome.state);
            executed = Some((transaction, outcome.result));
        }
        for BalanceOverride { address, balance } in body.balance_overrides {
            let before = without_code(account(&self.state, address));
            let after = AccountInfo {
                balance,
                ..before.clone()
            };
            self.state.insert_account_info(address, after.clone());
            changes.push(AccountChange {
                address,
                before,
                after,
                slots: Vec::new(),
            });
        }
        let (parent_hash, parent_state) =
            self.blocks.last().map_or((B256::ZERO, B256::ZERO), |tip| {
                (tip.header.hash, tip.header.state_root)
            });
        let number = self.blocks.len() as u64;
        let position = Position {
            parent_hash,
            parent_state,
            number,
            timestamp,
            gas_limit: self.gas_limit,
            base_fee,
        };
        let block = MinedBlock::new(position, executed, changes);
        self.number_by_hash.insert(block.header.hash, number);
        if let Some(hash) = block.transaction_hash() {
            self.block_by_transaction.insert(hash, number);
        }
        let hashes = &mut self.state.cache.block_hashes;
        hashes.insert(U256::from(number), block.header.hash);
        if let Some(unreachable) = number.checked_sub(REACHABLE_BLOCK_HASHES + 1) {
            hashes.remove(&U256::from(unreachable));
        }
        self.blocks.push(block);
        Ok(())
    }

    fn roll_back(&mut self, height: u64) {
        while self.tip_number() > height {
            let block = self
                .blocks
                .pop()
                .expect("the tip is above a height, so it exists");
            undo(&mut self.state, &block);
            self.number_by_hash.remove(&block.header.hash);
            self.state
                .cache
                .block_hashes
                .remove(&U256::from(block.header.number));
            if let Some(hash) = block.transaction_hash() {
                self.block_by_transaction.remove(&hash);
            }
        }
        // Hashes that had become unreachable are reachable again.
        for number in height.saturating_sub(REACHABLE_BLOCK_HASHES)..=height {
            let hash = self.blocks[number as usize].header.hash;
            self.state
                .cache
                .block_hashes
                .insert(U256::from(number), hash);
        }
    }
}

/// Year 9999: arithmetic on times can never overflow below it.
const MAX_TIME: u64 = 253_402_300_799;

fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn log_failure() -> RpcError {
    RpcError::new(
        -32603,
        "the chain log cannot be written, so no block is accepted",
    )
}

fn account(
    state: &impl DatabaseRef<Error = std::convert::Infallible>,
    address: Address,
) -> AccountInfo {
    let Ok(account) = state.basic_ref(address);
    account.unwrap_or_default()
}

/// Code is found by its hash; the copy in the account would only take memory in every undo record.
fn without_code(account: AccountInfo) -> AccountInfo {
    AccountInfo {
        code: None,
        ..account
    }
}

fn find_change(block: &MinedBlock, address: Address) -> Option<&AccountChange> {
    block
        .changes
        .iter()
        .find(|change| change.address == address)
}

/// What committing `outcome` to `state` will change, sorted by address.
fn account_changes(state: &State, outcome: &EvmState) -> Vec<AccountChange> {
    let mut changes: Vec<AccountChange> = outcome
        .iter()
        .filter(|(_, account)| account.is_touched())
        .map(|(&address, account)| {
            let before = without_code(self::account(state, address));
            if account.is_selfdestructed() {
                // Only a contract of this same transaction can vanish, and it had no slots before.
                return AccountChange {
                    address,
                    before,
                    after: AccountInfo::default(),
                    slots: Vec::new(),
                };
            }
            let mut slots: Vec<SlotChange> = account
                .storage
                .iter()
                .filter(|(_, value)| value.is_changed())
                .map(|(&slot, value)| SlotChange {
                    slot,
                    before: value.original_value(),
                    after: value.present_value(),
                })
                .collect();
            slots.sort_unstable_by_key(|change| change.slot);
            AccountChange {
                address,
                before,
                after: without_code(account.info.clone()),
                slots,
            }
        })
        .collect();
    changes.sort_unstable_by_key(|change| change.address);
    changes
}

fn undo<D: DatabaseRef<Error = std::convert::Infallible>>(
    state: &mut CacheDB<D>,
    block: &MinedBlock,
) {
    for change in block.changes.iter().rev() {
        state.insert_account_info(change.address, change.before.clone());
        for slot in &change.slots {
            let Ok(()) = state.insert_account_storage(change.address, slot.slot, slot.before);
        }
    }
}

fn recover_recorded(recorded: &RecordedTransaction) -> Option<Recovered<TxEnvelope>> {
    use alloy_eips::Decodable2718;
    let transaction = TxEnvelope::decode_2718(&mut recorded.raw.as_ref()).ok()?;
    Some(Recovered::new_unchecked(transaction, recorded.sender))
}
