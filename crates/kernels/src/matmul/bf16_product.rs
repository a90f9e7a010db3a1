//! Products with bf16 operands and f32 sums on AVX-512 BF16.
//!
//! Activations are rounded to bf16 while they are packed. Blocking: `DEPTH` input features at a time,
//! `UNIT` output columns per piece of work, tiles of 6 × 64 sums in registers. Packing and blocking are
//! ordinary code shared with a portable tile kernel, so that everything but the tile's inner loop is
//! exercised on machines without the instructions.
#![allow(unsafe_code)]

use super::{Shape, Write, check};
use crate::shared::Disjoint;
use half::bf16;
use rayon::prelude::*;

/// Rows of a tile.
const TILE_ROWS: usize = 6;
/// Columns of a tile: four registers of sixteen sums.
const TILE_COLUMNS: usize = 64;
/// Contraction elements per block; a packed unit of 256 × 512 bf16 is 256 KiB and stays in the cache.
const DEPTH: usize = 512;
/// Output columns per piece of parallel work.
const UNIT: usize = 256;

/// Whether this machine has the instructions.
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// `y (T, N) = bf16(x (T, K)) · Wᵀ`, or added to `y`. Uses the portable tile where the instructions are missing.
pub fn forward(shape: Shape, x: &[f32], weight: &[bf16], y: &mut [f32], write: Write) {
    check(shape, x.len(), weight.len(), y.len());
    let right = Right {
        values: weight,
        stride: shape.inputs,
        transposed: true,
    };
    product(
        [shape.rows, shape.outputs, shape.inputs],
        x,
        right,
        y,
        write,
        is_supported(),
    );
}

/// `dx (T, K) = bf16(g (T, N)) · W`, or added to `dx`.
pub fn input_gradient(shape: Shape, g: &[f32], weight: &[bf16], dx: &mut [f32], write: Write) {
    check(shape, dx.len(), weight.len(), g.len());
    let right = Right {
        values: weight,
        stride: shape.inputs,
        transposed: false,
    };
    product(
        [shape.rows, shape.inputs, shape.outputs],
        g,
        right,
        dx,
        write,
        is_supported(),
    );
}

/// The right operand `(k, n)`: stored so, or as its transpose `(n, k)`.
#[derive(Clone, Copy)]
struct Right<'a> {
    values: &'a [bf16],
    stride: usize,
    transposed: bool,
}

fn product(
    [m, n, k]: [usize; 3],
    a: &[f32],
    right: Right<'_>,
    c: &mut [f32],
    write: Write,
    instructions: bool,
) {
    if write == Write::Replace && k == 0 {
        c.fill(0.0);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let tiles = m.div_ceil(TILE_ROWS);
    let blocks: Vec<(usize, usize)> = (0..k)
        .step_by(DEPTH)
        .map(|first| (first, DEPTH.min(k - first)))
        .collect();
    let packed: Vec<Vec<u32>> = blocks
        .par_iter()
        .map(|(first, depth)| pack_left(a, k, m, *first, *depth))
        .collect();
    let c = Disjoint::new(c);
    (0..n.div_ceil(UNIT))
        .into_par_iter()
        .for_each_init(Vec::new, |buffer: &mut Vec<u32>, unit| {
            let column = unit * UNIT;
            let width = UNIT.min(n - column);
            for (block, ((first, depth), packed)) in blocks.iter().zip(&packed).enumerate() {
                let pairs = depth.div_ceil(2);
                buffer.resize(UNIT.div_ceil(TILE_COLUMNS) * TILE_COLUMNS * DEPTH / 2, 0);
                pack_right(right, column, width, *first, *depth, buffer);
                let add = block > 0 || write == Write::Add;
                for tile in 0..tiles {
                    let left = &packed[tile * pairs * TILE_ROWS..(tile + 1) * pairs * TILE_ROWS];
                    let rows = TILE_ROWS.min(m - tile * TILE_ROWS);
                    for panel in 0..width.div_ceil(TILE_COLUMNS) {
                        let right = &buffer
                            [panel * pairs * TILE_COLUMNS..(panel + 1) * pairs * TILE_COLUMNS];
                        let columns = TILE_COLUMNS.min(width - panel * TILE_COLUMNS);
                        let start = tile * TILE_ROWS * n + column + panel * TILE_COLUMNS;
                        let target = Target {
                            c: &c,
                            start,
                            stride: n,
                            rows,
                            columns,
                            add,
                        };
                        compute_tile(left, right, target, instructions);
                    }
                }
            }
        });
}

/// Packs `a[0..m, first..first + depth]` as pairs: tile, pair of inputs, row of the tile.
fn pack_left(a: &[f32], stride: usize, m: usize, first: usize, depth: usize) -> Vec<u32> {
    let pairs = depth.div_ceil(2);
    let mut packed = vec![0_u32; m.div_ceil(TILE_ROWS) * pairs * TILE_ROWS];
    for (tile, packed) in packed.chunks_exact_mut(pairs * TILE_ROWS).enumerate() {
        for row in 0..TILE_ROWS.min(m - tile * TILE_ROWS) {
            let start = (tile * TILE_ROWS + row) * stride + first;
            for (pair, values) in a[start..start + depth].chunks(2).enumerate() {
                let high = values.get(1).map_or(0, |value| round(*value));
                packed[pair * TILE_ROWS + row] = round(values[0]) | high << 16;
            }
        }
    }
    packed
}

/// The upper half of the nearest bf16, ties to even.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        (bits >> 16) | 0x40
    } else {
        (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
    }
}

