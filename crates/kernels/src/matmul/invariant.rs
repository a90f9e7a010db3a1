//! The forward product for serving: every element is summed in an order that depends on `K` alone.
//!
//! A row therefore gives the same bits whether it is computed alone or with others, on one thread or on
//! many, so that one request can never change another's output. `K` is cut into chunks; within one, eight
//! interleaved partial sums are added in a fixed tree, and the chunks follow each other. Tiles only decide
//! how many elements are computed side by side.
#![allow(unsafe_code)]

use super::int8::{self, RoundedRows, round_rows};
use super::{Int8Weight, Shape, Weight, Write, check};
use crate::dispatch::{has_avx2, multiversion};
use crate::shared::Disjoint;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Interleaved partial sums along `K`.
const LANES: usize = 8;
/// Elements along `K` that are summed before the next. The activations of a block and the weights of a panel stay in the
/// second-level cache; shorter runs are read more slowly than they are used.
const CHUNK: usize = 2560;
/// Most rows of activations that are computed before the next weights.
const MOST_ROWS_PER_BLOCK: usize = 64;
/// Most rows of activations of a tile.
const MOST_TILE_ROWS: usize = 4;
/// Output features of a piece of parallel work are a multiple of this: of the tiles' three and of a single row's eight.
const PIECE_STEP: usize = 24;
/// Most of them for rows that fit one tile: long runs of weights are read faster than short ones.
const MOST_OUTPUTS_READ_ONCE: usize = 144;
/// Most of them for more rows.
const MOST_OUTPUTS_READ_AGAIN: usize = 72;
/// Outputs whose chunks of weights stay in the second-level cache, for tiles of activations to pass by.
const PANEL: usize = 24;
/// For so few rows the weights of the next panel are fetched meanwhile. More rows compute for so long that reading does
/// not matter, and what is fetched drives out what is used.
const ROWS_FETCHED_FOR: usize = 16;
/// Pieces for each thread, so that threads end together.
const PIECES_PER_THREAD: usize = 4;
/// Multiplications below which the product runs on the calling thread.
const PARALLEL_WORK: usize = 1 << 20;
/// Activations from which on their preparation is divided between threads.
pub(super) const PARALLEL_ACTIVATIONS: usize = 1 << 17;

/// `y (T, N) = x (T, K) · Wᵀ`, or added to `y`, with bits that do not depend on the other rows.
///
/// With a weight of 8-bit integers the activations are rounded too, each 32 of a row to 8-bit integers with a scale of
/// their own, and products are computed in integers.
pub fn forward_batch_invariant(
    shape: Shape,
    x: &[f32],
    weight: Weight<'_>,
    y: &mut [f32],
    write: Write,
) {
    check(shape, x.len(), weight.len(), y.len());
    match weight {
        Weight::F32(weight) => run_plain(shape, x, weight, y, write),
        Weight::Bf16(weight) => run_plain(shape, x, weight, y, write),
        Weight::Int8(weight) => {
            let mut rounded = ROUNDED.take();
            round_rows(x, shape.inputs, &mut rounded);
            let x = &rounded;
            run(shape, Rounded { x, weight }, y, write);
            ROUNDED.set(rounded);
        }
    }
}

fn run_plain<E: Element>(shape: Shape, x: &[f32], weight: &[E], y: &mut [f32], write: Write) {
    let inputs = shape.inputs;
    if !has_avx2() {
        let plain = Plain {
            x,
            stride: inputs,
            weight,
            inputs,
        };
        return run(shape, plain, y, write);
    }
    let mut paired = PAIRED.take();
    let stride = pair_rows(x, inputs, &mut paired);
    let x = Line::flat(&paired);
    run(
        shape,
        Plain {
            x,
            stride,
            weight,
            inputs,
        },
        y,
        write,
    );
    PAIRED.set(paired);
}

