//! What a request costs, and the settlement of many requests in one transaction.
//!
//! Every request is a row: reserved, open, in settlement, settled. A settlement is written down before it is sent, and its
//! transaction until its receipt was read: after a crash the chain says what was paid, and nobody is charged twice. Requests
//! that a balance does not cover stay open and go into the next settlement that can pay them.

use std::collections::BTreeSet;
use std::sync::Arc;

use alloy_primitives::{Address, Bytes, U256};
use zerog_chain::inference::{MAX_SETTLEMENTS, Settlement, SettlementStatus};
use zerog_chain::{Receipt, calls};
use zerog_protocol::signing::{InferenceSettlement, SettledRequest, requests_hash};

use crate::app::App;
use crate::outbox::{Fate, OutboxError};
use crate::store::{SettlementOutcome, SettlementRow, StoreError, UsageRow};

/// Balance that must stay above everything unpaid: 1 0G, as the published broker demands.
pub(crate) const MINIMUM_RESERVE: U256 = U256::from_limbs([1_000_000_000_000_000_000, 0, 0, 0]);
/// Settlement nonces count in this fraction of a millisecond.
const NONCES_PER_MS: u64 = 10_000;

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

/// One round: finds out what became of earlier settlements, then settles everyone who owes enough, as far as their balance
/// goes. What it does not cover is owed on.
///
/// # Errors
/// [`SettlementError`]; the next round continues.
pub(crate) async fn settle_round(app: &Arc<App>) -> Result<(), SettlementError> {
    let Some(inference) = &app.inference else {
        return Ok(());
    };
    reconcile(app).await?;
    let least = inference.config.min_settlement_fee.max(U256::ONE);
    let (nonce, claims) = due_claims(app, least).await?;
    let claims = affordable(app, claims, nonce, least).await?;
    if claims.is_empty() {
        return Ok(());
    }
    let mut items = Vec::with_capacity(claims.len());
    for claim in &claims {
        let item = sign(app, claim, nonce);
        let row = SettlementRow {
            user: item.user,
            nonce,
            total_fee: item.total_fee,
            requests_hash: item.requests_hash.to_string(),
        };
        app.store
            .begin_settlement(&row, &claim.usage, app.clock.system_ms())
            .await?;
        items.push(item);
    }
    let call = calls::inference::settle_fees_with_tee(app.chain.inference().address(), &items);
    let id = transaction_id(nonce);
    let receipt = app
        .outbox
        .submit_and_keep(&id, call, app.clock.system_ms())
        .await?;
    record(app, nonce, &receipt).await?;
    app.outbox.forget(&id).await?;
    Ok(())
}

/// Unpaid requests of one user, to be settled together.
#[derive(Debug)]
struct Claim {
    user: Address,
    usage: Vec<UsageRow>,
}

impl Claim {
    fn total(&self) -> U256 {
        self.usage
            .iter()
            .fold(U256::ZERO, |sum, row| sum.saturating_add(row.fee))
    }

    /// The requests that `balance` covers, oldest first; a dear one that does not fit keeps no later one waiting.
    fn within(self, balance: U256) -> Self {
        let mut left = balance;
        let usage = self.usage.into_iter().filter(|row| {
            let fits = row.fee <= left;
            if fits {
                left -= row.fee;
            }
            fits
        });
        Self {
            user: self.user,
            usage: usage.collect(),
        }
    }
}

/// Everyone who owes at least `least` and has no settlement on its way, with a nonce that suits all of them.
async fn due_claims(app: &App, least: U256) -> Result<(U256, Vec<Claim>), SettlementError> {
    let waiting: Vec<Address> = app
        .store
        .pending_settlements()
        .await?
        .into_iter()
        .map(|row| row.user)
        .collect();
    let mut nonce = U256::from(app.clock.system_ms()).saturating_mul(U256::from(NONCES_PER_MS));
    let mut claims = Vec::new();
    for (user, usage) in app.store.open_usage().await? {
        let Ok(user) = user.parse::<Address>() else {
            continue;
        };
        let claim = Claim { user, usage };
        if claim.total() < least || waiting.contains(&user) {
            continue;
        }
        // Without an account nothing can be settled now; the rows stay.
        let Some(account) = app.chain.inference().account(user, app.provider).await? else {
            continue;
        };
        nonce = nonce.max(account.nonce.saturating_add(U256::ONE));
        claims.push(claim);
        if claims.len() == MAX_SETTLEMENTS {
            break;
        }
    }
    Ok((nonce, claims))
}

