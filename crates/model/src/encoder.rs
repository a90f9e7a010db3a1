//! The DistilBERT encoder with its classification head: training forward and backward over packed texts.
//!
//! Shapes: `T` tokens of all texts, `S` texts, `H` hidden size, `F` feed-forward size, `C` classes. The first token
//! of a text carries its meaning: its last state goes through `pre_classifier`, a rectifier and `classifier`.
//! Dropout inside the frozen encoder, which the reference library switches on in training, is left out; the
//! adapter's own dropout is applied.

use crate::classifier_config::ClassifierConfig;
use crate::linear::{self, Linear, LinearScratch, SavedDelta, Trained, sized};
use crate::lora::Projection;
use crate::noise::Noise;
use zerog_kernels::activation;
use zerog_kernels::attention::{self, Heads};
use zerog_kernels::matmul::{Precision, Weight, Write};
use zerog_kernels::norm::{layer_norm, layer_norm_backward};
use zerog_kernels::reduce::add_assign;
use zerog_kernels::softmax::exponentials;

/// Added to the variance in every normalisation; the family's constant.
pub(crate) const NORM_EPSILON: f32 = 1e-12;

/// The weights of one step and, for those that are trained, the place of their gradient.
pub(crate) struct Encoder<'a> {
    pub(crate) config: &'a ClassifierConfig,
    pub(crate) words: Weight<'a>,
    pub(crate) positions: Weight<'a>,
    pub(crate) embedding_norm: LayerNorm<'a>,
    pub(crate) layers: Vec<EncoderLayer<'a>>,
    pub(crate) pre_classifier: Linear<'a>,
    pub(crate) classifier: Linear<'a>,
}

/// Weight and bias of a normalisation by mean and variance.
#[derive(Clone, Copy)]
pub(crate) struct LayerNorm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

pub(crate) struct EncoderLayer<'a> {
    /// By the index of the projection; the gate is absent.
    pub(crate) linears: [Option<Linear<'a>>; 7],
    pub(crate) attention_norm: LayerNorm<'a>,
    pub(crate) output_norm: LayerNorm<'a>,
}

/// Texts to classify, laid end to end.
#[derive(Clone, Copy)]
pub(crate) struct Texts<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) lengths: &'a [usize],
}

/// Buffers kept between steps.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    layers: Vec<Saved>,
    x: Vec<f32>,
    y: Vec<f32>,
    wide: Vec<f32>,
    dx: Vec<f32>,
    dy: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    attention_gradient: Vec<f32>,
    linear: LinearScratch,
    head: Head,
}

/// Buffers of the head, which is computed on the processor wherever the encoder is.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// States `(S, H)` of the first tokens.
    pub(crate) pooled: Vec<f32>,
    hidden: Vec<f32>,
    /// Logits `(S, C)` of the last forward pass, then their gradient.
    pub(crate) logits: Vec<f32>,
    hidden_gradient: Vec<f32>,
    /// What the backward pass leaves.
    pub(crate) pooled_gradient: Vec<f32>,
    low: SavedDelta,
    linear: LinearScratch,
}

/// What the backward pass of one layer needs.
#[derive(Debug, Default)]
struct Saved {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    log_sums: Vec<f32>,
    /// Before the norm of the attention block.
    middle: Vec<f32>,
    wide: Vec<f32>,
    /// Before the norm of the layer's output.
    last: Vec<f32>,
    low: [SavedDelta; 7],
}

impl LayerNorm<'_> {
    fn forward(self, x: &[f32], y: &mut [f32]) {
        layer_norm(x, self.weight, self.bias, NORM_EPSILON, y);
    }

    fn backward(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        layer_norm_backward(x, self.weight, NORM_EPSILON, dy, dx);
    }
}

impl<'a> EncoderLayer<'a> {
    pub(crate) fn linear(&self, projection: Projection) -> &Linear<'a> {
        self.linears[projection.index()]
            .as_ref()
            .expect("an encoder layer has every linear layer but the gate")
    }
}

pub(crate) fn heads(config: &ClassifierConfig) -> Heads {
    Heads {
        queries: config.heads,
        groups: config.heads,
        size: config.hidden_size / config.heads,
    }
}

/// Logits `(S, C)` of `texts`.
pub(crate) fn classify(
    model: &Encoder<'_>,
    texts: Texts<'_>,
    space: &mut Workspace,
    precision: Precision,
) -> Vec<f32> {
    forward(model, texts, None, space, false, precision);
    space.head.logits.clone()
}

/// Sum of the losses of `texts` against `labels`; gradients of the sum are added to `gradients`.
pub(crate) fn forward_backward(
    model: &Encoder<'_>,
    texts: Texts<'_>,
    labels: &[u32],
    noise: &Noise,
    gradients: &mut [f32],
    space: &mut Workspace,
    precision: Precision,
) -> f64 {
    forward(model, texts, Some(noise), space, true, precision);
    let loss = space.head.backward(model, labels, gradients);
    backward(model, texts, noise, gradients, space, precision);
    loss
}

