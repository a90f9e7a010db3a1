//! The decoder of the Qwen2, Qwen3 and Llama families: training forward and backward over packed segments.
//!
//! Shapes: `T` tokens of the batch, `H` hidden size, `F` feed-forward size, `Q` and `K` widths of queries and
//! keys. The forward pass keeps the inputs of every layer; normalised states, the gated product and dropout
//! masks are computed again in the backward pass. Gradients are of the loss **sum** and are added to what the
//! gradient buffer holds.
#![allow(clippy::too_many_arguments)] // A layer's operation names every buffer it reads and writes.

use crate::batch::PackedBatch;
use crate::config::ModelConfig;
use crate::linear::{self, Linear, LinearScratch, SavedDelta, Trained, sized};
use crate::lora::Projection;
use crate::noise::Noise;
use zerog_kernels::activation;
use zerog_kernels::attention;
use zerog_kernels::cross_entropy::{self, Gradients, HeadLoss, Labels};
use zerog_kernels::matmul::{Precision, Weight, Write};
use zerog_kernels::norm::{rms_norm, rms_norm_backward, rms_norm_in_place};
use zerog_kernels::reduce::add_assign;
use zerog_kernels::rope::RopeTable;

/// The weights of one step and, for those that are trained, the place of their gradient.
pub(crate) struct Decoder<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) rope: &'a RopeTable,
    pub(crate) embedding: Trained<Weight<'a>>,
    pub(crate) head: Trained<Weight<'a>>,
    pub(crate) final_norm: Trained<&'a [f32]>,
    pub(crate) layers: Vec<Layer<'a>>,
}

pub(crate) struct Layer<'a> {
    pub(crate) linears: [Linear<'a>; 7],
    pub(crate) input_norm: Trained<&'a [f32]>,
    pub(crate) post_norm: Trained<&'a [f32]>,
    /// Norms of the heads of queries and keys, where the family has them.
    pub(crate) head_norms: Option<[Trained<&'a [f32]>; 2]>,
}

/// Loss of pairs of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PreferenceLoss {
    /// Sum over pairs of `-ln σ(reward of the chosen answer - reward of the rejected one)`.
    pub loss_sum: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Sum of the differences of rewards.
    pub reward_sum: f64,
    /// Pairs whose chosen answer has the higher reward.
    pub correct: usize,
}

impl PreferenceLoss {
    /// Adds other pairs.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.pairs += other.pairs;
        self.reward_sum += other.reward_sum;
        self.correct += other.correct;
    }
}

/// Buffers kept between steps.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Whether layers keep only their inputs for the backward pass, which computes the rest a second time.
    pub(crate) recompute: bool,
    layers: Vec<Saved>,
    /// For layers of which nothing but the input is kept.
    one: Saved,
    positions: Vec<u32>,
    x: Vec<f32>,
    y: Vec<f32>,
    hidden: Vec<f32>,
    gate_gradient: Vec<f32>,
    dx: Vec<f32>,
    dy: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    linear: LinearScratch,
    head: cross_entropy::Scratch,
}

/// What a forward pass leaves for a backward pass.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Nothing,
    /// The inputs of the layers.
    Inputs,
    All,
}

/// What the backward pass of one layer needs.
#[derive(Debug, Default)]
struct Saved {
    x: Vec<f32>,
    /// Queries and keys before their heads are normalised.
    raw: [Vec<f32>; 2],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    log_sums: Vec<f32>,
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    deltas: [SavedDelta; 7],
}

impl Workspace {
    /// What a forward pass in training keeps.
    fn keep(&self) -> Keep {
        match self.recompute {
            true => Keep::Inputs,
            false => Keep::All,
        }
    }
}

fn copy_into(buffer: &mut Vec<f32>, source: &[f32]) {
    buffer.clear();
    buffer.extend_from_slice(source);
}

