//! The product of serving alone: rates for the linear layers of Qwen2.5-0.5B, weights out of memory.
//!
//! ```console
//! $ serving_product 1 16 512          # rows of activations; RAYON_NUM_THREADS=1 for one core
//! ```
//!
//! Each line is one shape and one type of weights: 10⁹ operations a second, a product and a sum counted as two, and 10⁹
//! bytes of weights a second; the best of several passes. A pass goes through more weights than the caches hold.

use std::io::Write as _;
use std::time::{Duration, Instant};

use half::bf16;
use zerog_kernels::matmul::int8::quantize;
use zerog_kernels::matmul::{Int8Weight, Shape, Weight, Write, forward_batch_invariant};

/// Bytes of weights that a pass reads; more than any cache holds.
const BYTES: usize = 128 << 20;
/// How long passes are repeated: the best one is hardly disturbed by other programs.
const TIME: Duration = Duration::from_millis(300);

fn main() -> std::io::Result<()> {
    let rows: Vec<usize> = std::env::args()
        .skip(1)
        .flat_map(|text| text.parse())
        .collect();
    for rows in rows {
        for (outputs, inputs) in [(4864, 896), (896, 4864), (896, 896)] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let numbers: Vec<f32> = (0..outputs * inputs)
                .map(|index| ((index * 7919) % 2003) as f32 / 1001.5 - 1.0)
                .collect();
            let short: Vec<bf16> = numbers.iter().copied().map(bf16::from_f32).collect();
            let (values, scales) = quantize(Weight::F32(&numbers), inputs);
            let copies = BYTES.div_ceil(size_of_val(&short[..]));
            let (many_short, many_values, many_scales) = (
                vec![short; copies],
                vec![values; copies],
                vec![scales; copies],
            );
            let plain = rate(shape, copies, |copy| Weight::Bf16(&many_short[copy]));
            let rounded = rate(shape, copies, |copy| {
                Weight::Int8(Int8Weight::new(
                    &many_values[copy],
                    &many_scales[copy],
                    inputs,
                ))
            });
            let elements = (outputs * inputs) as f64;
            for (kind, bytes, seconds) in [("bf16", 2.0, plain), ("int8", 1.0625, rounded)] {
                writeln!(
                    std::io::stdout(),
                    "{rows:4} rows, {outputs:4} × {inputs:4} {kind}: {:6.1} GFLOP/s, {:5.1} GB/s",
                    2.0 * elements * rows as f64 / seconds / 1e9,
                    elements * bytes / seconds / 1e9,
                )?;
            }
        }
    }
    Ok(())
}

/// Seconds of one product.
fn rate<'a>(shape: Shape, copies: usize, weight: impl Fn(usize) -> Weight<'a>) -> f64 {
    let x = vec![0.5; shape.rows * shape.inputs];
    let mut y = vec![0.0; shape.rows * shape.outputs];
    let mut best = f64::MAX;
    // Many rows compute so long on one weight that a few are enough.
    let used = copies.min((512 / shape.rows).max(2));
    let begin = Instant::now();
    while begin.elapsed() < TIME {
        let start = Instant::now();
        for copy in 0..used {
            forward_batch_invariant(shape, &x, weight(copy), &mut y, Write::Replace);
        }
        best = best.min(start.elapsed().as_secs_f64() / used as f64);
    }
    best
}