// Activations as the kernels read them; kept so that memory is not asked for with every product. They are taken out while
// they are used, because a thread that waits for others may begin another product.
thread_local! {
    static PAIRED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    static ROUNDED: RefCell<RoundedRows> = RefCell::default();
}

/// Sixteen activations where a cache line begins, so that no load touches two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 2 * LANES]);

impl Line {
    fn flat(lines: &[Line]) -> &[f32] {
        // SAFETY: a line is sixteen elements and nothing else.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 2 * LANES) }
    }
}

/// Sorts every sixteen elements of each row into the even and the odd ones, as [`Element::load`] gives weights. A
/// last short line keeps its order. Returns the elements from one row to the next.
fn pair_rows(x: &[f32], inputs: usize, paired: &mut Vec<Line>) -> usize {
    let (inputs, lines) = (inputs.max(1), inputs.div_ceil(2 * LANES).max(1));
    paired.resize(x.len() / inputs * lines, Line([0.0; 2 * LANES]));
    (x.par_chunks(inputs))
        .zip(paired.par_chunks_mut(lines))
        .with_min_len((PARALLEL_ACTIVATIONS / inputs).max(1))
        .for_each(|(x, paired)| pair_row(x, paired));
    lines * 2 * LANES
}

multiversion! {
    fn pair_row(x: &[f32], paired: &mut [Line]) {
        let (whole, rest) = x.as_chunks::<{ 2 * LANES }>();
        for (x, paired) in whole.iter().zip(paired.iter_mut()) {
            paired.0 = std::array::from_fn(|place| x[place % LANES * 2 + place / LANES]);
        }
        if let Some(paired) = paired.get_mut(whole.len()) {
            paired.0[..rest.len()].copy_from_slice(rest);
        }
    }
}

fn run<P: Product>(shape: Shape, product: P, y: &mut [f32], write: Write) {
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    let block = Block {
        product,
        y: &Disjoint::new(y),
        inputs,
        outputs,
        add: write == Write::Add,
        fetch: rows <= ROWS_FETCHED_FOR,
    };
    let piece = |outputs: Range<usize>| {
        for first in (0..rows).step_by(MOST_ROWS_PER_BLOCK) {
            let rows = first..(first + MOST_ROWS_PER_BLOCK).min(rows);
            block.compute(rows, outputs.clone());
        }
    };
    if rows * outputs * inputs < PARALLEL_WORK {
        piece(0..outputs);
        return;
    }
    let wanted = outputs / (PIECES_PER_THREAD * rayon::current_num_threads());
    let most = match rows <= MOST_TILE_ROWS {
        true => MOST_OUTPUTS_READ_ONCE,
        false => MOST_OUTPUTS_READ_AGAIN,
    };
    let size = wanted.next_multiple_of(PIECE_STEP).clamp(PIECE_STEP, most);
    (0..outputs.div_ceil(size))
        .into_par_iter()
        .for_each(|index| piece(index * size..((index + 1) * size).min(outputs)));
}

/// Where the elements of a product go, and how they are divided into tiles.
struct Block<'a, P> {
    product: P,
    y: &'a Disjoint<'a, f32>,
    inputs: usize,
    outputs: usize,
    add: bool,
    /// Whether weights are fetched ahead of their panel.
    fetch: bool,
}

