//! What a request costs, and the settlement of many requests in one transaction.
//!
//! Every request is a row: reserved, open, in settlement, settled. A settlement is written down before it is sent, and after
//! a crash the account's nonce on chain says whether it landed; nobody is charged twice.

use std::sync::Arc;

use alloy_primitives::{Address, Bytes, U256};
use zerog_chain::calls;
use zerog_chain::inference::{MAX_SETTLEMENTS, Settlement, SettlementStatus};
use zerog_protocol::signing::{InferenceSettlement, SettledRequest, requests_hash};

use crate::app::App;
use crate::outbox::OutboxError;
use crate::store::{SettlementRow, StoreError, UsageRow, usage_state};

/// Balance that must stay above everything unpaid: 1 0G, as the published broker demands.
pub(crate) const MINIMUM_RESERVE: U256 = U256::from_limbs([1_000_000_000_000_000_000, 0, 0, 0]);
/// Settlement nonces count in this fraction of a second.
const NONCES_PER_S: u64 = 10_000_000;

/// Why a round of settlement ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SettlementError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

impl From<zerog_chain::ChainError> for SettlementError {
    fn from(error: zerog_chain::ChainError) -> Self {
        Self::Outbox(error.into())
    }
}

/// Fees of a number of tokens: for the prompt and for the answer, in neuron.
#[must_use]
pub(crate) fn fees(
    input_price: U256,
    output_price: U256,
    prompt_tokens: u64,
    completion_tokens: u64,
) -> (U256, U256) {
    (
        input_price.saturating_mul(U256::from(prompt_tokens)),
        output_price.saturating_mul(U256::from(completion_tokens)),
    )
}

/// What is kept back for a request: its dearest outcome, at most the minimum reserve, so that a first request with 2 0G
/// always passes.
#[must_use]
pub(crate) fn reservation(
    input_price: U256,
    output_price: U256,
    prompt_tokens: u64,
    max_tokens: u64,
) -> U256 {
    let (input, output) = fees(input_price, output_price, prompt_tokens, max_tokens);
    input.saturating_add(output).min(MINIMUM_RESERVE)
}

