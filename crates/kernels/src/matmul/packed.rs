//! Single-precision products for processors with AVX2: the products of training, with frozen bf16 or trained weights.
//!
//! The right operand is widened and packed into panels of sixteen columns, part of its depth at a time, so that it is
//! read from the caches in the order of use; the left one is used where it lies. A tile of six rows and sixteen columns
//! stays in registers. A result may be the sum of several products: the low-rank delta beside a frozen weight is added
//! while the block that it belongs to is still in the cache.
//!
//! An element is summed along the depth in pieces of [`DEPTH`], whatever the sizes of the other operands: the same bits
//! on any number of threads, and for a row alone or among others.
#![allow(unsafe_code)]

use super::single::{Matrix, PARALLEL_WORK};
use super::terms::{Right, Term};
use super::{Weight, Write, with_widened};
use crate::dispatch::has_avx2;
use crate::shared::Disjoint;
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a panel: two registers of eight.
const PANEL: usize = 16;
/// Most rows of a tile: its sums, a row of the panel and one element of the left operand fill the sixteen registers.
const TILE: usize = 6;
/// Terms that are summed in registers: a panel of them (16 KiB) and the rows of a tile fit the first-level cache.
const DEPTH: usize = 256;
/// Most panels of a block: with [`DEPTH`] terms of each, half of a second-level cache of 512 KiB.
const MOST_PANELS: usize = 16;
/// Fewest panels of a block, and fewest rows: below, operands are read and packed too often.
const FEWEST_PANELS: usize = 4;
const FEWEST_ROWS: usize = 48;
/// Blocks for each thread, so that threads end together.
const BLOCKS_PER_THREAD: usize = 4;

/// Whether these products are the fastest here. Wider registers are served by the library's own kernels.
pub(super) fn is_supported() -> bool {
    has_avx2() && !std::arch::is_x86_feature_detected!("avx512f")
}

