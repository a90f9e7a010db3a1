//! The life of a task: `Init → SettingUp → SetUp → Training → Trained → Delivering → Delivered → UserAcknowledged →
//! Finished`, with `Failed` and `Cancelled` as the other ends.
//!
//! At any time a living task waits for exactly one thing: the outcome of its `work` effect, or its `timer` together with
//! the user's acknowledgement. States never go back; a retry is a new effect in the same state.

use alloy_primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};
use zerog_protocol::TaskId;
use zerog_protocol::task::TaskState;

use crate::deadline::{ARTIFACT_RETENTION_S, Timestamp};
use crate::effect::{Effect, EffectKey, EffectKind};
use crate::event::{EffectFailure, Event, FailureReason};
use crate::fee::Fee;
use crate::retry;

/// How long the files of a failed task are kept for the operator, in seconds (one day).
const FAILED_RETENTION_S: u64 = 24 * 3600;

/// What happens when nobody acknowledges a deliverable in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMissedAck {
    /// Nothing is charged; the artefact is kept for the retention and can still be acknowledged.
    #[default]
    Release,
    /// The contract's penalty is charged and the key is never published.
    Penalty,
}

/// The conditions under which a task was accepted. They do not change during its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What happens after a missed acknowledgement.
    pub on_missed_ack: OnMissedAck,
    /// How long the artefact is kept after the deadline or after settlement, in seconds.
    pub artifact_retention_s: u64,
    /// The largest fee the user accepts; `None` = any.
    pub max_fee: Option<U256>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            on_missed_ack: OnMissedAck::Release,
            artifact_retention_s: ARTIFACT_RETENTION_S,
            max_fee: None,
        }
    }
}

/// Why a task ended in `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable word.
    pub reason: FailureReason,
    /// Text for the user.
    pub detail: String,
    /// State in which it failed.
    pub stage: TaskState,
}

/// Everything that decides about a task's future.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Who pays.
    pub user: Address,
    /// Where it stands.
    pub state: TaskState,
    /// Number of the newest effect.
    pub generation: u32,
    /// The effect whose outcome the task waits for.
    pub work: Option<EffectKey>,
    /// The timer that runs meanwhile.
    pub timer: Option<EffectKey>,
    /// Failures of the present work or timer.
    pub failures: u32,
    /// Conditions of acceptance.
    pub terms: Terms,
    /// The fee, once it is fixed.
    pub fee: Option<Fee>,
    /// Storage root of the archive, once it is published.
    pub root_hash: Option<B256>,
    /// Block time of the deliverable in Unix seconds.
    pub deliver_time_s: Option<u64>,
    /// Until when the user should acknowledge, in Unix seconds.
    pub ack_deadline_s: Option<u64>,
    /// Whether the deadline passed without an acknowledgement.
    pub has_missed_ack: bool,
    /// Until when settlement is tried.
    pub settle_by: Option<Timestamp>,
    /// Whether the key was published; `None` until settlement.
    pub settled_with_secret: Option<bool>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// What the user may read about a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The state changed.
    State {
        /// Before.
        from: TaskState,
        /// After.
        to: TaskState,
    },
    /// The fee is fixed.
    FeeFixed(Fee),
    /// An attempt failed and will be repeated.
    Retry {
        /// What failed.
        kind: EffectKind,
        /// Why.
        detail: String,
        /// When it is tried again.
        at: Timestamp,
    },
    /// The user has until then to acknowledge.
    AckDeadline {
        /// Unix seconds.
        at_s: u64,
    },
    /// The deadline passed; nothing is charged.
    AckMissed {
        /// Until when the artefact is kept, in Unix seconds.
        kept_until_s: u64,
    },
    /// The deadline passed and the penalty will be charged.
    PenaltyDue,
    /// The task failed.
    Failed(Failure),
}

/// A task after an event, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The new state. Open effects of the task that it does not wait for ([`Task::waits_for`]) are void, except those that
    /// do not report.
    pub task: Task,
    /// New effects.
    pub effects: Vec<Effect>,
    /// New lines for the user.
    pub notices: Vec<Notice>,
}

