//! Matrix products of linear layers with frozen bf16 or f32 weights and f32 activations.
//!
//! A weight is stored as `(N, K)`, one row for each output feature, as in safetensors files. The three
//! products of training are [`forward`] `y = x·Wᵀ`, [`input_gradient`] `dx = g·W` and
//! [`weight_gradient`] `dW = gᵀ·x`; [`forward_batch_invariant`] is the forward product for serving.

pub mod bf16_product;
pub mod int8;
mod invariant;
mod low_rank;
#[cfg(target_arch = "x86_64")]
mod packed;
mod single;
mod terms;
mod widened;

pub use int8::Int8Weight;
pub use invariant::forward_batch_invariant;
pub use low_rank::add_low_rank;
pub(crate) use single::Matrix;
pub(crate) use terms::multiply_block;

use half::bf16;
use terms::{Right, Term, multiply};

/// A borrowed weight matrix `(N, K)`, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Brain floating point, widened exactly where it is used.
    Bf16(&'a [bf16]),
    /// 8-bit integers with a scale for 32 of them, for serving.
    Int8(Int8Weight<'a>),
}

impl Weight<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Int8(values) => values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies row `index` of a matrix with `columns` columns into `output`, widened.
    pub fn copy_row(&self, index: usize, columns: usize, output: &mut [f32]) {
        let range = index * columns..(index + 1) * columns;
        match self {
            Self::F32(values) => output.copy_from_slice(&values[range]),
            Self::Bf16(values) => widen(&values[range], output),
            Self::Int8(values) => values.copy_row(index, output),
        }
    }
}

/// Sizes of a product: `T` rows of activations, `N` output features, `K` input features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `T`, rows of the activations.
    pub rows: usize,
    /// `N`, output features.
    pub outputs: usize,
    /// `K`, input features.
    pub inputs: usize,
}

/// What happens to the old contents of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
}

/// How activations meet bf16 weights in training products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Weights are widened; everything is computed in single precision.
    #[default]
    F32,
    /// Activations are rounded to bf16 and products summed in single precision, on machines with AVX-512
    /// BF16; elsewhere the same as [`Precision::F32`].
    Bf16,
}

impl Precision {
    /// The fastest precision of this machine: [`Precision::Bf16`] where its instructions exist.
    pub fn fastest() -> Self {
        if bf16_product::is_supported() {
            Self::Bf16
        } else {
            Self::F32
        }
    }
}

/// Fewer rows than this are not worth the packing that the bf16 product does.
const BF16_MINIMUM_ROWS: usize = 24;
/// Widens bf16 to f32, exactly.
pub fn widen(source: &[bf16], target: &mut [f32]) {
    assert_eq!(source.len(), target.len());
    widen_slice(source, target);
}

crate::dispatch::multiversion! {
    fn widen_slice(source: &[bf16], target: &mut [f32]) {
        for (target, source) in target.iter_mut().zip(source) {
            *target = f32::from_bits(u32::from(source.to_bits()) << 16);
        }
    }
}

/// Rounds f32 to bf16, to nearest even.
pub fn narrow(source: &[f32], target: &mut [bf16]) {
    assert_eq!(source.len(), target.len());
    for (target, source) in target.iter_mut().zip(source) {
        *target = bf16::from_f32(*source);
    }
}

fn check(shape: Shape, x: usize, weight: usize, y: usize) {
    assert_eq!(x, shape.rows * shape.inputs, "activations");
    assert_eq!(weight, shape.outputs * shape.inputs, "weight");
    assert_eq!(y, shape.rows * shape.outputs, "outputs");
}

thread_local! {
    /// Widened weights; kept between calls because they are needed for every linear layer.
    static WIDENED: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn with_widened<R>(length: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out for the call: work stealing may start another product on this thread meanwhile.
    let mut buffer = WIDENED.with(|cell| std::mem::take(&mut *cell.borrow_mut()));
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    let result = body(&mut buffer[..length]);
    WIDENED.with(|cell| *cell.borrow_mut() = buffer);
    result
}

/// A product of two narrow matrices that is added to one with a frozen weight: `scale · low (T, R) · factor`.
///
/// For [`forward_adapted`] the factor is `B (N, R)`, which is transposed; for [`input_gradient_adapted`] it is `A (R, K)`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `(T, R)`.
    pub low: &'a [f32],
    /// `(N, R)` or `(R, K)`.
    pub factor: &'a [f32],
    /// `R`.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
}