/// Everything between [`Block::compute`] and the kernel is one function for the compiler; with more calls for each tile, a
/// fifth of the time was outside of the kernels' loops.
impl<P: Product> Block<'_, P> {
    /// Computes the elements `rows × outputs`, which no other thread computes.
    fn compute(&self, rows: Range<usize>, outputs: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn wide<P: Product>(block: &Block<'_, P>, rows: Range<usize>, outputs: Range<usize>) {
                block.divide::<true>(rows, outputs);
            }
            if has_avx2() {
                // SAFETY: the features of this function were just detected.
                return unsafe { wide(self, rows, outputs) };
            }
        }
        self.divide::<false>(rows, outputs);
    }

    /// Where one tile holds all rows, reading weights is the limit: its weights lie far apart, so that each of them
    /// begins a run of rows that the processor reads ahead by itself. With more tiles the weights of a panel lie side by
    /// side, and each tile of activations stays in the cache while they pass by.
    #[inline(always)]
    fn divide<const WIDE: bool>(&self, rows: Range<usize>, outputs: Range<usize>) {
        match rows.len() {
            // Eight runs keep the arithmetic units busy with a single row.
            1 => self.far::<WIDE, 1, 8>(rows.start, outputs),
            2 => self.far::<WIDE, 2, 3>(rows.start, outputs),
            3 => self.far::<WIDE, 3, 3>(rows.start, outputs),
            4 => self.far::<WIDE, 4, 3>(rows.start, outputs),
            _ => {
                for first in outputs.clone().step_by(PANEL) {
                    self.panel::<WIDE>(&rows, first..(first + PANEL).min(outputs.end));
                }
            }
        }
    }

    #[inline(always)]
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let inputs = self.inputs;
        // Even nothing is a sum, of nothing.
        let starts = (0..inputs.max(1)).step_by(CHUNK);
        starts.map(move |start| start..(start + CHUNK).min(inputs))
    }

    /// Computes `M` rows by the outputs, in `N` equal runs side by side.
    #[inline(always)]
    fn far<const WIDE: bool, const M: usize, const N: usize>(
        &self,
        row: usize,
        outputs: Range<usize>,
    ) {
        let stride = outputs.len() / N;
        for first in outputs.start..outputs.start + stride {
            let runs = Runs { first, stride };
            // The next row of each run.
            let fetch = std::array::from_fn(|number| (runs.row(number) + 1) * self.inputs);
            for chunk in self.chunks() {
                self.tile::<WIDE, M, N, N>(row, runs, chunk, fetch);
            }
        }
        for output in outputs.start + stride * N..outputs.end {
            for chunk in self.chunks() {
                self.tile::<WIDE, M, 1, 0>(row, Runs::neighbours(output), chunk, []);
            }
        }
    }

    /// Computes outputs that lie side by side, chunk by chunk.
    #[inline(always)]
    fn panel<const WIDE: bool>(&self, rows: &Range<usize>, outputs: Range<usize>) {
        let tiles = rows.len().div_ceil(MOST_TILE_ROWS);
        for chunk in self.chunks() {
            let (mut row, mut fetched) = (rows.start, 0);
            while row < rows.end {
                let part = Part {
                    row,
                    outputs: outputs.clone(),
                    chunk: chunk.clone(),
                    fetched,
                };
                row += match rows.end - row {
                    1 => self.fetching::<WIDE, 1>(part, tiles),
                    2 => self.fetching::<WIDE, 2>(part, tiles),
                    // Five rows are better three and two than four and one.
                    3 | 5 => self.fetching::<WIDE, 3>(part, tiles),
                    _ => self.fetching::<WIDE, MOST_TILE_ROWS>(part, tiles),
                };
                fetched += outputs.len().div_ceil(tiles);
            }
        }
    }

    /// Computes `M` rows of a panel, returns `M`, and fetches what falls to these rows of the next panel.
    #[inline(always)]
    fn fetching<const WIDE: bool, const M: usize>(&self, part: Part, tiles: usize) -> usize {
        match tiles {
            _ if !self.fetch => self.part::<WIDE, M, 0>(part),
            2 => self.part::<WIDE, M, 2>(part),
            _ => self.part::<WIDE, M, 1>(part),
        }
        M
    }

    /// Four rows by three weights are twelve sums in flight, which hides the latency of the arithmetic units, and each
    /// widened weight is used four times.
    #[inline(always)]
    fn part<const WIDE: bool, const M: usize, const F: usize>(&self, part: Part) {
        const N: usize = 3;
        let Part {
            row,
            outputs,
            chunk,
            fetched,
        } = part;
        // The next chunk of the same rows, or the first one of the next panel.
        let ahead = match chunk.end < self.inputs {
            true => chunk.len(),
            false => PANEL * self.inputs - chunk.start,
        };
        let grouped = outputs.len() / N * N;
        for group in (0..grouped).step_by(N) {
            let runs = Runs::neighbours(outputs.start + group);
            let first = outputs.start + fetched + group / N * F;
            let fetch = std::array::from_fn(|number| (first + number) * self.inputs + ahead);
            self.tile::<WIDE, M, N, F>(row, runs, chunk.clone(), fetch);
        }
        for output in outputs.start + grouped..outputs.end {
            self.tile::<WIDE, M, 1, 0>(row, Runs::neighbours(output), chunk.clone(), []);
        }
    }

    /// Computes `M` rows by `N` outputs over one chunk.
    #[inline(always)]
    fn tile<const WIDE: bool, const M: usize, const N: usize, const F: usize>(
        &self,
        row: usize,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) {
        let add = self.add || chunk.start > 0;
        let sums: [[f32; N]; M] = self.product.sums::<WIDE, M, N, F>(row, runs, chunk, fetch);
        for (index, sums) in sums.iter().enumerate() {
            let start = (row + index) * self.outputs;
            for (number, sum) in sums.iter().enumerate() {
                // SAFETY: each element of `y` belongs to exactly one piece, and pieces to one thread.
                let target = unsafe { &mut self.y.slice(start + runs.row(number), 1)[0] };
                *target = if add { *target + sum } else { *sum };
            }
        }
    }
}