/// Why an event changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The event is the outcome of an effect that the task no longer waits for.
    #[error("the task is {state} and does not wait for {} {}", effect.kind, effect.generation)]
    Stale {
        /// State of the task.
        state: TaskState,
        /// The effect.
        effect: EffectKey,
    },
    /// The event does not belong to this state.
    #[error("{event} does not apply to a task that is {state}")]
    NotNow {
        /// State of the task.
        state: TaskState,
        /// Name of the event.
        event: &'static str,
    },
    /// A timer fired before its time.
    #[error("{} is not due before {}", effect.kind, due.0)]
    TooEarly {
        /// The timer.
        effect: EffectKey,
        /// When it is due.
        due: Timestamp,
    },
}

impl Task {
    /// A newly accepted task and its first effect.
    #[must_use]
    pub fn accept(id: TaskId, user: Address, terms: Terms, now: Timestamp) -> Transition {
        let task = Self {
            id,
            user,
            state: TaskState::Init,
            generation: 0,
            work: None,
            timer: None,
            failures: 0,
            terms,
            fee: None,
            root_hash: None,
            deliver_time_s: None,
            ack_deadline_s: None,
            has_missed_ack: false,
            settle_by: None,
            settled_with_secret: None,
            failure: None,
        };
        let mut transition = Transition {
            task,
            effects: Vec::new(),
            notices: Vec::new(),
        };
        transition.start_work(EffectKind::Prepare, now);
        transition
    }

    /// Whether the outcome of this effect would still be accepted.
    #[must_use]
    pub fn waits_for(&self, effect: EffectKey) -> bool {
        self.work == Some(effect) || self.timer == Some(effect)
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            self.state,
            TaskState::Finished | TaskState::Failed | TaskState::Cancelled
        )
    }

    /// Whether the user may cancel now.
    #[must_use]
    pub fn is_cancellable(&self) -> bool {
        matches!(
            self.state,
            TaskState::Init | TaskState::SettingUp | TaskState::SetUp | TaskState::Training
        )
    }

    /// Until when an unacknowledged artefact is kept.
    #[must_use]
    pub fn kept_until(&self) -> Option<Timestamp> {
        self.ack_deadline_s
            .map(|at_s| Timestamp::from_s(at_s).plus_s(self.terms.artifact_retention_s))
    }

    fn current(&self, effect: EffectKey, kind: EffectKind) -> Result<(), Rejected> {
        if effect.kind == kind && self.waits_for(effect) {
            return Ok(());
        }
        Err(Rejected::Stale {
            state: self.state,
            effect,
        })
    }

    fn not_now(&self, event: &'static str) -> Rejected {
        Rejected::NotNow {
            state: self.state,
            event,
        }
    }
}

impl Transition {
    fn enter(&mut self, state: TaskState) {
        if self.task.state != state {
            self.notices.push(Notice::State {
                from: self.task.state,
                to: state,
            });
            self.task.state = state;
        }
    }

    fn issue(&mut self, kind: EffectKind, due: Timestamp) -> EffectKey {
        self.task.generation = self.task.generation.saturating_add(1);
        let key = EffectKey {
            kind,
            generation: self.task.generation,
        };
        self.effects.push(Effect { key, due });
        key
    }

    /// Waits for new work from here on; a timer that still runs is void.
    fn start_work(&mut self, kind: EffectKind, due: Timestamp) {
        self.task.timer = None;
        self.task.failures = 0;
        self.task.work = Some(self.issue(kind, due));
    }

    fn start_timer(&mut self, kind: EffectKind, due: Timestamp) {
        self.task.work = None;
        self.task.failures = 0;
        self.task.timer = Some(self.issue(kind, due));
    }

