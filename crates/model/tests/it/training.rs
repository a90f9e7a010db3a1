//! Learning, accumulation, determinism and resume.

use super::*;

#[test]
fn an_adapter_memorises_a_sequence() {
    // The head of a random model is too small to say anything with certainty, so the base learns to count first.
    let config = ModelConfig {
        hidden_size: 48,
        intermediate_size: 64,
        ..tiny_config(true)
    };
    let mut full = TrainableModel::full(&BaseModel::init_random(config, 2).unwrap(), 0);
    let mut counting = PackedBatch::default();
    counting.push(&(0..29).collect::<Vec<u32>>(), &[true; 29]);
    for number in 0..150 {
        step(&mut full, &counting, number, 0.01);
    }
    let base = Arc::new(full.to_base_model().unwrap());
    let mut model = TrainableModel::lora(base, lora_config()).unwrap();
    let tokens = [4, 17, 2, 25, 11, 8, 8, 19, 0, 6];
    let mut batch = PackedBatch::default();
    batch.push(&tokens, &[true; 10]);
    let first = step(&mut model, &batch, 0, 0.02);
    for number in 1..300 {
        step(&mut model, &batch, number, 0.02);
    }
    let last = model.eval_loss(&batch).unwrap().mean();
    assert!(
        first > 3.0,
        "the base model has another order in mind: {first}"
    );
    assert!(last < 0.1, "{last}");
    for length in 1..10 {
        let logits = model.logits(&tokens[..length], AdapterUse::With).unwrap();
        let best = Sampler::new(SamplingParams::default(), &[])
            .sample(&logits)
            .token;
        assert_eq!(best, tokens[length]);
    }
}

#[test]
fn full_training_memorises_and_saves_a_model_that_loads() {
    let mut model = TrainableModel::full(&tiny_base(true), 0);
    assert_eq!(
        model.trainable_parameters(),
        tiny_config(true).parameter_count()
    );
    for number in 0..120 {
        step(&mut model, &batch(), number, 0.01);
    }
    let loss = model.eval_loss(&batch()).unwrap().mean();
    assert!(loss < 0.3, "{loss}");
    let directory = tempfile::tempdir().unwrap();
    model.save_base_model(directory.path()).unwrap();
    let loaded = BaseModel::load(directory.path()).unwrap();
    assert_eq!(loaded.sha256(), model.to_base_model().unwrap().sha256());
    let reloaded = TrainableModel::full(&loaded, 0)
        .eval_loss(&batch())
        .unwrap()
        .mean();
    assert!(
        (reloaded - loss).abs() < 0.02,
        "only rounding to bf16 differs: {reloaded} {loss}"
    );
}

#[test]
fn a_new_adapter_changes_nothing() {
    let model = TrainableModel::lora(tiny_base(false), lora_config()).unwrap();
    let (with, without) = (AdapterUse::With, AdapterUse::Without);
    assert_eq!(
        model.logits(&[1, 2, 3], with).unwrap(),
        model.logits(&[1, 2, 3], without).unwrap()
    );
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    let base = tiny_base(true);
    let whole = batch();
    let cut = 6;
    let parts = [
        PackedBatch {
            tokens: whole.tokens[..cut].to_vec(),
            segment_lengths: vec![cut],
            targets: whole.targets[..cut].to_vec(),
        },
        PackedBatch {
            tokens: whole.tokens[cut..].to_vec(),
            segment_lengths: vec![4],
            targets: whole.targets[cut..].to_vec(),
        },
    ];
    let mut together = trained(&base, lora_config());
    let mut apart = trained(&base, lora_config());
    let options = StepOptions::default();
    let loss = together.forward_backward(&whole, &options).unwrap();
    let mut sum = StepLoss::default();
    for part in &parts {
        sum.add(apart.forward_backward(part, &options).unwrap());
    }
    assert_eq!(sum.supervised_tokens, loss.supervised_tokens);
    assert!((sum.loss_sum - loss.loss_sum).abs() < 1e-5);
    let (a, b) = (together.gradient_norm(), apart.gradient_norm());
    assert!(a > 0.0 && (a - b).abs() < 1e-5 * a, "{a} {b}");
}

