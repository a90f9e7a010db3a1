//! Training on a CUDA device, with emulated libraries of NVIDIA's, against training on the processor.

use super::emulator::{self, Order};
use super::*;
use crate::parity::{Place, check_where};
use zerog_model::cuda::{Cuda, Libraries};

pub(crate) fn open(order: Order) -> Cuda {
    let folder = emulator::folder(env!("CARGO_TARGET_TMPDIR"), order);
    Cuda::open(0, &Libraries::Folder(folder)).unwrap()
}

/// A device with memory of its own: other tests, which run at the same time, take none of it.
pub(crate) fn open_alone(test: &str) -> Cuda {
    let folder = emulator::folder_of_one_test(env!("CARGO_TARGET_TMPDIR"), test);
    Cuda::open(0, &Libraries::Folder(folder)).unwrap()
}

fn placement(base: &Arc<BaseModel>, order: Order) -> Placement {
    Placement::on_cuda(base, &open(order)).unwrap()
}

/// Three segments, the last longer than a tile of attention.
fn long_batch() -> PackedBatch {
    let mut batch = batch();
    let tokens: Vec<u32> = (0..39).map(|token| token * 7 % 29).collect();
    let marks: Vec<bool> = (0..39).map(|token| token % 3 > 0).collect();
    batch.push(&tokens, &marks);
    batch
}

pub(crate) fn config_of(family: ModelFamily) -> ModelConfig {
    let config = tiny_config(family != ModelFamily::Qwen2);
    ModelConfig {
        head_norms: family == ModelFamily::Qwen3,
        biases: Biases {
            query_key_value: family == ModelFamily::Qwen2,
            ..Biases::default()
        },
        family,
        ..config
    }
}

/// Losses of a training and an evaluation pass, and the gradients.
fn pass(
    model: &mut TrainableModel,
    batch: &PackedBatch,
    options: &StepOptions,
) -> (f64, f64, Vec<f32>) {
    model.zero_gradients();
    let trained = model.forward_backward(batch, options).unwrap();
    let evaluated = model.eval_loss(batch).unwrap();
    assert_eq!(trained.supervised_tokens, batch.supervised_tokens());
    let names: Vec<String> = model.parameters().names().map(str::to_owned).collect();
    let gradients = names
        .iter()
        .flat_map(|name| model.parameters().gradient(name).unwrap().to_vec())
        .collect();
    (trained.loss_sum, evaluated.loss_sum, gradients)
}

pub(crate) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |size, value| size.max(value.abs()))
}

fn assert_same(
    what: &str,
    device: &(f64, f64, Vec<f32>),
    host: &(f64, f64, Vec<f32>),
    tolerance: f64,
) {
    for (device, host) in [(device.0, host.0), (device.1, host.1)] {
        assert!(
            (device - host).abs() <= tolerance * host.abs(),
            "{what}: {device} {host}"
        );
    }
    let limit = tolerance as f32 * largest(&host.2);
    assert!(limit > 0.0, "{what}: no gradient");
    for (index, (device, host)) in device.2.iter().zip(&host.2).enumerate() {
        assert!(
            (device - host).abs() <= limit,
            "{what}, {index}: {device} {host}"
        );
    }
}

/// Compares passes of a few batches, with updates between them.
fn compare_passes(family: ModelFamily, lora: LoraConfig, order: Order) {
    let base = BaseModel::init_random(config_of(family), 3).unwrap();
    let mut host = trained(&base, lora.clone());
    let mut device = TrainableModel::lora(base.clone(), lora).unwrap();
    device.import_state(&host.export_state()).unwrap();
    device.place(&placement(&base, order)).unwrap();
    for (number, batch) in [long_batch(), batch()].iter().enumerate() {
        let options = StepOptions {
            batch_number: number as u64,
            neftune_alpha: 5.0,
        };
        let what = format!("{family:?}, batch {number}, {order:?}");
        let of_host = pass(&mut host, batch, &options);
        assert_same(&what, &pass(&mut device, batch, &options), &of_host, 2e-5);
        for model in [&mut host, &mut device] {
            model.apply_update(&update(0.05, 0.01));
        }
    }
}

#[test]
fn passes_of_every_family_agree_with_the_processors() {
    for family in [ModelFamily::Qwen2, ModelFamily::Qwen3, ModelFamily::Llama] {
        let lora = LoraConfig {
            dropout: 0.3,
            ..lora_config()
        };
        compare_passes(family, lora, Order::Forward);
    }
}

#[test]
fn the_order_in_which_threads_run_changes_nothing() {
    compare_passes(ModelFamily::Qwen3, lora_config(), Order::Reversed);
}

#[test]
fn trained_lengths_with_and_without_dropout_and_adapters_on_some_layers() {
    for dropout in [0.0, 0.3] {
        let lora = LoraConfig {
            dropout,
            dora: true,
            rank_stabilized: true,
            ..lora_config()
        };
        compare_passes(ModelFamily::Qwen2, lora, Order::Forward);
    }
    let some = LoraConfig {
        targets: targets(&[Projection::Value, Projection::Down]),
        ..lora_config()
    };
    compare_passes(ModelFamily::Llama, some, Order::Forward);
}

/// A run of 50 steps that the reference libraries recorded. Of the cases that the processor repeats, those that differ
/// in what is computed.
fn repeat(case: &str) {
    check_where(case, &open(Order::Forward));
}

