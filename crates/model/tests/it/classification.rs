//! Classifiers beyond what the comparison with PEFT covers: learning, resume, files, refusals.

use super::*;
use safetensors::SafeTensors;
use std::path::Path;

pub(crate) fn base() -> Arc<ClassifierBase> {
    ClassifierBase::load(&fixture()).unwrap()
}

pub(crate) fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity/distilbert/base")
}

pub(crate) fn settings() -> LoraConfig {
    LoraConfig {
        rank: 4,
        dropout: 0.1,
        targets: targets(&[
            Projection::Query,
            Projection::Key,
            Projection::Value,
            Projection::Output,
        ]),
        seed: 3,
        ..LoraConfig::default()
    }
}

/// Texts whose class is whether token 50 is among them.
pub(crate) fn texts() -> ClassifierBatch {
    let mut batch = ClassifierBatch::default();
    for number in 0..12_u32 {
        let mut tokens: Vec<u32> = (0..5 + number % 4)
            .map(|index| (number * 7 + index * 3) % 40)
            .collect();
        if number % 2 == 1 {
            tokens[1 + number as usize % 3] = 50;
        }
        batch.push(&tokens, number % 2);
    }
    batch
}

pub(crate) fn train(model: &mut TrainableClassifier, steps: std::ops::Range<u64>) -> f64 {
    let mut last = 0.0;
    for batch_number in steps {
        let options = StepOptions {
            batch_number,
            neftune_alpha: 1.0,
        };
        let loss = model.forward_backward(&texts(), &options).unwrap();
        let scale = model.clipped_scale(loss.supervised_tokens, Some(1.0)).scale;
        model.apply_update(&update(scale, 0.01));
        last = loss.mean();
    }
    last
}

#[test]
fn a_classifier_learns_with_a_new_head_and_resumes_with_the_same_bits() {
    let mut model = TrainableClassifier::new(base(), settings(), 2).unwrap();
    let first = train(&mut model, 0..1);
    train(&mut model, 1..20);
    let state = model.export_state();
    let last = train(&mut model, 20..40);
    assert!(first > 0.6 && last < 0.1, "{first} {last}");

    let mut resumed = TrainableClassifier::new(base(), settings(), 2).unwrap();
    resumed.import_state(&state).unwrap();
    train(&mut resumed, 20..40);
    assert_eq!(resumed.export_state(), model.export_state());

    let adapter = model.adapter();
    let directory = tempfile::tempdir().unwrap();
    adapter
        .save(directory.path(), &AdapterIdentity::default())
        .unwrap();
    let loaded = LoraAdapter::load_classifier(directory.path(), base().config()).unwrap();
    assert_eq!(loaded.classes(), Some(2));
    let text = [7, 50, 13, 16];
    let alone = base().classify(&loaded, &text).unwrap();
    let mut batch = ClassifierBatch::default();
    batch.push(&text, 1);
    let packed = model.logits(&batch, AdapterUse::With).unwrap().concat();
    for (alone, packed) in alone.iter().zip(&packed) {
        assert!((alone - packed).abs() < 1e-4);
    }
    assert!(alone[1] > alone[0]);
    assert_ne!(
        model.logits(&batch, AdapterUse::Without).unwrap().concat(),
        packed
    );
}

#[test]
fn an_encoder_without_prefix_and_head_loads_and_gets_a_random_head() {
    let bytes = std::fs::read(fixture().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("distilbert.")?, tensor)))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("model.safetensors"),
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();
    std::fs::copy(
        fixture().join("config.json"),
        directory.path().join("config.json"),
    )
    .unwrap();
    let bare = ClassifierBase::load(directory.path()).unwrap();
    let logits = |base: Arc<ClassifierBase>| {
        let mut model = TrainableClassifier::new(base, settings(), 3).unwrap();
        model.logits(&texts(), AdapterUse::With).unwrap()
    };
    let own = logits(bare.clone());
    assert_eq!(own, logits(bare));
    assert_ne!(own, logits(base()), "the folder with a head starts from it");
}

#[test]
fn impossible_texts_and_settings_are_refused() {
    let gate = LoraConfig {
        targets: targets(&[Projection::Gate]),
        ..settings()
    };
    assert!(matches!(
        TrainableClassifier::new(base(), gate, 2),
        Err(ModelError::InvalidLora {
            setting: "target_modules",
            ..
        })
    ));
    let mut model = TrainableClassifier::new(base(), settings(), 2).unwrap();
    let mut refused = |tokens: &[u32], label| {
        let mut batch = texts();
        batch.push(tokens, label);
        model
            .forward_backward(&batch, &StepOptions::default())
            .unwrap_err()
    };
    assert!(matches!(refused(&[], 0), ModelError::EmptyBatch));
    assert!(matches!(
        refused(&[1, 96], 0),
        ModelError::TokenOutOfRange { token: 96, .. }
    ));
    assert!(matches!(
        refused(&[1; 65], 0),
        ModelError::SequenceTooLong { tokens: 65, .. }
    ));
    assert!(matches!(
        refused(&[1], 2),
        ModelError::TokenOutOfRange { token: 2, .. }
    ));
    assert!(matches!(
        ModelConfig::load(&fixture()),
        Err(ModelError::NotADecoder)
    ));
}