/// Loss of `batch` without gradients.
pub(crate) fn evaluate(
    model: &Decoder<'_>,
    batch: &PackedBatch,
    space: &mut Workspace,
    precision: Precision,
) -> HeadLoss {
    forward(model, batch, None, space, Keep::Nothing, precision);
    head_loss(model, batch, None, space, None, precision)
}

/// Loss of `batch`; gradients of its sum are added to `gradients`.
pub(crate) fn forward_backward(
    model: &Decoder<'_>,
    batch: &PackedBatch,
    noise: &Noise,
    gradients: &mut [f32],
    space: &mut Workspace,
    precision: Precision,
) -> HeadLoss {
    let keep = space.keep();
    forward(model, batch, Some(noise), space, keep, precision);
    let loss = head_loss(model, batch, None, space, Some(gradients), precision);
    backward(model, batch, noise, gradients, space, precision);
    loss
}

/// Loss of pairs of answers, the segments of `batch` in turn: chosen, rejected, chosen and so on (direct preference
/// optimisation, Rafailov et al. 2023); gradients of its sum are added to `gradients`, if given.
///
/// `reference` is the model without what is trained; noise falls on `model` alone.
pub(crate) fn preference_loss(
    model: &Decoder<'_>,
    reference: &Decoder<'_>,
    batch: &PackedBatch,
    beta: f64,
    training: Option<(&Noise, &mut [f32])>,
    space: &mut Workspace,
    precision: Precision,
) -> PreferenceLoss {
    forward(reference, batch, None, space, Keep::Nothing, precision);
    head_loss(reference, batch, None, space, None, precision);
    let expected = margins(space.head.token_losses(), batch);
    let noise = training.as_ref().map(|(noise, _)| *noise);
    let keep = match noise {
        Some(_) => space.keep(),
        None => Keep::Nothing,
    };
    forward(model, batch, noise, space, keep, precision);
    head_loss(model, batch, None, space, None, precision);

    let actual = margins(space.head.token_losses(), batch);
    let (result, weights) = compare_margins(&actual, &expected, batch, beta);
    if let Some((noise, gradients)) = training {
        head_loss(
            model,
            batch,
            Some(&weights),
            space,
            Some(gradients),
            precision,
        );
        backward(model, batch, noise, gradients, space, precision);
    }
    result
}

/// For each pair of a batch by how much the chosen answer is likelier than the rejected one, from the losses of all
/// tokens.
pub(crate) fn margins(token_losses: &[f64], batch: &PackedBatch) -> Vec<f64> {
    let mut losses = token_losses.iter();
    let pairs = batch.segment_lengths.chunks_exact(2);
    pairs
        .map(|pair| {
            let mut answer = |length: usize| losses.by_ref().take(length).sum::<f64>();
            let (chosen, rejected) = (answer(pair[0]), answer(pair[1]));
            rejected - chosen
        })
        .collect()
}

/// The loss of pairs from the margins of model and reference, and what the loss of each token counts in its gradient.
pub(crate) fn compare_margins(
    actual: &[f64],
    expected: &[f64],
    batch: &PackedBatch,
    beta: f64,
) -> (PreferenceLoss, Vec<f32>) {
    let mut result = PreferenceLoss::default();
    let mut weights = Vec::with_capacity(batch.tokens.len());
    let pairs = batch.segment_lengths.chunks_exact(2);
    for ((margin, expected), lengths) in actual.iter().zip(expected).zip(pairs) {
        let reward = beta * (margin - expected);
        // `-ln σ(reward)` without overflow, and its slope.
        result.loss_sum += (-reward.abs()).exp().ln_1p() + (-reward).max(0.0);
        result.reward_sum += reward;
        result.correct += usize::from(reward > 0.0);
        result.pairs += 1;
        let slope = (beta / (1.0 + reward.exp())) as f32;
        weights.extend(std::iter::repeat_n(slope, lengths[0]));
        weights.extend(std::iter::repeat_n(-slope, lengths[1]));
    }
    (result, weights)
}

