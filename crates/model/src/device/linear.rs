//! One linear layer in training on a device: the same operations in the same order as [`crate::linear`].
#![allow(clippy::too_many_arguments)] // A product names every buffer it reads and writes.

use super::weights::{LinearOnDevice, Matrix};
use crate::delta::{Delta, TrainedLengths};
use crate::linear::{Dropout, Linear};
use half::bf16;
use zerog_kernels::cuda::{Buffer, Cuda, Operand, Part, PartMut};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::{Precision, Write};

/// A linear layer of one pass.
#[derive(Clone, Copy)]
pub(super) struct LinearPass<'a> {
    pub(super) cuda: &'a Cuda,
    /// Shapes and places of the delta.
    pub(super) linear: &'a Linear<'a>,
    pub(super) weights: &'a LinearOnDevice,
    /// All trained parameters.
    pub(super) values: &'a Buffer<f32>,
    /// Squared lengths of the rows of the weight, where lengths are trained.
    pub(super) squares: Option<&'a Buffer<f32>>,
    pub(super) dropout: Dropout,
    pub(super) precision: Precision,
}

/// What the backward pass of a delta needs besides the layer's input, as in [`crate::linear`].
#[derive(Debug)]
pub(super) struct SavedDelta {
    low: Buffer<f32>,
    product: Buffer<f32>,
    lengths: Buffer<f32>,
}

/// Buffers of all linear layers.
#[derive(Debug)]
pub(super) struct LinearScratch {
    dropped: Buffer<f32>,
    low: Buffer<f32>,
    back: Buffer<f32>,
    scaled: Buffer<f32>,
    crossed: Buffer<f32>,
    gram: Buffer<f32>,
    products: ProductScratch,
}

/// Buffers of products with weights.
#[derive(Debug)]
pub(super) struct ProductScratch {
    /// The activations of a product, rounded.
    narrow: Buffer<bf16>,
    /// The weight of a product, widened.
    wide: Buffer<f32>,
}

impl SavedDelta {
    fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            low: cuda.allocate(0)?,
            product: cuda.allocate(0)?,
            lengths: cuda.allocate(0)?,
        })
    }

    /// Those of the linear layers of one layer.
    pub(super) fn of_layer(cuda: &Cuda) -> Result<[Self; 7], DeviceError> {
        let new = || Self::new(cuda);
        Ok([new()?, new()?, new()?, new()?, new()?, new()?, new()?])
    }
}

impl ProductScratch {
    pub(super) fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            narrow: cuda.allocate(0)?,
            wide: cuda.allocate(0)?,
        })
    }

    /// Takes the memory for products of `activations` with bf16 weights of at most `weights` elements.
    pub(super) fn reserve(
        &mut self,
        precision: Precision,
        activations: usize,
        weights: usize,
    ) -> Result<(), DeviceError> {
        match precision {
            Precision::Bf16 => self.narrow.resize(activations).map(drop),
            Precision::F32 => self.wide.resize(weights).map(drop),
        }
    }
}

impl LinearScratch {
    pub(super) fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            dropped: cuda.allocate(0)?,
            low: cuda.allocate(0)?,
            back: cuda.allocate(0)?,
            scaled: cuda.allocate(0)?,
            crossed: cuda.allocate(0)?,
            gram: cuda.allocate(0)?,
            products: ProductScratch::new(cuda)?,
        })
    }
}

/// Which product with a weight `(N, K)`.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// `y (T, N) = x (T, K) · Wᵀ`.
    Forward,
    /// `dx (T, K) = g (T, N) · W`.
    Gradient,
}

/// A product with a frozen weight of `inputs` columns. Activations are rounded to bf16 where the precision says so and
/// the weight is in bf16; else the weight is widened and all is single precision.
pub(super) fn product(
    cuda: &Cuda,
    direction: Direction,
    left: Part<'_, f32>,
    (weight, inputs): (&Matrix, usize),
    target: PartMut<'_, f32>,
    write: Write,
    precision: Precision,
    scratch: &mut ProductScratch,
) -> Result<(), DeviceError> {
    let outputs = weight.len() / inputs;
    fn right<T: zerog_kernels::cuda::Element>(
        direction: Direction,
        weight: &Buffer<T>,
        inputs: usize,
    ) -> Operand<'_, T> {
        match direction {
            Direction::Forward => Operand::transposed(weight, inputs),
            Direction::Gradient => Operand::rows(weight, inputs),
        }
    }
    let columns = match direction {
        Direction::Forward => inputs,
        Direction::Gradient => outputs,
    };
    match weight {
        Matrix::Bf16(weight) if precision == Precision::Bf16 => {
            let narrow = scratch.narrow.resize(left.len())?;
            cuda.narrow(left, &mut *narrow)?;
            let left = Operand::rows(&*narrow, columns);
            cuda.multiply(left, right(direction, weight, inputs), target, write, 1.0)
        }
        Matrix::Bf16(weight) => {
            let wide = scratch.wide.resize(weight.len())?;
            cuda.widen(weight, &mut *wide)?;
            let left = Operand::rows(left, columns);
            cuda.multiply(left, right(direction, wide, inputs), target, write, 1.0)
        }
        Matrix::F32(weight) => {
            let left = Operand::rows(left, columns);
            cuda.multiply(left, right(direction, weight, inputs), target, write, 1.0)
        }
    }
}

