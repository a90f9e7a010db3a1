//! The store behaves the same on both engines: versions, leases, fences, replays and settlements.

use alloy_primitives::{Address, U256};
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_lifecycle::fee::{self, FeeTerms};
use zerog_lifecycle::{EffectKey, EffectKind, Event, Task, Terms, Timestamp};
use zerog_protocol::TaskId;
use zerog_protocol::task::TaskState;
use zerog_provider::store::{
    ApplyOutcome, DatasetRow, NewAdapter, NewTask, NewUsage, SettlementOutcome, SettlementRow,
    Store, StoreError, Subject, TransactionRow,
};

const NOW: Timestamp = Timestamp(1_000_000);

/// Runs a check on SQLite, and on an empty schema of PostgreSQL when one is there.
async fn on_every_engine<F: AsyncFn(Store)>(check: F) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("s.sqlite").display());
    check(Store::open(&url).await.unwrap()).await;
    // Opening again runs no migration twice.
    Store::open(&url).await.unwrap().close().await;
    let Ok(url) = std::env::var("TEST_DATABASE_URL") else {
        return;
    };
    let schema = format!("t{}", uuid::Uuid::new_v4().simple());
    sqlx::any::install_default_drivers();
    let admin = sqlx::AnyPool::connect(&url).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
        .execute(&admin)
        .await
        .unwrap();
    let separator = if url.contains('?') { '&' } else { '?' };
    check(
        Store::open(&format!("{url}{separator}options=-csearch_path%3D{schema}"))
            .await
            .unwrap(),
    )
    .await;
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE")))
        .execute(&admin)
        .await
        .unwrap();
}

fn new_task(user: Address, nonce: &str) -> NewTask {
    NewTask {
        transition: Task::accept(TaskId::random(), user, Terms::default(), NOW),
        submitted_address: user.to_string(),
        nonce: nonce.into(),
        dataset_hash: format!("0x{}", "AB".repeat(32)),
        training_params: "{}".into(),
        model_hash: "0x00".into(),
        model_name: "mock-model".into(),
        signature: "0x".into(),
        user_public_key: "04".into(),
        log: vec!["creating task....".into()],
    }
}

fn some_fee() -> zerog_lifecycle::Fee {
    fee::quote(&FeeTerms {
        tokens_per_epoch: 10,
        examples: 2,
        epochs: 1,
        max_steps: None,
        examples_per_step: 1,
        price_per_token: U256::from(5),
        price_coefficient: 1,
        storage_fee: U256::ZERO,
    })
    .unwrap()
}