/// Packs a block of the right operand as pairs: panel of 64 columns, pair of inputs, column.
fn pack_right(
    right: Right<'_>,
    column: usize,
    width: usize,
    first: usize,
    depth: usize,
    packed: &mut [u32],
) {
    let pairs = depth.div_ceil(2);
    for panel in 0..width.div_ceil(TILE_COLUMNS) {
        let packed = &mut packed[panel * pairs * TILE_COLUMNS..(panel + 1) * pairs * TILE_COLUMNS];
        let start = column + panel * TILE_COLUMNS;
        let columns = TILE_COLUMNS.min(width - panel * TILE_COLUMNS);
        if columns < TILE_COLUMNS {
            packed.fill(0);
        }
        if right.transposed {
            // Sixteen pairs at a time: a cache line of each of sixteen packed rows stays close.
            for part in (0..pairs).step_by(16) {
                for offset in 0..columns {
                    let row = &right.values[(start + offset) * right.stride + first..][..depth];
                    for (pair, values) in row[2 * part..depth.min(2 * part + 32)]
                        .chunks(2)
                        .enumerate()
                    {
                        let high = values.get(1).map_or(0, |value| u32::from(value.to_bits()));
                        packed[(part + pair) * TILE_COLUMNS + offset] =
                            u32::from(values[0].to_bits()) | high << 16;
                    }
                }
            }
        } else {
            for (pair, packed) in packed.chunks_exact_mut(TILE_COLUMNS).enumerate() {
                let row = &right.values[(first + 2 * pair) * right.stride + start..][..columns];
                if 2 * pair + 1 < depth {
                    let next =
                        &right.values[(first + 2 * pair + 1) * right.stride + start..][..columns];
                    for ((packed, low), high) in packed.iter_mut().zip(row).zip(next) {
                        *packed = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
                    }
                } else {
                    for (packed, low) in packed.iter_mut().zip(row) {
                        *packed = u32::from(low.to_bits());
                    }
                }
            }
        }
    }
}

/// Where a tile of sums goes.
struct Target<'a> {
    c: &'a Disjoint<'a, f32>,
    start: usize,
    stride: usize,
    rows: usize,
    columns: usize,
    add: bool,
}