/// One round: finds out what became of earlier settlements, then settles everyone who owes enough.
///
/// # Errors
/// [`SettlementError`]; the next round continues.
pub(crate) async fn settle_round(app: &Arc<App>) -> Result<(), SettlementError> {
    let Some(inference) = &app.inference else {
        return Ok(());
    };
    reconcile(app).await?;
    let waiting: Vec<Address> = app
        .store
        .pending_settlements()
        .await?
        .into_iter()
        .map(|row| row.user)
        .collect();
    let mut batch = Vec::new();
    let mut nonce =
        U256::from(app.clock.system_ms() / 1000).saturating_mul(U256::from(NONCES_PER_S));
    for (user, usage) in app.store.open_usage().await? {
        let Ok(user) = user.parse::<Address>() else {
            continue;
        };
        let total = usage
            .iter()
            .fold(U256::ZERO, |sum, row| sum.saturating_add(row.fee));
        if total.is_zero() || total < inference.config.min_settlement_fee || waiting.contains(&user)
        {
            continue;
        }
        // Without an account nothing can be settled now; the rows stay.
        let Some(account) = app.chain.inference().account(user, app.provider).await? else {
            continue;
        };
        nonce = nonce.max(account.nonce.saturating_add(U256::ONE));
        batch.push((user, total, usage));
        if batch.len() == MAX_SETTLEMENTS {
            break;
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    let mut items = Vec::with_capacity(batch.len());
    for (user, total_fee, usage) in &batch {
        items.push(sign(app, *user, *total_fee, nonce, usage));
    }
    let preview = app
        .chain
        .inference()
        .preview_settlement(app.provider, &items)
        .await?;
    let refused: Vec<Address> = preview.failed.iter().map(|(user, _)| *user).collect();
    for (user, status) in &preview.failed {
        tracing::warn!(user = %user, ?status, "a settlement would be refused; its requests stay open");
    }
    items.retain(|item| !refused.contains(&item.user));
    batch.retain(|(user, _, _)| !refused.contains(user));
    if items.is_empty() {
        return Ok(());
    }
    for ((_, _, usage), item) in batch.iter().zip(&items) {
        let row = SettlementRow {
            user: item.user,
            nonce,
            total_fee: item.total_fee,
            requests_hash: item.requests_hash.to_string(),
        };
        app.store
            .begin_settlement(&row, usage, app.clock.system_ms())
            .await?;
    }
    let call = calls::inference::settle_fees_with_tee(app.chain.inference().address(), &items);
    let receipt = app
        .outbox
        .submit(&transaction_id(nonce), call, app.clock.system_ms())
        .await?;
    for result in app.chain.inference().settlement_results(&receipt)? {
        end(app, result.user, nonce, Some(result.status)).await?;
    }
    // Users for whom the transaction says nothing are found out by their nonce.
    reconcile(app).await
}

fn sign(app: &App, user: Address, total_fee: U256, nonce: U256, usage: &[UsageRow]) -> Settlement {
    let requests: Vec<_> = usage
        .iter()
        .map(|row| SettledRequest {
            request_hash: row.request_hash.clone(),
            user: user.to_string(),
            fee: row.fee,
            input_fee: row.input_fee,
            output_fee: row.output_fee,
        })
        .collect();
    let message = InferenceSettlement {
        requests_hash: requests_hash(&requests),
        nonce,
        provider: app.provider,
        user,
        total_fee,
    };
    let digest = message.digest(app.chain.chain_id(), app.chain.inference().address());
    let signature = app.identity.keys().signer.sign_digest(digest);
    Settlement {
        user,
        provider: app.provider,
        total_fee,
        requests_hash: message.requests_hash,
        nonce,
        signature: Bytes::from(signature.as_bytes().to_vec()),
    }
}

/// Finds out what became of settlements that were written down.
async fn reconcile(app: &Arc<App>) -> Result<(), SettlementError> {
    for pending in app.store.pending_settlements().await? {
        let is_on_its_way = app
            .outbox
            .is_on_its_way(&transaction_id(pending.nonce))
            .await?;
        let account = app
            .chain
            .inference()
            .account(pending.user, app.provider)
            .await?;
        let used = account.is_some_and(|account| account.nonce >= pending.nonce);
        if used {
            end(app, pending.user, pending.nonce, None).await?;
        } else if !is_on_its_way {
            app.store
                .end_settlement(pending.user, pending.nonce, usage_state::OPEN)
                .await?;
        }
    }
    Ok(())
}

/// Closes a settlement; without a status it landed, fully or in part, before this process could see how.
async fn end(
    app: &Arc<App>,
    user: Address,
    nonce: U256,
    status: Option<SettlementStatus>,
) -> Result<(), SettlementError> {
    let state = match status {
        None | Some(SettlementStatus::Success) => usage_state::SETTLED,
        Some(SettlementStatus::Partial) => {
            tracing::warn!(user = %user, "a user's balance did not cover the settlement; the rest is written off");
            usage_state::WRITTEN_OFF
        }
        Some(status) => {
            tracing::warn!(user = %user, ?status, "a settlement was refused; its requests stay open");
            usage_state::OPEN
        }
    };
    app.store.end_settlement(user, nonce, state).await?;
    if let Some(inference) = &app.inference {
        inference.forget_account(user);
    }
    Ok(())
}

fn transaction_id(nonce: U256) -> String {
    format!("settlement/{nonce}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_request_with_two_0g_always_passes() {
        let dear = U256::from(10u128.pow(17));
        assert_eq!(reservation(dear, dear, 4000, 4000), MINIMUM_RESERVE);
        assert!(reservation(U256::MAX, U256::MAX, u64::MAX, 1) <= MINIMUM_RESERVE);
        assert_eq!(
            fees(U256::from(2), U256::from(3), 5, 7),
            (U256::from(10), U256::from(21))
        );
    }
}
