//! Low-rank deltas in training: their places among the trained parameters, and the lengths of adapted rows.

use crate::error::ModelError;
use crate::lora::{LoraConfig, LowRank, Projection, Values};
use crate::parameters::Parameters;
use std::ops::Range;
use zerog_kernels::matmul::{self, Precision, Shape, Weight, Write};
use zerog_kernels::reduce::sum_of_squares;

/// Where the matrices of a delta lie among the trained parameters.
#[derive(Clone, Debug)]
pub(crate) struct DeltaPlaces {
    a: Range<usize>,
    b: Range<usize>,
    magnitude: Option<MagnitudePlace>,
}

/// Where trained lengths lie, and the squared lengths of the rows of the base weight.
#[derive(Clone, Debug)]
struct MagnitudePlace {
    lengths: Range<usize>,
    squares: Vec<f32>,
}

/// A low-rank delta that is being trained.
pub(crate) struct Delta<'a> {
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// `(rank, inputs)`
    pub(crate) a: &'a [f32],
    /// `(outputs, rank)`
    pub(crate) b: &'a [f32],
    pub(crate) a_gradient: Range<usize>,
    pub(crate) b_gradient: Range<usize>,
    pub(crate) magnitude: Option<TrainedLengths<'a>>,
}

/// Lengths of the rows of the adapted weight that are trained apart from its direction.
pub(crate) struct TrainedLengths<'a> {
    /// `(outputs)`
    pub(crate) values: &'a [f32],
    pub(crate) gradient: Range<usize>,
    /// Squared lengths of the rows of the base weight.
    pub(crate) squares: &'a [f32],
}

impl DeltaPlaces {
    /// Adds the matrices of a linear layer with `(outputs, inputs)`: `A` random, `B` zero, lengths those of `weight`.
    pub(crate) fn add(
        parameters: &mut Parameters,
        name: &str,
        lora: &LoraConfig,
        (layer, projection): (usize, Projection),
        (outputs, inputs): (usize, usize),
        weight: Weight<'_>,
    ) -> Self {
        let initial = lora.initial_a(layer, projection, inputs);
        let a = parameters.add(format!("{name}.lora_A"), &initial, true);
        let zero = vec![0.0; outputs * lora.rank];
        let b = parameters.add(format!("{name}.lora_B"), &zero, true);
        let magnitude = lora.dora.then(|| {
            let squares = row_squares(weight, inputs);
            let lengths: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
            let lengths = parameters.add(format!("{name}.lora_magnitude_vector"), &lengths, true);
            MagnitudePlace { lengths, squares }
        });
        Self { a, b, magnitude }
    }

    /// Continues from the matrices of a finished adapter.
    pub(crate) fn take_over(
        &self,
        parameters: &mut Parameters,
        pair: &LowRank,
        lora: &LoraConfig,
    ) -> Result<(), ModelError> {
        if pair.rank != lora.rank || pair.scale != lora.scale() {
            return Err(ModelError::AdapterMismatch);
        }
        let values = &mut parameters.values;
        values[self.a.clone()].copy_from_slice(&pair.a());
        values[self.b.clone()].copy_from_slice(&pair.b());
        match (&self.magnitude, pair.magnitude()) {
            (None, None) => {}
            (Some(place), Some(lengths)) => {
                values[place.lengths.clone()].copy_from_slice(lengths);
            }
            _ => return Err(ModelError::AdapterMismatch),
        }
        Ok(())
    }

    /// A copy of the matrices as trained so far.
    pub(crate) fn pair(&self, values: &[f32], lora: &LoraConfig) -> LowRank {
        let pair = LowRank::new(
            lora.rank,
            lora.scale(),
            Values::new(values[self.a.clone()].to_vec()),
            &Values::new(values[self.b.clone()].to_vec()),
        );
        match &self.magnitude {
            Some(place) => pair.with_magnitude(values[place.lengths.clone()].to_vec()),
            None => pair,
        }
    }
}

impl<'a> Delta<'a> {
    /// The delta at `places` of `values`.
    pub(crate) fn of(places: &'a DeltaPlaces, values: &'a [f32], lora: &LoraConfig) -> Self {
        Self {
            rank: lora.rank,
            scale: lora.scale(),
            a: &values[places.a.clone()],
            b: &values[places.b.clone()],
            a_gradient: places.a.clone(),
            b_gradient: places.b.clone(),
            magnitude: places.magnitude.as_ref().map(|place| TrainedLengths {
                values: &values[place.lengths.clone()],
                gradient: place.lengths.clone(),
                squares: &place.squares,
            }),
        }
    }
}

/// Lengths of the rows of `W + s·B·A`, without making that matrix.
///
/// `squares (outputs)` are the squared lengths of the rows of `W`, see [`row_squares`]; `a` is `(rank, inputs)`,
/// `b` is `(outputs, rank)`.
pub(crate) fn adapted_lengths(
    weight: Weight<'_>,
    squares: &[f32],
    a: &[f32],
    b: &[f32],
    rank: usize,
    scale: f32,
) -> Vec<f32> {
    let (outputs, inputs) = (squares.len(), a.len() / rank);
    let product = |outputs, weight| {
        let mut product = vec![0.0; rank * outputs];
        let shape = Shape {
            rows: rank,
            outputs,
            inputs,
        };
        matmul::forward(
            shape,
            a,
            weight,
            &mut product,
            Write::Replace,
            1.0,
            Precision::F32,
        );
        product
    };
    let crossed = product(outputs, weight);
    let gram = product(rank, Weight::F32(a));
    let scale = f64::from(scale);
    squares
        .iter()
        .zip(b.chunks_exact(rank))
        .enumerate()
        .map(|(output, (square, b))| {
            let (mut mixed, mut own) = (0.0, 0.0);
            for (left, factor) in b.iter().enumerate() {
                let factor = f64::from(*factor);
                mixed += factor * f64::from(crossed[left * outputs + output]);
                for (right, other) in b.iter().enumerate() {
                    own += factor * f64::from(*other) * f64::from(gram[left * rank + right]);
                }
            }
            (f64::from(*square) + 2.0 * scale * mixed + scale * scale * own)
                .max(0.0)
                .sqrt() as f32
        })
        .collect()
}

/// Squared lengths of the rows of a weight with `inputs` columns.
pub(crate) fn row_squares(weight: Weight<'_>, inputs: usize) -> Vec<f32> {
    let mut row = vec![0.0; inputs];
    (0..weight.len() / inputs)
        .map(|index| {
            weight.copy_row(index, inputs, &mut row);
            sum_of_squares(&row) as f32
        })
        .collect()
}
