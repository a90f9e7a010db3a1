//! Follows the events of both service contracts from a block on.
//!
//! Delivery is at least once: the last few blocks are read again each time, so that a short
//! reorganisation loses nothing, and an event that came back in another block is reported again.
//! Consumers must therefore be idempotent.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolEventInterface;
use serde_json::json;

use crate::{
    ChainClient, ChainError, Log,
    bindings::{
        FineTuningServing::{self as ft_abi, FineTuningServingEvents as Ft},
        InferenceServing::{self as inf_abi, InferenceServingEvents as Inf},
    },
    inference::SettlementStatus,
    transaction::WireLog,
};

/// Blocks that are read again; far deeper than these chains reorganise.
const DEFAULT_OVERLAP: u64 = 8;
/// Blocks of one request; public endpoints refuse more than about this.
const DEFAULT_SPAN: u64 = 1_000;

/// Which service contract emitted an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// FineTuningServing.
    FineTuning,
    /// InferenceServing.
    Inference,
}

/// One event with its place on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEvent {
    /// Emitting contract.
    pub service: ServiceKind,
    /// Height of the block.
    pub block_number: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// Transaction.
    pub transaction_hash: B256,
    /// Position in the block.
    pub log_index: u64,
    /// What happened.
    pub event: ServiceEvent,
}

/// What happened. Amounts are in neuron, times in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "field names are those of the contract events")]
pub enum ServiceEvent {
    /// A provider recorded a finished task.
    DeliverableAdded {
        user: Address,
        provider: Address,
        id: String,
        model_root_hash: Bytes,
        timestamp: u64,
    },
    /// A user accepted a deliverable.
    DeliverableAcknowledged {
        user: Address,
        provider: Address,
        id: String,
        timestamp: u64,
    },
    /// A provider gave a deliverable up.
    DeliverableAbandoned {
        user: Address,
        provider: Address,
        id: String,
        timestamp: u64,
    },
    /// An old deliverable was dropped for a new one.
    DeliverableEvicted {
        user: Address,
        provider: Address,
        evicted_id: String,
        new_id: String,
        timestamp: u64,
    },
    /// The fee of a deliverable was paid.
    FeesSettled {
        user: Address,
        provider: Address,
        id: String,
        fee: U256,
        acknowledged: bool,
        nonce: U256,
    },
    /// Result of one item of an inference settlement.
    SettlementResult {
        user: Address,
        status: SettlementStatus,
        unsettled_amount: U256,
    },
    /// A sub-account changed; `balance` is the new balance.
    BalanceUpdated {
        user: Address,
        provider: Address,
        balance: U256,
        pending_refund: U256,
    },
    /// A user asked money back.
    RefundRequested {
        user: Address,
        provider: Address,
        index: u64,
        timestamp: u64,
    },
    /// A sub-account was removed.
    AccountDeleted { user: Address, provider: Address },
    /// The user's own acknowledgement flag changed.
    UserAcknowledgementChanged {
        user: Address,
        provider: Address,
        acknowledged: bool,
    },
    /// Session token ids were revoked.
    TokensRevoked {
        user: Address,
        provider: Address,
        token_ids: Vec<u8>,
    },
    /// All session tokens were revoked.
    AllTokensRevoked {
        user: Address,
        provider: Address,
        generation: U256,
    },
    /// A service was registered or changed.
    ServiceUpdated { provider: Address, url: String },
    /// A service was removed.
    ServiceRemoved { provider: Address },
    /// The owner accepted a TEE signer or took that back.
    TeeSignerAcknowledged {
        provider: Address,
        tee_signer: Address,
        acknowledged: bool,
    },
    /// The lock time of refunds changed.
    LockTimeUpdated { old_s: u64, new_s: u64 },
}

impl ServiceEvent {
    /// Provider that the event is about; `None` where an event names none.
    #[must_use]
    pub fn provider(&self) -> Option<Address> {
        match self {
            Self::DeliverableAdded { provider, .. }
            | Self::DeliverableAcknowledged { provider, .. }
            | Self::DeliverableAbandoned { provider, .. }
            | Self::DeliverableEvicted { provider, .. }
            | Self::FeesSettled { provider, .. }
            | Self::BalanceUpdated { provider, .. }
            | Self::RefundRequested { provider, .. }
            | Self::AccountDeleted { provider, .. }
            | Self::UserAcknowledgementChanged { provider, .. }
            | Self::TokensRevoked { provider, .. }
            | Self::AllTokensRevoked { provider, .. }
            | Self::ServiceUpdated { provider, .. }
            | Self::ServiceRemoved { provider }
            | Self::TeeSignerAcknowledged { provider, .. } => Some(*provider),
            Self::SettlementResult { .. } | Self::LockTimeUpdated { .. } => None,
        }
    }
}