/// Rows of activations that are computed with a panel's weights, and how far the next panel's are fetched by then.
struct Part {
    row: usize,
    outputs: Range<usize>,
    chunk: Range<usize>,
    fetched: usize,
}

/// The rows of a weight that a tile uses.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    first: usize,
    /// From one row to the next.
    stride: usize,
}

impl Runs {
    /// Rows side by side.
    pub(super) fn neighbours(first: usize) -> Self {
        Self { first, stride: 1 }
    }

    /// The row of a weight with this number.
    #[inline(always)]
    pub(super) fn row(&self, number: usize) -> usize {
        self.first + number * self.stride
    }

    /// Whether `N` rows of `inputs` elements lie in a weight of `length` elements.
    #[inline(always)]
    pub(super) fn fit<const N: usize>(&self, length: usize, inputs: usize) -> bool {
        length >= (self.row(N - 1) + 1) * inputs
    }
}

/// Activations and a weight, as one kernel reads them.
trait Product: Copy + Send + Sync {
    /// Sums over `chunk` of `M` rows of activations from `row` on with `N` rows of weights. Meanwhile what lies each of
    /// `fetch` elements behind the place in the chunk is brought into the cache, if there is anything.
    ///
    /// `WIDE` says that the caller was compiled for AVX2 and FMA.
    fn sums<const WIDE: bool, const M: usize, const N: usize, const F: usize>(
        &self,
        row: usize,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) -> [[f32; N]; M];
}

/// One number for each element.
#[derive(Clone, Copy)]
struct Plain<'a, E> {
    /// In the order of [`Element::load`].
    x: &'a [f32],
    /// Elements from one row of `x` to the next.
    stride: usize,
    weight: &'a [E],
    inputs: usize,
}

impl<E: Element> Product for Plain<'_, E> {
    #[inline(always)]
    fn sums<const WIDE: bool, const M: usize, const N: usize, const F: usize>(
        &self,
        row: usize,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) -> [[f32; N]; M] {
        let x = &self.x[row * self.stride..(row + M) * self.stride];
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: the features of the kernel are there by the contract of this function.
            return unsafe {
                wide::tile(x, self.stride, self.weight, self.inputs, runs, chunk, fetch)
            };
        }
        portable_tile(x, self.weight, runs, chunk, self.inputs)
    }
}