fn compute_tile(left: &[u32], right: &[u32], target: Target<'_>, instructions: bool) {
    let mut sums = [[0.0_f32; TILE_COLUMNS]; TILE_ROWS];
    #[cfg(target_arch = "x86_64")]
    {
        if instructions {
            // SAFETY: the caller detected the features.
            unsafe { avx512_tile(left, right, &mut sums) };
        } else {
            portable_tile(left, right, &mut sums);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = instructions;
        portable_tile(left, right, &mut sums);
    }
    for (row, sums) in sums.iter().take(target.rows).enumerate() {
        // SAFETY: each element of the result belongs to one tile, and the tiles of a unit to one thread.
        let output = unsafe {
            target
                .c
                .slice(target.start + row * target.stride, target.columns)
        };
        if target.add {
            for (output, sum) in output.iter_mut().zip(sums) {
                *output += *sum;
            }
        } else {
            output.copy_from_slice(&sums[..target.columns]);
        }
    }
}

fn portable_tile(left: &[u32], right: &[u32], sums: &mut [[f32; TILE_COLUMNS]; TILE_ROWS]) {
    let (low, high) = (
        |pair: u32| f32::from_bits(pair << 16),
        |pair: u32| f32::from_bits(pair & 0xffff_0000),
    );
    for (left, right) in left
        .chunks_exact(TILE_ROWS)
        .zip(right.chunks_exact(TILE_COLUMNS))
    {
        for (left, sums) in left.iter().zip(sums.iter_mut()) {
            for (right, sum) in right.iter().zip(sums) {
                *sum += high(*left) * high(*right) + low(*left) * low(*right);
            }
        }
    }
}

/// One tile over all pairs of a block with `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn avx512_tile(left: &[u32], right: &[u32], sums: &mut [[f32; TILE_COLUMNS]; TILE_ROWS]) {
    use std::arch::x86_64::*;
    let pairs = left.len() / TILE_ROWS;
    assert!(right.len() >= pairs * TILE_COLUMNS);
    let mut registers = [[_mm512_setzero_ps(); 4]; TILE_ROWS];
    for pair in 0..pairs {
        let mut columns = [_mm512_setzero_si512(); 4];
        for (quarter, column) in columns.iter_mut().enumerate() {
            // SAFETY: a panel row holds 64 pairs, asserted above.
            *column = unsafe {
                _mm512_loadu_si512(
                    right
                        .as_ptr()
                        .add(pair * TILE_COLUMNS + quarter * 16)
                        .cast(),
                )
            };
        }
        for (row, registers) in registers.iter_mut().enumerate() {
            // SAFETY: `pair < pairs`, so the index is inside `left`.
            let value =
                _mm512_set1_epi32(unsafe { *left.as_ptr().add(pair * TILE_ROWS + row) } as i32);
            for (register, column) in registers.iter_mut().zip(columns) {
                // SAFETY: both types are 512 plain bits; each 32-bit element is a pair of bf16.
                let (value, column) = unsafe {
                    (
                        std::mem::transmute::<__m512i, __m512bh>(value),
                        std::mem::transmute::<__m512i, __m512bh>(column),
                    )
                };
                *register = _mm512_dpbf16_ps(*register, value, column);
            }
        }
    }
    for (registers, sums) in registers.iter().zip(sums) {
        for (quarter, register) in registers.iter().enumerate() {
            // SAFETY: a row of sums holds 64 elements.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(quarter * 16), *register) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{Weight, forward_plain};

    fn rounded(count: usize, seed: u64) -> Vec<bf16> {
        let key = crate::noise::NoiseKey::new(seed);
        (0..count as u64)
            .map(|index| bf16::from_f32(key.normal(index)))
            .collect()
    }

    fn compare(instructions: bool) {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (5, 63, 31),
            (13, 65, 64),
            (30, 300, 515),
            (48, 257, 1030),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let (x, weight) = (rounded(rows * inputs, 1), rounded(outputs * inputs, 2));
            let x: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
            let (mut plain, mut fast) = (vec![0.25; rows * outputs], vec![0.25; rows * outputs]);
            forward_plain(shape, &x, Weight::Bf16(&weight), &mut plain, Write::Add);
            let right = Right {
                values: &weight,
                stride: inputs,
                transposed: true,
            };
            product(
                [rows, outputs, inputs],
                &x,
                right,
                &mut fast,
                Write::Add,
                instructions,
            );
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 2e-3, "{plain} {fast}");
            }
            // g · W is the forward product with the transposed weight.
            let g: Vec<f32> = rounded(rows * outputs, 3)
                .iter()
                .map(|v| v.to_f32())
                .collect();
            let mut turned = vec![bf16::ZERO; weight.len()];
            for n in 0..outputs {
                for k in 0..inputs {
                    turned[k * outputs + n] = weight[n * inputs + k];
                }
            }
            let (mut plain, mut fast) = (vec![0.0; rows * inputs], vec![9.0; rows * inputs]);
            let back = Shape {
                rows,
                outputs: inputs,
                inputs: outputs,
            };
            forward_plain(back, &g, Weight::Bf16(&turned), &mut plain, Write::Replace);
            let right = Right {
                values: &weight,
                stride: inputs,
                transposed: false,
            };
            product(
                [rows, inputs, outputs],
                &g,
                right,
                &mut fast,
                Write::Replace,
                instructions,
            );
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 2e-3, "{plain} {fast}");
            }
        }
    }

    #[test]
    fn portable_tile_equals_the_plain_product() {
        compare(false);
    }

    #[test]
    fn instructions_equal_the_plain_product_where_present() {
        if is_supported() {
            compare(true);
        }
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let key = crate::noise::NoiseKey::new(5);
        for index in 0..10_000 {
            let value = f32::from_bits(key.bits(index) as u32);
            if !value.is_nan() {
                assert_eq!(
                    round(value),
                    u32::from(bf16::from_f32(value).to_bits()),
                    "{value:e}"
                );
            }
        }
    }
}
