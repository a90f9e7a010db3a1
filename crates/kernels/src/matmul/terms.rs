//! Sums of single-precision products, by the kernels that are the fastest on this machine.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::packed;
use super::single::{self, Matrix};
use super::{Shape, Weight, Write, widened};

/// The right operand of a product.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Row `j` of a weight is column `j`: rows of this length.
    Transposed(Weight<'a>, usize),
    /// Rows of this length, as they are.
    Rows(Weight<'a>, usize),
}

/// One of the products that are summed: `scale · a (m, depth) · b (depth, n)`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) a: Matrix<'a>,
    pub(super) b: Right<'a>,
    pub(super) depth: usize,
    pub(super) scale: f32,
}

impl Right<'_> {
    fn is_floating(self) -> bool {
        let (Self::Transposed(weight, _) | Self::Rows(weight, _)) = self;
        !matches!(weight, Weight::Int8(_))
    }
}

impl Term<'_> {
    fn check(&self, [rows, columns]: [usize; 2]) {
        if rows > 0 && self.depth > 0 {
            self.a.check(rows, self.depth);
        }
        let (weight, length, needed) = match self.b {
            Right::Transposed(weight, length) => (weight, length, [columns, self.depth]),
            Right::Rows(weight, length) => (weight, length, [self.depth, columns]),
        };
        let [rows, columns] = needed;
        let end = rows.saturating_sub(1) * length + columns;
        assert!(
            rows == 0 || end <= weight.len(),
            "operand outside its slice"
        );
    }
}

/// `c (m, n) = Σ terms`, or added to `c`, which is row-major without gaps.
pub(super) fn multiply(sizes: [usize; 2], terms: &[Term<'_>], c: &mut [f32], mut write: Write) {
    for term in terms {
        term.check(sizes);
    }
    #[cfg(target_arch = "x86_64")]
    if packed::is_supported() && terms.iter().all(|term| term.b.is_floating()) {
        return packed::multiply(sizes, terms, c, write);
    }
    for term in terms {
        one(sizes, term, c, write);
        write = Write::Add;
    }
}

/// One product by the library's kernels.
fn one([rows, columns]: [usize; 2], term: &Term<'_>, c: &mut [f32], write: Write) {
    let (depth, scale) = (term.depth, term.scale);
    let plain = |b: Matrix<'_>, c: &mut [f32]| {
        single::multiply(
            [rows, columns, depth],
            term.a,
            b,
            (c, columns),
            write,
            scale,
        );
    };
    match term.b {
        Right::Transposed(Weight::F32(values), length) => plain(Matrix::columns(values, length), c),
        Right::Rows(Weight::F32(values), length) => plain(Matrix::rows(values, length), c),
        Right::Transposed(weight, _) => {
            let shape = Shape {
                rows,
                outputs: columns,
                inputs: depth,
            };
            widened::forward(shape, term.a.values, weight, c, write, scale);
        }
        Right::Rows(weight, _) => {
            assert_eq!(scale, 1.0, "the scale of an input gradient");
            let shape = Shape {
                rows,
                outputs: depth,
                inputs: columns,
            };
            widened::input_gradient(shape, term.a.values, weight, c, write);
        }
    }
}

