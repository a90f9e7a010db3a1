//! Whole task lives from one seed. A provider with an outbox of effects, a contract and a user act at random; results get
//! lost, come late or twice, executors die, and the contract refuses what it must refuse. `SIMULATION_LIVES` scales the
//! run (default 4000).

use alloy_primitives::{Address, B256, U256};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerog_lifecycle::deadline::ack_window_s;
use zerog_lifecycle::fee::{self, FeeTerms};
use zerog_lifecycle::task::{OnMissedAck, Rejected, Task, Terms, apply};
use zerog_lifecycle::{
    Effect, EffectFailure, EffectKey, EffectKind, Event, FailureReason, Timestamp,
};
use zerog_protocol::TaskId;
use zerog_protocol::task::TaskState;

const LOCK_TIME_S: u64 = 86_400;
/// Room for pauses between attempts after a deadline.
const SLACK_S: u64 = 24 * 3600;

/// What the contract knows, with the rules it enforces.
#[derive(Debug, Default)]
struct Contract {
    is_added: bool,
    added_s: u64,
    is_acknowledged: bool,
    is_abandoned: bool,
    is_settled: bool,
    has_key: bool,
    paid: U256,
}

impl Contract {
    fn acknowledge(&mut self) {
        if self.is_added && !self.is_settled && !self.is_abandoned {
            self.is_acknowledged = true;
        }
    }

    fn settle(&mut self, with_key: bool, fee: U256, now: Timestamp) -> bool {
        let window_is_over = now.as_s() >= self.added_s + ack_window_s(LOCK_TIME_S);
        let is_allowed = self.is_added
            && !self.is_settled
            && !self.is_abandoned
            && with_key == self.is_acknowledged
            && (with_key || window_is_over);
        if is_allowed {
            self.is_settled = true;
            self.has_key = with_key;
            self.paid = if with_key {
                fee
            } else {
                fee * U256::from(30) / U256::from(100)
            };
        }
        is_allowed
    }

    fn abandon(&mut self) -> bool {
        let is_allowed = self.is_added && !self.is_settled && !self.is_acknowledged;
        if is_allowed {
            self.is_abandoned = true;
        }
        is_allowed
    }
}

