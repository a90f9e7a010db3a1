//! The two timers of a delivered task. The chain is asked first: an acknowledgement that the watcher missed counts, and
//! nothing follows from a failed read.

use std::sync::Arc;

use zerog_chain::fine_tuning::DeliverableState;
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::{EffectKey, Event};

use super::{EffectError, deliver};
use crate::app::App;
use crate::store::TaskRow;

pub(crate) async fn run(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let Some(deliverable) = deliver::read(app, row).await? else {
        return Err(EffectError::retry(
            FailureReason::ChainUnavailable,
            "the chain does not show the deliverable",
        ));
    };
    Ok(match deliverable.state() {
        DeliverableState::Acknowledged => Event::Acknowledged,
        DeliverableState::Settled => Event::Settled { with_secret: true },
        DeliverableState::SettledWithPenalty => Event::Settled { with_secret: false },
        DeliverableState::Delivered | DeliverableState::Abandoned => Event::TimerDue { effect },
    })
}
