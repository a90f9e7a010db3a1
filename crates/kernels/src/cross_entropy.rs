//! Output head and cross-entropy in one operation, without ever holding the logits of all tokens.
//!
//! Tokens without a label are skipped before the product with the head, which is the largest matrix of a
//! small model; the rest is done in chunks of rows.

use crate::dispatch::multiversion;
use crate::matmul::{self, Precision, Shape, Weight, Write};
use crate::softmax::exponentials;
use rayon::prelude::*;

/// The target of a token that is not trained on.
pub const NO_LABEL: i32 = -100;

/// Logits held at a time: 128 MiB of f32 at most.
const LOGITS: usize = 32 * 1024 * 1024;

/// Loss of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadLoss {
    /// Sum of `-ln p(target)` over tokens with a label.
    pub loss_sum: f64,
    /// Tokens with a label.
    pub supervised_tokens: usize,
}

/// Where the gradients of the loss **sum** go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Overwritten with the gradient of the hidden states `(T, H)`; zero where there is no label.
    pub hidden: &'a mut [f32],
    /// The gradient of the head `(V, H)` is added here, if wanted.
    pub head: Option<&'a mut [f32]>,
}

/// What the tokens of a batch should be followed by.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// For each token an id below `V`, or [`NO_LABEL`].
    pub targets: &'a [i32],
    /// For each token what its loss counts in the gradients; 1 if absent. Losses themselves are not weighted.
    pub weights: Option<&'a [f32]>,
}

impl<'a> From<&'a [i32]> for Labels<'a> {
    fn from(targets: &'a [i32]) -> Self {
        Self {
            targets,
            weights: None,
        }
    }
}

/// Buffers kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    hidden: Vec<f32>,
    logits: Vec<f32>,
    gradient: Vec<f32>,
    losses: Vec<f64>,
}

impl Scratch {
    /// The loss of each token of the last batch; 0 where there is no label.
    pub fn token_losses(&self) -> &[f64] {
        &self.losses
    }
}

/// Rows whose logits are held at a time, so that all chunks of `rows` are about as large: the head is read and packed for
/// each of them.
pub fn rows_per_chunk(rows: usize, vocabulary: usize) -> usize {
    let most = (LOGITS / vocabulary).clamp(16, 1024);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Loss of `hidden (T, H)` against `labels (T)` with `head (V, H)`, and gradients if asked for.
///
/// # Panics
/// If a target is neither; callers check batches when they are built.
pub fn head_loss(
    hidden: &[f32],
    head: Weight<'_>,
    Labels { targets, weights }: Labels<'_>,
    mut gradients: Option<Gradients<'_>>,
    precision: Precision,
    scratch: &mut Scratch,
) -> HeadLoss {
    let tokens = targets.len();
    assert!(weights.is_none_or(|weights| weights.len() == tokens));
    let mut result = HeadLoss::default();
    scratch.losses.clear();
    scratch.losses.resize(tokens, 0.0);
    if let Some(gradients) = &mut gradients {
        assert_eq!(gradients.hidden.len(), hidden.len());
        gradients.hidden.fill(0.0);
    }
    if tokens == 0 {
        return result;
    }
    let width = hidden.len() / tokens;
    let vocabulary = head.len() / width;
    assert!(hidden.len() == tokens * width && head.len() == vocabulary * width);
    let supervised: Vec<usize> = (0..tokens)
        .filter(|&token| targets[token] != NO_LABEL)
        .collect();
    result.supervised_tokens = supervised.len();
    for chunk in supervised.chunks(rows_per_chunk(supervised.len(), vocabulary)) {
        let shape = Shape {
            rows: chunk.len(),
            outputs: vocabulary,
            inputs: width,
        };
        scratch.hidden.resize(chunk.len() * width, 0.0);
        for (row, token) in scratch.hidden.chunks_exact_mut(width).zip(chunk) {
            row.copy_from_slice(&hidden[token * width..(token + 1) * width]);
        }
        scratch.logits.resize(chunk.len() * vocabulary, 0.0);
        matmul::forward(
            shape,
            &scratch.hidden,
            head,
            &mut scratch.logits,
            Write::Replace,
            1.0,
            precision,
        );
        let want = gradients.is_some();
        let losses: Vec<f64> = scratch
            .logits
            .par_chunks_mut(vocabulary)
            .zip(chunk.par_iter())
            .map(|(row, token)| {
                let target = targets[*token] as usize;
                assert!(
                    targets[*token] >= 0 && target < vocabulary,
                    "target outside the vocabulary"
                );
                let logit = row[target];
                let (maximum, sum) = exponentials(row, 1.0);
                if want {
                    let weight = weights.map_or(1.0, |weights| weights[*token]);
                    normalise(row, weight / sum);
                    row[target] -= weight;
                }
                f64::from(maximum) + f64::from(sum).ln() - f64::from(logit)
            })
            .collect();
        for (token, loss) in chunk.iter().zip(&losses) {
            scratch.losses[*token] = *loss;
        }
        result.loss_sum += losses.into_iter().sum::<f64>();
        if let Some(gradients) = &mut gradients {
            scratch.gradient.resize(chunk.len() * width, 0.0);
            matmul::input_gradient(
                shape,
                &scratch.logits,
                head,
                &mut scratch.gradient,
                Write::Replace,
                precision,
            );
            for (row, token) in scratch.gradient.chunks_exact(width).zip(chunk) {
                gradients.hidden[token * width..(token + 1) * width].copy_from_slice(row);
            }
            if let Some(head) = &mut gradients.head {
                matmul::weight_gradient(
                    shape,
                    &scratch.logits,
                    &scratch.hidden,
                    head,
                    Write::Add,
                    1.0,
                );
            }
        }
    }
    result
}

multiversion! {
    fn normalise(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }
}