/// What to follow, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowOptions {
    /// Report only events about this provider, and those that name none.
    pub provider: Option<Address>,
    /// Blocks below the checkpoint that are read again.
    pub overlap_blocks: u64,
    /// Most blocks of one request.
    pub span_blocks: u64,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            provider: None,
            overlap_blocks: DEFAULT_OVERLAP,
            span_blocks: DEFAULT_SPAN,
        }
    }
}

/// Reads new events each time it is polled.
#[derive(Debug)]
pub struct LogFollower {
    client: ChainClient,
    options: FollowOptions,
    /// First block that was never read.
    next_block: u64,
    /// Reported events of the overlap, by (block hash, log index), with their height.
    reported: BTreeMap<(B256, u64), u64>,
}

impl LogFollower {
    /// Follows from block `from_block` on: 0 for everything, or a stored
    /// [`LogFollower::checkpoint`], in which case the events of the overlap are reported again.
    #[must_use]
    pub fn new(client: ChainClient, from_block: u64, options: FollowOptions) -> Self {
        Self {
            client,
            options,
            next_block: from_block,
            reported: BTreeMap::new(),
        }
    }

    /// First block not read yet. Store it after the events of a poll are stored.
    #[must_use]
    pub fn checkpoint(&self) -> u64 {
        self.next_block
    }

    /// New events in chain order. An empty list means that nothing is new; long gaps are read in
    /// several requests within one poll.
    ///
    /// # Errors
    /// A failed read; the next poll continues where this one stopped.
    pub async fn poll(&mut self) -> Result<Vec<ChainEvent>, ChainError> {
        let latest = self.client.block_number().await?;
        // A shorter chain than before: a deep reorganisation, or a development chain rolled back.
        self.next_block = self.next_block.min(latest + 1);
        let mut from = self.next_block.saturating_sub(self.options.overlap_blocks);
        let mut events = Vec::new();
        loop {
            let to = latest.min(from + self.options.span_blocks.max(1) - 1);
            let logs = match self.read(from, to).await {
                Ok(logs) => logs,
                // What was read so far counts as reported; the next poll meets the error again.
                Err(_) if !events.is_empty() => break,
                Err(error) => return Err(error),
            };
            for log in logs {
                let key = (log.block_hash, log.log_index);
                if self.reported.insert(key, log.block_number).is_some() {
                    continue;
                }
                if let Some(event) = decode(&self.client, &log)
                    && self.concerns(&event)
                {
                    events.push(event);
                }
            }
            self.next_block = self.next_block.max(to + 1);
            if to >= latest {
                break;
            }
            from = to + 1;
        }
        let keep_from = self.next_block.saturating_sub(self.options.overlap_blocks);
        self.reported.retain(|_, height| *height >= keep_from);
        Ok(events)
    }

    fn concerns(&self, event: &ChainEvent) -> bool {
        match (self.options.provider, event.event.provider()) {
            (Some(wanted), Some(provider)) => wanted == provider,
            _ => true,
        }
    }

    async fn read(&self, from: u64, to: u64) -> Result<Vec<Log>, ChainError> {
        let addresses = self.client.addresses();
        let filter = json!([{
            "address": [addresses.fine_tuning, addresses.inference],
            "fromBlock": format!("0x{from:x}"),
            "toBlock": format!("0x{to:x}"),
        }]);
        let logs: Vec<WireLog> = self.client.rpc().read("eth_getLogs", &filter).await?;
        Ok(logs.into_iter().map(Log::from).collect())
    }
}

/// Reads a log of either service contract; `None` for logs of other contracts and for events that
/// this crate does not report.
#[must_use]
pub fn decode(client: &ChainClient, log: &Log) -> Option<ChainEvent> {
    let addresses = client.addresses();
    let (service, event) = if log.address == addresses.fine_tuning {
        (ServiceKind::FineTuning, decode_fine_tuning(log)?)
    } else if log.address == addresses.inference {
        (ServiceKind::Inference, decode_inference(log)?)
    } else {
        return None;
    };
    Some(ChainEvent {
        service,
        block_number: log.block_number,
        block_hash: log.block_hash,
        transaction_hash: log.transaction_hash,
        log_index: log.log_index,
        event,
    })
}

