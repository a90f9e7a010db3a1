//! Low-rank adapters: `y = W·x + s · B·(A·x)` on any subset of the linear layers.

use crate::adapter_layout::Layout;
use crate::config::ModelConfig;
use crate::delta::{adapted_lengths, row_squares};
use crate::error::ModelError;
use half::bf16;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use zerog_kernels::matmul::{Shape, Weight, Write, add_low_rank, forward_batch_invariant};
use zerog_kernels::noise::NoiseKey;
use zerog_kernels::reduce::add_scaled;

/// Largest rank accepted in files and settings.
pub(crate) const MAXIMUM_RANK: usize = 512;

/// A linear layer of a decoder layer. An encoder layer has the same ones under other names, without the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// `self_attn.q_proj`
    Query,
    /// `self_attn.k_proj`
    Key,
    /// `self_attn.v_proj`
    Value,
    /// `self_attn.o_proj`
    Output,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Projection {
    /// All linear layers, in the order in which a decoder layer uses them.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The module name that PEFT's `target_modules` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The linear layer with this module name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|projection| projection.name() == name)
    }

    /// The path below a decoder layer, for example `self_attn.q_proj`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Settings of an adapter to be trained.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Probability with which an input of `A` is dropped in training; 0 for none.
    pub dropout: f32,
    /// Scale `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub rank_stabilized: bool,
    /// Train the length of every row of `W + s·B·A` apart from its direction (DoRA, Liu et al. 2024).
    pub dora: bool,
    /// Linear layers that get an adapter.
    pub targets: BTreeSet<Projection>,
    /// Start of the random numbers of the initialisation, of dropout and of noise.
    pub seed: u64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rank_stabilized: false,
            dora: false,
            targets: Projection::ALL.into_iter().collect(),
            seed: 0,
        }
    }
}

impl LoraConfig {
    /// The factor `s` of the delta.
    pub fn scale(&self) -> f32 {
        scale(self.alpha, self.rank, self.rank_stabilized)
    }

    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let invalid = |setting, value| Err(ModelError::InvalidLora { setting, value });
        if self.rank == 0 || self.rank > MAXIMUM_RANK {
            return invalid("rank", self.rank as f64);
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return invalid("alpha", f64::from(self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("dropout", f64::from(self.dropout));
        }
        if self.targets.is_empty() {
            return invalid("target_modules", 0.0);
        }
        Ok(())
    }

    /// The initial `A` of a linear layer with `inputs` input features: uniform in `±1/sqrt(inputs)`, which is
    /// PEFT's `kaiming_uniform_(a=sqrt(5))`.
    pub(crate) fn initial_a(
        &self,
        layer: usize,
        projection: Projection,
        inputs: usize,
    ) -> Vec<f32> {
        let key = NoiseKey::new(self.seed)
            .child(0x1417)
            .child((layer * 16 + projection.index()) as u64);
        let bound = 1.0 / (inputs as f32).sqrt();
        (0..(self.rank * inputs) as u64)
            .map(|index| (key.uniform(index) * 2.0 - 1.0) * bound)
            .collect()
    }
}

pub(crate) fn scale(alpha: f32, rank: usize, rank_stabilized: bool) -> f32 {
    if rank_stabilized {
        alpha / (rank as f32).sqrt()
    } else {
        alpha / rank as f32
    }
}

/// The two matrices of one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LowRank {
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// `(rank, inputs)`
    a: Values,
    /// `(rank, outputs)`: `B` transposed, so that serving adds whole rows.
    b_transposed: Values,
    /// Trained lengths of the rows of `W + s·B·A`.
    magnitude: Option<Magnitude>,
}