/// One product on the calling thread, into a block that other threads do not touch.
///
/// # Safety
/// `c` must be valid for writing (and reading, if `write` adds) at `i·stride + j` for all `i < m`, `j < n`,
/// and nothing else may access those elements during the call.
pub(crate) unsafe fn multiply_block(
    [m, n, k]: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: *mut f32,
    stride: usize,
    write: Write,
    scale: f32,
) {
    #[cfg(target_arch = "x86_64")]
    if packed::is_supported() {
        let b = match b.column_stride {
            1 => Right::Rows(Weight::F32(b.values), b.row_stride),
            _ => Right::Transposed(Weight::F32(b.values), b.column_stride),
        };
        let term = Term {
            a,
            b,
            depth: k,
            scale,
        };
        term.check([m, n]);
        // SAFETY: the term was checked; the block is the caller's promise.
        return unsafe { packed::multiply_part(0..m, 0..n, &[term], (c, stride), write) };
    }
    // SAFETY: as promised by the caller.
    unsafe { single::multiply_block([m, n, k], a, b, c, stride, write, scale) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;
    use half::bf16;

    /// Sizes around those of tiles, panels, pieces of the depth and blocks.
    const SIZES: [[usize; 3]; 9] = [
        [1, 1, 1],
        [5, 16, 3],
        [6, 17, 256],
        [7, 15, 257],
        [13, 200, 300],
        [131, 70, 515],
        [200, 900, 70],
        [97, 33, 8],
        [8, 300, 131],
    ];

    fn numbers(length: usize, from: u64) -> Vec<f32> {
        let key = NoiseKey::new(7);
        (0..length as u64)
            .map(|index| key.normal(from + index))
            .collect()
    }

    /// Calls `body` for products of `sizes` with every order and type of operands, a narrow product beside each.
    fn for_each_sum([rows, columns, depth]: [usize; 3], mut body: impl FnMut(&[Term<'_>; 2])) {
        let (a, low) = (numbers(rows * depth, 0), numbers(rows * 3, 1 << 20));
        let factor = numbers(3 * columns, 1 << 21);
        let wide = numbers(columns * depth, 1 << 30);
        let narrow: Vec<bf16> = wide.iter().copied().map(bf16::from_f32).collect();
        let (by_rows, by_columns) = (Matrix::rows(&a, depth), Matrix::columns(&a, rows));
        let (wide, narrow) = (Weight::F32(&wide), Weight::Bf16(&narrow));
        for (a, b, scale) in [
            (by_rows, Right::Transposed(wide, depth), 0.5),
            (by_rows, Right::Rows(wide, columns), 0.5),
            (by_columns, Right::Transposed(wide, depth), 1.0),
            (by_columns, Right::Rows(wide, columns), 1.0),
            (by_rows, Right::Transposed(narrow, depth), 0.5),
            (by_rows, Right::Rows(narrow, columns), 1.0),
        ] {
            let base = Term { a, b, depth, scale };
            let added = Term {
                a: Matrix::rows(&low, 3),
                b: Right::Rows(Weight::F32(&factor), columns),
                depth: 3,
                scale: 2.0,
            };
            body(&[base, added]);
        }
    }

    /// The definition of one term of element `(i, j)`.
    fn element(term: &Term<'_>, i: usize, j: usize) -> f64 {
        let b = |p: usize| match term.b {
            Right::Transposed(weight, length) => (weight, j * length + p),
            Right::Rows(weight, length) => (weight, p * length + j),
        };
        let terms = (0..term.depth).map(|p| {
            let a = term.a.values[i * term.a.row_stride + p * term.a.column_stride];
            let b = match b(p) {
                (Weight::F32(values), place) => values[place],
                (Weight::Bf16(values), place) => values[place].to_f32(),
                (Weight::Int8(_), _) => unreachable!("not in these tests"),
            };
            f64::from(a) * f64::from(b)
        });
        f64::from(term.scale) * terms.sum::<f64>()
    }

    /// Compares with the definition, once replaced and once added to ones.
    fn check(multiply: impl Fn([usize; 2], &[Term<'_>], &mut [f32], Write)) {
        for sizes @ [rows, columns, depth] in SIZES {
            for_each_sum(sizes, |terms| {
                for (write, before) in [(Write::Replace, 0.0), (Write::Add, 1.0)] {
                    let mut c = vec![1.0; rows * columns];
                    multiply([rows, columns], terms, &mut c, write);
                    for (index, value) in c.iter().enumerate() {
                        let of = |term| element(term, index / columns, index % columns);
                        let expected = before + of(&terms[0]) + of(&terms[1]);
                        let error = (f64::from(*value) - expected).abs();
                        assert!(
                            error < 2e-5 * (depth as f64).sqrt() + 1e-5,
                            "{sizes:?}: {value} {expected}"
                        );
                    }
                }
            });
        }
    }

    #[test]
    fn this_machines_kernels_compute_the_definition() {
        check(multiply);
    }

    #[test]
    fn the_librarys_kernels_compute_the_definition() {
        check(|sizes, terms, c, write| {
            one(sizes, &terms[0], c, write);
            one(sizes, &terms[1], c, Write::Add);
        });
    }

    #[test]
    fn bits_do_not_depend_on_threads_nor_on_other_rows() {
        for sizes @ [rows, columns, _] in [[131, 700, 515], [300, 40, 900], [20, 2000, 300]] {
            for_each_sum(sizes, |terms| {
                let bits = |sizes: [usize; 2], threads: usize| -> Vec<u32> {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    let mut c = vec![0.0; sizes[0] * sizes[1]];
                    pool.install(|| multiply(sizes, terms, &mut c, Write::Replace));
                    c.into_iter().map(f32::to_bits).collect()
                };
                let alone = bits([rows, columns], 1);
                for threads in [2, 3, 8] {
                    assert!(
                        bits([rows, columns], threads) == alone,
                        "{sizes:?} on {threads}"
                    );
                }
                #[cfg(target_arch = "x86_64")]
                if packed::is_supported() {
                    assert!(bits([7, columns], 2) == alone[..7 * columns], "{sizes:?}");
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn operands_that_end_too_early_are_refused() {
        let (a, b) = ([1.0; 6], [1.0; 5]);
        let term = Term {
            a: Matrix::rows(&a, 3),
            b: Right::Rows(Weight::F32(&b), 2),
            depth: 3,
            scale: 1.0,
        };
        multiply([2, 2], &[term], &mut [0.0; 4], Write::Replace);
    }
}