impl<'a> LowRank<'a> {
    fn term(&self, b: Right<'a>) -> Term<'a> {
        Term {
            a: Matrix::rows(self.low, self.rank),
            b,
            depth: self.rank,
            scale: self.scale,
        }
    }
}

/// `y (T, N) = scale · x (T, K) · Wᵀ`, or added to `y`.
pub fn forward(
    shape: Shape,
    x: &[f32],
    weight: Weight<'_>,
    y: &mut [f32],
    write: Write,
    scale: f32,
    precision: Precision,
) {
    check(shape, x.len(), weight.len(), y.len());
    if let Weight::Bf16(weight) = weight
        && scale == 1.0
        && uses_bf16(precision, shape.rows)
    {
        return bf16_product::forward(shape, x, weight, y, write);
    }
    let term = forward_term(shape, x, weight, scale);
    multiply([shape.rows, shape.outputs], &[term], y, write);
}

/// `y (T, N) = x (T, K) · Wᵀ + s · low (T, R) · Bᵀ`, or added to `y`.
pub fn forward_adapted(
    shape: Shape,
    x: &[f32],
    weight: Weight<'_>,
    delta: LowRank<'_>,
    y: &mut [f32],
    write: Write,
    precision: Precision,
) {
    check(shape, x.len(), weight.len(), y.len());
    let sizes = [shape.rows, shape.outputs];
    let added = delta.term(Right::Transposed(Weight::F32(delta.factor), delta.rank));
    if let Weight::Bf16(weight) = weight
        && uses_bf16(precision, shape.rows)
    {
        bf16_product::forward(shape, x, weight, y, write);
        return multiply(sizes, &[added], y, Write::Add);
    }
    let base = forward_term(shape, x, weight, 1.0);
    multiply(sizes, &[base, added], y, write);
}

fn forward_term<'a>(shape: Shape, x: &'a [f32], weight: Weight<'a>, scale: f32) -> Term<'a> {
    Term {
        a: Matrix::rows(x, shape.inputs),
        b: Right::Transposed(weight, shape.inputs),
        depth: shape.inputs,
        scale,
    }
}

/// Whether products with bf16 weights are made of rounded activations.
fn uses_bf16(precision: Precision, rows: usize) -> bool {
    precision == Precision::Bf16 && rows >= BF16_MINIMUM_ROWS && bf16_product::is_supported()
}

/// `dx (T, K) = g (T, N) · W`, or added to `dx`.
pub fn input_gradient(
    shape: Shape,
    g: &[f32],
    weight: Weight<'_>,
    dx: &mut [f32],
    write: Write,
    precision: Precision,
) {
    check(shape, dx.len(), weight.len(), g.len());
    if let Weight::Bf16(weight) = weight
        && uses_bf16(precision, shape.rows)
    {
        return bf16_product::input_gradient(shape, g, weight, dx, write);
    }
    let term = gradient_term(shape, g, weight);
    multiply([shape.rows, shape.inputs], &[term], dx, write);
}

/// `dx (T, K) = g (T, N) · W + s · low (T, R) · A`, or added to `dx`.
pub fn input_gradient_adapted(
    shape: Shape,
    g: &[f32],
    weight: Weight<'_>,
    delta: LowRank<'_>,
    dx: &mut [f32],
    write: Write,
    precision: Precision,
) {
    check(shape, dx.len(), weight.len(), g.len());
    let sizes = [shape.rows, shape.inputs];
    let added = delta.term(Right::Rows(Weight::F32(delta.factor), shape.inputs));
    if let Weight::Bf16(weight) = weight
        && uses_bf16(precision, shape.rows)
    {
        bf16_product::input_gradient(shape, g, weight, dx, write);
        return multiply(sizes, &[added], dx, Write::Add);
    }
    let base = gradient_term(shape, g, weight);
    multiply(sizes, &[base, added], dx, write);
}

fn gradient_term<'a>(shape: Shape, g: &'a [f32], weight: Weight<'a>) -> Term<'a> {
    Term {
        a: Matrix::rows(g, shape.outputs),
        b: Right::Rows(weight, shape.inputs),
        depth: shape.outputs,
        scale: 1.0,
    }
}

/// `dW (N, K) = scale · g (T, N)ᵀ · x (T, K)`, or added to `dW`.
pub fn weight_gradient(
    shape: Shape,
    g: &[f32],
    x: &[f32],
    dw: &mut [f32],
    write: Write,
    scale: f32,
) {
    check(shape, x.len(), dw.len(), g.len());
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    let term = Term {
        a: Matrix::columns(g, outputs),
        b: Right::Rows(Weight::F32(x), inputs),
        depth: rows,
        scale,
    };
    multiply([outputs, inputs], &[term], dw, write);
}

/// The plain definition of [`forward`] with `scale` 1, for tests of the other products.
pub fn forward_plain(shape: Shape, x: &[f32], weight: Weight<'_>, y: &mut [f32], write: Write) {
    check(shape, x.len(), weight.len(), y.len());
    let mut row = vec![0.0; shape.inputs];
    for output in 0..shape.outputs {
        weight.copy_row(output, shape.inputs, &mut row);
        for t in 0..shape.rows {
            let sum: f64 = x[t * shape.inputs..(t + 1) * shape.inputs]
                .iter()
                .zip(&row)
                .map(|(x, w)| f64::from(*x) * f64::from(*w))
                .sum();
            let target = &mut y[t * shape.outputs + output];
            *target = if write == Write::Add {
                *target + sum as f32
            } else {
                sum as f32
            };
        }
    }
}
