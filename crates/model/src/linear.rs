//! One linear layer in training: frozen or trained weight, bias, and the low-rank delta beside it.
#![allow(clippy::too_many_arguments)] // A layer's operation names every buffer it reads and writes.

use std::ops::Range;
use zerog_kernels::matmul::{self, Precision, Shape, Weight, Write};
use zerog_kernels::noise::{self, NoiseKey};
use zerog_kernels::reduce::{add_bias, add_column_sums, sum_of_squares};
use zerog_kernels::softmax;

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

/// A low-rank delta that is being trained.
pub(crate) struct Delta<'a> {
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// `(rank, inputs)`
    pub(crate) a: &'a [f32],
    /// `(outputs, rank)`
    pub(crate) b: &'a [f32],
    pub(crate) a_gradient: Range<usize>,
    pub(crate) b_gradient: Range<usize>,
}

/// Dropout of one layer's input in one batch: where its random numbers begin, and its probability.
pub(crate) type Dropout = Option<(NoiseKey, f32)>;

#[derive(Debug, Default)]
pub(crate) struct LinearScratch {
    dropped: Vec<f32>,
    low: Vec<f32>,
    back: Vec<f32>,
}

/// Sets the length without clearing what is there already: every buffer is overwritten before it is read.
pub(crate) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}

/// `y = x·Wᵀ + b + s · dropout(x)·Aᵀ·Bᵀ`, or added to `y`; `low` keeps `dropout(x)·Aᵀ`.
pub(crate) fn forward(
    linear: &Linear<'_>,
    rows: usize,
    x: &[f32],
    y: &mut [f32],
    write: Write,
    low: &mut Vec<f32>,
    dropout: Dropout,
    scratch: &mut LinearScratch,
    precision: Precision,
) {
    let Linear {
        outputs, inputs, ..
    } = *linear;
    matmul::forward(
        Shape {
            rows,
            outputs,
            inputs,
        },
        x,
        linear.weight.value,
        y,
        write,
        1.0,
        precision,
    );
    if let Some(bias) = &linear.bias {
        add_bias(y, bias.value);
    }
    let Some(delta) = &linear.delta else { return };
    let x = match dropout {
        Some((key, probability)) => {
            let dropped = sized(&mut scratch.dropped, x.len());
            noise::dropout(x, dropped, key, probability);
            dropped
        }
        None => x,
    };
    let low = sized(low, rows * delta.rank);
    let first = Shape {
        rows,
        outputs: delta.rank,
        inputs,
    };
    matmul::forward(
        first,
        x,
        Weight::F32(delta.a),
        low,
        Write::Replace,
        1.0,
        Precision::F32,
    );
    let second = Shape {
        rows,
        outputs,
        inputs: delta.rank,
    };
    matmul::forward(
        second,
        low,
        Weight::F32(delta.b),
        y,
        Write::Add,
        delta.scale,
        Precision::F32,
    );
}

/// Backward of [`forward`]: adds gradients of what is trained and writes that of `x` if wanted.
pub(crate) fn backward(
    linear: &Linear<'_>,
    rows: usize,
    x: &[f32],
    dy: &[f32],
    dx: Option<(&mut [f32], Write)>,
    low: &[f32],
    dropout: Dropout,
    gradients: &mut [f32],
    scratch: &mut LinearScratch,
    precision: Precision,
) {
    let Linear {
        outputs, inputs, ..
    } = *linear;
    let shape = Shape {
        rows,
        outputs,
        inputs,
    };
    if let Some(range) = linear.weight.gradient.clone() {
        matmul::weight_gradient(shape, dy, x, &mut gradients[range], Write::Add, 1.0);
    }
    if let Some(range) = linear.bias.as_ref().and_then(|bias| bias.gradient.clone()) {
        add_column_sums(dy, &mut gradients[range]);
    }
    if let Some(delta) = &linear.delta {
        let second = Shape {
            rows,
            outputs,
            inputs: delta.rank,
        };
        matmul::weight_gradient(
            second,
            dy,
            low,
            &mut gradients[delta.b_gradient.clone()],
            Write::Add,
            delta.scale,
        );
        let dlow = sized(&mut scratch.low, rows * delta.rank);
        matmul::input_gradient(
            second,
            dy,
            Weight::F32(delta.b),
            dlow,
            Write::Replace,
            Precision::F32,
        );
        softmax::scale(dlow, delta.scale);
        let x = match dropout {
            Some((key, probability)) => {
                let dropped = sized(&mut scratch.dropped, x.len());
                noise::dropout(x, dropped, key, probability);
                dropped
            }
            None => x,
        };
        let first = Shape {
            rows,
            outputs: delta.rank,
            inputs,
        };
        matmul::weight_gradient(
            first,
            dlow,
            x,
            &mut gradients[delta.a_gradient.clone()],
            Write::Add,
            1.0,
        );
    }
    let Some((dx, write)) = dx else { return };
    matmul::input_gradient(shape, dy, linear.weight.value, dx, write, precision);
    if let Some(delta) = &linear.delta {
        let first = Shape {
            rows,
            outputs: delta.rank,
            inputs,
        };
        let a = Weight::F32(delta.a);
        match dropout {
            None => matmul::input_gradient(first, &scratch.low, a, dx, Write::Add, Precision::F32),
            Some((key, probability)) => {
                let back = sized(&mut scratch.back, dx.len());
                matmul::input_gradient(
                    first,
                    &scratch.low,
                    a,
                    back,
                    Write::Replace,
                    Precision::F32,
                );
                noise::add_dropout(back, dx, key, probability);
            }
        }
    }
}

/// Lengths of the rows of `W + s·B·A`, without making that matrix.
///
/// `squares (outputs)` are the squared lengths of the rows of `W`, see [`row_squares`]; `a` is `(rank, inputs)`,
/// `b` is `(outputs, rank)`.
pub(crate) fn adapted_lengths(
    weight: Weight<'_>,
    squares: &[f32],
    a: &[f32],
    b: &[f32],
    rank: usize,
    scale: f32,
) -> Vec<f32> {
    let (outputs, inputs) = (squares.len(), a.len() / rank);
    let product = |outputs, weight| {
        let mut product = vec![0.0; rank * outputs];
        let shape = Shape {
            rows: rank,
            outputs,
            inputs,
        };
        matmul::forward(
            shape,
            a,
            weight,
            &mut product,
            Write::Replace,
            1.0,
            Precision::F32,
        );
        product
    };
    let crossed = product(outputs, weight);
    let gram = product(rank, Weight::F32(a));
    let scale = f64::from(scale);
    squares
        .iter()
        .zip(b.chunks_exact(rank))
        .enumerate()
        .map(|(output, (square, b))| {
            let (mut mixed, mut own) = (0.0, 0.0);
            for (left, factor) in b.iter().enumerate() {
                let factor = f64::from(*factor);
                mixed += factor * f64::from(crossed[left * outputs + output]);
                for (right, other) in b.iter().enumerate() {
                    own += factor * f64::from(*other) * f64::from(gram[left * rank + right]);
                }
            }
            (f64::from(*square) + 2.0 * scale * mixed + scale * scale * own)
                .max(0.0)
                .sqrt() as f32
        })
        .collect()
}

/// Squared lengths of the rows of a weight with `inputs` columns.
pub(crate) fn row_squares(weight: Weight<'_>, inputs: usize) -> Vec<f32> {
    let mut row = vec![0.0; inputs];
    (0..weight.len() / inputs)
        .map(|index| {
            weight.copy_row(index, inputs, &mut row);
            sum_of_squares(&row) as f32
        })
        .collect()
}
