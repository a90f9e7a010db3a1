//! The products of training alone: rates for the linear layers of Qwen2.5-0.5B, beside those of the `gemm` library.
//!
//! ```console
//! $ training_product 512 128          # rows of activations; RAYON_NUM_THREADS=1 for one core
//! ```
//!
//! Each line is one shape: 10⁹ operations a second of the forward product and of the input gradient with a bf16 weight,
//! and of the library with a weight that is in single precision already. The best of several, in turns.

#![allow(unsafe_code)] // The library takes pointers.

use std::io::Write as _;
use std::time::{Duration, Instant};

use gemm_common::Parallelism;
use half::bf16;
use zerog_kernels::matmul::{Precision, Shape, Weight, Write, forward, input_gradient};

/// How long products are repeated: the best one is hardly disturbed by other programs.
const TIME: Duration = Duration::from_millis(1500);

fn main() -> std::io::Result<()> {
    let arguments: Vec<usize> = (std::env::args().skip(1))
        .flat_map(|text| text.parse())
        .collect();
    for rows in arguments {
        for (outputs, inputs) in [
            (4864, 896),
            (896, 4864),
            (896, 896),
            (128, 896),
            (8, 896),
            (896, 8),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let numbers = |length: usize| -> Vec<f32> {
                (0..length)
                    .map(|index| ((index * 7919) % 2003) as f32 / 1001.5 - 1.0)
                    .collect()
            };
            let wide = numbers(outputs * inputs);
            let narrow: Vec<bf16> = wide.iter().copied().map(bf16::from_f32).collect();
            let (x, g) = (numbers(rows * inputs), numbers(rows * outputs));
            let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
            let weight = Weight::Bf16(&narrow);
            let mut best = [Duration::MAX; 3];
            let begin = Instant::now();
            while begin.elapsed() < TIME {
                let time = |best: &mut Duration, work: &mut dyn FnMut()| {
                    let start = Instant::now();
                    work();
                    *best = start.elapsed().min(*best);
                };
                let precision = Precision::F32;
                time(&mut best[0], &mut || {
                    forward(shape, &x, weight, &mut y, Write::Replace, 1.0, precision);
                });
                time(&mut best[1], &mut || {
                    input_gradient(shape, &g, weight, &mut dx, Write::Replace, precision);
                });
                time(&mut best[2], &mut || library(shape, &x, &wide, &mut y));
            }
            let operations = (2 * rows * outputs * inputs) as f64;
            let rate = |time: Duration| operations / time.as_secs_f64() / 1e9;
            writeln!(
                std::io::stdout(),
                "{rows:>4} x {outputs:>4} x {inputs:>4}  forward {:>6.1}  gradient {:>6.1}  gemm {:>6.1} GFLOP/s  ratios {:.2} {:.2}",
                rate(best[0]),
                rate(best[1]),
                rate(best[2]),
                rate(best[0]) / rate(best[2]),
                rate(best[1]) / rate(best[2]),
            )?;
        }
    }
    Ok(())
}

/// `y = x · Wᵀ` by the library's own parallelism, in the order of operands that it prefers.
fn library(shape: Shape, x: &[f32], weight: &[f32], y: &mut [f32]) {
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    let length = inputs as isize;
    // SAFETY: the slices have the lengths of the shape.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            outputs,
            rows,
            inputs,
            y.as_mut_ptr(),
            outputs as isize,
            1,
            false,
            weight.as_ptr(),
            1,
            length,
            x.as_ptr(),
            length,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}
