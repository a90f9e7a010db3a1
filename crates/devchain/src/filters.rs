//! Installed filters: what `eth_getFilterChanges` has told each of them already.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use alloy_rpc_types_eth::Filter;
use serde_json::Value;

use crate::{RpcError, chain::Chain, rpc::to_value};

/// A filter that nobody polls is forgotten after this time, as nodes do.
const IDLE_LIMIT: Duration = Duration::from_secs(300);
/// Beyond this many the filter that was not polled for the longest time goes.
const MAX_FILTERS: usize = 1_024;

/// What a filter watches.
#[derive(Clone, Debug)]
pub(crate) enum Watch {
    Logs(Box<Filter>),
    Blocks,
    Transactions,
}

#[derive(Debug)]
struct Installed {
    watch: Watch,
    created_at_block: u64,
    next_block: u64,
    last_poll: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Filters {
    installed: BTreeMap<u64, Installed>,
    last_id: u64,
}

impl Filters {
    /// Installs a filter that reports from the block after `tip` on.
    pub(crate) fn install(&mut self, watch: Watch, tip: u64, now: Instant) -> u64 {
        self.installed
            .retain(|_, filter| now.saturating_duration_since(filter.last_poll) < IDLE_LIMIT);
        if self.installed.len() >= MAX_FILTERS {
            let oldest = self
                .installed
                .iter()
                .min_by_key(|(_, filter)| filter.last_poll)
                .map(|(id, _)| *id);
            oldest.map(|id| self.installed.remove(&id));
        }
        self.last_id += 1;
        let filter = Installed {
            watch,
            created_at_block: tip,
            next_block: tip + 1,
            last_poll: now,
        };
        self.installed.insert(self.last_id, filter);
        self.last_id
    }

    pub(crate) fn uninstall(&mut self, id: u64) -> bool {
        self.installed.remove(&id).is_some()
    }

    /// What came since the last poll.
    pub(crate) fn changes(
        &mut self,
        id: u64,
        chain: &Chain,
        max_logs: usize,
        now: Instant,
    ) -> Result<Value, RpcError> {
        let filter = self.installed.get_mut(&id).ok_or_else(not_found)?;
        filter.last_poll = now;
        let new_blocks = chain.blocks_from(filter.next_block);
        let changes = match &filter.watch {
            Watch::Blocks => to_value(
                new_blocks
                    .iter()
                    .map(|block| block.header.hash)
                    .collect::<Vec<_>>(),
            )?,
            Watch::Transactions => {
                let hashes: Vec<B256> = new_blocks
                    .iter()
                    .filter_map(|block| block.transaction_hash())
                    .collect();
                to_value(hashes)?
            }
            Watch::Logs(wanted) => {
                let from = filter.next_block.max(wanted.get_from_block().unwrap_or(0));
                let to = wanted
                    .get_to_block()
                    .unwrap_or(u64::MAX)
                    .min(chain.tip_number());
                to_value(chain.logs(wanted, from, to, max_logs)?)?
            }
        };
        filter.next_block = chain.tip_number() + 1;
        Ok(changes)
    }

    /// The filter itself and the block at which it was installed.
    pub(crate) fn log_filter(&self, id: u64) -> Result<(Filter, u64), RpcError> {
        match self.installed.get(&id) {
            Some(Installed {
                watch: Watch::Logs(filter),
                created_at_block,
                ..
            }) => Ok((filter.as_ref().clone(), *created_at_block)),
            _ => Err(not_found()),
        }
    }

    /// After a roll-back to `height` the blocks above it are news again.
    pub(crate) fn rewind(&mut self, height: u64) {
        for filter in self.installed.values_mut() {
            filter.next_block = filter.next_block.min(height + 1);
            filter.created_at_block = filter.created_at_block.min(height);
        }
    }
}

fn not_found() -> RpcError {
    RpcError::server("filter not found")
}