impl<'a> LinearPass<'a> {
    fn weight(&self) -> (&'a Matrix, usize) {
        (&self.weights.weight, self.linear.inputs)
    }

    /// The product with the frozen weight in this direction, as a call that leaves the scratch space to its caller.
    fn base_product(
        &self,
        direction: Direction,
    ) -> impl Fn(Part<'_, f32>, PartMut<'_, f32>, Write, &mut ProductScratch) -> Result<(), DeviceError>
    {
        move |left, target, write, scratch| {
            let (cuda, precision) = (self.cuda, self.precision);
            product(
                cuda,
                direction,
                left,
                self.weight(),
                target,
                write,
                precision,
                scratch,
            )
        }
    }

    fn a(&self, delta: &Delta<'_>) -> Part<'a, f32> {
        self.values.part(delta.a_gradient.clone())
    }

    fn b(&self, delta: &Delta<'_>) -> Part<'a, f32> {
        self.values.part(delta.b_gradient.clone())
    }

    /// The trained lengths of a delta that has them, with the squared lengths of the weight's rows.
    fn lengths(
        &self,
        delta: &'a Delta<'a>,
    ) -> Option<(&'a TrainedLengths<'a>, Part<'a, f32>, &'a Buffer<f32>)> {
        let lengths = delta.magnitude.as_ref()?;
        let squares = self
            .squares
            .expect("squares are uploaded with trained lengths");
        Some((lengths, self.values.part(lengths.gradient.clone()), squares))
    }

    /// As [`crate::linear::forward`].
    pub(super) fn forward(
        &self,
        x: Part<'_, f32>,
        y: &mut Buffer<f32>,
        write: Write,
        saved: &mut SavedDelta,
        scratch: &mut LinearScratch,
    ) -> Result<(), DeviceError> {
        let cuda = self.cuda;
        let LinearScratch {
            dropped,
            crossed,
            gram,
            products,
            ..
        } = scratch;
        let multiply = self.base_product(Direction::Forward);
        let Some(delta) = &self.linear.delta else {
            multiply(x, PartMut::from(&mut *y), write, products)?;
            return self.add_bias(y);
        };
        let Some((_, magnitude, squares)) = self.lengths(delta) else {
            multiply(x, PartMut::from(&mut *y), write, products)?;
            self.add_bias(y)?;
            let x = self.dropped(x, dropped)?;
            return self.add_delta(delta, x, y, &mut saved.low);
        };

        // y = x·Wᵀ + b + (c - 1)·x̃·Wᵀ + c·s·x̃·Aᵀ·Bᵀ
        let (a, b) = (self.a(delta), self.b(delta));
        let inputs = self.linear.inputs;
        let crossed = crossed.resize(delta.rank * self.linear.outputs)?;
        {
            let (forward, precision) = (Direction::Forward, Precision::F32);
            let target = PartMut::from(&mut *crossed);
            let replace = Write::Replace;
            product(
                cuda,
                forward,
                a,
                self.weight(),
                target,
                replace,
                precision,
                products,
            )?;
        }
        let gram = gram.resize(delta.rank * delta.rank)?;
        let (left, right) = (Operand::rows(a, inputs), Operand::transposed(a, inputs));
        cuda.multiply(left, right, &mut *gram, Write::Replace, 1.0)?;
        let lengths = saved.lengths.resize(self.linear.outputs)?;
        cuda.adapted_lengths(squares, &*crossed, &*gram, b, delta.scale, lengths)?;

        let rounded = saved.product.resize(y.len())?;
        let x = match self.dropout {
            None => {
                multiply(x, PartMut::from(&mut *rounded), Write::Replace, products)?;
                if write == Write::Replace {
                    cuda.clear(&mut *y)?;
                }
                x
            }
            Some(_) => {
                multiply(x, PartMut::from(&mut *y), write, products)?;
                let x = self.dropped(x, dropped)?;
                multiply(x, PartMut::from(&mut *rounded), Write::Replace, products)?;
                cuda.subtract(&mut *y, &*rounded)?;
                x
            }
        };
        self.add_bias(y)?;
        self.add_delta(delta, x, rounded, &mut saved.low)?;
        cuda.add_scaled_columns(y, &*rounded, magnitude, &saved.lengths)
    }

    fn add_bias(&self, y: &mut Buffer<f32>) -> Result<(), DeviceError> {
        match &self.weights.bias {
            Some(bias) => self.cuda.add_bias(y, bias),
            None => Ok(()),
        }
    }

    /// The input of the delta: `x`, or `x` with elements dropped.
    fn dropped<'x>(
        &self,
        x: Part<'x, f32>,
        buffer: &'x mut Buffer<f32>,
    ) -> Result<Part<'x, f32>, DeviceError> {
        let Some((key, probability)) = self.dropout else {
            return Ok(x);
        };
        let dropped = buffer.resize(x.len())?;
        self.cuda.dropout(x, &mut *dropped, key, probability)?;
        Ok(Part::from(&*dropped))
    }

