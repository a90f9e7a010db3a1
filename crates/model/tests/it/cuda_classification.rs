//! Training classifiers on a CUDA device, with emulated libraries of NVIDIA's, against training on the processor.

use super::classification::{base, fixture, settings, texts, train};
use super::cuda::{largest, open, open_alone};
use super::emulator::Order;
use super::*;
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

const CLASSES: usize = 3;

/// Texts of which one has several tiles of attention, one is a single token, and one is the longest that is possible.
fn long_texts() -> ClassifierBatch {
    let mut batch = texts();
    for (number, length) in [33_u32, 1, 64].into_iter().enumerate() {
        let tokens: Vec<u32> = (0..length).map(|index| index * 13 % 96).collect();
        batch.push(&tokens, (number % CLASSES) as u32);
    }
    batch
}

/// Targets of every linear layer.
fn every_target() -> LoraConfig {
    LoraConfig {
        targets: targets(&[
            Projection::Query,
            Projection::Key,
            Projection::Value,
            Projection::Output,
            Projection::Up,
            Projection::Down,
        ]),
        ..settings()
    }
}

/// A classifier that was trained for a few steps, so that no matrix is zero, on the processor and a copy in `order`.
fn pair(
    base: &Arc<ClassifierBase>,
    lora: &LoraConfig,
    order: Order,
) -> (TrainableClassifier, TrainableClassifier) {
    let new = || TrainableClassifier::new(base.clone(), lora.clone(), CLASSES).unwrap();
    let (mut host, mut device) = (new(), new());
    train(&mut host, 0..5);
    device.import_state(&host.export_state()).unwrap();
    let placement = Placement::of_classifier_on_cuda(base, &open(order)).unwrap();
    assert!(placement.is_on_device());
    device.place(&placement).unwrap();
    (host, device)
}

/// The loss and the gradients of a training pass, and logits with the adapter and without.
fn pass(
    model: &mut TrainableClassifier,
    batch: &ClassifierBatch,
    options: &StepOptions,
) -> (f64, Vec<Vec<f32>>) {
    model.zero_gradients();
    let loss = model.forward_backward(batch, options).unwrap();
    assert_eq!(loss.supervised_tokens, batch.labels.len());
    let names: Vec<String> = model.parameters().names().map(str::to_owned).collect();
    let gradient = |name: &String| model.parameters().gradient(name).unwrap().to_vec();
    let mut numbers = vec![names.iter().flat_map(gradient).collect()];
    for adapter in [AdapterUse::With, AdapterUse::Without] {
        numbers.push(model.logits(batch, adapter).unwrap().concat());
    }
    (loss.loss_sum, numbers)
}

fn assert_same(
    what: &str,
    device: &(f64, Vec<Vec<f32>>),
    host: &(f64, Vec<Vec<f32>>),
    tolerance: f32,
) {
    assert!(
        (device.0 - host.0).abs() <= f64::from(tolerance) * host.0.abs(),
        "{what}: {} {}",
        device.0,
        host.0
    );
    for (part, (device, host)) in device.1.iter().zip(&host.1).enumerate() {
        let limit = tolerance * largest(host);
        assert!(limit > 0.0 && device.len() == host.len(), "{what}, {part}");
        for (index, (device, host)) in device.iter().zip(host).enumerate() {
            assert!(
                (device - host).abs() <= limit,
                "{what}, {part}, {index}: {device} {host}"
            );
        }
    }
}

/// Compares passes of a few batches, with updates between them.
fn compare_passes(base: &Arc<ClassifierBase>, lora: &LoraConfig, order: Order) {
    let (mut host, mut device) = pair(base, lora, order);
    for (number, batch) in [long_texts(), texts()].iter().enumerate() {
        let options = StepOptions {
            batch_number: number as u64,
            neftune_alpha: 5.0,
        };
        let what = format!("batch {number}, {order:?}, {lora:?}");
        let of_host = pass(&mut host, batch, &options);
        assert_same(&what, &pass(&mut device, batch, &options), &of_host, 2e-5);
        for model in [&mut host, &mut device] {
            model.apply_update(&update(0.05, 0.01));
        }
    }
}