/// Integers on both sides.
#[derive(Clone, Copy)]
struct Rounded<'a> {
    x: &'a RoundedRows,
    weight: Int8Weight<'a>,
}

impl Product for Rounded<'_> {
    #[inline(always)]
    fn sums<const WIDE: bool, const M: usize, const N: usize, const F: usize>(
        &self,
        row: usize,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) -> [[f32; N]; M] {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: the features of the kernel are there by the contract of this function.
            return unsafe { int8::wide::tile(self.x, row, self.weight, runs, chunk, fetch) };
        }
        int8::portable_tile(self.x, row, self.weight, runs, chunk)
    }
}

/// Adds the partial sums in the one order that all kernels use.
#[inline(always)]
pub(super) fn tree(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The kernel without special instructions.
fn portable_tile<E: Element, const M: usize, const N: usize>(
    x: &[f32],
    weight: &[E],
    runs: Runs,
    chunk: Range<usize>,
    inputs: usize,
) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x[row * inputs..][chunk.clone()];
        for (output, sum) in sums.iter_mut().enumerate() {
            let weight = &weight[runs.row(output) * inputs..][chunk.clone()];
            let mut lanes = [0.0_f32; LANES];
            for (index, (x, weight)) in x.iter().zip(weight).enumerate() {
                lanes[index % LANES] += x * weight.widened();
            }
            *sum = tree(lanes);
        }
    }
    sums
}

/// A stored weight element.
pub(super) trait Element: Copy + Send + Sync {
    fn widened(self) -> f32;

    /// Half of sixteen elements: the even ones for `HALF` 0, the odd ones for 1, which takes one instruction for bf16.
    ///
    /// # Safety
    /// AVX2 must be available and sixteen elements readable at `start`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load<const HALF: usize>(start: *const Self) -> std::arch::x86_64::__m256;
}