    /// Adds `s·x·Aᵀ·Bᵀ` to `y` and keeps `x·Aᵀ`.
    fn add_delta(
        &self,
        delta: &Delta<'_>,
        x: Part<'_, f32>,
        y: &mut Buffer<f32>,
        low: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let inputs = self.linear.inputs;
        let low = low.resize(x.len() / inputs * delta.rank)?;
        let (left, right) = (
            Operand::rows(x, inputs),
            Operand::transposed(self.a(delta), inputs),
        );
        self.cuda
            .multiply(left, right, &mut *low, Write::Replace, 1.0)?;
        let (left, right) = (
            Operand::rows(&*low, delta.rank),
            Operand::transposed(self.b(delta), delta.rank),
        );
        self.cuda.multiply(left, right, y, Write::Add, delta.scale)
    }

    /// As [`crate::linear::backward`], but overwrites the gradients of what is trained: each layer is passed once.
    pub(super) fn backward(
        &self,
        x: Part<'_, f32>,
        dy: Part<'_, f32>,
        dx: Option<(&mut Buffer<f32>, Write)>,
        saved: &SavedDelta,
        gradients: &mut Buffer<f32>,
        scratch: &mut LinearScratch,
    ) -> Result<(), DeviceError> {
        let cuda = self.cuda;
        let LinearScratch {
            dropped,
            low: dlow,
            back,
            scaled,
            products,
            ..
        } = scratch;
        let multiply = self.base_product(Direction::Gradient);
        let Some(delta) = &self.linear.delta else {
            if let Some((dx, write)) = dx {
                multiply(dy, PartMut::from(dx), write, products)?;
            }
            return Ok(());
        };
        let (outputs, inputs, rank) = (self.linear.outputs, self.linear.inputs, delta.rank);
        let lengths = self.lengths(delta);
        if let Some((places, magnitude, _)) = lengths {
            let target = gradients.part_mut(places.gradient.clone());
            cuda.lengths_gradient(dy, &saved.product, &saved.lengths, target)?;
            let scaled = scaled.resize(dy.len())?;
            cuda.scale_columns(scaled, dy, magnitude, &saved.lengths)?;
        }
        let inner = match lengths {
            Some(_) => Part::from(&*scaled),
            None => dy,
        };
        let (left, right) = (
            Operand::transposed(inner, outputs),
            Operand::rows(&saved.low, rank),
        );
        let target = gradients.part_mut(delta.b_gradient.clone());
        cuda.multiply(left, right, target, Write::Replace, delta.scale)?;
        let dlow = dlow.resize(dy.len() / outputs * rank)?;
        let (left, right) = (
            Operand::rows(inner, outputs),
            Operand::rows(self.b(delta), rank),
        );
        cuda.multiply(left, right, &mut *dlow, Write::Replace, delta.scale)?;
        let input = self.dropped(x, dropped)?;
        let (left, right) = (
            Operand::transposed(&*dlow, rank),
            Operand::rows(input, inputs),
        );
        let target = gradients.part_mut(delta.a_gradient.clone());
        cuda.multiply(left, right, target, Write::Replace, 1.0)?;

        let Some((dx, write)) = dx else {
            return Ok(());
        };
        let (left, right) = (
            Operand::rows(&*dlow, rank),
            Operand::rows(self.a(delta), inputs),
        );
        match self.dropout {
            None => {
                multiply(inner, PartMut::from(&mut *dx), write, products)?;
                cuda.multiply(left, right, dx, Write::Add, 1.0)
            }
            Some((key, probability)) => {
                multiply(dy, PartMut::from(&mut *dx), write, products)?;
                let back = back.resize(dx.len())?;
                cuda.multiply(left, right, &mut *back, Write::Replace, 1.0)?;
                if lengths.is_some() {
                    // The base product of the dropped input, which counts `c - 1` times.
                    cuda.subtract(&mut *scaled, dy)?;
                    let scaled = Part::from(&*scaled);
                    multiply(scaled, PartMut::from(&mut *back), Write::Add, products)?;
                }
                cuda.add_dropout(&*back, dx, key, probability)
            }
        }
    }
}