#[tokio::test]
async fn a_task_its_effects_and_its_log_change_together() {
    on_every_engine(async |store: Store| {
        let user = Address::repeat_byte(1);
        let new = new_task(user, "5");
        let id = new.transition.task.id.to_string();
        store.insert_task(&new, NOW).await.unwrap();
        assert!(matches!(store.insert_task(&new_task(user, "6"), NOW).await, Err(StoreError::OpenTask)));
        assert_eq!(store.pending_tasks().await.unwrap(), 1);
        assert_eq!(store.task_by_nonce(user, "5").await.unwrap().unwrap().id(), id);
        assert!(store.is_dataset_in_use(&format!("{user:#x}"), &format!("0x{}", "ab".repeat(32))).await.unwrap());

        let claim = store.claim_effect(&["prepare"], "a", NOW.0, 1000).await.unwrap().unwrap();
        assert_eq!((claim.subject, claim.subject_id.as_str(), claim.fence), (Subject::Task, id.as_str(), 1));
        assert_eq!(store.claim_effect(&["prepare"], "b", NOW.0, 1000).await.unwrap(), None);
        assert!(store.renew_lease(&claim, NOW.0 + 2000).await.unwrap());

        // The lease runs out and another worker claims: the first one's result is dropped.
        let second = store.claim_effect(&["prepare"], "b", NOW.0 + 2000, 1000).await.unwrap().unwrap();
        let effect = EffectKey { kind: EffectKind::Prepare, generation: claim.generation };
        let event = Event::Prepared { effect, fee: some_fee() };
        assert!(matches!(store.apply_event(&id, &event, Some(&claim), NOW).await.unwrap(), ApplyOutcome::Fenced));
        assert!(!store.renew_lease(&claim, NOW.0 + 9000).await.unwrap());
        let outcome = store.apply_event(&id, &event, Some(&second), NOW).await.unwrap();
        assert!(matches!(outcome, ApplyOutcome::Applied { task, void } if task.state == TaskState::SetUp && void.len() == 1));
        let kinds: Vec<_> =
            store.open_effects(Subject::Task, &id).await.unwrap().into_iter().map(|effect| effect.kind).collect();
        assert_eq!(kinds, ["train"]);
        let repeated = store.apply_event(&id, &event, None, NOW).await.unwrap();
        assert!(matches!(repeated, ApplyOutcome::Rejected(_)));

        // Cancelling voids the running effect and frees the user.
        let train = store.claim_effect(&["train"], "a", NOW.0, 1000).await.unwrap().unwrap();
        store.apply_event(&id, &Event::CancelRequested, None, NOW).await.unwrap();
        let late = Event::Trained { effect: EffectKey { kind: EffectKind::Train, generation: train.generation } };
        assert!(matches!(store.apply_event(&id, &late, Some(&train), NOW).await.unwrap(), ApplyOutcome::Fenced));
        assert!(store.open_task(user).await.unwrap().is_none());
        store.insert_task(&new_task(user, "7"), NOW).await.unwrap();
        assert_eq!(store.tasks_of(user, 10).await.unwrap()[0].nonce, "7");

        let states: Vec<_> = store.state_events(&id).await.unwrap().into_iter().map(|event| event.content).collect();
        assert_eq!(states, ["Init", "SetUp", "Cancelled"]);
        let first = store.events(&id, 0, 2).await.unwrap();
        assert_eq!(first[1].content, "creating task....");
        assert!(matches!(store.apply_event("none", &late, None, NOW).await.unwrap(), ApplyOutcome::Missing));
    })
    .await;
}