struct World {
    random: ChaCha8Rng,
    now: Timestamp,
    task: Task,
    open: Vec<Effect>,
    /// Every event that was ever sent, for repetitions.
    history: Vec<Event>,
    contract: Contract,
    user_acknowledges: bool,
    fault_rate: f64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let on_missed_ack = if random.random_bool(0.2) {
            OnMissedAck::Penalty
        } else {
            OnMissedAck::Release
        };
        let max_fee = random.random_bool(0.05).then_some(U256::from(10));
        let terms = Terms {
            on_missed_ack,
            artifact_retention_s: 30 * 86_400,
            max_fee,
        };
        let now = Timestamp(1_700_000_000_000);
        let accepted = Task::accept(TaskId::random(), Address::repeat_byte(7), terms, now);
        let user_acknowledges = random.random_bool(0.7);
        let fault_rate = if random.random_bool(0.3) {
            0.0
        } else {
            random.random_range(0.0..0.6)
        };
        Self {
            random,
            now,
            task: accepted.task,
            open: accepted.effects,
            history: Vec::new(),
            contract: Contract::default(),
            user_acknowledges,
            fault_rate,
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    fn deliver(&mut self, event: Event) -> Result<(), Rejected> {
        self.history.push(event.clone());
        let next = apply(&self.task, &event, self.now)?;
        assert!(
            self.task.fee.is_none() || self.task.fee == next.task.fee,
            "a fixed fee changed"
        );
        // The transaction of the store: new state, new effects, void effects closed.
        self.task = next.task;
        self.open.extend(next.effects);
        let task = &self.task;
        self.open
            .retain(|effect| !effect.key.kind.reports() || task.waits_for(effect.key));
        Ok(())
    }

    fn outcome(&mut self, key: EffectKey) -> Event {
        if self.chance(self.fault_rate) {
            let is_permanent = self.chance(0.02);
            let failure = EffectFailure {
                reason: FailureReason::Internal,
                detail: "fault".into(),
                is_permanent,
            };
            return Event::Failed {
                effect: key,
                failure,
            };
        }
        let retry = |detail: &str| Event::Failed {
            effect: key,
            failure: EffectFailure::retry(FailureReason::ChainUnavailable, detail),
        };
        let fee_total = self.task.fee.map(|fee| fee.total).unwrap_or_default();
        match key.kind {
            EffectKind::Prepare => {
                let tokens = self.random.random_range(1..5000);
                let fee = fee::quote(&FeeTerms {
                    tokens_per_epoch: tokens,
                    examples: 10,
                    epochs: 3,
                    max_steps: None,
                    examples_per_step: 4,
                    price_per_token: U256::from(5),
                    price_coefficient: 1,
                    storage_fee: U256::ZERO,
                });
                Event::Prepared {
                    effect: key,
                    fee: fee.unwrap(),
                }
            }
            EffectKind::Train => Event::Trained { effect: key },
            EffectKind::Seal => Event::Sealed { effect: key },
            EffectKind::Publish => Event::Published {
                effect: key,
                root_hash: B256::repeat_byte(3),
            },
            EffectKind::AddDeliverable => {
                if !self.contract.is_added {
                    self.contract.is_added = true;
                    self.contract.added_s = self.now.as_s();
                }
                Event::DeliverableAdded {
                    effect: key,
                    deliver_time_s: self.contract.added_s,
                    ack_window_s: ack_window_s(LOCK_TIME_S),
                }
            }
            // Executors look at the chain first.
            EffectKind::AckDeadline
            | EffectKind::Retention
            | EffectKind::Abandon
            | EffectKind::SettleUnacknowledged
                if self.contract.is_acknowledged =>
            {
                Event::Acknowledged
            }
            EffectKind::AckDeadline | EffectKind::Retention => Event::TimerDue { effect: key },
            EffectKind::Settle | EffectKind::SettleUnacknowledged => {
                let with_secret = key.kind == EffectKind::Settle;
                let now = self.now;
                if self.contract.is_settled || self.contract.settle(with_secret, fee_total, now) {
                    Event::Settled {
                        with_secret: self.contract.has_key,
                    }
                } else {
                    retry("refused by the contract")
                }
            }
            EffectKind::Abandon => {
                if self.contract.is_abandoned || self.contract.abandon() {
                    Event::Abandoned { effect: key }
                } else {
                    retry("refused by the contract")
                }
            }
            EffectKind::RegisterAdapter | EffectKind::CleanUp => {
                unreachable!("these do not report")
            }
        }
    }

    fn run_one_effect(&mut self) {
        let due: Vec<EffectKey> = self
            .open
            .iter()
            .filter(|effect| effect.due <= self.now)
            .map(|effect| effect.key)
            .collect();
        if due.is_empty() {
            return;
        }
        let key = due[self.random.random_range(0..due.len())];
        if !key.kind.reports() {
            self.open.retain(|effect| effect.key != key);
            return;
        }
        if self.chance(0.9) {
            let _ = self.deliver(Event::Started { effect: key });
        }
        let event = self.outcome(key);
        // The process dies after acting and before reporting: the effect stays open and is claimed again.
        if self.chance(self.fault_rate / 2.0) {
            return;
        }
        let _ = self.deliver(event.clone());
        if self.chance(0.2) {
            let _ = self.deliver(event);
        }
    }

    fn user_acts(&mut self) {
        if self.chance(0.02) {
            let before = self.task.state;
            let result = self.deliver(Event::CancelRequested);
            let was_cancellable = matches!(
                before,
                TaskState::Init | TaskState::SettingUp | TaskState::SetUp | TaskState::Training
            );
            assert_eq!(result.is_ok(), was_cancellable);
        }
        if self.user_acknowledges && self.contract.is_added && self.chance(0.2) {
            self.contract.acknowledge();
        }
        // The watcher may be slow, and may see the log twice.
        if self.contract.is_acknowledged && self.chance(0.3) {
            let _ = self.deliver(Event::Acknowledged);
        }
    }

    fn repeat_something_old(&mut self) {
        if self.history.is_empty() || !self.chance(0.2) {
            return;
        }
        let event = self.history[self.random.random_range(0..self.history.len())].clone();
        // A cancellation is a new request of the user each time; everything else is a duplicate.
        if event != Event::CancelRequested {
            let _ = self.deliver(event);
        }
    }

    fn pass_time(&mut self) {
        let step_ms = match self.random.random_range(0..10) {
            0..=5 => self.random.random_range(0..5_000),
            6..=8 => self.random.random_range(0..3_600_000),
            _ => self.random.random_range(0..86_400_000),
        };
        // A leap ends shortly after the next effect is due: a provider that is down for days is another matter.
        let horizon = self
            .open
            .iter()
            .map(|effect| effect.due)
            .min()
            .unwrap_or(self.now)
            .max(self.now)
            .plus_ms(60_000);
        self.now = self.now.plus_ms(step_ms).min(horizon);
    }

    fn check(&self, seed: u64) {
        let contract = &self.contract;
        let fee = self.task.fee.map(|fee| fee.total).unwrap_or_default();
        assert!(
            contract.paid <= fee,
            "seed {seed}: paid more than the quote"
        );
        let paid_in_full = contract.is_settled && contract.paid == fee && fee > U256::ZERO;
        assert!(
            !paid_in_full || contract.has_key,
            "seed {seed}: full fee without key"
        );
        if self.task.terms.on_missed_ack == OnMissedAck::Release {
            assert!(
                !contract.is_settled || contract.has_key,
                "seed {seed}: a penalty by default"
            );
        }
        if self.task.state == TaskState::Cancelled {
            assert!(!contract.is_added && contract.paid.is_zero(), "seed {seed}");
        }
        if self.task.state == TaskState::Finished {
            assert!(
                contract.is_settled,
                "seed {seed}: finished without settlement"
            );
            assert_eq!(
                self.task.settled_with_secret,
                Some(contract.has_key),
                "seed {seed}"
            );
        }
    }

    fn last_moment(&self) -> Option<Timestamp> {
        let settle_by = self.task.settle_by;
        let kept_until = self.task.kept_until();
        settle_by.max(kept_until).map(|at| at.plus_s(SLACK_S))
    }
}

#[test]
fn thousands_of_lives_keep_every_promise() {
    let lives: u64 = std::env::var("SIMULATION_LIVES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(4000);
    let mut ends = std::collections::BTreeMap::<&str, u64>::new();
    for seed in 0..lives {
        let mut world = World::new(seed);
        let mut steps = 0u32;
        while !world.task.is_ended() {
            world.user_acts();
            world.run_one_effect();
            world.repeat_something_old();
            world.pass_time();
            world.check(seed);
            steps += 1;
            assert!(
                steps < 20_000,
                "seed {seed}: the task never ends: {:?}",
                world.task
            );
            if let Some(last) = world.last_moment() {
                assert!(
                    world.now <= last,
                    "seed {seed}: still {} after retention",
                    world.task.state
                );
            }
        }
        world.check(seed);
        *ends.entry(world.task.state.as_str()).or_default() += 1;
    }
    // The simulation is worth something only if every end is reached.
    for end in ["Finished", "Failed", "Cancelled"] {
        assert!(
            ends.get(end).copied().unwrap_or_default() > lives / 100,
            "{ends:?}"
        );
    }
}

#[test]
fn a_missed_acknowledgement_costs_nothing_and_can_be_made_up_for() {
    let now = Timestamp::from_s(1_000_000);
    let accepted = Task::accept(TaskId::random(), Address::ZERO, Terms::default(), now);
    let mut task = accepted.task;
    let mut step = |event: Event, now: Timestamp| {
        let next = apply(&task, &event, now).unwrap();
        task = next.task.clone();
        next
    };
    let key = |transition: &zerog_lifecycle::Transition| transition.effects[0].key;
    let fee = fee::quote(&FeeTerms {
        tokens_per_epoch: 100,
        examples: 5,
        epochs: 1,
        max_steps: None,
        examples_per_step: 1,
        price_per_token: U256::from(2),
        price_coefficient: 1,
        storage_fee: U256::ZERO,
    })
    .unwrap();
    let next = step(
        Event::Prepared {
            effect: accepted.effects[0].key,
            fee,
        },
        now,
    );
    let next = step(Event::Trained { effect: key(&next) }, now);
    let next = step(Event::Sealed { effect: key(&next) }, now);
    let next = step(
        Event::Published {
            effect: key(&next),
            root_hash: B256::ZERO,
        },
        now,
    );
    let next = step(
        Event::DeliverableAdded {
            effect: key(&next),
            deliver_time_s: now.as_s(),
            ack_window_s: 43_200,
        },
        now,
    );
    let timer = next.effects[0];
    assert_eq!(
        (timer.key.kind, timer.due),
        (EffectKind::AckDeadline, now.plus_s(43_200))
    );
    let next = step(Event::TimerDue { effect: timer.key }, timer.due);
    assert!(next.task.has_missed_ack);
    let retention = next.effects[0];
    assert_eq!(
        (retention.key.kind, retention.due),
        (EffectKind::Retention, timer.due.plus_s(30 * 86_400))
    );
    let next = step(Event::Acknowledged, timer.due.plus_s(86_400));
    let kinds: Vec<_> = next.effects.iter().map(|effect| effect.key.kind).collect();
    assert_eq!(kinds, [EffectKind::Settle, EffectKind::RegisterAdapter]);
    assert!(matches!(
        apply(
            &next.task,
            &Event::TimerDue {
                effect: retention.key
            },
            retention.due
        ),
        Err(Rejected::Stale { .. })
    ));
}