/// `c (m, n) = Σ terms`, or added to `c`, which is row-major without gaps.
pub(super) fn multiply(
    [rows, columns]: [usize; 2],
    terms: &[Term<'_>],
    c: &mut [f32],
    write: Write,
) {
    assert_eq!(c.len(), rows * columns, "result");
    if c.is_empty() {
        return;
    }
    let work: usize = terms.iter().map(|term| rows * columns * term.depth).sum();
    let threads = match work >= PARALLEL_WORK {
        true => rayon::current_num_threads(),
        false => 1,
    };
    let panels = columns.div_ceil(PANEL);
    let column_blocks = (BLOCKS_PER_THREAD * threads)
        .min(panels / FEWEST_PANELS)
        .max(panels.div_ceil(MOST_PANELS));
    let row_blocks = match threads {
        1 => 1,
        _ => (2 * threads)
            .div_ceil(column_blocks)
            .min(rows / FEWEST_ROWS)
            .max(1),
    };
    let c = Disjoint::new(c);
    let block = |index: usize| {
        let rows = part(rows, row_blocks, index / column_blocks);
        let panels = part(panels, column_blocks, index % column_blocks);
        let columns = panels.start * PANEL..(panels.end * PANEL).min(columns);
        (rows, columns)
    };
    let compute = |index: usize| {
        let (rows, of_block) = block(index);
        let start = c.pointer(rows.start * columns + of_block.start);
        // SAFETY: the block lies inside the result, and no other one overlaps it.
        unsafe { multiply_part(rows, of_block, terms, (start, columns), write) }
    };
    match row_blocks * column_blocks {
        1 => compute(0),
        blocks => (0..blocks).into_par_iter().for_each(compute),
    }
}

/// Part `index` of `length` cut into `parts` equal pieces.
fn part(length: usize, parts: usize, index: usize) -> Range<usize> {
    length * index / parts..length * (index + 1) / parts
}

/// Some rows and columns of a product on the calling thread; `c` is the first element of them, with the row stride.
///
/// # Safety
/// The terms must have been checked. `c` must be valid for writing and reading at `i·stride + j` for all rows `i` and
/// columns `j` of the part, and nothing else may access those elements during the call.
pub(super) unsafe fn multiply_part(
    rows: Range<usize>,
    columns: Range<usize>,
    terms: &[Term<'_>],
    (c, stride): (*mut f32, usize),
    mut write: Write,
) {
    let panels = columns.len().div_ceil(PANEL);
    let deepest = terms
        .iter()
        .map(|term| term.depth)
        .max()
        .unwrap_or(0)
        .min(DEPTH);
    if deepest == 0 && write == Write::Replace {
        // Nothing is summed.
        for row in 0..rows.len() {
            // SAFETY: inside the part by the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(c.add(row * stride), columns.len()) }.fill(0.0);
        }
    }
    // Room to begin the panels where a cache line begins.
    with_widened(panels * PANEL * deepest + PANEL, |space| {
        let skipped = space.as_ptr().align_offset(64).min(PANEL);
        let space = &mut space[skipped..];
        for term in terms {
            for first in (0..term.depth).step_by(DEPTH) {
                let depth = first..(first + DEPTH).min(term.depth);
                for (index, panel) in space
                    .chunks_exact_mut(PANEL * depth.len())
                    .take(panels)
                    .enumerate()
                {
                    let start = columns.start + index * PANEL;
                    pack(
                        term.b,
                        depth.clone(),
                        start..(start + PANEL).min(columns.end),
                        panel,
                    );
                }
                let Matrix {
                    values,
                    row_stride,
                    column_stride,
                } = term.a;
                let place = kernel::Place {
                    a: values
                        .as_ptr()
                        .wrapping_add(rows.start * row_stride + first * column_stride),
                    a_strides: (row_stride, column_stride),
                    panels: space.as_ptr(),
                    depth: depth.len(),
                    c,
                    stride,
                    scale: term.scale,
                    write,
                };
                // SAFETY: the operands were checked, the panels are packed, and the result is the caller's promise.
                unsafe { kernel::tiles(rows.len(), columns.len(), place) };
                write = Write::Add;
            }
        }
    });
}

/// Packs rows `depth` and at most sixteen `columns` of the right operand; missing columns are zero.
fn pack(b: Right<'_>, depth: Range<usize>, columns: Range<usize>, panel: &mut [f32]) {
    match b {
        Right::Transposed(Weight::F32(values), length) => {
            pack_transposed(values, length, depth, columns, panel);
        }
        Right::Transposed(Weight::Bf16(values), length) => {
            pack_transposed(values, length, depth, columns, panel);
        }
        Right::Rows(Weight::F32(values), length) => {
            pack_rows(values, length, depth, columns, panel);
        }
        Right::Rows(Weight::Bf16(values), length) => {
            pack_rows(values, length, depth, columns, panel);
        }
        Right::Transposed(Weight::Int8(_), _) | Right::Rows(Weight::Int8(_), _) => {
            unreachable!("weights of 8-bit integers have another product")
        }
    }
}

fn pack_transposed<E: kernel::Element>(
    values: &[E],
    length: usize,
    depth: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    let count = columns.len();
    let mut rows: [&[E]; PANEL] = [&[]; PANEL];
    for (row, column) in rows.iter_mut().zip(columns) {
        *row = &values[column * length..][depth.clone()];
    }
    // SAFETY: products begin only where the processor has what the kernels need.
    unsafe { kernel::pack_transposed(&rows[..count], panel) }
}

fn pack_rows<E: kernel::Element>(
    values: &[E],
    length: usize,
    depth: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    let rows = depth.map(|row| &values[row * length..][columns.clone()]);
    // SAFETY: as above.
    unsafe { kernel::pack_rows(rows, panel) }
}

/// What is written for the instruction set.
mod kernel {
    use super::{PANEL, TILE, part};
    use crate::matmul::Write;
    use half::bf16;
    use std::arch::x86_64::*;

    /// Elements of a register.
    const LANES: usize = 8;

    /// A number that weights are stored as.
    pub(super) trait Element: Copy {
        fn widen(self) -> f32;

        /// Eight neighbours, widened.
        ///
        /// # Safety
        /// They must be readable, and the processor must have AVX2.
        unsafe fn load(pointer: *const Self) -> __m256;
    }

    impl Element for f32 {
        #[inline(always)]
        fn widen(self) -> f32 {
            self
        }

        #[inline(always)]
        unsafe fn load(pointer: *const Self) -> __m256 {
            // SAFETY: as promised by the caller.
            unsafe { _mm256_loadu_ps(pointer) }
        }
    }

    impl Element for bf16 {
        #[inline(always)]
        fn widen(self) -> f32 {
            self.to_f32()
        }

        #[inline(always)]
        unsafe fn load(pointer: *const Self) -> __m256 {
            // SAFETY: as promised by the caller.
            unsafe {
                let narrow = _mm_loadu_si128(pointer.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
            }
        }
    }

    /// Rows `depth` of some columns of a matrix, whose column `j` lies at `j·length`.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn pack_transposed<E: Element>(columns: &[&[E]], panel: &mut [f32]) {
        let depth = panel.len() / PANEL;
        let whole = match columns.len() {
            PANEL => depth / LANES * LANES,
            _ => 0,
        };
        for first in (0..whole).step_by(LANES) {
            for half in 0..PANEL / LANES {
                let rows = std::array::from_fn(|row| {
                    let column = &columns[half * LANES + row][first..first + LANES];
                    // SAFETY: eight elements, as sliced.
                    unsafe { E::load(column.as_ptr()) }
                });
                for (row, values) in transpose(rows).into_iter().enumerate() {
                    let target = &mut panel[(first + row) * PANEL + half * LANES..][..LANES];
                    // SAFETY: eight elements, as sliced.
                    unsafe { _mm256_storeu_ps(target.as_mut_ptr(), values) };
                }
            }
        }
        for (row, target) in panel.chunks_exact_mut(PANEL).enumerate().skip(whole) {
            target.fill(0.0);
            for (target, column) in target.iter_mut().zip(columns) {
                *target = column[row].widen();
            }
        }
    }

    /// Rows become columns.
    #[target_feature(enable = "avx2,fma")]
    fn transpose(rows: [__m256; LANES]) -> [__m256; LANES] {
        let [a, b, c, d, e, f, g, h] = rows;
        let pairs = |low, high| (_mm256_unpacklo_ps(low, high), _mm256_unpackhi_ps(low, high));
        let ((ab0, ab1), (cd0, cd1)) = (pairs(a, b), pairs(c, d));
        let ((ef0, ef1), (gh0, gh1)) = (pairs(e, f), pairs(g, h));
        let quads = |low, high| {
            (
                _mm256_shuffle_ps::<0x44>(low, high),
                _mm256_shuffle_ps::<0xee>(low, high),
            )
        };
        let ((a0, a1), (a2, a3)) = (quads(ab0, cd0), quads(ab1, cd1));
        let ((e0, e1), (e2, e3)) = (quads(ef0, gh0), quads(ef1, gh1));
        let low = |left, right| _mm256_permute2f128_ps::<0x20>(left, right);
        let high = |left, right| _mm256_permute2f128_ps::<0x31>(left, right);
        [
            low(a0, e0),
            low(a1, e1),
            low(a2, e2),
            low(a3, e3),
            high(a0, e0),
            high(a1, e1),
            high(a2, e2),
            high(a3, e3),
        ]
    }

    /// Rows of at most sixteen elements.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn pack_rows<'a, E: Element + 'a>(
        rows: impl Iterator<Item = &'a [E]>,
        panel: &mut [f32],
    ) {
        for (target, row) in panel.chunks_exact_mut(PANEL).zip(rows) {
            if row.len() == PANEL {
                // SAFETY: sixteen elements on both sides.
                unsafe {
                    let (low, high) = (E::load(row.as_ptr()), E::load(row[LANES..].as_ptr()));
                    _mm256_storeu_ps(target.as_mut_ptr(), low);
                    _mm256_storeu_ps(target[LANES..].as_mut_ptr(), high);
                }
            } else {
                target.fill(0.0);
                for (target, value) in target.iter_mut().zip(row) {
                    *target = value.widen();
                }
            }
        }
    }

    /// Where the parts of one product begin.
    #[derive(Clone, Copy)]
    pub(super) struct Place {
        /// Element `(i, p)` of the left operand is at `i·a_strides.0 + p·a_strides.1`.
        pub(super) a: *const f32,
        pub(super) a_strides: (usize, usize),
        /// Panels of `depth` rows.
        pub(super) panels: *const f32,
        pub(super) depth: usize,
        /// Element `(i, j)` of the result is at `i·stride + j`.
        pub(super) c: *mut f32,
        pub(super) stride: usize,
        pub(super) scale: f32,
        pub(super) write: Write,
    }

    /// All tiles of `rows` by `columns`.
    ///
    /// # Safety
    /// The operands must be readable and the result writable for so many rows and columns; the processor must have AVX2
    /// and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tiles(rows: usize, columns: usize, place: Place) {
        let tiles = rows.div_ceil(TILE);
        for index in 0..tiles {
            let of_tile = part(rows, tiles, index);
            for first in (0..columns).step_by(PANEL) {
                // SAFETY: the tile lies inside the product.
                unsafe {
                    let at = Place {
                        a: place.a.add(of_tile.start * place.a_strides.0),
                        panels: place.panels.add(first * place.depth),
                        c: place.c.add(of_tile.start * place.stride + first),
                        ..place
                    };
                    let columns = (columns - first).min(PANEL);
                    match of_tile.len() {
                        1 => tile::<1>(at, columns),
                        2 => tile::<2>(at, columns),
                        3 => tile::<3>(at, columns),
                        4 => tile::<4>(at, columns),
                        5 => tile::<5>(at, columns),
                        _ => tile::<TILE>(at, columns),
                    }
                }
            }
        }
    }

    /// Sums the terms of a tile. `ROWS` says that rows of the left operand have no gaps, else its columns have none.
    ///
    /// # Safety
    /// As for [`tiles`].
    #[inline]
    #[allow(clippy::pointers_in_nomem_asm_block)] // They are renamed there, not used.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_terms<const R: usize, const ROWS: bool>(at: &Place, sums: &mut [[__m256; 2]; R]) {
        /// Terms between two steps of the pointers.
        const UNROLLED: usize = 4;
        let (row, step) = match ROWS {
            true => (at.a_strides.0, 1),
            false => (1, at.a_strides.1),
        };
        // Six rows are reached from two pointers: the third address from each is still one that a load can form.
        let (mut first, mut second) = (at.a, at.a.wrapping_add(TILE / 2 * row));
        let mut panel = at.panels;
        let mut add = |first: *const f32, second: *const f32, panel: *const f32, term: usize| {
            // SAFETY: as promised by the caller.
            unsafe {
                let panel = panel.add(term * PANEL);
                let (low, high) = (_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(LANES)));
                for (index, [left, right]) in sums.iter_mut().enumerate() {
                    let start = if index < TILE / 2 { first } else { second };
                    let element = start.add(index % (TILE / 2) * row + term * step);
                    let value = _mm256_broadcast_ss(&*element);
                    *left = _mm256_fmadd_ps(value, low, *left);
                    *right = _mm256_fmadd_ps(value, high, *right);
                }
            }
        };
        for _ in 0..at.depth / UNROLLED {
            (0..UNROLLED).for_each(|term| add(first, second, panel, term));
            first = first.wrapping_add(UNROLLED * step);
            second = second.wrapping_add(UNROLLED * step);
            panel = panel.wrapping_add(UNROLLED * PANEL);
            // Without this the compiler keeps a pointer for every row, and adds to each of them.
            // SAFETY: no instruction.
            unsafe {
                std::arch::asm!(
                    "/* {0} {1} */", inout(reg) first, inout(reg) second,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
        for term in 0..at.depth % UNROLLED {
            add(first, second, panel, term);
        }
    }

    /// `R` rows by one panel.
    ///
    /// # Safety
    /// As for [`tiles`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const R: usize>(at: Place, columns: usize) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // The result is met again after many others: it is fetched while the sums are computed.
        for index in 0..R {
            let place = at.c.wrapping_add(index * at.stride);
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
        // Strides that are known let the processor add up addresses while it loads; with instructions for them a tile takes
        // half as many again.
        // SAFETY: `depth` rows of a panel, and so many elements of `R` rows of the left operand.
        unsafe {
            match at.a_strides {
                (_, 1) => add_terms::<R, true>(&at, &mut sums),
                (1, _) => add_terms::<R, false>(&at, &mut sums),
                _ => unreachable!("rows or columns of the left operand have no gaps"),
            }
        }
        let scale = _mm256_set1_ps(at.scale);
        for (index, sums) in sums.iter().enumerate() {
            // SAFETY: `columns` elements of the row belong to the result.
            unsafe {
                let target = at.c.add(index * at.stride);
                let mut part = [0.0_f32; PANEL];
                let place = match columns {
                    PANEL => target,
                    _ => part.as_mut_ptr(),
                };
                if columns < PANEL && at.write == Write::Add {
                    std::ptr::copy_nonoverlapping(target, place, columns);
                }
                for (half, sum) in sums.iter().enumerate() {
                    let place = place.add(half * LANES);
                    let value = match at.write {
                        Write::Replace => _mm256_mul_ps(*sum, scale),
                        Write::Add => _mm256_fmadd_ps(*sum, scale, _mm256_loadu_ps(place)),
                    };
                    _mm256_storeu_ps(place, value);
                }
                if columns < PANEL {
                    std::ptr::copy_nonoverlapping(place, target, columns);
                }
            }
        }
    }
}