fn forward(
    model: &Decoder<'_>,
    batch: &PackedBatch,
    noise: Option<&Noise>,
    space: &mut Workspace,
    keep: Keep,
    precision: Precision,
) {
    let config = model.config;
    let tokens = batch.tokens.len();
    let (hidden, epsilon) = (config.hidden_size, config.norm_epsilon);
    space.positions.clear();
    for length in &batch.segment_lengths {
        space.positions.extend(0..*length as u32);
    }
    space.layers.resize_with(config.layers, Saved::default);
    embed(model, batch, noise, sized(&mut space.x, tokens * hidden));
    sized(&mut space.y, tokens * hidden);

    for index in 0..config.layers {
        if keep == Keep::Inputs {
            copy_into(&mut space.layers[index].x, &space.x);
        }
        let saved = match keep {
            Keep::All => &mut space.layers[index],
            Keep::Inputs | Keep::Nothing => &mut space.one,
        };
        let pass = LayerPass {
            model,
            index,
            segments: &batch.segment_lengths,
            positions: &space.positions,
            noise,
            keep: keep == Keep::All,
            precision,
        };
        let gated = &mut space.hidden;
        pass.forward(&mut space.x, &mut space.y, gated, saved, &mut space.linear);
    }
    rms_norm(&space.x, model.final_norm.value, epsilon, &mut space.y);
}

/// One layer in a forward pass.
struct LayerPass<'a> {
    model: &'a Decoder<'a>,
    index: usize,
    segments: &'a [usize],
    positions: &'a [u32],
    noise: Option<&'a Noise>,
    /// Whether all is kept that a backward pass needs.
    keep: bool,
    precision: Precision,
}

impl LayerPass<'_> {
    /// Turns the layer's input `x` into its output; `y` and `gated` are scratch space.
    fn forward(
        &self,
        x: &mut [f32],
        y: &mut [f32],
        gated: &mut Vec<f32>,
        saved: &mut Saved,
        scratch: &mut LinearScratch,
    ) {
        let Self {
            model,
            index,
            noise,
            positions,
            keep,
            precision,
            ..
        } = *self;
        let (config, layer) = (model.config, &model.layers[index]);
        let (tokens, epsilon) = (positions.len(), config.norm_epsilon);
        let dropout = |projection| noise.and_then(|noise| noise.dropout_key(index, projection));
        let mut run = |projection: Projection,
                       x: &[f32],
                       y: &mut [f32],
                       write,
                       deltas: &mut [SavedDelta; 7]| {
            let linear = &layer.linears[projection.index()];
            linear::forward(
                linear,
                tokens,
                x,
                y,
                write,
                &mut deltas[projection.index()],
                dropout(projection),
                scratch,
                precision,
            );
        };
        if keep {
            copy_into(&mut saved.x, x);
        }
        rms_norm(x, layer.input_norm.value, epsilon, y);
        let q = sized(&mut saved.q, tokens * config.query_width());
        run(Projection::Query, y, q, Write::Replace, &mut saved.deltas);
        let k = sized(&mut saved.k, tokens * config.key_width());
        run(Projection::Key, y, k, Write::Replace, &mut saved.deltas);
        let v = sized(&mut saved.v, tokens * config.key_width());
        run(Projection::Value, y, v, Write::Replace, &mut saved.deltas);
        if let Some(norms) = &layer.head_norms {
            let parts = [&mut saved.q, &mut saved.k];
            for ((part, norm), raw) in parts.into_iter().zip(norms).zip(&mut saved.raw) {
                if keep {
                    copy_into(raw, part);
                }
                rms_norm_in_place(part, norm.value, epsilon);
            }
        }
        model.rope.rotate(&mut saved.q, positions);
        model.rope.rotate(&mut saved.k, positions);
        attention::forward(
            config.heads(),
            self.segments,
            &saved.q,
            &saved.k,
            &saved.v,
            sized(&mut saved.attended, tokens * config.query_width()),
            sized(&mut saved.log_sums, tokens * config.query_heads),
        );
        run(
            Projection::Output,
            &saved.attended,
            x,
            Write::Add,
            &mut saved.deltas,
        );

        if keep {
            copy_into(&mut saved.middle, x);
        }
        rms_norm(x, layer.post_norm.value, epsilon, y);
        let wide = tokens * config.intermediate_size;
        run(
            Projection::Gate,
            y,
            sized(&mut saved.gate, wide),
            Write::Replace,
            &mut saved.deltas,
        );
        run(
            Projection::Up,
            y,
            sized(&mut saved.up, wide),
            Write::Replace,
            &mut saved.deltas,
        );
        activation::silu_gate(&saved.gate, &saved.up, sized(gated, wide));
        run(Projection::Down, gated, x, Write::Add, &mut saved.deltas);
    }
}

