//! The public API on tiny random models: gradients, training, serving, files.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod adapters;
mod classification;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_classification;
#[cfg(feature = "cuda")]
mod cuda_serving;
#[cfg(feature = "cuda")]
#[path = "../../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod files;
mod gradients;
mod parity;
mod placement;
mod serving;
mod training;

use std::collections::BTreeSet;
use std::sync::Arc;
use zerog_model::*;

/// A decoder with grouped queries, odd sizes and a vocabulary of 29.
fn tiny_config(tied: bool) -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Qwen2,
        vocabulary_size: 29,
        hidden_size: 20,
        intermediate_size: 28,
        layers: 2,
        query_heads: 4,
        key_value_heads: 2,
        head_size: 6,
        maximum_positions: 64,
        norm_epsilon: 1e-6,
        rope: RopeSettings {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        },
        tied_embeddings: tied,
        biases: Biases {
            query_key_value: true,
            ..Biases::default()
        },
        head_norms: false,
        bos_token_id: None,
        eos_token_ids: vec![2],
    }
}

fn tiny_base(tied: bool) -> Arc<BaseModel> {
    BaseModel::init_random(tiny_config(tied), 3).unwrap()
}

fn lora_config() -> LoraConfig {
    LoraConfig {
        rank: 3,
        alpha: 6.0,
        seed: 5,
        ..LoraConfig::default()
    }
}

/// Two segments; some tokens are not trained on.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::default();
    batch.push(
        &[3, 9, 9, 14, 28, 1],
        &[false, false, true, true, true, true],
    );
    batch.push(&[7, 0, 21, 5], &[true; 4]);
    batch
}

fn update(scale: f32, learning_rate: f32) -> UpdateOptions {
    UpdateOptions {
        learning_rate,
        weight_decay: 0.0,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        gradient_scale: scale,
    }
}

/// One optimiser step on `batch`; returns the mean loss before it.
fn step(model: &mut TrainableModel, batch: &PackedBatch, number: u64, learning_rate: f32) -> f64 {
    let options = StepOptions {
        batch_number: number,
        neftune_alpha: 0.0,
    };
    let loss = model.forward_backward(batch, &options).unwrap();
    let clipped = model.clipped_scale(loss.supervised_tokens, Some(1.0));
    model.apply_update(&update(clipped.scale, learning_rate));
    loss.mean()
}

/// An adapter that has been trained for a few steps, so that no matrix is zero.
fn trained(base: &Arc<BaseModel>, config: LoraConfig) -> TrainableModel {
    let mut model = TrainableModel::lora(base.clone(), config).unwrap();
    for number in 0..5 {
        step(&mut model, &batch(), number, 0.02);
    }
    model
}

fn targets(projections: &[Projection]) -> BTreeSet<Projection> {
    projections.iter().copied().collect()
}
