//! No adapter counts as loaded unless it does what it did after training.

use zerog_inference::engine::EngineConfig;
use zerog_inference::{Canary, CanaryCheck, CanaryError, EngineHandle, LoadError};

use crate::world::{
    adapter, adapter_files, config, endless, load, load_files, model_with_seed, start, tokenizer,
    until,
};

async fn recorded(engine: &EngineHandle, seed: u32) -> Canary {
    let prompts = vec![
        b"probe one".map(u32::from).to_vec(),
        b"another".map(u32::from).to_vec(),
    ];
    engine
        .record_canary(prompts, adapter(engine, seed))
        .await
        .unwrap()
}

async fn refused(engine: &EngineHandle, seed: u32, canary: Canary) -> CanaryError {
    match engine
        .load_adapter("ft-x", adapter(engine, seed), CanaryCheck::Run(canary))
        .await
    {
        Err(LoadError::Canary(error)) => {
            assert!(
                !engine.has_adapter("ft-x"),
                "a refused adapter is not loaded"
            );
            error
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_true_record_loads_and_says_what_it_measured() {
    let engine = start(config());
    let canary = recorded(&engine, 1).await;
    let text = serde_json::to_string(&canary).unwrap();
    let canary = Canary::parse(text.as_bytes()).unwrap();
    assert!(matches!(
        Canary::parse(b"{}"),
        Err(CanaryError::Unusable { .. })
    ));
    let files = adapter_files(1, 16.0);
    let report = load_files(&engine, "ft-x", files, CanaryCheck::Run(canary))
        .await
        .unwrap();
    let measured = report.canary.unwrap();
    assert_eq!(measured.probes, 2);
    assert!(
        measured.largest_error < 1e-3 && measured.largest_effect > 0.01,
        "{measured:?}"
    );
    assert_eq!(engine.list()[0].id, "ft-x");
    assert!(engine.unload_adapter("ft-x") && !engine.unload_adapter("ft-x"));
}

#[tokio::test]
async fn another_adapter_another_scale_and_another_base_are_refused() {
    let engine = start(config());
    let canary = recorded(&engine, 1).await;
    assert!(matches!(
        refused(&engine, 2, canary.clone()).await,
        CanaryError::AdapterDiffers { .. }
    ));
    let files = adapter_files(1, 64.0);
    let scaled = load_files(&engine, "ft-x", files, CanaryCheck::Run(canary.clone())).await;
    assert!(
        matches!(
            scaled,
            Err(LoadError::Canary(CanaryError::AdapterDiffers { .. }))
        ),
        "{scaled:?}"
    );
    let other_base = zerog_inference::engine::start(
        model_with_seed(6),
        std::sync::Arc::new(tokenizer()),
        config(),
    )
    .unwrap();
    assert!(matches!(
        refused(&other_base, 1, canary.clone()).await,
        CanaryError::WrongBase { .. }
    ));
    // The same lie with a forged hash meets the logits of the base.
    let forged = Canary {
        base_model_sha256: other_base.model().sha256_hex(),
        ..canary
    };
    assert!(matches!(
        refused(&other_base, 1, forged).await,
        CanaryError::BaseDiffers { .. }
    ));
}

#[tokio::test]
async fn an_adapter_without_effect_is_refused() {
    let engine = start(config());
    let (settings, weights) = adapter_files(1, 1e-9);
    let weak =
        zerog_model::LoraAdapter::from_bytes(&settings, &weights, engine.model().config()).unwrap();
    let weak = std::sync::Arc::new(weak);
    let canary = engine
        .record_canary(vec![vec![1, 2, 3]], weak.clone())
        .await
        .unwrap();
    let result = engine
        .load_adapter("ft-x", weak, CanaryCheck::Run(canary))
        .await;
    assert!(
        matches!(result, Err(LoadError::Canary(CanaryError::NoEffect { .. }))),
        "{result:?}"
    );
}

#[tokio::test]
async fn the_least_recently_used_leaves_but_never_one_in_use() {
    let engine = start(EngineConfig {
        max_adapters: 2,
        ..config()
    });
    load(&engine, "ft-a", 1).await;
    load(&engine, "ft-b", 2).await;
    let mut busy = engine
        .generate(endless("busy", Some("ft-a"), 4000))
        .unwrap();
    assert!(busy.next().await.is_some());
    let report = engine
        .load_adapter("ft-c", adapter(&engine, 3), CanaryCheck::PassedBefore)
        .await
        .unwrap();
    assert_eq!(report.evicted, ["ft-b"]);
    let mut also_busy = engine
        .generate(endless("busy", Some("ft-c"), 4000))
        .unwrap();
    assert!(also_busy.next().await.is_some());
    let full = engine
        .load_adapter("ft-d", adapter(&engine, 4), CanaryCheck::PassedBefore)
        .await;
    assert!(matches!(full, Err(LoadError::NoRoom(_))), "{full:?}");
    // Unloading a used adapter lets its request finish.
    assert!(engine.unload_adapter("ft-a"));
    assert!(busy.next().await.is_some());
    drop((busy, also_busy));
    until(&engine, |engine| {
        engine.list().iter().all(|adapter| adapter.in_use == 0)
    })
    .await;
    load(&engine, "ft-d", 4).await;
    assert_eq!(
        engine
            .list()
            .iter()
            .map(|adapter| adapter.id.as_str())
            .collect::<Vec<_>>(),
        ["ft-c", "ft-d"]
    );
}