    fn end(&mut self, state: TaskState, keep_files_s: u64, now: Timestamp) {
        self.enter(state);
        self.task.work = None;
        self.task.timer = None;
        // Raising the generation makes every result that is still on its way stale.
        self.issue(EffectKind::CleanUp, now.plus_s(keep_files_s));
    }

    fn fail(&mut self, reason: FailureReason, detail: String, now: Timestamp) {
        let failure = Failure {
            reason,
            detail,
            stage: self.task.state,
        };
        self.task.failure = Some(failure.clone());
        self.notices.push(Notice::Failed(failure));
        let keep_s = if reason == FailureReason::NotAcknowledged {
            0
        } else {
            FAILED_RETENTION_S
        };
        self.end(TaskState::Failed, keep_s, now);
    }

    fn retry(&mut self, kind: EffectKind, failures: u32, detail: String, at: Timestamp) {
        if kind.is_timer() {
            self.start_timer(kind, at);
        } else {
            self.start_work(kind, at);
        }
        self.task.failures = failures;
        self.notices.push(Notice::Retry { kind, detail, at });
    }

    fn release(&mut self, now: Timestamp) {
        let until = self.task.kept_until().unwrap_or(now);
        self.start_timer(EffectKind::Retention, until);
        self.notices.push(Notice::AckMissed {
            kept_until_s: until.as_s(),
        });
    }
}

/// Applies one event to a task. `now` is never before the newest block that an event reports.
///
/// # Errors
/// [`Rejected`]: the event changes nothing. That is an answer, not a fault: late, repeated and misplaced events end here.
pub fn apply(task: &Task, event: &Event, now: Timestamp) -> Result<Transition, Rejected> {
    let mut next = Transition {
        task: task.clone(),
        effects: Vec::new(),
        notices: Vec::new(),
    };
    match event {
        Event::Started { effect } => {
            task.current(*effect, effect.kind)?;
            match effect.kind {
                EffectKind::Prepare => next.enter(TaskState::SettingUp),
                EffectKind::Train => next.enter(TaskState::Training),
                EffectKind::Seal => next.enter(TaskState::Delivering),
                _ => {}
            }
        }
        Event::Prepared { effect, fee } => {
            task.current(*effect, EffectKind::Prepare)?;
            match task.terms.max_fee {
                Some(most) if fee.total > most => {
                    let detail = format!(
                        "the fee is {} neuron, more than the allowed {most} neuron",
                        fee.total
                    );
                    next.fail(FailureReason::FeeAboveLimit, detail, now);
                }
                _ => {
                    next.task.fee = Some(*fee);
                    next.notices.push(Notice::FeeFixed(*fee));
                    next.enter(TaskState::SetUp);
                    next.start_work(EffectKind::Train, now);
                }
            }
        }
        Event::Trained { effect } => {
            task.current(*effect, EffectKind::Train)?;
            next.enter(TaskState::Trained);
            next.start_work(EffectKind::Seal, now);
        }
        Event::Sealed { effect } => {
            task.current(*effect, EffectKind::Seal)?;
            next.enter(TaskState::Delivering);
            next.start_work(EffectKind::Publish, now);
        }
        Event::Published { effect, root_hash } => {
            task.current(*effect, EffectKind::Publish)?;
            next.task.root_hash = Some(*root_hash);
            next.start_work(EffectKind::AddDeliverable, now);
        }
        Event::DeliverableAdded {
            effect,
            deliver_time_s,
            ack_window_s,
        } => {
            task.current(*effect, EffectKind::AddDeliverable)?;
            let deadline_s = deliver_time_s.saturating_add(*ack_window_s);
            next.task.deliver_time_s = Some(*deliver_time_s);
            next.task.ack_deadline_s = Some(deadline_s);
            next.enter(TaskState::Delivered);
            next.notices.push(Notice::AckDeadline { at_s: deadline_s });
            next.start_timer(EffectKind::AckDeadline, Timestamp::from_s(deadline_s));
        }
        Event::Acknowledged => {
            if task.state != TaskState::Delivered {
                return Err(task.not_now("an acknowledgement"));
            }
            next.enter(TaskState::UserAcknowledged);
            next.task.settle_by = Some(now.plus_s(task.terms.artifact_retention_s));
            next.start_work(EffectKind::Settle, now);
            next.issue_register(now);
        }
        Event::Settled { with_secret } => {
            let is_expected = match task.state {
                TaskState::UserAcknowledged => *with_secret,
                TaskState::Delivered => !*with_secret,
                _ => false,
            };
            if !is_expected {
                return Err(task.not_now("a settlement"));
            }
            next.task.settled_with_secret = Some(*with_secret);
            next.end(TaskState::Finished, task.terms.artifact_retention_s, now);
        }
        Event::Abandoned { effect } => {
            task.current(*effect, EffectKind::Abandon)?;
            next.fail_not_acknowledged(now);
        }
        Event::TimerDue { effect } => timer_due(task, *effect, &mut next, now)?,
        Event::Failed { effect, failure } => {
            task.current(*effect, effect.kind)?;
            effect_failed(task, *effect, failure, &mut next, now);
        }
        Event::CancelRequested => {
            if !task.is_cancellable() {
                return Err(task.not_now("a cancellation"));
            }
            next.end(TaskState::Cancelled, 0, now);
        }
    }
    Ok(next)
}