/// Token embeddings, with noise in training.
fn embed(model: &Decoder<'_>, batch: &PackedBatch, noise: Option<&Noise>, x: &mut [f32]) {
    let hidden = model.config.hidden_size;
    for (row, token) in x.chunks_exact_mut(hidden).zip(&batch.tokens) {
        model.embedding.value.copy_row(*token as usize, hidden, row);
    }
    if let Some(noise) = noise {
        noise.add_to_embeddings(&batch.segment_lengths, hidden, x);
    }
}

/// Loss from the normalised states in `space.y`; with gradients, theirs goes to `space.dy`.
fn head_loss(
    model: &Decoder<'_>,
    batch: &PackedBatch,
    weights: Option<&[f32]>,
    space: &mut Workspace,
    gradients: Option<&mut [f32]>,
    precision: Precision,
) -> HeadLoss {
    let length = space.y.len();
    let wanted = gradients.map(|gradients| Gradients {
        hidden: sized(&mut space.dy, length),
        head: model
            .head
            .gradient
            .clone()
            .map(|range| &mut gradients[range]),
    });
    cross_entropy::head_loss(
        &space.y,
        model.head.value,
        Labels {
            targets: &batch.targets,
            weights,
        },
        wanted,
        precision,
        &mut space.head,
    )
}

