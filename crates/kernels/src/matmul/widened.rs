//! Training products with weights that are widened to single precision where they are used.
//!
//! The result is cut into blocks, and each block is one thread's: it widens the part of the weight that it needs and
//! multiplies by itself. Threads that share one product through the library's own parallelism wait for each other at
//! every packed panel and reached three quarters of this rate. In which pieces a sum is computed depends on the shape
//! alone, so the same call gives the same bits on any number of threads.
#![allow(unsafe_code)]

use super::single::{Matrix, PARALLEL_WORK, multiply_block};
use super::{Shape, Weight, Write, widen, with_widened};
use crate::shared::Disjoint;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a weight that a thread widens at a time (1 MiB of f32).
const WIDENED_ELEMENTS: usize = 256 * 1024;
/// Most columns of a block of an input gradient; with more, its sums are too short and it is read again too often.
const PANEL: usize = 1024;
/// Outputs of a block are a multiple of this, the height of the library's AVX2 kernel.
const UNIT: usize = 16;
/// Blocks have more rows or columns than this, or all: below it the library divides sums in another way.
const SMALL: usize = 64;

/// Part `index` of `length` cut into `parts` equal pieces.
fn part(length: usize, parts: usize, index: usize) -> Range<usize> {
    length * index / parts..length * (index + 1) / parts
}

/// Threads that are worth waking for a product.
fn threads(shape: Shape) -> usize {
    match shape.rows * shape.outputs * shape.inputs >= PARALLEL_WORK {
        true => rayon::current_num_threads(),
        false => 1,
    }
}

/// How many equal parts of more than [`SMALL`] elements `length` has, at most `wanted`.
fn parts(length: usize, wanted: usize) -> usize {
    wanted.min(length / (SMALL + 1)).max(1)
}

/// Widens some columns of the rows from `first` on, as many as `target` holds.
fn widen_block(
    weight: Weight<'_>,
    inputs: usize,
    first: usize,
    columns: Range<usize>,
    target: &mut [f32],
) {
    let width = columns.len();
    let mut row = Vec::new();
    for (index, target) in target.chunks_exact_mut(width).enumerate() {
        let start = (first + index) * inputs + columns.start;
        match weight {
            Weight::F32(values) => target.copy_from_slice(&values[start..start + width]),
            Weight::Bf16(values) => widen(&values[start..start + width], target),
            Weight::Int8(values) => {
                row.resize(inputs, 0.0);
                values.copy_row(first + index, &mut row);
                target.copy_from_slice(&row[columns.clone()]);
            }
        }
    }
}

/// `y (T, N) = scale · x (T, K) · Wᵀ`, or added to `y`; the caller has checked the lengths.
pub(super) fn forward(
    shape: Shape,
    x: &[f32],
    weight: Weight<'_>,
    y: &mut [f32],
    write: Write,
    scale: f32,
) {
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    assert!(x.len() == rows * inputs && y.len() == rows * outputs);
    let y = Disjoint::new(y);
    let units = outputs.div_ceil(UNIT);
    let wanted = (4 * threads(shape)).max(weight.len().div_ceil(WIDENED_ELEMENTS));
    let blocks = wanted.min(units / (SMALL / UNIT + 1)).max(1);
    (0..blocks).into_par_iter().for_each(|index| {
        let block = part(units, blocks, index);
        let first = block.start * UNIT;
        let count = (block.end * UNIT).min(outputs) - first;
        with_widened(count * inputs, |widened| {
            widen_block(weight, inputs, first, 0..inputs, widened);
            // SAFETY: the lengths were checked, the columns end within `outputs`, and no other block has them.
            unsafe {
                multiply_block(
                    [rows, count, inputs],
                    Matrix::rows(x, inputs),
                    Matrix::columns(widened, inputs),
                    y.pointer(first),
                    outputs,
                    write,
                    scale,
                );
            }
        });
    });
}

/// `dx (T, K) = g (T, N) · W`, or added to `dx`; the caller has checked the lengths.
pub(super) fn input_gradient(
    shape: Shape,
    g: &[f32],
    weight: Weight<'_>,
    dx: &mut [f32],
    write: Write,
) {
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    assert!(g.len() == rows * outputs && dx.len() == rows * inputs);
    let dx = Disjoint::new(dx);
    let panels = inputs.div_ceil(PANEL).max(1);
    let panel = inputs.div_ceil(panels).max(1);
    let step = (WIDENED_ELEMENTS / panel).max(1);
    let threads = threads(shape);
    // Few columns are not worth more blocks, and would be summed in another way with few rows.
    let row_blocks = match inputs > SMALL {
        true => parts(rows, threads * rows.div_ceil(512 * threads)),
        false => 1,
    };
    let column_blocks = panels * parts(panel - 1, threads.div_ceil(row_blocks * panels));
    (0..row_blocks * column_blocks)
        .into_par_iter()
        .for_each(|index| {
            let block = part(rows, row_blocks, index / column_blocks);
            let columns = part(inputs, column_blocks, index % column_blocks);
            let width = columns.len();
            with_widened(step.min(outputs) * width, |widened| {
                for first in (0..outputs).step_by(step) {
                    let summed = step.min(outputs - first);
                    let widened = &mut widened[..summed * width];
                    widen_block(weight, inputs, first, columns.clone(), widened);
                    // SAFETY: the lengths were checked, the block lies inside the result, and no other one overlaps it.
                    unsafe {
                        multiply_block(
                            [block.len(), width, summed],
                            Matrix {
                                values: &g[block.start * outputs + first..],
                                row_stride: outputs,
                                column_stride: 1,
                            },
                            Matrix::rows(widened, width),
                            dx.pointer(block.start * inputs + columns.start),
                            inputs,
                            if first == 0 { write } else { Write::Add },
                            1.0,
                        );
                    }
                }
            });
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;
    use half::bf16;

    /// The bits of both products on `threads` threads.
    fn products(shape: Shape, threads: usize) -> [Vec<u32>; 2] {
        let Shape {
            rows,
            outputs,
            inputs,
        } = shape;
        let key = NoiseKey::new(7);
        let numbers = |length: usize, from: u64| -> Vec<f32> {
            (0..length as u64)
                .map(|index| key.normal(from + index))
                .collect()
        };
        let weight: Vec<bf16> = numbers(outputs * inputs, 1 << 32)
            .into_iter()
            .map(bf16::from_f32)
            .collect();
        let (x, g) = (numbers(rows * inputs, 0), numbers(rows * outputs, 1 << 40));
        let (mut y, mut dx) = (vec![1.0; rows * outputs], vec![1.0; rows * inputs]);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            forward(shape, &x, Weight::Bf16(&weight), &mut y, Write::Add, 0.5);
            input_gradient(shape, &g, Weight::Bf16(&weight), &mut dx, Write::Add);
        });
        [y, dx].map(|values| values.into_iter().map(f32::to_bits).collect())
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        for (rows, outputs, inputs) in [
            (200, 900, 700),
            (131, 70, 1500),
            (66, 1300, 65),
            (40, 200, 600),
            (300, 33, 64),
            (1, 300, 2100),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let alone = products(shape, 1);
            for threads in [2, 3, 8] {
                assert!(products(shape, threads) == alone, "{shape:?} on {threads}");
            }
        }
    }
}