/// A model with the tensors of the fixture's as `change` makes them of shapes and numbers, and the text `config`.
fn changed_base(
    folder: &Path,
    config: &str,
    kind: Dtype,
    change: impl Fn(&mut [usize], &[f32]) -> Vec<u8>,
) -> Arc<ClassifierBase> {
    let bytes = std::fs::read(fixture().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, tensor)| {
            let (values, _) = tensor.data().as_chunks::<4>();
            let values: Vec<f32> = values.iter().copied().map(f32::from_le_bytes).collect();
            let mut shape = tensor.shape().to_vec();
            let data = change(&mut shape, &values);
            (name.to_owned(), shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = TensorView::new(kind, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    ClassifierBase::load(folder).unwrap()
}

fn fixture_config() -> String {
    std::fs::read_to_string(fixture().join("config.json")).unwrap()
}

/// The fixture's model with its numbers in bf16.
fn rounded_base(folder: &Path) -> Arc<ClassifierBase> {
    changed_base(folder, &fixture_config(), Dtype::BF16, |_, values| {
        let narrow = values.iter().map(|value| bf16::from_f32(*value));
        narrow.flat_map(bf16::to_le_bytes).collect()
    })
}

#[test]
fn passes_agree_with_the_processors() {
    let lora = LoraConfig {
        dropout: 0.3,
        ..every_target()
    };
    compare_passes(&base(), &lora, Order::Forward);
}

#[test]
fn the_order_in_which_threads_run_changes_nothing() {
    compare_passes(&base(), &every_target(), Order::Reversed);
}

#[test]
fn trained_lengths_with_and_without_dropout_and_adapters_on_some_layers() {
    for dropout in [0.0, 0.3] {
        let lora = LoraConfig {
            dropout,
            dora: true,
            rank_stabilized: true,
            ..every_target()
        };
        compare_passes(&base(), &lora, Order::Forward);
    }
    let some = LoraConfig {
        targets: targets(&[Projection::Value, Projection::Down]),
        ..settings()
    };
    compare_passes(&base(), &some, Order::Forward);
}

#[test]
fn weights_in_bf16_are_used_exactly_or_with_rounded_activations() {
    let folder = tempfile::tempdir().unwrap();
    let base = rounded_base(folder.path());
    compare_passes(&base, &every_target(), Order::Forward);

    let (mut single, mut rounded) = pair(&base, &every_target(), Order::Forward);
    rounded.set_precision(Precision::Bf16);
    let options = StepOptions::default();
    let of_single = pass(&mut single, &long_texts(), &options);
    let of_rounded = pass(&mut rounded, &long_texts(), &options);
    assert_ne!(of_rounded.1, of_single.1);
    assert_same("rounded", &of_rounded, &of_single, 0.05);
}

#[test]
fn gradients_are_added_to_those_of_earlier_calls() {
    let (_, mut model) = pair(&base(), &settings(), Order::Forward);
    let options = StepOptions::default();
    let once = pass(&mut model, &texts(), &options);
    model.forward_backward(&texts(), &options).unwrap();
    let norm = model.gradient_norm();
    let expected = 2.0
        * once.1[0]
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
    assert!(
        (norm - expected).abs() < 1e-5 * expected,
        "{norm} {expected}"
    );
}

#[test]
fn a_classifier_learns_on_a_device_and_goes_on_on_the_processor() {
    let base = base();
    let cuda = open(Order::Forward);
    let placement = Placement::of_classifier_on_cuda(&base, &cuda).unwrap();
    let new = || TrainableClassifier::new(base.clone(), settings(), 2).unwrap();
    let mut model = new();
    model.place(&placement).unwrap();
    let first = train(&mut model, 0..1);
    train(&mut model, 1..20);
    let state = model.export_state();
    let last = train(&mut model, 20..40);
    assert!(first > 0.6 && last < 0.1, "{first} {last}");

    let mut resumed = new();
    resumed.import_state(&state).unwrap();
    let on_processor = train(&mut resumed, 20..40);
    assert!((on_processor - last).abs() < 0.02, "{on_processor} {last}");
    // Back from the device, the passes are the processor's again.
    resumed.place(&placement).unwrap();
    resumed.place(&Placement::default()).unwrap();
    let mut other = new();
    other.import_state(&resumed.export_state()).unwrap();
    let logits = |model: &mut TrainableClassifier| model.logits(&texts(), AdapterUse::With);
    assert_eq!(logits(&mut resumed).unwrap(), logits(&mut other).unwrap());
}

#[test]
fn the_same_calls_give_the_same_bits_and_take_no_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let base = rounded_base(folder.path());
    let cuda = open_alone("same-classifications");
    let placement = Placement::of_classifier_on_cuda(&base, &cuda).unwrap();
    let lora = LoraConfig {
        dropout: 0.2,
        ..every_target()
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let run = || {
            let mut model = TrainableClassifier::new(base.clone(), lora.clone(), CLASSES).unwrap();
            model.set_precision(precision);
            model.place(&placement).unwrap();
            let mut free = Vec::new();
            let mut logits = Vec::new();
            for number in 0..6 {
                let options = StepOptions {
                    batch_number: number,
                    neftune_alpha: 5.0,
                };
                let batch = if number == 0 { long_texts() } else { texts() };
                model.forward_backward(&batch, &options).unwrap();
                model.apply_update(&update(0.05, 0.02));
                logits.push(model.logits(&batch, AdapterUse::With).unwrap());
                free.push(placement.free_bytes().unwrap().unwrap());
            }
            assert!(free.iter().all(|bytes| *bytes == free[0]), "{free:?}");
            (model.export_state(), logits)
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn heads_that_are_too_large_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // One head as wide as the states.
    let config = fixture_config()
        .replace("\"dim\": 32", "\"dim\": 288")
        .replace("\"n_heads\": 4", "\"n_heads\": 1");
    let base = changed_base(folder.path(), &config, Dtype::F32, |shape, _| {
        for size in shape.iter_mut().filter(|size| **size == 32) {
            *size = 288;
        }
        vec![0; 4 * shape.iter().product::<usize>()]
    });
    let placement = Placement::of_classifier_on_cuda(&base, &open(Order::Forward)).unwrap();
    let error = TrainableClassifier::new(base, settings(), 2)
        .unwrap()
        .place(&placement)
        .unwrap_err();
    assert!(error.to_string().contains("288"), "{error}");
}