/// Numbers of an adapter: as bf16 where that is exact, which halves what a batch of many adapters reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Values {
    pub(crate) fn new(values: Vec<f32>) -> Self {
        if values.iter().all(|value| value.to_bits() & 0xffff == 0) {
            return Self::Bf16(values.into_iter().map(bf16::from_f32).collect());
        }
        Self::F32(values)
    }

    pub(crate) fn are_finite(&self) -> bool {
        // Without stopping at the first, which is many times faster.
        match self {
            Self::F32(values) => values
                .iter()
                .fold(true, |all, value| all & value.is_finite()),
            Self::Bf16(values) => values
                .iter()
                .fold(true, |all, value| all & value.is_finite()),
        }
    }

    pub(crate) fn are_zero(&self) -> bool {
        match self {
            Self::F32(values) => values.iter().all(|value| *value == 0.0),
            Self::Bf16(values) => values.iter().all(|value| value.to_bits() << 1 == 0),
        }
    }

    /// A matrix with `columns`, turned.
    fn transposed(&self, columns: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(transposed(values, columns)),
            Self::Bf16(values) => Self::Bf16(transposed(values, columns)),
        }
    }

    fn weight(&self) -> Weight<'_> {
        match self {
            Self::F32(values) => Weight::F32(values),
            Self::Bf16(values) => Weight::Bf16(values),
        }
    }

    fn len(&self) -> usize {
        self.weight().len()
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
        }
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.weight().copy_row(0, self.len(), &mut values);
        values
    }
}

/// A matrix with `columns`, turned.
fn transposed<E: Copy>(values: &[E], columns: usize) -> Vec<E> {
    let mut turned = Vec::with_capacity(values.len());
    for column in 0..columns {
        turned.extend(values.chunks_exact(columns).map(|row| row[column]));
    }
    turned
}

/// The trained lengths `m` of rows, and `m / |W + s·B·A|` once the base weight is known.
#[derive(Clone, Debug)]
struct Magnitude {
    lengths: Vec<f32>,
    factors: OnceLock<Vec<f32>>,
}

impl PartialEq for Magnitude {
    /// Factors follow from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.lengths == other.lengths
    }
}

impl LowRank {
    /// From `A (rank, inputs)` and `B (outputs, rank)`.
    pub(crate) fn new(rank: usize, scale: f32, a: Values, b: &Values) -> Self {
        Self {
            rank,
            scale,
            a,
            b_transposed: b.transposed(rank),
            magnitude: None,
        }
    }

    /// With trained lengths of rows `(outputs)`.
    pub(crate) fn with_magnitude(mut self, lengths: Vec<f32>) -> Self {
        self.magnitude = Some(Magnitude {
            lengths,
            factors: OnceLock::new(),
        });
        self
    }

    /// The trained lengths of rows, if there are any.
    pub(crate) fn magnitude(&self) -> Option<&[f32]> {
        self.magnitude
            .as_ref()
            .map(|magnitude| magnitude.lengths.as_slice())
    }

    /// What the rows of `W + s·B·A` are multiplied by. The first call fixes the base weight: an adapter is loaded
    /// for one base model.
    pub(crate) fn factors(&self, weight: Weight<'_>) -> Option<&[f32]> {
        let magnitude = self.magnitude.as_ref()?;
        let factors = magnitude.factors.get_or_init(|| {
            let squares = row_squares(weight, self.inputs());
            let (a, b) = (self.a(), self.b());
            let lengths = adapted_lengths(weight, &squares, &a, &b, self.rank, self.scale);
            magnitude
                .lengths
                .iter()
                .zip(lengths)
                .map(|(wanted, length)| wanted / length)
                .collect()
        });
        Some(factors)
    }

    /// `A (rank, inputs)` and `B` transposed, `(rank, outputs)`, as they are stored.
    #[cfg(feature = "cuda")]
    pub(crate) fn matrices(&self) -> [Weight<'_>; 2] {
        [self.a.weight(), self.b_transposed.weight()]
    }

