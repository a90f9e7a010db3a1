//! One linear layer in training: frozen or trained weight, bias, and the low-rank delta beside it.
#![allow(clippy::too_many_arguments)] // A layer's operation names every buffer it reads and writes.

use crate::delta::{Delta, TrainedLengths, adapted_lengths};
use rayon::prelude::*;
use std::ops::Range;
use zerog_kernels::matmul::{self, LowRank, Precision, Shape, Weight, Write};
use zerog_kernels::noise::{self, NoiseKey};
use zerog_kernels::reduce::{add_bias, add_column_sums};
use zerog_kernels::softmax;

/// Rows per piece of elementwise work.
const ROWS_PER_PIECE: usize = 32;

/// A weight and, if it is trained, the place of its gradient.
pub(crate) struct Trained<T> {
    pub(crate) value: T,
    pub(crate) gradient: Option<Range<usize>>,
}

impl<T> Trained<T> {
    /// A weight that stays as it is.
    pub(crate) fn frozen(value: T) -> Self {
        Self {
            value,
            gradient: None,
        }
    }
}

pub(crate) struct Linear<'a> {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) weight: Trained<Weight<'a>>,
    pub(crate) bias: Option<Trained<&'a [f32]>>,
    pub(crate) delta: Option<Delta<'a>>,
}

/// Dropout of one layer's input in one batch: where its random numbers begin, and its probability.
pub(crate) type Dropout = Option<(NoiseKey, f32)>;

/// What the backward pass of a delta needs besides the layer's input.
#[derive(Debug, Default)]
pub(crate) struct SavedDelta {
    /// `dropout(x)·Aᵀ (T, rank)`
    low: Vec<f32>,
    /// `dropout(x)·(W + s·B·A)ᵀ (T, outputs)`, where lengths are trained.
    product: Vec<f32>,
    /// Lengths of the rows of `W + s·B·A`, where lengths are trained.
    lengths: Vec<f32>,
}

#[derive(Debug, Default)]
pub(crate) struct LinearScratch {
    dropped: Vec<f32>,
    low: Vec<f32>,
    back: Vec<f32>,
    scaled: Vec<f32>,
}

/// Sets the length without clearing what is there already: every buffer is overwritten before it is read.
pub(crate) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}

impl Linear<'_> {
    fn shape(&self, rows: usize) -> Shape {
        Shape {
            rows,
            outputs: self.outputs,
            inputs: self.inputs,
        }
    }
}

impl Delta<'_> {
    /// The product with `A`, and with `B` after it.
    fn shapes(&self, rows: usize, linear: &Linear<'_>) -> (Shape, Shape) {
        let first = Shape {
            rows,
            outputs: self.rank,
            inputs: linear.inputs,
        };
        let second = Shape {
            rows,
            outputs: linear.outputs,
            inputs: self.rank,
        };
        (first, second)
    }

    /// The first half of `s·x·Aᵀ·Bᵀ`: `x·Aᵀ`, which is kept, with what makes the second half of it.
    fn project<'s>(
        &'s self,
        rows: usize,
        linear: &Linear<'_>,
        x: &[f32],
        low: &'s mut Vec<f32>,
    ) -> LowRank<'s> {
        let (first, _) = self.shapes(rows, linear);
        let low = sized(low, rows * self.rank);
        let a = Weight::F32(self.a);
        matmul::forward(first, x, a, low, Write::Replace, 1.0, Precision::F32);
        LowRank {
            low,
            factor: self.b,
            rank: self.rank,
            scale: self.scale,
        }
    }
}

/// The input of a delta: `x`, or `x` with elements dropped.
fn dropped<'x>(x: &'x [f32], dropout: Dropout, buffer: &'x mut Vec<f32>) -> &'x [f32] {
    match dropout {
        None => x,
        Some((key, probability)) => {
            let dropped = sized(buffer, x.len());
            noise::dropout(x, dropped, key, probability);
            dropped
        }
    }
}