impl Place for Cuda {
    fn decoder(&self, base: &Arc<BaseModel>) -> Result<Placement, ModelError> {
        Placement::on_cuda(base, self)
    }

    fn encoder(&self, base: &Arc<ClassifierBase>) -> Result<Placement, ModelError> {
        Placement::of_classifier_on_cuda(base, self)
    }
}

#[test]
fn a_recorded_run_with_an_untied_head_and_rslora_is_repeated() {
    repeat("qwen2-untied-rslora");
}

#[test]
fn a_recorded_run_with_normalised_heads_is_repeated() {
    repeat("qwen3");
}

#[test]
fn a_recorded_run_with_all_biases_is_repeated() {
    repeat("llama-biases");
}

#[test]
fn a_recorded_run_of_dora_is_repeated() {
    repeat("qwen2-dora");
}

#[test]
fn a_recorded_run_on_preferences_is_repeated() {
    repeat("qwen3-dpo");
}

#[test]
fn a_recorded_run_of_a_classifier_is_repeated() {
    repeat("distilbert");
}

#[test]
fn a_recorded_run_of_a_classifier_with_adapted_feed_forward_is_repeated() {
    repeat("distilbert-all-linear");
}

#[test]
fn preferences_agree_with_the_processors() {
    let base = tiny_base(true);
    let mut host = trained(&base, lora_config());
    let mut device = TrainableModel::lora(base.clone(), lora_config()).unwrap();
    device.import_state(&host.export_state()).unwrap();
    device.place(&placement(&base, Order::Forward)).unwrap();
    let mut pairs = PreferenceBatch::default();
    pairs.push(
        (&[3, 9, 4, 1], &[false, false, true, true]),
        (&[3, 9, 8], &[false, false, true]),
    );
    pairs.push(
        (&[5, 2, 2], &[false, true, true]),
        (&[5, 11, 12], &[false, true, true]),
    );
    let options = StepOptions::default();
    let mut results = Vec::new();
    for model in [&mut host, &mut device] {
        let trained = model
            .preference_forward_backward(&pairs, 0.3, &options)
            .unwrap();
        let evaluated = model.preference_eval(&pairs, 0.3).unwrap();
        results.push((trained, evaluated, model.gradient_norm()));
    }
    let (host, device) = (results[0], results[1]);
    assert!(
        host.2 > 0.0 && (host.2 - device.2).abs() < 1e-4 * host.2,
        "{results:?}"
    );
    for (host, device) in [(host.0, device.0), (host.1, device.1)] {
        assert!(
            (host.loss_sum - device.loss_sum).abs() < 1e-5,
            "{results:?}"
        );
        assert!(
            (host.reward_sum - device.reward_sum).abs() < 1e-5,
            "{results:?}"
        );
        assert_eq!((host.pairs, host.correct), (device.pairs, device.correct));
    }
}

#[test]
fn the_same_calls_give_the_same_bits_and_take_no_more_memory() {
    let base = tiny_base(true);
    let cuda = open_alone("same-calls");
    let placement = Placement::on_cuda(&base, &cuda).unwrap();
    let lora = LoraConfig {
        dropout: 0.2,
        ..lora_config()
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let run = || {
            let mut model = TrainableModel::lora(base.clone(), lora.clone()).unwrap();
            model.set_precision(precision);
            model.place(&placement).unwrap();
            let mut free = Vec::new();
            for number in 0..6 {
                let batch = if number == 0 { long_batch() } else { batch() };
                step(&mut model, &batch, number, 0.02);
                free.push(placement.free_bytes().unwrap().unwrap());
            }
            assert!(free.iter().all(|bytes| *bytes == free[0]), "{free:?}");
            model.export_state()
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn rounded_activations_stay_near_single_precision_and_learn() {
    let base = tiny_base(false);
    let place = placement(&base, Order::Forward);
    let model = |precision| {
        let mut model = TrainableModel::lora(base.clone(), lora_config()).unwrap();
        model.set_precision(precision);
        model.place(&place).unwrap();
        model
    };
    let (mut rounded, mut single) = (model(Precision::Bf16), model(Precision::F32));
    let options = StepOptions::default();
    let of_rounded = pass(&mut rounded, &long_batch(), &options);
    let of_single = pass(&mut single, &long_batch(), &options);
    assert_ne!(of_rounded.2, of_single.2);
    assert_same("rounded", &of_rounded, &of_single, 0.03);
    rounded.zero_gradients();
    let first = step(&mut rounded, &batch(), 0, 0.02);
    let last = (1..20)
        .map(|number| step(&mut rounded, &batch(), number, 0.02))
        .last()
        .unwrap();
    assert!(last < first - 0.2, "{first} {last}");
}

#[test]
fn what_a_device_does_not_train_is_refused() {
    let base = tiny_base(true);
    let on_device = placement(&base, Order::Forward);
    let error = TrainableModel::full(&base, 1)
        .place(&on_device)
        .unwrap_err();
    assert!(matches!(error, ModelError::WrongMode { .. }), "{error}");
    let error = Placement::on_cuda(&base.quantized(), &open(Order::Forward)).unwrap_err();
    assert!(error.to_string().contains("8 bits"), "{error}");
    let mut config = tiny_config(true);
    config.head_size = 260;
    let base = BaseModel::init_random(config, 1).unwrap();
    let on_device = placement(&base, Order::Forward);
    let error = TrainableModel::lora(base, lora_config())
        .unwrap()
        .place(&on_device)
        .unwrap_err();
    assert!(error.to_string().contains("260"), "{error}");
}
