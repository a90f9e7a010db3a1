//! Every event order is accepted or refused, never a panic, and what is promised once stays promised.

use alloy_primitives::{Address, B256, U256};
use proptest::prelude::*;
use zerog_lifecycle::adapter::{self, AdapterEffectKey};
use zerog_lifecycle::effect::{EffectKey, EffectKind};
use zerog_lifecycle::event::{EffectFailure, Event, FailureReason};
use zerog_lifecycle::fee::{self, FeeTerms};
use zerog_lifecycle::task::{OnMissedAck, Task, Terms, apply};
use zerog_lifecycle::{Adapter, AdapterEffectKind, AdapterEvent, Timestamp};
use zerog_protocol::TaskId;
use zerog_protocol::task::TaskState;

fn fee_of(tokens: u64) -> fee::Fee {
    fee::quote(&FeeTerms {
        tokens_per_epoch: tokens,
        examples: 10,
        epochs: 1,
        max_steps: None,
        examples_per_step: 1,
        price_per_token: U256::from(3),
        price_coefficient: 1,
        storage_fee: U256::from(7),
    })
    .unwrap()
}

fn effect_key() -> impl Strategy<Value = EffectKey> {
    (0..EffectKind::ALL.len(), 0u32..14).prop_map(|(kind, generation)| EffectKey {
        kind: EffectKind::ALL[kind],
        generation,
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        effect_key().prop_map(|effect| Event::Started { effect }),
        (effect_key(), 1u64..1000).prop_map(|(effect, tokens)| Event::Prepared {
            effect,
            fee: fee_of(tokens)
        }),
        effect_key().prop_map(|effect| Event::Trained { effect }),
        effect_key().prop_map(|effect| Event::Sealed { effect }),
        effect_key().prop_map(|effect| Event::Published {
            effect,
            root_hash: B256::repeat_byte(1)
        }),
        (effect_key(), any::<u64>(), any::<u64>()).prop_map(
            |(effect, deliver_time_s, ack_window_s)| {
                Event::DeliverableAdded {
                    effect,
                    deliver_time_s,
                    ack_window_s,
                }
            }
        ),
        Just(Event::Acknowledged),
        any::<bool>().prop_map(|with_secret| Event::Settled { with_secret }),
        effect_key().prop_map(|effect| Event::Abandoned { effect }),
        effect_key().prop_map(|effect| Event::TimerDue { effect }),
        (effect_key(), any::<bool>()).prop_map(|(effect, is_permanent)| Event::Failed {
            effect,
            failure: EffectFailure {
                reason: FailureReason::Internal,
                detail: "x".into(),
                is_permanent
            },
        }),
        Just(Event::CancelRequested),
    ]
}

/// The same event, but about the effect that the task waits for, so that random sequences get somewhere.
fn aimed(task: &Task, event: Event) -> Event {
    let Some(effect) = task.work.or(task.timer) else {
        return event;
    };
    match event {
        Event::Prepared { fee, .. } => Event::Prepared { effect, fee },
        Event::Trained { .. } => Event::Trained { effect },
        Event::Sealed { .. } => Event::Sealed { effect },
        Event::Published { root_hash, .. } => Event::Published { effect, root_hash },
        Event::DeliverableAdded {
            deliver_time_s,
            ack_window_s,
            ..
        } => Event::DeliverableAdded {
            effect,
            deliver_time_s,
            ack_window_s,
        },
        Event::Started { .. } => Event::Started { effect },
        Event::Abandoned { .. } => Event::Abandoned { effect },
        Event::TimerDue { .. } => Event::TimerDue { effect },
        Event::Failed { failure, .. } => Event::Failed { effect, failure },
        other => other,
    }
}

fn rank(state: TaskState) -> usize {
    TaskState::ALL
        .iter()
        .position(|other| *other == state)
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn tasks_survive_any_order_of_events(
        events in prop::collection::vec((event(), any::<bool>(), any::<u64>()), 0..60),
        has_penalty in any::<bool>(),
    ) {
        let on_missed_ack = if has_penalty { OnMissedAck::Penalty } else { OnMissedAck::Release };
        let terms = Terms { on_missed_ack, ..Terms::default() };
        let mut task = Task::accept(TaskId::random(), Address::ZERO, terms, Timestamp(0)).task;
        for (event, is_aimed, now) in events {
            let event = if is_aimed { aimed(&task, event) } else { event };
            let Ok(next) = apply(&task, &event, Timestamp(now)) else { continue };
            prop_assert!(!task.is_ended(), "{event:?} changed an ended task");
            prop_assert!(rank(next.task.state) >= rank(task.state));
            prop_assert!(next.task.generation >= task.generation);
            prop_assert!(task.fee.is_none() || next.task.fee == task.fee);
            prop_assert!(task.root_hash.is_none() || next.task.root_hash == task.root_hash);
            for effect in &next.effects {
                prop_assert!(effect.key.generation > task.generation);
                let penalty = effect.key.kind == EffectKind::SettleUnacknowledged;
                prop_assert!(!penalty || has_penalty, "the default never takes a penalty");
                let settles = effect.key.kind == EffectKind::Settle;
                prop_assert!(!settles || next.task.state == TaskState::UserAcknowledged);
            }
            if next.task.is_ended() {
                prop_assert!(next.task.work.is_none() && next.task.timer.is_none());
            } else {
                prop_assert!(next.task.work.is_some() != next.task.timer.is_some());
            }
            // The same outcome a second time changes nothing.
            if let Event::Prepared { .. } | Event::Trained { .. } | Event::Published { .. } = event {
                prop_assert!(apply(&next.task, &event, Timestamp(now)).is_err());
            }
            // What is stored is what was decided.
            let text = serde_json::to_string(&next.task).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Task>(&text).unwrap(), &next.task);
            task = next.task;
        }
    }

    #[test]
    fn adapters_survive_any_order_of_events(
        events in prop::collection::vec((0u8..9, 0u32..8, any::<bool>(), any::<bool>()), 0..60)
    ) {
        let mut adapter = Adapter::announced();
        for (kind, generation, is_load, is_aimed) in events {
            let effect_kind =
                if is_load { AdapterEffectKind::LoadAdapter } else { AdapterEffectKind::FetchAdapter };
            let guessed = AdapterEffectKey { kind: effect_kind, generation };
            let effect = if is_aimed { adapter.work.unwrap_or(guessed) } else { guessed };
            let event = match kind {
                0 => AdapterEvent::Acknowledged,
                1 => AdapterEvent::DeployRequested,
                2 => AdapterEvent::Started { effect },
                3 => AdapterEvent::Fetched { effect },
                4 => AdapterEvent::Loaded { effect },
                5 => AdapterEvent::Failed { effect, detail: "x".into(), is_permanent: is_load },
                6 => AdapterEvent::Offloaded,
                7 => AdapterEvent::Archived,
                _ => AdapterEvent::EngineRestarted,
            };
            let Ok(next) = adapter::apply(&adapter, &event, Timestamp(5)) else { continue };
            use zerog_protocol::adapter::AdapterState as S;
            let needs_files = matches!(next.adapter.state, S::Ready | S::Loading | S::Active | S::Offloaded);
            prop_assert!(!needs_files || next.adapter.has_files);
            let busy = matches!(next.adapter.state, S::Pending | S::Downloading | S::Loading);
            prop_assert_eq!(busy, next.adapter.work.is_some());
            adapter = next.adapter;
        }
    }

    #[test]
    fn fees_are_the_sum_of_their_terms_and_never_exceed_all_epochs(
        tokens in 1u64..1 << 40, examples in 1u64..1 << 20, epochs in 1u64..100, steps in prop::option::of(1u64..1 << 30),
        batch in 1u64..64, price in 0u64.., coefficient in 1u64..10, storage in 0u64..,
    ) {
        let terms = FeeTerms {
            tokens_per_epoch: tokens, examples, epochs, max_steps: steps, examples_per_step: batch,
            price_per_token: U256::from(price), price_coefficient: coefficient, storage_fee: U256::from(storage),
        };
        let fee = fee::quote(&terms).unwrap();
        let all = fee::quote(&FeeTerms { max_steps: None, ..terms }).unwrap();
        prop_assert!(fee.total <= all.total);
        prop_assert_eq!(fee.training_fee + fee.storage_fee, fee.total);
        prop_assert_eq!(all.billed_tokens, tokens * epochs);
        prop_assert!(u128::from(fee.billed_tokens) * u128::from(examples) >= u128::from(tokens) * u128::from(fee.trained_examples));
    }
}