#[test]
fn a_resumed_run_continues_with_the_same_bits() {
    let base = tiny_base(true);
    let config = LoraConfig {
        dropout: 0.2,
        ..lora_config()
    };
    let run = |model: &mut TrainableModel, from: u64, to: u64| {
        for batch_number in from..to {
            let options = StepOptions {
                batch_number,
                neftune_alpha: 3.0,
            };
            let loss = model.forward_backward(&batch(), &options).unwrap();
            let scale = model.clipped_scale(loss.supervised_tokens, Some(0.5)).scale;
            model.apply_update(&update(scale, 0.01));
        }
    };
    let mut straight = TrainableModel::lora(base.clone(), config.clone()).unwrap();
    run(&mut straight, 0, 8);
    let mut first = TrainableModel::lora(base.clone(), config.clone()).unwrap();
    run(&mut first, 0, 3);
    let state = first.export_state();
    let mut second = TrainableModel::lora(base.clone(), LoraConfig { ..config.clone() }).unwrap();
    second.import_state(&state).unwrap();
    assert_eq!(second.updates(), 3);
    run(&mut second, 3, 8);
    assert_eq!(second.export_state(), straight.export_state());

    let mut other = TrainableModel::lora(base, LoraConfig { rank: 4, ..config }).unwrap();
    assert!(matches!(
        other.import_state(&state),
        Err(ModelError::StateMismatch { .. })
    ));
    assert!(matches!(
        second.import_state(&state[..50]),
        Err(ModelError::StateMismatch { .. })
    ));
    assert!(matches!(
        second.import_state(b"short"),
        Err(ModelError::StateMismatch { .. })
    ));
}

/// Layers that are computed a second time leave the same gradients, dropout, noise and trained lengths included.
#[test]
fn bits_do_not_depend_on_what_is_kept() {
    let adapted = |head_norms, lora: LoraConfig| {
        let config = ModelConfig {
            head_norms,
            ..tiny_config(true)
        };
        TrainableModel::lora(BaseModel::init_random(config, 3).unwrap(), lora).unwrap()
    };
    let dropout = LoraConfig {
        dropout: 0.3,
        ..lora_config()
    };
    let lengths = LoraConfig {
        dora: true,
        ..dropout.clone()
    };
    let models: [&dyn Fn() -> TrainableModel; 3] = [
        &|| adapted(false, lengths.clone()),
        &|| adapted(true, dropout.clone()),
        &|| TrainableModel::full(&tiny_base(false), 4),
    ];
    let options = StepOptions {
        batch_number: 3,
        neftune_alpha: 5.0,
    };
    for model in models {
        let run = |recompute| {
            let mut model = model();
            for number in 0..3 {
                step(&mut model, &batch(), number, 0.02);
            }
            model.set_recompute(recompute);
            let losses = [
                model.forward_backward(&batch(), &options).unwrap(),
                model.eval_loss(&batch()).unwrap(),
                model.forward_backward(&batch(), &options).unwrap(),
            ];
            let norm = model.gradient_norm();
            model.apply_update(&update(0.05, 0.01));
            (losses.map(|loss| loss.loss_sum), norm, model.export_state())
        };
        assert!(run(true) == run(false));
    }
}