    /// Columns of `A`.
    pub(crate) fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }

    /// Rows of `B`.
    pub(crate) fn outputs(&self) -> usize {
        self.b_transposed.len() / self.rank
    }

    /// Bytes of both matrices.
    pub(crate) fn bytes(&self) -> usize {
        self.a.bytes() + self.b_transposed.bytes()
    }

    /// `A (rank, inputs)`.
    pub(crate) fn a(&self) -> Vec<f32> {
        self.a.to_f32()
    }

    /// `B (outputs, rank)`.
    pub(crate) fn b(&self) -> Vec<f32> {
        transposed(&self.b_transposed.to_f32(), self.outputs())
    }

    /// Turns `merged`, a copy of the base `weight (outputs, inputs)`, into the adapted weight.
    pub(crate) fn merge_into(&self, weight: Weight<'_>, merged: &mut [f32]) {
        let (inputs, a, b) = (self.inputs(), self.a(), self.b());
        let rows = merged
            .chunks_exact_mut(inputs)
            .zip(b.chunks_exact(self.rank));
        for (row, b) in rows {
            for (a, factor) in a.chunks_exact(inputs).zip(b) {
                add_scaled(row, a, factor * self.scale);
            }
        }
        if let Some(factors) = self.factors(weight) {
            for (row, factor) in merged.chunks_exact_mut(inputs).zip(factors) {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
    }

    /// The first half of the delta: `low (rows, rank) = s·x·Aᵀ`; every row is computed by itself.
    pub(crate) fn project(&self, x: &[f32], low: &mut [f32]) {
        let shape = Shape {
            rows: low.len() / self.rank,
            outputs: self.rank,
            inputs: self.inputs(),
        };
        forward_batch_invariant(shape, x, self.a.weight(), low, Write::Replace);
        low.iter_mut().for_each(|value| *value *= self.scale);
    }

    /// Turns `y (rows, outputs) = x·Wᵀ + b` into the adapted output with what [`LowRank::project`] gave.
    pub(crate) fn expand(
        &self,
        low: &[f32],
        y: &mut [f32],
        (weight, bias): (Weight<'_>, Option<&[f32]>),
    ) {
        add_low_rank(self.outputs(), low, self.b_transposed.weight(), y);
        let Some(factors) = self.factors(weight) else {
            return;
        };
        for y in y.chunks_exact_mut(factors.len()) {
            match bias {
                None => y
                    .iter_mut()
                    .zip(factors)
                    .for_each(|(y, factor)| *y *= factor),
                // Only the product with the weight is rescaled.
                Some(bias) => y
                    .iter_mut()
                    .zip(factors)
                    .zip(bias)
                    .for_each(|((y, factor), bias)| *y = (*y - bias) * factor + bias),
            }
        }
    }
}

/// A finished adapter, ready to serve with the base model that it was made for.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    pub(crate) settings: LoraConfig,
    /// For each layer, the matrices of each linear layer.
    pub(crate) layers: Vec<[Option<LowRank>; 7]>,
    /// Modules of a classifier's head that were trained whole, in the order of the layout.
    pub(crate) head: Vec<HeadWeights>,
    /// The modules of the model that it was made for.
    pub(crate) layout: Layout,
}

/// A linear layer of a classifier's head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadWeights {
    pub(crate) name: &'static str,
    /// `(outputs, inputs)`
    pub(crate) weight: Vec<f32>,
    /// `(outputs)`
    pub(crate) bias: Vec<f32>,
}

impl LoraAdapter {
    /// Rank, scale and targets. Dropout and seed are those of training or, if read from files, the dropout of
    /// the file and seed 0.
    pub fn settings(&self) -> &LoraConfig {
        &self.settings
    }

    /// Number of classes of a classifier's adapter.
    pub fn classes(&self) -> Option<usize> {
        let classifier = self
            .head
            .iter()
            .find(|module| module.name == "classifier")?;
        Some(classifier.bias.len())
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> usize {
        let pairs = self.layers.iter().flatten().flatten();
        pairs
            .map(|pair| {
                let lengths = pair.magnitude().map_or(0, <[f32]>::len);
                pair.bytes() + lengths * size_of::<f32>()
            })
            .sum()
    }

    /// Whether its matrices have the shapes of `config`.
    pub fn fits(&self, config: &ModelConfig) -> bool {
        self.head.is_empty()
            && self.has_shapes(config.layers, |projection| {
                config.projection_shape(projection)
            })
    }

    pub(crate) fn has_shapes(
        &self,
        layers: usize,
        shape: impl Fn(Projection) -> (usize, usize),
    ) -> bool {
        self.layers.len() == layers
            && self.layers.iter().all(|layer| {
                Projection::ALL
                    .into_iter()
                    .zip(layer)
                    .all(|(projection, pair)| {
                        let (outputs, inputs) = shape(projection);
                        pair.as_ref()
                            .is_none_or(|pair| pair.inputs() == inputs && pair.outputs() == outputs)
                    })
            })
    }

    pub(crate) fn pair(&self, layer: usize, projection: Projection) -> Option<&LowRank> {
        self.layers.get(layer)?[projection.index()].as_ref()
    }
}