impl Transition {
    fn issue_register(&mut self, now: Timestamp) {
        self.issue(EffectKind::RegisterAdapter, now);
    }

    fn fail_not_acknowledged(&mut self, now: Timestamp) {
        self.fail(
            FailureReason::NotAcknowledged,
            "the deliverable was not acknowledged; nothing was charged".into(),
            now,
        );
    }
}

fn timer_due(
    task: &Task,
    effect: EffectKey,
    next: &mut Transition,
    now: Timestamp,
) -> Result<(), Rejected> {
    task.current(effect, effect.kind)?;
    let deadline = Timestamp::from_s(task.ack_deadline_s.unwrap_or_default());
    let due = match effect.kind {
        EffectKind::AckDeadline => deadline,
        EffectKind::Retention => task.kept_until().unwrap_or(deadline),
        _ => {
            return Err(Rejected::Stale {
                state: task.state,
                effect,
            });
        }
    };
    if now < due {
        return Err(Rejected::TooEarly { effect, due });
    }
    if effect.kind == EffectKind::Retention {
        next.start_work(EffectKind::Abandon, now);
        return Ok(());
    }
    next.task.has_missed_ack = true;
    match task.terms.on_missed_ack {
        OnMissedAck::Release => next.release(now),
        OnMissedAck::Penalty => {
            next.notices.push(Notice::PenaltyDue);
            next.start_work(EffectKind::SettleUnacknowledged, now);
        }
    }
    Ok(())
}

fn effect_failed(
    task: &Task,
    effect: EffectKey,
    failure: &EffectFailure,
    next: &mut Transition,
    now: Timestamp,
) {
    let (failures, again) = if failure.reason == FailureReason::DiskFull {
        (task.failures, Some(now.plus_ms(retry::DISK_FULL_PAUSE_MS)))
    } else {
        let failures = task.failures.saturating_add(1);
        let again = retry::policy(effect.kind).next_attempt(failures, now);
        (failures, again)
    };
    let again = again.filter(|at| match effect.kind {
        EffectKind::Settle => task.settle_by.is_none_or(|last| *at <= last),
        EffectKind::SettleUnacknowledged => task.kept_until().is_none_or(|last| *at <= last),
        _ => true,
    });
    match again {
        Some(at) if !failure.is_permanent || effect.kind.is_timer() => {
            next.retry(effect.kind, failures, failure.detail.clone(), at);
        }
        // A penalty that cannot be charged is not charged.
        _ if effect.kind == EffectKind::SettleUnacknowledged => next.release(now),
        _ if effect.kind == EffectKind::Abandon => next.fail_not_acknowledged(now),
        _ => next.fail(failure.reason, failure.detail.clone(), now),
    }
}
