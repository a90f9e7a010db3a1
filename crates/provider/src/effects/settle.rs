//! `Settle`, `SettleUnacknowledged` and `Abandon`: the three ends of a deliverable on chain.

use std::sync::Arc;

use alloy_primitives::{Bytes, U256, hex};
use zerog_chain::calls;
use zerog_chain::fine_tuning::{DeliverableState, Settlement};
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::{EffectKey, Event};
use zerog_protocol::signing::FineTuningSettlement;

use super::{EffectError, deliver};
use crate::app::App;
use crate::store::TaskRow;

/// Settles the full fee with the key, or the penalty without it.
pub(crate) async fn settle(
    app: &Arc<App>,
    row: &TaskRow,
    with_secret: bool,
) -> Result<Event, EffectError> {
    if let Some(event) = already(app, row, with_secret).await? {
        return Ok(event);
    }
    let internal = |detail: &str| EffectError::permanent(FailureReason::Internal, detail);
    let fee = row
        .task
        .fee
        .ok_or_else(|| internal("the task has no fee"))?;
    let root = row
        .task
        .root_hash
        .ok_or_else(|| internal("the task has no result"))?;
    let nonce = U256::from_str_radix(&row.nonce, 10)
        .map_err(|_| internal("the stored nonce is damaged"))?;
    let encrypted_secret = if with_secret {
        let text = row
            .encrypted_secret
            .as_deref()
            .ok_or_else(|| internal("the task has no key"))?;
        Bytes::from(hex::decode(text).map_err(|_| internal("the stored key is damaged"))?)
    } else {
        Bytes::new()
    };
    let message = FineTuningSettlement {
        id: row.id(),
        encrypted_secret: encrypted_secret.clone(),
        model_root_hash: Bytes::from(root.to_vec()),
        nonce,
        task_fee: fee.total,
        user: row.task.user,
    };
    let contract = app.chain.fine_tuning().address();
    let signature = app
        .identity
        .keys()
        .signer
        .sign_digest(message.digest(app.chain.chain_id(), contract));
    let settlement = Settlement {
        id: message.id,
        encrypted_secret,
        model_root_hash: message.model_root_hash,
        nonce,
        signature: Bytes::from(signature.as_bytes().to_vec()),
        task_fee: fee.total,
        user: row.task.user,
    };
    let call = calls::fine_tuning::settle_fees(contract, &settlement);
    let purpose = if with_secret {
        "settle"
    } else {
        "settle_unacknowledged"
    };
    app.outbox
        .submit(
            &format!("task/{}/{purpose}", row.id()),
            call,
            app.clock.now().0,
        )
        .await?;
    already(app, row, with_secret).await?.ok_or_else(|| {
        EffectError::retry(
            FailureReason::ChainUnavailable,
            "the chain does not show the settlement yet",
        )
    })
}

/// What the chain says if the settlement is done, or if the user acknowledged before a penalty was charged.
async fn already(
    app: &App,
    row: &TaskRow,
    with_secret: bool,
) -> Result<Option<Event>, EffectError> {
    let Some(deliverable) = deliver::read(app, row).await? else {
        return Err(EffectError::retry(
            FailureReason::SettlementFailed,
            "the chain does not show the deliverable",
        ));
    };
    Ok(match deliverable.state() {
        DeliverableState::Settled => Some(Event::Settled { with_secret: true }),
        DeliverableState::SettledWithPenalty => Some(Event::Settled { with_secret: false }),
        DeliverableState::Acknowledged if !with_secret => Some(Event::Acknowledged),
        DeliverableState::Abandoned => {
            return Err(EffectError::permanent(
                FailureReason::SettlementFailed,
                "the deliverable was given up on chain",
            ));
        }
        DeliverableState::Delivered | DeliverableState::Acknowledged => None,
    })
}

/// Gives an unacknowledged deliverable up, which frees the user for new tasks.
pub(crate) async fn abandon(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let Some(deliverable) = deliver::read(app, row).await? else {
        // Nothing to give up: the user deleted the account.
        return Ok(Event::Abandoned { effect });
    };
    match deliverable.state() {
        DeliverableState::Acknowledged => return Ok(Event::Acknowledged),
        DeliverableState::Abandoned => return Ok(Event::Abandoned { effect }),
        DeliverableState::Settled => return Ok(Event::Settled { with_secret: true }),
        DeliverableState::SettledWithPenalty => return Ok(Event::Settled { with_secret: false }),
        DeliverableState::Delivered => {}
    }
    let id = row.id();
    let call = calls::fine_tuning::abandon_deliverable(
        app.chain.fine_tuning().address(),
        row.task.user,
        &id,
    );
    app.outbox
        .submit(&format!("task/{id}/abandon"), call, app.clock.now().0)
        .await?;
    Ok(Event::Abandoned { effect })
}