/// `y = x·Wᵀ + b + s · dropout(x)·Aᵀ·Bᵀ`, or added to `y`.
///
/// Where the lengths `m` of the rows are trained, `y = x·Wᵀ + b + (c - 1)·x̃·Wᵀ + c·s·x̃·Aᵀ·Bᵀ` with
/// `c = m / |W + s·B·A|` and `x̃ = dropout(x)`, which is PEFT's form of DoRA.
pub(crate) fn forward(
    linear: &Linear<'_>,
    rows: usize,
    x: &[f32],
    y: &mut [f32],
    write: Write,
    saved: &mut SavedDelta,
    dropout: Dropout,
    scratch: &mut LinearScratch,
    precision: Precision,
) {
    let shape = linear.shape(rows);
    let weight = linear.weight.value;
    let lengths = linear.delta.as_ref().and_then(|delta| {
        let lengths = delta.magnitude.as_ref()?;
        Some((delta, lengths))
    });
    if let Some((delta, lengths)) = lengths {
        return forward_with_lengths(
            (linear, delta, lengths),
            rows,
            x,
            y,
            write,
            saved,
            dropout,
            scratch,
            precision,
        );
    }
    match &linear.delta {
        None => matmul::forward(shape, x, weight, y, write, 1.0, precision),
        Some(delta) => {
            let input = dropped(x, dropout, &mut scratch.dropped);
            let delta = delta.project(rows, linear, input, &mut saved.low);
            matmul::forward_adapted(shape, x, weight, delta, y, write, precision);
        }
    }
    if let Some(bias) = &linear.bias {
        add_bias(y, bias.value);
    }
}