fn backward(
    model: &Decoder<'_>,
    batch: &PackedBatch,
    noise: &Noise,
    gradients: &mut [f32],
    space: &mut Workspace,
    precision: Precision,
) {
    let config = model.config;
    let tokens = batch.tokens.len();
    let (hidden, epsilon) = (config.hidden_size, config.norm_epsilon);
    let wide = tokens * config.intermediate_size;
    let dx = sized(&mut space.dx, tokens * hidden);
    dx.fill(0.0);
    norm_backward(
        &space.x,
        &model.final_norm,
        epsilon,
        &space.dy,
        dx,
        gradients,
    );

    for (index, layer) in model.layers.iter().enumerate().rev() {
        if space.recompute {
            copy_into(&mut space.x, &space.layers[index].x);
            let pass = LayerPass {
                model,
                index,
                segments: &batch.segment_lengths,
                positions: &space.positions,
                noise: Some(noise),
                keep: true,
                precision,
            };
            let (x, gated, saved) = (&mut space.x, &mut space.hidden, &mut space.one);
            pass.forward(x, &mut space.y, gated, saved, &mut space.linear);
        }
        let saved = match space.recompute {
            true => &space.one,
            false => &space.layers[index],
        };
        let scratch = &mut space.linear;
        let mut run = |projection: Projection,
                       x: &[f32],
                       dy: &[f32],
                       dx: Option<(&mut [f32], Write)>,
                       gradients: &mut [f32]| {
            let linear = &layer.linears[projection.index()];
            let delta = &saved.deltas[projection.index()];
            let dropout = noise.dropout_key(index, projection);
            linear::backward(
                linear, tokens, x, dy, dx, delta, dropout, gradients, scratch, precision,
            );
        };

        // Feed-forward block. `hidden` turns from the gated product into its gradient, then into that of `up`.
        activation::silu_gate(&saved.gate, &saved.up, sized(&mut space.hidden, wide));
        let dhidden = sized(&mut space.gate_gradient, wide);
        run(
            Projection::Down,
            &space.hidden,
            &space.dx,
            Some((&mut *dhidden, Write::Replace)),
            gradients,
        );
        activation::silu_gate_backward(&saved.gate, &saved.up, dhidden, &mut space.hidden);
        let (dup, dgate) = (&space.gate_gradient, &space.hidden);
        rms_norm(&saved.middle, layer.post_norm.value, epsilon, &mut space.y);
        run(
            Projection::Gate,
            &space.y,
            dgate,
            Some((&mut space.dy, Write::Replace)),
            gradients,
        );
        run(
            Projection::Up,
            &space.y,
            dup,
            Some((&mut space.dy, Write::Add)),
            gradients,
        );
        norm_backward(
            &saved.middle,
            &layer.post_norm,
            epsilon,
            &space.dy,
            &mut space.dx,
            gradients,
        );

        // Attention block.
        let dattended = sized(&mut space.hidden, tokens * config.query_width());
        run(
            Projection::Output,
            &saved.attended,
            &space.dx,
            Some((&mut *dattended, Write::Replace)),
            gradients,
        );
        attention::backward(
            config.heads(),
            &batch.segment_lengths,
            attention::Forward {
                q: &saved.q,
                k: &saved.k,
                v: &saved.v,
                output: &saved.attended,
                log_sums: &saved.log_sums,
            },
            dattended,
            sized(&mut space.dq, tokens * config.query_width()),
            sized(&mut space.dk, tokens * config.key_width()),
            sized(&mut space.dv, tokens * config.key_width()),
        );
        model.rope.rotate_back(&mut space.dq, &space.positions);
        model.rope.rotate_back(&mut space.dk, &space.positions);
        if let Some(norms) = &layer.head_norms {
            let parts = [&mut space.dq, &mut space.dk];
            for ((part, norm), raw) in parts.into_iter().zip(norms).zip(&saved.raw) {
                let below = sized(&mut space.hidden, part.len());
                below.fill(0.0);
                norm_backward(raw, norm, epsilon, part, below, gradients);
                part.copy_from_slice(below);
            }
        }
        rms_norm(&saved.x, layer.input_norm.value, epsilon, &mut space.y);
        // Nothing below the first layer is trained with an adapter, so its input needs no gradient.
        let needed = index > 0 || model.embedding.gradient.is_some();
        let parts = [
            (Projection::Query, &space.dq, Write::Replace),
            (Projection::Key, &space.dk, Write::Add),
            (Projection::Value, &space.dv, Write::Add),
        ];
        for (projection, gradient, write) in parts {
            let target = needed.then_some((&mut space.dy[..], write));
            run(projection, &space.y, gradient, target, gradients);
        }
        if needed {
            norm_backward(
                &saved.x,
                &layer.input_norm,
                epsilon,
                &space.dy,
                &mut space.dx,
                gradients,
            );
        }
    }
    if let Some(range) = model.embedding.gradient.clone() {
        let table = &mut gradients[range];
        for (row, token) in space.dx.chunks_exact(hidden).zip(&batch.tokens) {
            let start = *token as usize * hidden;
            add_assign(&mut table[start..start + hidden], row);
        }
    }
}

fn norm_backward(
    x: &[f32],
    weight: &Trained<&[f32]>,
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
    gradients: &mut [f32],
) {
    let dweight = weight.gradient.clone().map(|range| &mut gradients[range]);
    rms_norm_backward(x, weight.value, epsilon, dy, dx, dweight);
}
