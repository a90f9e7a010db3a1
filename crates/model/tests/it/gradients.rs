//! Whole-model gradients against central finite differences.
//!
//! Parameters are reached through exported state: a header of 32 bytes, then little-endian values. The
//! gradient is read off an update with betas 0 and a huge epsilon, where `value -= lr · g / ε`.

use super::*;

const HEADER: usize = 32;

fn read(state: &[u8], index: usize) -> f32 {
    f32::from_le_bytes(
        state[HEADER + 4 * index..HEADER + 4 * index + 4]
            .try_into()
            .unwrap(),
    )
}

fn with_value(state: &[u8], index: usize, value: f32) -> Vec<u8> {
    let mut state = state.to_vec();
    state[HEADER + 4 * index..HEADER + 4 * index + 4].copy_from_slice(&value.to_le_bytes());
    state
}

/// The gradient of the loss sum for all parameters.
fn gradient(model: &mut TrainableModel, options: &StepOptions) -> Vec<f64> {
    const EPSILON: f32 = 1e6;
    let before = model.export_state();
    model.forward_backward(&batch(), options).unwrap();
    let norm = model.gradient_norm();
    model.apply_update(&UpdateOptions {
        learning_rate: 1e6,
        weight_decay: 0.0,
        betas: (0.0, 0.0),
        epsilon: EPSILON,
        gradient_scale: 1.0,
    });
    let after = model.export_state();
    model.import_state(&before).unwrap();
    let gradient: Vec<f64> = (0..model.trainable_parameters())
        .map(|index| f64::from(read(&before, index) - read(&after, index)))
        .collect();
    let read_norm = gradient
        .iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt();
    assert!((read_norm - norm).abs() < 1e-3 * norm, "{read_norm} {norm}");
    gradient
}

/// Checks every `stride`-th parameter, with noise and dropout repeated exactly.
fn check(model: &mut TrainableModel, options: &StepOptions, stride: usize) {
    const STEP: f32 = 1e-2;
    let gradient = gradient(model, options);
    let state = model.export_state();
    let count = gradient.len();
    let size = (gradient.iter().map(|value| value * value).sum::<f64>() / count as f64).sqrt();
    assert!(size > 1e-4);
    for index in (0..count).step_by(stride) {
        let value = read(&state, index);
        let mut loss = |value: f32| {
            model
                .import_state(&with_value(&state, index, value))
                .unwrap();
            model.forward_backward(&batch(), options).unwrap().loss_sum
        };
        // Two step sizes cancel the cubic term.
        let near = (loss(value + STEP) - loss(value - STEP)) / (2.0 * f64::from(STEP));
        let far = (loss(value + 2.0 * STEP) - loss(value - 2.0 * STEP)) / (4.0 * f64::from(STEP));
        let difference = (4.0 * near - far) / 3.0;
        let error = (difference - gradient[index]).abs();
        assert!(
            error < 0.02 * (size + difference.abs()),
            "{index}: {difference} {}",
            gradient[index]
        );
    }
    model.import_state(&state).unwrap();
}

/// Random weights of deviation 0.02 give tiny gradients in deep places; a few steps make them ordinary.
fn warm_full(tied: bool) -> TrainableModel {
    let mut model = TrainableModel::full(&tiny_base(tied), 1);
    for number in 0..20 {
        step(&mut model, &batch(), number, 0.02);
    }
    model
}

#[test]
fn every_parameter_of_a_tied_model() {
    check(&mut warm_full(true), &StepOptions::default(), 7);
}

#[test]
fn every_parameter_of_an_untied_model_under_noise() {
    check(
        &mut warm_full(false),
        &StepOptions {
            batch_number: 4,
            neftune_alpha: 5.0,
        },
        11,
    );
}

fn warm_lora(config: LoraConfig) -> TrainableModel {
    let base = Arc::new(warm_full(true).to_base_model().unwrap());
    let mut model = TrainableModel::lora(base, config).unwrap();
    let mut other = batch();
    other
        .targets
        .iter_mut()
        .filter(|target| **target >= 0)
        .for_each(|target| *target = (*target + 11) % 29);
    for number in 0..5 {
        step(&mut model, &other, number, 0.02);
    }
    model
}

#[test]
fn adapters_on_all_layers() {
    check(&mut warm_lora(lora_config()), &StepOptions::default(), 3);
}

#[test]
fn adapters_with_dropout_and_noise() {
    let config = LoraConfig {
        dropout: 0.3,
        rank_stabilized: true,
        ..lora_config()
    };
    check(
        &mut warm_lora(config),
        &StepOptions {
            batch_number: 9,
            neftune_alpha: 5.0,
        },
        5,
    );
}

#[test]
fn adapters_on_some_layers() {
    let config = LoraConfig {
        targets: targets(&[Projection::Value, Projection::Down]),
        ..lora_config()
    };
    check(&mut warm_lora(config), &StepOptions::default(), 2);
}

/// The lengths in the denominator count as constants for `A` and `B`, so only the trained lengths have gradients
/// that differences can show; the others are compared with PEFT (`parity`).
#[test]
fn trained_lengths_with_dropout() {
    let config = LoraConfig {
        dropout: 0.3,
        dora: true,
        ..lora_config()
    };
    let mut model = warm_lora(config);
    let options = StepOptions {
        batch_number: 3,
        neftune_alpha: 0.0,
    };
    let names: Vec<String> = model.parameters().names().map(str::to_owned).collect();
    let lengths: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with("lora_magnitude_vector"))
        .collect();
    assert_eq!(lengths.len(), 2 * 7);
    model.zero_gradients();
    model.forward_backward(&batch(), &options).unwrap();
    for name in lengths {
        let values = model.parameters().value(name).unwrap().to_vec();
        let gradient = f64::from(model.parameters().gradient(name).unwrap()[1]);
        let mut loss = |step: f32| {
            let mut moved = values.clone();
            moved[1] += step;
            let mut other = model.parameters().clone();
            model.parameters_mut().set(name, &moved).unwrap();
            let sum = model.forward_backward(&batch(), &options).unwrap().loss_sum;
            std::mem::swap(model.parameters_mut(), &mut other);
            sum
        };
        let difference = (loss(4e-3) - loss(-4e-3)) / 8e-3;
        assert!(
            (difference - gradient).abs() < 0.02 * gradient.abs() + 2e-3,
            "{name}: {difference} {gradient}"
        );
    }
}