fn forward_with_lengths(
    (linear, delta, lengths): (&Linear<'_>, &Delta<'_>, &TrainedLengths<'_>),
    rows: usize,
    x: &[f32],
    y: &mut [f32],
    write: Write,
    saved: &mut SavedDelta,
    dropout: Dropout,
    scratch: &mut LinearScratch,
    precision: Precision,
) {
    let shape = linear.shape(rows);
    let weight = linear.weight.value;
    saved.lengths = adapted_lengths(
        weight,
        lengths.squares,
        delta.a,
        delta.b,
        delta.rank,
        delta.scale,
    );
    let product = sized(&mut saved.product, rows * linear.outputs);
    let x = match dropout {
        None => {
            matmul::forward(shape, x, weight, product, Write::Replace, 1.0, precision);
            if write == Write::Replace {
                y.fill(0.0);
            }
            x
        }
        Some(_) => {
            matmul::forward(shape, x, weight, y, write, 1.0, precision);
            let x = dropped(x, dropout, &mut scratch.dropped);
            matmul::forward(shape, x, weight, product, Write::Replace, 1.0, precision);
            elementwise(y, product, |y, product| *y -= product);
            x
        }
    };
    if let Some(bias) = &linear.bias {
        add_bias(y, bias.value);
    }
    let (_, second) = delta.shapes(rows, linear);
    let LowRank { low, scale, .. } = delta.project(rows, linear, x, &mut saved.low);
    let b = Weight::F32(delta.b);
    matmul::forward(second, low, b, product, Write::Add, scale, Precision::F32);
    let factors: Vec<f32> = quotients(lengths.values, &saved.lengths);
    by_row(y, product, linear.outputs, |y, product| {
        for ((y, product), factor) in y.iter_mut().zip(product).zip(&factors) {
            *y += product * factor;
        }
    });
}

/// Backward of [`forward`]: adds gradients of what is trained and writes that of `x` if wanted.
pub(crate) fn backward(
    linear: &Linear<'_>,
    rows: usize,
    x: &[f32],
    dy: &[f32],
    dx: Option<(&mut [f32], Write)>,
    saved: &SavedDelta,
    dropout: Dropout,
    gradients: &mut [f32],
    scratch: &mut LinearScratch,
    precision: Precision,
) {
    let shape = linear.shape(rows);
    let weight = linear.weight.value;
    if let Some(range) = linear.weight.gradient.clone() {
        matmul::weight_gradient(shape, dy, x, &mut gradients[range], Write::Add, 1.0);
    }
    if let Some(range) = linear.bias.as_ref().and_then(|bias| bias.gradient.clone()) {
        add_column_sums(dy, &mut gradients[range]);
    }
    let Some(delta) = &linear.delta else {
        if let Some((dx, write)) = dx {
            matmul::input_gradient(shape, dy, weight, dx, write, precision);
        }
        return;
    };

    // The gradient of `x̃·(W + s·B·A)ᵀ`: that of `y`, scaled where lengths are trained.
    let LinearScratch {
        dropped: dropped_x,
        low: dlow,
        back,
        scaled,
    } = scratch;
    let inner: &[f32] = match &delta.magnitude {
        None => dy,
        Some(lengths) => {
            lengths_gradient(dy, saved, &mut gradients[lengths.gradient.clone()]);
            let factors = quotients(lengths.values, &saved.lengths);
            let scaled = sized(scaled, dy.len());
            by_row(scaled, dy, linear.outputs, |scaled, dy| {
                for ((scaled, dy), factor) in scaled.iter_mut().zip(dy).zip(&factors) {
                    *scaled = dy * factor;
                }
            });
            scaled
        }
    };
    let (first, second) = delta.shapes(rows, linear);
    let (a, b) = (Weight::F32(delta.a), Weight::F32(delta.b));
    let b_gradient = &mut gradients[delta.b_gradient.clone()];
    matmul::weight_gradient(
        second,
        inner,
        &saved.low,
        b_gradient,
        Write::Add,
        delta.scale,
    );
    let dlow = sized(dlow, rows * delta.rank);
    matmul::input_gradient(second, inner, b, dlow, Write::Replace, Precision::F32);
    softmax::scale(dlow, delta.scale);
    let a_gradient = &mut gradients[delta.a_gradient.clone()];
    matmul::weight_gradient(
        first,
        dlow,
        dropped(x, dropout, dropped_x),
        a_gradient,
        Write::Add,
        1.0,
    );

    let Some((dx, write)) = dx else { return };
    match dropout {
        None => {
            let delta = LowRank {
                low: dlow,
                factor: delta.a,
                rank: delta.rank,
                scale: 1.0,
            };
            matmul::input_gradient_adapted(shape, inner, weight, delta, dx, write, precision);
        }
        Some((key, probability)) => {
            matmul::input_gradient(shape, dy, weight, dx, write, precision);
            let back = sized(back, dx.len());
            matmul::input_gradient(first, dlow, a, back, Write::Replace, Precision::F32);
            if delta.magnitude.is_some() {
                // The base product of the dropped input, which counts `c - 1` times.
                elementwise(scaled, dy, |inner, dy| *inner -= dy);
                matmul::input_gradient(shape, scaled, weight, back, Write::Add, precision);
            }
            noise::add_dropout(back, dx, key, probability);
        }
    }
}

/// Adds the gradient of trained lengths: `Σ dy · product / |W + s·B·A|` over the rows of the batch. The length in the
/// denominator counts as a constant, as the method's authors propose.
fn lengths_gradient(dy: &[f32], saved: &SavedDelta, gradient: &mut [f32]) {
    let mut sums = vec![0.0_f64; gradient.len()];
    let rows = dy
        .chunks_exact(gradient.len())
        .zip(saved.product.chunks_exact(gradient.len()));
    for (dy, product) in rows {
        for ((sum, dy), product) in sums.iter_mut().zip(dy).zip(product) {
            *sum += f64::from(dy * product);
        }
    }
    for ((gradient, sum), length) in gradient.iter_mut().zip(sums).zip(&saved.lengths) {
        *gradient += (sum / f64::from(*length)) as f32;
    }
}

fn quotients(above: &[f32], below: &[f32]) -> Vec<f32> {
    above.iter().zip(below).map(|(a, b)| a / b).collect()
}

/// Calls `work` for each row of `target` with that of `source`.
fn by_row(
    target: &mut [f32],
    source: &[f32],
    width: usize,
    work: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    target
        .par_chunks_mut(width * ROWS_PER_PIECE)
        .zip(source.par_chunks(width * ROWS_PER_PIECE))
        .for_each(|(target, source)| {
            let rows = target
                .chunks_exact_mut(width)
                .zip(source.chunks_exact(width));
            rows.for_each(|(target, source)| work(target, source));
        });
}

/// Calls `work` for each element of `target` with that of `source`.
fn elementwise(target: &mut [f32], source: &[f32], work: impl Fn(&mut f32, f32) + Sync) {
    const PIECE: usize = 16 * 1024;
    target
        .par_chunks_mut(PIECE)
        .zip(source.par_chunks(PIECE))
        .for_each(|(target, source)| {
            let pairs = target.iter_mut().zip(source);
            pairs.for_each(|(target, source)| work(target, *source));
        });
}