/// What the contract would pay in full: it is asked first, because a settlement that is paid in part uses its nonce up and
/// pays for no request in particular.
async fn affordable(
    app: &App,
    mut claims: Vec<Claim>,
    nonce: U256,
    least: U256,
) -> Result<Vec<Claim>, SettlementError> {
    if claims.is_empty() {
        return Ok(claims);
    }
    let items: Vec<_> = claims.iter().map(|claim| sign(app, claim, nonce)).collect();
    let preview = app
        .chain
        .inference()
        .preview_settlement(app.provider, &items)
        .await?;
    for (user, status) in &preview.failed {
        tracing::warn!(user = %user, ?status, "a settlement would be refused; its requests stay open");
    }
    claims.retain(|claim| preview.failed.iter().all(|(user, _)| *user != claim.user));
    let reduced = claims.into_iter().map(|claim| {
        match preview.partial.iter().find(|(user, _)| *user == claim.user) {
            Some((user, unpaid)) => {
                let owed = claim.total();
                let claim = claim.within(owed.saturating_sub(*unpaid));
                tracing::warn!(
                    user = %user, owed_neuron = %owed, settled_neuron = %claim.total(),
                    "a user's balance does not cover what is owed; the rest is settled when there is more"
                );
                claim
            }
            None => claim,
        }
    });
    Ok(reduced.filter(|claim| claim.total() >= least).collect())
}

fn sign(app: &App, claim: &Claim, nonce: U256) -> Settlement {
    let (user, total_fee) = (claim.user, claim.total());
    let requests: Vec<_> = claim
        .usage
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
    let nonces: BTreeSet<U256> = app
        .store
        .pending_settlements()
        .await?
        .into_iter()
        .map(|pending| pending.nonce)
        .collect();
    for nonce in nonces {
        let id = transaction_id(nonce);
        match app.outbox.fate(&id).await? {
            Fate::OnItsWay => {}
            Fate::Mined(receipt) => {
                record(app, nonce, &receipt).await?;
                app.outbox.forget(&id).await?;
            }
            Fate::None => guess(app, nonce).await?,
        }
    }
    Ok(())
}

/// Writes down what a mined settlement did.
async fn record(app: &Arc<App>, nonce: U256, receipt: &Receipt) -> Result<(), SettlementError> {
    let results = app.chain.inference().settlement_results(receipt)?;
    for pending in app.store.pending_settlements().await? {
        if pending.nonce != nonce {
            continue;
        }
        let Some(result) = results.iter().find(|result| result.user == pending.user) else {
            continue;
        };
        let outcome = match result.status {
            SettlementStatus::Success => SettlementOutcome::Paid,
            SettlementStatus::Partial => {
                let paid = pending.total_fee.saturating_sub(result.unsettled_amount);
                tracing::warn!(
                    user = %pending.user, paid_neuron = %paid, unpaid_neuron = %result.unsettled_amount,
                    "a settlement was paid in part; the rest is owed on"
                );
                SettlementOutcome::PaidInPart(paid)
            }
            status => {
                tracing::warn!(user = %pending.user, ?status, "a settlement was refused; its requests stay open");
                SettlementOutcome::Refused
            }
        };
        end(app, pending.user, nonce, outcome).await?;
    }
    // Without a word about somebody, or without effect at all.
    guess(app, nonce).await
}

/// Ends settlements of which no receipt tells: a used nonce means that they landed, and nobody is charged twice.
async fn guess(app: &Arc<App>, nonce: U256) -> Result<(), SettlementError> {
    for pending in app.store.pending_settlements().await? {
        if pending.nonce != nonce {
            continue;
        }
        let account = app
            .chain
            .inference()
            .account(pending.user, app.provider)
            .await?;
        let outcome = if account.is_some_and(|account| account.nonce >= nonce) {
            SettlementOutcome::Paid
        } else {
            SettlementOutcome::Refused
        };
        end(app, pending.user, nonce, outcome).await?;
    }
    Ok(())
}

async fn end(
    app: &Arc<App>,
    user: Address,
    nonce: U256,
    outcome: SettlementOutcome,
) -> Result<(), SettlementError> {
    app.store.end_settlement(user, nonce, outcome).await?;
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
    fn a_balance_pays_the_oldest_requests_that_fit() {
        let row = |id: &str, fee: u64| UsageRow {
            id: id.into(),
            user_address: String::new(),
            request_hash: String::new(),
            fee: U256::from(fee),
            input_fee: U256::ZERO,
            output_fee: U256::from(fee),
        };
        let claim = || Claim {
            user: Address::ZERO,
            usage: vec![row("a", 3), row("b", 9), row("c", 2), row("d", 1)],
        };
        let ids = |balance: u64| -> Vec<String> {
            let kept = claim().within(U256::from(balance)).usage;
            kept.into_iter().map(|row| row.id).collect()
        };
        assert_eq!(claim().total(), U256::from(15));
        assert_eq!(ids(15), ["a", "b", "c", "d"]);
        assert_eq!(ids(5), ["a", "c"]);
        assert_eq!(ids(2), ["c"]);
        assert!(ids(0).is_empty());
    }

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
