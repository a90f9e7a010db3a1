//! Single-precision products with strides, through the `gemm` crate.
#![allow(unsafe_code)]

use super::Write;
use gemm_common::Parallelism;

/// Multiplications below which a product runs on the calling thread.
pub(super) const PARALLEL_WORK: usize = 1 << 19;

/// A matrix in a slice; element `(i, j)` is at `i·row_stride + j·column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix.
    pub(crate) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// The transpose of a row-major matrix.
    pub(crate) fn columns(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row_stride: 1,
            column_stride: stride,
        }
    }

    pub(super) fn check(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        assert!(last < self.values.len(), "matrix outside its slice");
    }
}

/// `c (m, n) = scale · a (m, k) · b (k, n)` or added; `c` is row-major with its row stride beside it.
pub(super) fn multiply(
    sizes: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: (&mut [f32], usize),
    write: Write,
    scale: f32,
) {
    let [m, n, k] = sizes;
    let threads = if m * n * k >= PARALLEL_WORK {
        rayon::current_num_threads()
    } else {
        1
    };
    let parallelism = if threads > 1 {
        Parallelism::Rayon(threads)
    } else {
        Parallelism::None
    };
    if m == 0 || n == 0 {
        return;
    }
    let (c, stride) = c;
    assert!((m - 1) * stride + n <= c.len(), "result outside its slice");
    // SAFETY: the block was just checked to lie inside the exclusively borrowed slice.
    unsafe {
        run(
            sizes,
            a,
            b,
            c.as_mut_ptr(),
            stride,
            write,
            scale,
            parallelism,
        )
    };
}

/// One product on the calling thread, into a block that other threads do not touch.
///
/// # Safety
/// `c` must be valid for writing (and reading, if `write` adds) at `i·stride + j` for all `i < m`, `j < n`,
/// and nothing else may access those elements during the call.
pub(crate) unsafe fn multiply_block(
    sizes: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: *mut f32,
    stride: usize,
    write: Write,
    scale: f32,
) {
    // SAFETY: as promised by the caller.
    unsafe { run(sizes, a, b, c, stride, write, scale, Parallelism::None) }
}

/// # Safety
/// As for [`multiply_block`].
unsafe fn run(
    [m, n, k]: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: *mut f32,
    stride: usize,
    write: Write,
    scale: f32,
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k > 0 {
        a.check(m, k);
        b.check(k, n);
    }
    // SAFETY: the operands lie inside their slices by the checks above, the result by the caller's promise.
    unsafe {
        // The kernels prefer a column-major result, ours is row-major: its transpose is asked for, cᵀ = bᵀ·aᵀ.
        gemm_f32::gemm::f32::get_gemm_fn()(
            n,
            m,
            k,
            c,
            stride as isize,
            1,
            write == Write::Add,
            b.values.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            a.values.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