#[tokio::test]
async fn leases_of_an_earlier_life_come_back_at_once() {
    on_every_engine(async |store: Store| {
        store
            .insert_task(&new_task(Address::ZERO, "1"), NOW)
            .await
            .unwrap();
        let claim = store
            .claim_effect(&["prepare"], "me", NOW.0, 60_000)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(store.next_due_ms().await.unwrap(), Some(NOW.0 + 60_000));
        assert_eq!(store.reclaim_leases("me").await.unwrap(), 1);
        let again = store
            .claim_effect(&["prepare"], "me", NOW.0, 60_000)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((again.id.as_str(), again.fence), (claim.id.as_str(), 2));
        store.postpone_effect(&again, NOW.0 + 500).await.unwrap();
        assert_eq!(
            store
                .claim_effect(&["prepare"], "me", NOW.0, 1)
                .await
                .unwrap(),
            None
        );
        let last = store
            .claim_effect(&["prepare"], "me", NOW.0 + 500, 1)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(last.failures, 1);
        store.finish_effect(&last).await.unwrap();
        assert_eq!(store.next_due_ms().await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn two_writers_never_lose_each_others_changes() {
    on_every_engine(async |store: Store| {
        let new = new_task(Address::ZERO, "1");
        let id = new.transition.task.id.to_string();
        store.insert_task(&new, NOW).await.unwrap();
        let workers: Vec<_> = (0..8)
            .map(|number| {
                let (store, id) = (store.clone(), id.clone());
                tokio::spawn(async move {
                    store
                        .append_log(&id, NOW.0, &[format!("line {number}")])
                        .await
                        .unwrap();
                    store
                        .apply_event(&id, &Event::CancelRequested, None, NOW)
                        .await
                        .unwrap()
                })
            })
            .collect();
        let mut applied = 0;
        for worker in workers {
            applied += usize::from(matches!(
                worker.await.unwrap(),
                ApplyOutcome::Applied { .. }
            ));
        }
        assert_eq!(applied, 1);
        let lines = store.events(&id, 0, 100).await.unwrap();
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.content.starts_with("line "))
                .count(),
            8
        );
    })
    .await;
}

#[tokio::test]
async fn small_records_round_trip() {
    on_every_engine(async |store: Store| {
        assert_eq!(store.setting("a").await.unwrap(), None);
        store.set_setting("a", "1").await.unwrap();
        store.set_setting("a", "2").await.unwrap();
        assert_eq!(store.setting("a").await.unwrap().as_deref(), Some("2"));
        assert!(store.spend_signature("s", 100, 50).await.unwrap());
        assert!(!store.spend_signature("s", 100, 60).await.unwrap());
        assert!(store.spend_signature("s", 300, 200).await.unwrap());

        let user = Address::repeat_byte(3);
        let row = DatasetRow {
            user_address: format!("{user:#x}"),
            hash: "0xab".into(),
            file: "f".into(),
            sealed_key: "k".into(),
            bytes: 7,
            created_ms: 5,
        };
        assert!(store.insert_dataset(&row).await.unwrap());
        assert!(
            !store
                .insert_dataset(&DatasetRow {
                    file: "g".into(),
                    ..row.clone()
                })
                .await
                .unwrap()
        );
        assert_eq!(
            store.dataset(user, "0xAB").await.unwrap(),
            Some(row.clone())
        );
        assert_eq!(store.dataset_bytes(user).await.unwrap(), 7);
        store.touch_dataset(&row, 50).await.unwrap();
        assert!(store.stale_datasets(50).await.unwrap().is_empty());
        assert_eq!(store.stale_datasets(51).await.unwrap().len(), 1);
        store.delete_dataset(&row).await.unwrap();
        assert_eq!(store.dataset(user, "0xab").await.unwrap(), None);

        let mut transaction = TransactionRow {
            id: "t".into(),
            nonce: 3,
            raw: "0x01".into(),
            hash: "0x02".into(),
        };
        store.put_transaction(&transaction, 1).await.unwrap();
        transaction.raw = "0x03".into();
        store.put_transaction(&transaction, 2).await.unwrap();
        assert_eq!(store.transactions().await.unwrap(), [transaction.clone()]);
        store.delete_transaction("t").await.unwrap();
        assert_eq!(store.transaction("t").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn adapters_get_free_names_and_their_effects() {
    on_every_engine(async |store: Store| {
        let new = |id: &str, task: &str| NewAdapter {
            id: id.into(),
            name: "ft-m-1".into(),
            user: Address::repeat_byte(9),
            task_id: task.into(),
            fine_tuning_provider: Address::ZERO,
            base_model: "m".into(),
            storage_root: "0xAB".into(),
            signer: Address::ZERO,
            sealed_key: "k".into(),
        };
        let first = store.insert_adapter(&new("1", "a"), NOW).await.unwrap();
        let second = store.insert_adapter(&new("2", "b"), NOW).await.unwrap();
        assert_eq!(
            (first.name.as_str(), second.name.as_str()),
            ("ft-m-1", "ft-m-1-2")
        );
        assert_eq!(
            store
                .insert_adapter(&new("1", "a"), NOW)
                .await
                .unwrap()
                .name,
            "ft-m-1"
        );
        let adapter = store
            .apply_adapter_event("1", &AdapterEvent::Acknowledged, None, NOW)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(adapter.state.as_str(), "pending");
        assert!(
            store
                .apply_adapter_event("1", &AdapterEvent::Acknowledged, None, NOW)
                .await
                .unwrap()
                .is_none()
        );
        let claim = store
            .claim_effect(&["fetch_adapter"], "me", NOW.0, 1000)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (claim.subject, claim.subject_id.as_str()),
            (Subject::Adapter, "1")
        );
        let event = AdapterEvent::Fetched {
            effect: adapter.work.unwrap(),
        };
        let ready = store
            .apply_adapter_event("1", &event, Some(&claim), NOW)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(ready.state.as_str(), "ready");
        assert!(
            store
                .open_effects(Subject::Adapter, "1")
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(store.adapter_named("b").await.unwrap().unwrap().id, "2");
        assert_eq!(
            store
                .adapters_of(Address::repeat_byte(9))
                .await
                .unwrap()
                .len(),
            2
        );
        store.set_canary_build("1", "x").await.unwrap();
        assert_eq!(
            store
                .adapter("1")
                .await
                .unwrap()
                .unwrap()
                .canary_build
                .as_deref(),
            Some("x")
        );
    })
    .await;
}

#[tokio::test]
async fn reservations_bills_and_settlements_add_up() {
    on_every_engine(async |store: Store| {
        let user = Address::repeat_byte(4);
        let new = |id: &str, reserved: u64| NewUsage {
            id: id.into(),
            user,
            request_hash: "h".into(),
            model: "m".into(),
            reserved: U256::from(reserved),
            owner: "me".into(),
        };
        let (available, floor) = (U256::from(100), U256::from(50));
        assert_eq!(
            store
                .reserve_usage(&new("1", 30), available, floor, 1)
                .await
                .unwrap(),
            None
        );
        assert_eq!(
            store
                .reserve_usage(&new("2", 30), available, floor, 1)
                .await
                .unwrap(),
            None
        );
        // 30 + 30 kept back and 50 in reserve: 10 are missing.
        assert_eq!(
            store
                .reserve_usage(&new("3", 30), available, floor, 1)
                .await
                .unwrap(),
            Some(U256::from(10))
        );
        store.release_usage("2").await.unwrap();
        store
            .bill_usage("1", (3, 4), U256::from(6), U256::from(8))
            .await
            .unwrap();
        store
            .bill_usage("1", (9, 9), U256::from(99), U256::from(99))
            .await
            .unwrap();
        assert_eq!(store.unsettled_fee(user).await.unwrap(), U256::from(14));
        store
            .reserve_usage(&new("4", 5), available, floor, 1)
            .await
            .unwrap();
        assert_eq!(store.release_reservations("me").await.unwrap(), 1);

        let open = store
            .open_usage()
            .await
            .unwrap()
            .remove(&format!("{user:#x}"))
            .unwrap();
        let settlement = SettlementRow {
            user,
            nonce: U256::from(7),
            total_fee: U256::from(14),
            requests_hash: "0x1".into(),
        };
        store.begin_settlement(&settlement, &open, 1).await.unwrap();
        assert!(store.open_usage().await.unwrap().is_empty());
        assert_eq!(store.unsettled_fee(user).await.unwrap(), U256::from(14));
        assert_eq!(
            store.pending_settlements().await.unwrap(),
            std::slice::from_ref(&settlement)
        );
        // It did not land: everything is open again, and may be settled under another nonce.
        store
            .end_settlement(user, settlement.nonce, SettlementOutcome::Refused)
            .await
            .unwrap();
        assert_eq!(store.open_usage().await.unwrap().len(), 1);
        // Paid in part: what is left is owed on, and the prompt's part is paid first.
        let again = SettlementRow {
            nonce: U256::from(8),
            ..settlement
        };
        store.begin_settlement(&again, &open, 2).await.unwrap();
        let in_part = SettlementOutcome::PaidInPart(U256::from(10));
        store
            .end_settlement(user, again.nonce, in_part)
            .await
            .unwrap();
        let rest = store
            .open_usage()
            .await
            .unwrap()
            .remove(&format!("{user:#x}"))
            .unwrap();
        let fees = [rest[0].fee, rest[0].input_fee, rest[0].output_fee];
        assert_eq!(fees, [U256::from(4), U256::ZERO, U256::from(4)]);
        assert!(store.pending_settlements().await.unwrap().is_empty());

        let last = SettlementRow {
            nonce: U256::from(9),
            ..again
        };
        store.begin_settlement(&last, &rest, 3).await.unwrap();
        store
            .end_settlement(user, last.nonce, SettlementOutcome::Paid)
            .await
            .unwrap();
        assert_eq!(store.unsettled_fee(user).await.unwrap(), U256::ZERO);
        assert!(store.pending_settlements().await.unwrap().is_empty());
    })
    .await;
}