/// The same of pairs of answers.
#[test]
fn bits_of_preferences_do_not_depend_on_what_is_kept() {
    let base = tiny_base(true);
    let mut pairs = PreferenceBatch::default();
    pairs.push(
        (&[3, 9, 9, 14], &[false, false, true, true]),
        (&[3, 9, 8], &[false, false, true]),
    );
    let run = |recompute| {
        let mut model = trained(&base, lora_config());
        model.set_recompute(recompute);
        let options = StepOptions::default();
        let loss = model
            .preference_forward_backward(&pairs, 0.3, &options)
            .unwrap();
        model.apply_update(&update(1.0, 0.01));
        (loss.loss_sum, model.export_state())
    };
    assert!(run(true) == run(false));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let config = ModelConfig {
        hidden_size: 64,
        intermediate_size: 160,
        layers: 3,
        ..tiny_config(true)
    };
    let base = BaseModel::init_random(config, 1).unwrap();
    let mut long = PackedBatch::default();
    for segment in 0..8_u32 {
        let tokens: Vec<u32> = (0..60)
            .map(|index| (index * 7 + segment * 5) % 29)
            .collect();
        long.push(&tokens, &[true; 60]);
    }
    let run = |threads: usize, full: bool| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut model = if full {
                TrainableModel::full(&base, 0)
            } else {
                TrainableModel::lora(
                    base.clone(),
                    LoraConfig {
                        dropout: 0.1,
                        ..lora_config()
                    },
                )
                .unwrap()
            };
            for number in 0..3 {
                step(&mut model, &long, number, 0.01);
            }
            model.export_state()
        })
    };
    for full in [false, true] {
        let one = run(1, full);
        assert!(one == run(2, full) && one == run(3, full), "full: {full}");
    }
}

#[test]
fn segments_do_not_see_each_other() {
    let base = tiny_base(true);
    let mut model = trained(&base, lora_config());
    let mut alone = StepLoss::default();
    for (tokens, trained) in [
        (
            &[3, 9, 9, 14, 28, 1][..],
            &[false, false, true, true, true, true][..],
        ),
        (&[7, 0, 21, 5], &[true; 4]),
    ] {
        let mut batch = PackedBatch::default();
        batch.push(tokens, trained);
        alone.add(model.eval_loss(&batch).unwrap());
    }
    let packed = model.eval_loss(&batch()).unwrap();
    assert_eq!(packed.supervised_tokens, alone.supervised_tokens);
    assert!((packed.loss_sum - alone.loss_sum).abs() < 1e-5);
}

#[test]
fn impossible_batches_and_settings_are_refused() {
    let base = tiny_base(true);
    let mut model = TrainableModel::lora(base.clone(), lora_config()).unwrap();
    let good = batch();
    let mut refused = |change: &dyn Fn(&mut PackedBatch)| {
        let mut batch = good.clone();
        change(&mut batch);
        model
            .forward_backward(&batch, &StepOptions::default())
            .unwrap_err()
    };
    assert!(matches!(
        refused(&|batch| *batch = PackedBatch::default()),
        ModelError::EmptyBatch
    ));
    assert!(matches!(
        refused(&|batch| batch.segment_lengths[0] = 5),
        ModelError::BatchLengths { .. }
    ));
    assert!(matches!(
        refused(&|batch| batch.tokens[0] = 29),
        ModelError::TokenOutOfRange { token: 29, .. }
    ));
    assert!(matches!(
        refused(&|batch| batch.targets[0] = -1),
        ModelError::TokenOutOfRange { token: -1, .. }
    ));
    let long = |batch: &mut PackedBatch| {
        *batch = PackedBatch::default();
        batch.push(&[1; 65], &[true; 65]);
    };
    assert!(matches!(
        refused(&long),
        ModelError::SequenceTooLong {
            tokens: 65,
            limit: 64
        }
    ));

    let invalid = |config: LoraConfig| TrainableModel::lora(base.clone(), config).unwrap_err();
    assert!(matches!(
        invalid(LoraConfig {
            rank: 0,
            ..lora_config()
        }),
        ModelError::InvalidLora {
            setting: "rank",
            ..
        }
    ));
    assert!(matches!(
        invalid(LoraConfig {
            dropout: 1.0,
            ..lora_config()
        }),
        ModelError::InvalidLora {
            setting: "dropout",
            ..
        }
    ));
    assert!(matches!(
        invalid(LoraConfig {
            targets: targets(&[]),
            ..lora_config()
        }),
        ModelError::InvalidLora {
            setting: "target_modules",
            ..
        }
    ));
    assert!(matches!(
        model.to_base_model(),
        Err(ModelError::WrongMode { .. })
    ));
    assert!(matches!(
        TrainableModel::full(&base, 0).adapter(),
        Err(ModelError::WrongMode { .. })
    ));
}