impl Element for f32 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load<const HALF: usize>(start: *const Self) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the elements are readable and AVX2 is available by the trait's contract.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(LANES)));
            // Takes them from each half of both registers, so that pairs are out of order.
            let taken = match HALF {
                0 => _mm256_shuffle_ps::<0b10_00_10_00>(low, high),
                _ => _mm256_shuffle_ps::<0b11_01_11_01>(low, high),
            };
            let pairs = _mm256_castps_pd(taken);
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(pairs))
        }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load<const HALF: usize>(start: *const Self) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the elements are readable and AVX2 is available by the trait's contract.
        unsafe {
            let pairs = _mm256_loadu_si256(start.cast());
            _mm256_castsi256_ps(match HALF {
                0 => _mm256_slli_epi32::<16>(pairs),
                _ => _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
            })
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod wide {
    use super::{Element, LANES, Runs};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// Bytes that are fetched at once.
    const CACHE_LINE: usize = 64;
    /// Elements of a weight that are used before the next are fetched.
    pub(in super::super) const FETCH_STEP: usize = 32;

    /// `M × N` sums over the elements `chunk` of `inputs`.
    ///
    /// `x` holds `M` rows in the order of [`Element::load`], and `weight` all rows.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile<E: Element, const M: usize, const N: usize, const F: usize>(
        x: &[f32],
        x_stride: usize,
        weight: &[E],
        inputs: usize,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) -> [[f32; N]; M] {
        assert!(x.len() >= M * x_stride && x_stride >= inputs);
        assert!(runs.fit::<N>(weight.len(), inputs));
        assert!(chunk.start <= chunk.end && chunk.end <= inputs);
        // SAFETY: all rows lie inside `x` and `weight`, as was just checked, and `chunk` inside them.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); N]; M];
            let starts: [*const E; N] =
                std::array::from_fn(|number| weight.as_ptr().add(runs.row(number) * inputs));
            let mut index = chunk.start;
            // Whole cache lines of weights, fetched and used.
            while index + FETCH_STEP <= chunk.end {
                for fetch in fetch {
                    bring(weight.as_ptr().wrapping_add(fetch + index));
                }
                sixteen(&mut sums, x.as_ptr(), x_stride, starts, index);
                sixteen(&mut sums, x.as_ptr(), x_stride, starts, index + 2 * LANES);
                index += FETCH_STEP;
            }
            if index + 2 * LANES <= chunk.end {
                sixteen(&mut sums, x.as_ptr(), x_stride, starts, index);
                index += 2 * LANES;
            }
            if index < chunk.end {
                let rest = index..chunk.end;
                for row in 0..M {
                    let x = &x[row * x_stride..][rest.clone()];
                    for number in 0..N {
                        let weight = &weight[runs.row(number) * inputs..][rest.clone()];
                        sums[row][number] = add_rest(sums[row][number], x, weight);
                    }
                }
            }
            trees(sums)
        }
    }

    /// Adds sixteen products to each sum.
    ///
    /// # Safety
    /// Sixteen elements from `index` on readable at each of `starts`, and at `x` and
    /// `M - 1` times `x_stride` behind it.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn sixteen<E: Element, const M: usize, const N: usize>(
        sums: &mut [[__m256; N]; M],
        x: *const f32,
        x_stride: usize,
        starts: [*const E; N],
        index: usize,
    ) {
        // SAFETY: by the contract of this function.
        unsafe {
            eight::<E, 0, M, N>(sums, x.add(index), x_stride, starts, index);
            eight::<E, 1, M, N>(sums, x.add(index), x_stride, starts, again(index));
        }
    }

    /// Adds half of sixteen products to each sum.
    ///
    /// # Safety
    /// As for [`sixteen`].
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the tile in registers and the loops readable.
    unsafe fn eight<E: Element, const HALF: usize, const M: usize, const N: usize>(
        sums: &mut [[__m256; N]; M],
        x: *const f32,
        x_stride: usize,
        starts: [*const E; N],
        index: usize,
    ) {
        // SAFETY: by the contract of this function.
        unsafe {
            let weights: [__m256; N] =
                std::array::from_fn(|number| E::load::<HALF>(starts[number].add(index)));
            for row in 0..M {
                let x = _mm256_loadu_ps(x.add(row * x_stride + HALF * LANES));
                for number in 0..N {
                    sums[row][number] = _mm256_fmadd_ps(x, weights[number], sums[row][number]);
                }
            }
        }
    }

    /// Adds the products of less than sixteen elements.
    #[target_feature(enable = "avx2,fma")]
    #[inline(never)]
    fn add_rest<E: Element>(mut sum: __m256, x: &[f32], weight: &[E]) -> __m256 {
        let (mut left, mut right) = ([0.0_f32; 2 * LANES], [0.0_f32; 2 * LANES]);
        left[..x.len()].copy_from_slice(x);
        for (right, weight) in right.iter_mut().zip(weight) {
            *right = weight.widened();
        }
        for part in [0, LANES] {
            // SAFETY: both arrays hold sixteen elements.
            let (left, right) = unsafe {
                (
                    _mm256_loadu_ps(left.as_ptr().add(part)),
                    _mm256_loadu_ps(right.as_ptr().add(part)),
                )
            };
            sum = _mm256_fmadd_ps(left, right, sum);
        }
        sum
    }

    /// The same number, but not for the compiler: it would hold weights from the first half for the second one, in
    /// registers that the sums need.
    #[inline(always)]
    fn again(index: usize) -> usize {
        let mut same = index;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) same, options(pure, nomem, nostack, preserves_flags));
        }
        same
    }

    /// Asks for [`FETCH_STEP`] elements from `start` on. It is a hint: the address may be behind a weight and is never read.
    #[inline(always)]
    pub(in super::super) fn bring<E>(start: *const E) {
        for line in 0..(FETCH_STEP * size_of::<E>()).div_ceil(CACHE_LINE) {
            // SAFETY: every x86-64 processor has this instruction, and it reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(start.cast::<i8>().wrapping_add(line * CACHE_LINE))
            };
        }
    }

    /// [`super::tree`] of every register.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the sums in registers.
    pub(in super::super) fn trees<const M: usize, const N: usize>(
        sums: [[__m256; N]; M],
    ) -> [[f32; N]; M] {
        let mut totals = [[0.0; N]; M];
        for first in (0..M * N).step_by(4) {
            let mut four = [_mm256_setzero_ps(); 4];
            for place in 0..4 {
                if first + place < M * N {
                    four[place] = sums[(first + place) / N][(first + place) % N];
                }
            }
            let mut together = [0.0; 4];
            // SAFETY: the target holds four elements.
            unsafe { _mm_storeu_ps(together.as_mut_ptr(), four_trees(four)) };
            for place in 0..4 {
                if first + place < M * N {
                    totals[(first + place) / N][(first + place) % N] = together[place];
                }
            }
        }
        totals
    }

    /// [`super::tree`] of four registers side by side.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn four_trees(sums: [__m256; 4]) -> __m128 {
        let [a, b, c, d] = sums
            .map(|sum| _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum)));
        let first = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let second = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        _mm_add_ps(
            _mm_shuffle_ps::<0b10_00_10_00>(first, second),
            _mm_shuffle_ps::<0b11_01_11_01>(first, second),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::forward_plain;
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let key = crate::noise::NoiseKey::new(seed);
        (0..count as u64).map(|index| key.normal(index)).collect()
    }

    #[test]
    fn every_shape_is_close_to_the_plain_product_and_independent_of_the_batch() {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (1, 9, 17),
            (5, 7, 64),
            (50, 66, 33),
            (11, 80, 72),
            (7, 300, 160),
            (1, 2000, 640),
            (13, 50, 2600),
            (17, 30, 5136),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let x = numbers(rows * inputs, 1);
            let weight: Vec<bf16> = numbers(outputs * inputs, 2)
                .into_iter()
                .map(bf16::from_f32)
                .collect();
            let (mut plain, mut fast) = (vec![0.5; rows * outputs], vec![0.5; rows * outputs]);
            forward_plain(shape, &x, Weight::Bf16(&weight), &mut plain, Write::Add);
            forward_batch_invariant(shape, &x, Weight::Bf16(&weight), &mut fast, Write::Add);
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 2e-4, "{plain} {fast}");
            }
            forward_batch_invariant(shape, &x, Weight::Bf16(&weight), &mut fast, Write::Replace);
            let widened: Vec<f32> = weight.iter().map(|w| w.to_f32()).collect();
            for row in 0..rows {
                let mut alone = vec![0.0; outputs];
                let one = Shape {
                    rows: 1,
                    outputs,
                    inputs,
                };
                let x = &x[row * inputs..(row + 1) * inputs];
                forward_batch_invariant(one, x, Weight::F32(&widened), &mut alone, Write::Replace);
                assert_eq!(alone, fast[row * outputs..(row + 1) * outputs]);
            }
        }
    }

    #[test]
    fn portable_kernel_agrees() {
        let (x, weight) = (numbers(3 * 100, 3), numbers(4 * 100, 4));
        let sums = portable_tile::<f32, 3, 4>(&x, &weight, Runs::neighbours(0), 0..100, 100);
        let mut plain = vec![0.0; 12];
        let shape = Shape {
            rows: 3,
            outputs: 4,
            inputs: 100,
        };
        forward_plain(shape, &x, Weight::F32(&weight), &mut plain, Write::Replace);
        for (a, b) in sums.iter().flatten().zip(&plain) {
            assert!((a - b).abs() < 1e-4);
        }
    }
}
