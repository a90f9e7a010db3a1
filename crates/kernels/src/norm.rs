//! Normalisation of rows: by the root of the mean square, `y = x / sqrt(mean(x²) + ε) · w`, and by mean and
//! variance, `y = (x - mean(x)) / sqrt(var(x) + ε) · w + b`.

use crate::dispatch::multiversion;
use crate::reduce::add_assign;
use rayon::prelude::*;

/// Rows per piece of work; part of the order in which weight gradients are summed.
const ROWS_PER_PIECE: usize = 32;
/// Elements per piece of work where nothing is summed over rows: short rows, such as heads, come in larger pieces.
const ELEMENTS_PER_PIECE: usize = 16 * 1024;

/// Elements of a piece of rows of `width`.
fn piece_of(width: usize) -> usize {
    width * ROWS_PER_PIECE.max(ELEMENTS_PER_PIECE / width.max(1))
}

multiversion! {
    /// The sum of `a · b`, in sixteen interleaved partial sums.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; 16];
        let (left, right) = (a.chunks_exact(16), b.chunks_exact(16));
        for (lane, (left, right)) in left.remainder().iter().zip(right.remainder()).enumerate() {
            lanes[lane] += left * right;
        }
        for (left, right) in left.zip(right) {
            for lane in 0..16 {
                lanes[lane] += left[lane] * right[lane];
            }
        }
        let mut width = 8;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

multiversion! {
    fn scale_row(row: &[f32], weight: &[f32], factor: f32, output: &mut [f32]) {
        for ((output, value), weight) in output.iter_mut().zip(row).zip(weight) {
            *output = *value * factor * *weight;
        }
    }
}

multiversion! {
    fn scale_row_in_place(row: &mut [f32], weight: &[f32], factor: f32) {
        for (value, weight) in row.iter_mut().zip(weight) {
            *value = *value * factor * *weight;
        }
    }
}

multiversion! {
    fn backward_row(row: &[f32], weight: &[f32], gradient: &[f32], factor: f32, mean: f32, output: &mut [f32]) {
        for (((output, value), weight), gradient) in output.iter_mut().zip(row).zip(weight).zip(gradient) {
            *output += factor * (*gradient * *weight) - *value * mean;
        }
    }
}

multiversion! {
    fn weight_gradient_row(row: &[f32], gradient: &[f32], factor: f32, output: &mut [f32]) {
        for ((output, value), gradient) in output.iter_mut().zip(row).zip(gradient) {
            *output += *gradient * *value * factor;
        }
    }
}

/// `1 / sqrt(mean(row²) + epsilon)`.
#[inline]
fn inverse_root(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

/// Normalises the rows of `x (T, H)` into `y (T, H)` with `weight (H)`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(width));
    let piece = width * ROWS_PER_PIECE;
    let rows = |x: &[f32], y: &mut [f32]| {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            scale_row(x, weight, inverse_root(x, epsilon), y);
        }
    };
    if x.len() <= piece {
        rows(x, y);
    } else {
        x.par_chunks(piece)
            .zip(y.par_chunks_mut(piece))
            .for_each(|(x, y)| rows(x, y));
    }
}

/// Normalises every row of `x (T, H)` in place.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width));
    let rows = |x: &mut [f32]| {
        for row in x.chunks_exact_mut(width) {
            let factor = inverse_root(row, epsilon);
            scale_row_in_place(row, weight, factor);
        }
    };
    let piece = piece_of(width);
    if x.len() <= piece {
        rows(x);
    } else {
        x.par_chunks_mut(piece).for_each(rows);
    }
}

/// Backward of [`rms_norm`]: adds to `dx (T, H)` and, if given, to `dweight (H)`.
///
/// `x` is the input of the forward pass, `dy` the gradient of its output.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    let width = weight.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(width));
    let want_weight = dweight.is_some();
    let piece = if want_weight {
        width * ROWS_PER_PIECE
    } else {
        piece_of(width)
    };
    let partials: Vec<Vec<f32>> = x
        .par_chunks(piece)
        .zip(dy.par_chunks(piece))
        .zip(dx.par_chunks_mut(piece))
        .map(|((x, dy), dx)| {
            let mut partial = vec![0.0; if want_weight { width } else { 0 }];
            let mut weighted = vec![0.0; width];
            for ((x, dy), dx) in x
                .chunks_exact(width)
                .zip(dy.chunks_exact(width))
                .zip(dx.chunks_exact_mut(width))
            {
                let factor = inverse_root(x, epsilon);
                scale_row(dy, weight, 1.0, &mut weighted);
                let mean = dot(&weighted, x) * factor * factor * factor / width as f32;
                backward_row(x, weight, dy, factor, mean, dx);
                if want_weight {
                    weight_gradient_row(x, dy, factor, &mut partial);
                }
            }
            partial
        })
        .collect();
    if let Some(dweight) = dweight {
        for partial in partials {
            add_assign(dweight, &partial);
        }
    }
}

multiversion! {
    fn sum(row: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; 16];
        let chunks = row.chunks_exact(16);
        for (lane, value) in chunks.remainder().iter().enumerate() {
            lanes[lane] += value;
        }
        for chunk in chunks {
            for lane in 0..16 {
                lanes[lane] += chunk[lane];
            }
        }
        let mut width = 8;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Writes `(row - mean) / sqrt(variance + epsilon)` and returns the factor.
fn standardise(row: &[f32], epsilon: f32, output: &mut [f32]) -> f32 {
    let mean = sum(row) / row.len() as f32;
    for (output, value) in output.iter_mut().zip(row) {
        *output = *value - mean;
    }
    let factor = inverse_root(output, epsilon);
    for value in output {
        *value *= factor;
    }
    factor
}

/// Normalises the rows of `x (T, H)` by mean and variance into `y (T, H)` with `weight (H)` and `bias (H)`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == y.len() && bias.len() == width && x.len().is_multiple_of(width));
    let piece = width * ROWS_PER_PIECE;
    x.par_chunks(piece)
        .zip(y.par_chunks_mut(piece))
        .for_each(|(x, y)| {
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                standardise(x, epsilon, y);
                for ((y, weight), bias) in y.iter_mut().zip(weight).zip(bias) {
                    *y = *y * *weight + *bias;
                }
            }
        });
}

/// Backward of [`layer_norm`] with frozen weight and bias: overwrites `dx (T, H)`.
///
/// `x` is the input of the forward pass, `dy` the gradient of its output.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(width));
    let piece = width * ROWS_PER_PIECE;
    x.par_chunks(piece)
        .zip(dy.par_chunks(piece))
        .zip(dx.par_chunks_mut(piece))
        .for_each_init(
            || vec![0.0; width],
            |standard, ((x, dy), dx)| {
                let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
                for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
                    let factor = standardise(x, epsilon, standard);
                    for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
                        *dx = *dy * *weight;
                    }
                    let mean = sum(dx) / width as f32;
                    let slope = dot(dx, standard) / width as f32;
                    for (dx, standard) in dx.iter_mut().zip(&*standard) {
                        *dx = factor * (*dx - mean - *standard * slope);
                    }
                }
            },
        );
}