/// Cross-entropy of one row of logits, which turns into its gradient.
pub(crate) fn loss_of(row: &mut [f32], label: usize) -> f64 {
    let logit = row[label];
    let (maximum, sum) = exponentials(row, 1.0);
    for value in row.iter_mut() {
        *value /= sum;
    }
    row[label] -= 1.0;
    f64::from(maximum) + f64::from(sum).ln() - f64::from(logit)
}

fn forward(
    model: &Encoder<'_>,
    texts: Texts<'_>,
    noise: Option<&Noise>,
    space: &mut Workspace,
    keep: bool,
    precision: Precision,
) {
    let config = model.config;
    let (tokens, hidden) = (texts.tokens.len(), config.hidden_size);
    space
        .layers
        .resize_with(if keep { config.layers } else { 1 }, Saved::default);
    sized(&mut space.y, tokens * hidden);
    embed(model, texts, noise, &mut space.y);
    model
        .embedding_norm
        .forward(&space.y, sized(&mut space.x, tokens * hidden));

    for (index, layer) in model.layers.iter().enumerate() {
        // Without a backward pass one set of buffers serves all layers.
        let saved = &mut space.layers[if keep { index } else { 0 }];
        let scratch = &mut space.linear;
        let mut run =
            |projection: Projection, x: &[f32], y: &mut [f32], low: &mut [SavedDelta; 7]| {
                linear::forward(
                    layer.linear(projection),
                    tokens,
                    x,
                    y,
                    Write::Replace,
                    &mut low[projection.index()],
                    noise.and_then(|noise| noise.dropout_key(index, projection)),
                    scratch,
                    precision,
                );
            };
        let low = &mut saved.low;
        let width = tokens * hidden;
        run(Projection::Query, &space.x, sized(&mut saved.q, width), low);
        run(Projection::Key, &space.x, sized(&mut saved.k, width), low);
        run(Projection::Value, &space.x, sized(&mut saved.v, width), low);
        attention::forward_whole(
            heads(config),
            texts.lengths,
            &saved.q,
            &saved.k,
            &saved.v,
            sized(&mut saved.attended, width),
            sized(&mut saved.log_sums, tokens * config.heads),
        );
        let middle = sized(&mut saved.middle, width);
        run(Projection::Output, &saved.attended, middle, low);
        add_assign(middle, &space.x);
        layer.attention_norm.forward(middle, &mut space.y);

        let wide = tokens * config.intermediate_size;
        run(Projection::Up, &space.y, sized(&mut saved.wide, wide), low);
        activation::gelu(&saved.wide, sized(&mut space.wide, wide));
        let last = sized(&mut saved.last, width);
        run(Projection::Down, &space.wide, last, low);
        add_assign(last, &space.y);
        if keep {
            saved.x.clear();
            saved.x.extend_from_slice(&space.x);
        }
        layer.output_norm.forward(last, &mut space.x);
    }
    space.head.pooled.clear();
    for start in starts(texts.lengths) {
        let row = &space.x[start * hidden..(start + 1) * hidden];
        space.head.pooled.extend_from_slice(row);
    }
    space.head.forward(model);
}

/// Embeddings of words, with noise in training, and of positions.
fn embed(model: &Encoder<'_>, texts: Texts<'_>, noise: Option<&Noise>, x: &mut [f32]) {
    let hidden = model.config.hidden_size;
    for (row, token) in x.chunks_exact_mut(hidden).zip(texts.tokens) {
        model.words.copy_row(*token as usize, hidden, row);
    }
    if let Some(noise) = noise {
        noise.add_to_embeddings(texts.lengths, hidden, x);
    }
    let mut place = vec![0.0; hidden];
    let mut rows = x.chunks_exact_mut(hidden);
    for length in texts.lengths {
        for (position, row) in rows.by_ref().take(*length).enumerate() {
            model.positions.copy_row(position, hidden, &mut place);
            add_assign(row, &place);
        }
    }
}