/// Reads an event of FineTuningServing.
#[must_use]
pub fn decode_fine_tuning(log: &Log) -> Option<ServiceEvent> {
    Some(match Ft::decode_raw_log(&log.topics, &log.data).ok()? {
        Ft::DeliverableAdded(event) => ServiceEvent::DeliverableAdded {
            user: event.user,
            provider: event.provider,
            id: event.deliverableId,
            model_root_hash: event.modelRootHash,
            timestamp: event.timestamp.saturating_to(),
        },
        Ft::DeliverableAcknowledged(event) => ServiceEvent::DeliverableAcknowledged {
            user: event.user,
            provider: event.provider,
            id: event.deliverableId,
            timestamp: event.timestamp.saturating_to(),
        },
        Ft::DeliverableAbandoned(event) => ServiceEvent::DeliverableAbandoned {
            user: event.user,
            provider: event.provider,
            id: event.deliverableId,
            timestamp: event.timestamp.saturating_to(),
        },
        Ft::DeliverableEvicted(event) => ServiceEvent::DeliverableEvicted {
            user: event.user,
            provider: event.provider,
            evicted_id: event.evictedDeliverableId,
            new_id: event.newDeliverableId,
            timestamp: event.timestamp.saturating_to(),
        },
        Ft::FeesSettled(event) => ServiceEvent::FeesSettled {
            user: event.user,
            provider: event.provider,
            id: event.deliverableId,
            fee: event.fee,
            acknowledged: event.acknowledged,
            nonce: event.nonce,
        },
        Ft::ServiceUpdated(event) => ServiceEvent::ServiceUpdated {
            provider: event.provider,
            url: event.url,
        },
        Ft::ServiceRemoved(event) => ServiceEvent::ServiceRemoved {
            provider: event.provider,
        },
        Ft::BalanceUpdated(event) => balance_updated(event),
        Ft::RefundRequested(event) => refund_requested(event),
        Ft::AccountDeleted(event) => ServiceEvent::AccountDeleted {
            user: event.user,
            provider: event.provider,
        },
        Ft::UserAcknowledgementChanged(event) => ServiceEvent::UserAcknowledgementChanged {
            user: event.user,
            provider: event.provider,
            acknowledged: event.acknowledged,
        },
        Ft::ProviderTEESignerAcknowledged(event) => ServiceEvent::TeeSignerAcknowledged {
            provider: event.provider,
            tee_signer: event.teeSignerAddress,
            acknowledged: event.acknowledged,
        },
        Ft::LockTimeUpdated(event) => ServiceEvent::LockTimeUpdated {
            old_s: event.oldLockTime.saturating_to(),
            new_s: event.newLockTime.saturating_to(),
        },
        _ => return None,
    })
}

/// Reads an event of InferenceServing.
#[must_use]
pub fn decode_inference(log: &Log) -> Option<ServiceEvent> {
    Some(match Inf::decode_raw_log(&log.topics, &log.data).ok()? {
        Inf::TEESettlementResult(event) => ServiceEvent::SettlementResult {
            user: event.user,
            status: SettlementStatus::from_code(event.status)?,
            unsettled_amount: event.unsettledAmount,
        },
        Inf::TokenRevoked(event) => ServiceEvent::TokensRevoked {
            user: event.user,
            provider: event.provider,
            token_ids: vec![event.tokenId],
        },
        Inf::TokensRevoked(event) => ServiceEvent::TokensRevoked {
            user: event.user,
            provider: event.provider,
            token_ids: event.tokenIds,
        },
        Inf::AllTokensRevoked(event) => ServiceEvent::AllTokensRevoked {
            user: event.user,
            provider: event.provider,
            generation: event.newGeneration,
        },
        Inf::ServiceUpdated(event) => ServiceEvent::ServiceUpdated {
            provider: event.service,
            url: event.url,
        },
        Inf::ServiceRemoved(event) => ServiceEvent::ServiceRemoved {
            provider: event.service,
        },
        Inf::BalanceUpdated(inf_abi::BalanceUpdated {
            user,
            provider,
            amount,
            pendingRefund,
        }) => ServiceEvent::BalanceUpdated {
            user,
            provider,
            balance: amount,
            pending_refund: pendingRefund,
        },
        Inf::RefundRequested(inf_abi::RefundRequested {
            user,
            provider,
            index,
            timestamp,
        }) => ServiceEvent::RefundRequested {
            user,
            provider,
            index: index.saturating_to(),
            timestamp: timestamp.saturating_to(),
        },
        Inf::AccountDeleted(event) => ServiceEvent::AccountDeleted {
            user: event.user,
            provider: event.provider,
        },
        Inf::UserAcknowledgementChanged(event) => ServiceEvent::UserAcknowledgementChanged {
            user: event.user,
            provider: event.provider,
            acknowledged: event.acknowledged,
        },
        Inf::ProviderTEESignerAcknowledged(event) => ServiceEvent::TeeSignerAcknowledged {
            provider: event.provider,
            tee_signer: event.teeSignerAddress,
            acknowledged: event.acknowledged,
        },
        Inf::LockTimeUpdated(event) => ServiceEvent::LockTimeUpdated {
            old_s: event.oldLockTime.saturating_to(),
            new_s: event.newLockTime.saturating_to(),
        },
        _ => return None,
    })
}

fn balance_updated(event: ft_abi::BalanceUpdated) -> ServiceEvent {
    ServiceEvent::BalanceUpdated {
        user: event.user,
        provider: event.provider,
        balance: event.amount,
        pending_refund: event.pendingRefund,
    }
}

fn refund_requested(event: ft_abi::RefundRequested) -> ServiceEvent {
    ServiceEvent::RefundRequested {
        user: event.user,
        provider: event.provider,
        index: event.index.saturating_to(),
        timestamp: event.timestamp.saturating_to(),
    }
}