impl Head {
    /// Logits from the states in `pooled`.
    pub(crate) fn forward(&mut self, model: &Encoder<'_>) {
        let hidden = model.config.hidden_size;
        let count = self.pooled.len() / hidden;
        let mut run = |layer: &Linear<'_>, x: &[f32], y: &mut [f32]| {
            linear::forward(
                layer,
                count,
                x,
                y,
                Write::Replace,
                &mut self.low,
                None,
                &mut self.linear,
                Precision::F32,
            );
        };
        let states = sized(&mut self.hidden, count * hidden);
        run(&model.pre_classifier, &self.pooled, states);
        states.iter_mut().for_each(|value| *value = value.max(0.0));
        let logits = sized(&mut self.logits, count * model.classifier.outputs);
        run(&model.classifier, states, logits);
    }

    /// Sum of the losses of the logits against `labels`. Gradients of the sum are added to `gradients` for what of the
    /// head is trained, and left in `pooled_gradient` for the states.
    pub(crate) fn backward(
        &mut self,
        model: &Encoder<'_>,
        labels: &[u32],
        gradients: &mut [f32],
    ) -> f64 {
        let mut loss = 0.0;
        let rows = self.logits.chunks_exact_mut(model.classifier.outputs);
        for (row, label) in rows.zip(labels) {
            loss += loss_of(row, *label as usize);
        }
        let mut run = |layer: &Linear<'_>, x: &[f32], dy: &[f32], dx: &mut [f32]| {
            linear::backward(
                layer,
                labels.len(),
                x,
                dy,
                Some((dx, Write::Replace)),
                &self.low,
                None,
                gradients,
                &mut self.linear,
                Precision::F32,
            );
        };
        let dstates = sized(&mut self.hidden_gradient, self.pooled.len());
        run(&model.classifier, &self.hidden, &self.logits, dstates);
        for (gradient, state) in dstates.iter_mut().zip(&self.hidden) {
            if *state <= 0.0 {
                *gradient = 0.0;
            }
        }
        let dpooled = sized(&mut self.pooled_gradient, self.pooled.len());
        run(&model.pre_classifier, &self.pooled, dstates, dpooled);
        loss
    }
}

/// Where every text begins.
pub(crate) fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
}

/// From the gradient of the states in `space.head`.
fn backward(
    model: &Encoder<'_>,
    texts: Texts<'_>,
    noise: &Noise,
    gradients: &mut [f32],
    space: &mut Workspace,
    precision: Precision,
) {
    let config = model.config;
    let (tokens, hidden) = (texts.tokens.len(), config.hidden_size);
    let width = tokens * hidden;
    let dx = sized(&mut space.dx, width);
    dx.fill(0.0);
    let of_texts = space.head.pooled_gradient.chunks_exact(hidden);
    for (start, row) in starts(texts.lengths).zip(of_texts) {
        dx[start * hidden..(start + 1) * hidden].copy_from_slice(row);
    }

    sized(&mut space.dy, width);
    for (index, layer) in model.layers.iter().enumerate().rev() {
        let saved = &space.layers[index];
        let scratch = &mut space.linear;
        let mut run = |projection: Projection,
                       x: &[f32],
                       dy: &[f32],
                       dx: Option<(&mut [f32], Write)>,
                       gradients: &mut [f32]| {
            linear::backward(
                layer.linear(projection),
                tokens,
                x,
                dy,
                dx,
                &saved.low[projection.index()],
                noise.dropout_key(index, projection),
                gradients,
                scratch,
                precision,
            );
        };

        // Feed-forward block: `dy` is the gradient before the output norm, then also that of its input.
        layer
            .output_norm
            .backward(&saved.last, &space.dx, &mut space.dy);
        let wide = tokens * config.intermediate_size;
        activation::gelu(&saved.wide, sized(&mut space.wide, wide));
        let dwide = sized(&mut space.attention_gradient, wide);
        run(
            Projection::Down,
            &space.wide,
            &space.dy,
            Some((&mut *dwide, Write::Replace)),
            gradients,
        );
        activation::gelu_backward(&saved.wide, dwide);
        layer.attention_norm.forward(&saved.middle, &mut space.y);
        run(
            Projection::Up,
            &space.y,
            dwide,
            Some((&mut space.dy, Write::Add)),
            gradients,
        );

        // Attention block: `dx` is the gradient before its norm, then also that of the layer's input.
        layer
            .attention_norm
            .backward(&saved.middle, &space.dy, &mut space.dx);
        let dattended = sized(&mut space.attention_gradient, width);
        run(
            Projection::Output,
            &saved.attended,
            &space.dx,
            Some((&mut *dattended, Write::Replace)),
            gradients,
        );
        attention::backward_whole(
            heads(config),
            texts.lengths,
            attention::Forward {
                q: &saved.q,
                k: &saved.k,
                v: &saved.v,
                output: &saved.attended,
                log_sums: &saved.log_sums,
            },
            dattended,
            sized(&mut space.dq, width),
            sized(&mut space.dk, width),
            sized(&mut space.dv, width),
        );
        // Nothing below the first layer is trained, so its input needs no gradient.
        let needed = index > 0;
        let parts = [
            (Projection::Query, &space.dq),
            (Projection::Key, &space.dk),
            (Projection::Value, &space.dv),
        ];
        for (projection, gradient) in parts {
            let target = needed.then_some((&mut space.dx[..], Write::Add));
            run(projection, &saved.x, gradient, target, gradients);
        }
    }
}

/// A trained linear layer of the head: weight and bias with the places of their gradients.
pub(crate) fn head_linear<'a>(
    outputs: usize,
    inputs: usize,
    weight: Trained<&'a [f32]>,
    bias: Trained<&'a [f32]>,
) -> Linear<'a> {
    Linear {
        outputs,
        inputs,
        weight: Trained {
            value: Weight::F32(weight.value),
            gradient: weight.gradient,
        },
        bias: Some(bias),
        delta: None,
    }
}
