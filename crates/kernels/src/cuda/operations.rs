//! The fused operations on device memory, named after those of the processor in the crate's other modules.
//!
//! Errors of all of them are [`DeviceError::Call`]: a launch that the driver refuses, or the failure of earlier work.
//! Wrong lengths are bugs of the caller and panic. What tells rows apart (token ids, positions, row numbers) is on the
//! device and must be in range; whoever uploads it has checked it.

use super::memory::{Buffer, Element, Part, PartMut};
use super::session::{Argument, Cuda, Grid};
use crate::attention::{Heads, Sight};
use crate::device::DeviceError;
use crate::noise::NoiseKey;
use crate::rope::RopeTable;
use half::bf16;

pub(super) type Outcome = Result<(), DeviceError>;

/// Threads of a block that treats elements or a row.
pub(super) const THREADS: u32 = 256;
/// Blocks of a launch over elements; each thread takes several where there are more.
const MOST_BLOCKS: usize = 1 << 14;
/// Threads of a block of attention, see `attention.cu`.
pub(super) const ATTENTION_THREADS: u32 = 256;
/// Largest head that the attention kernels hold.
const LARGEST_HEAD: usize = 256;

/// A table of rows to look up.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Single precision.
    F32(Part<'a, f32>),
    /// Brain floating point, widened exactly.
    Bf16(Part<'a, bf16>),
}

/// Cosines and sines of [`RopeTable`] on a device.
#[derive(Debug)]
pub struct DeviceRope {
    half: usize,
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

/// How the segments of a batch are divided for attention.
#[derive(Debug)]
pub struct Tiles {
    sight: Sight,
    heads: Heads,
    tokens: usize,
    /// Tokens of a tile.
    rows: u32,
    /// First token of the segment, first token of the tile in it, length of the segment, for each tile.
    table: Buffer<u32>,
}

/// What the forward pass of attention read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Queries `(T, heads·D)`.
    pub q: Part<'a, f32>,
    /// Keys `(T, groups·D)`.
    pub k: Part<'a, f32>,
    /// Values `(T, groups·D)`.
    pub v: Part<'a, f32>,
    /// Output `(T, heads·D)`.
    pub output: Part<'a, f32>,
    /// Logarithms of the softmax sums `(T, heads)`.
    pub log_sums: Part<'a, f32>,
}

pub(super) fn address<'a, T: Element + 'a>(part: impl Into<Part<'a, T>>) -> Argument {
    Argument::Address(part.into().address())
}

pub(super) fn target<T: Element>(part: &PartMut<'_, T>) -> Argument {
    Argument::Address(part.address())
}

pub(super) fn small(value: usize) -> Argument {
    Argument::U32(u32::try_from(value).expect("numbers of rows and columns fit 32 bits"))
}

pub(super) fn large(value: usize) -> Argument {
    Argument::U64(value as u64)
}

/// A launch over `count` elements.
pub(super) fn over_elements(count: usize) -> Grid {
    let blocks = count.div_ceil(THREADS as usize).min(MOST_BLOCKS);
    Grid {
        blocks: (blocks as u32, 1),
        threads: THREADS,
        shared_bytes: 0,
    }
}

/// A launch with a block for each of `count` rows of `width`.
pub(super) fn over_rows(count: usize, width: usize) -> Grid {
    let threads = width.next_power_of_two().clamp(32, THREADS as usize);
    Grid {
        blocks: (u32::try_from(count).expect("rows fit 32 bits"), 1),
        threads: threads as u32,
        shared_bytes: 0,
    }
}

/// # Errors
/// [`DeviceError::Unsupported`] for heads that the attention kernels do not hold.
pub(super) fn check_heads(heads: Heads) -> Outcome {
    if heads.size > LARGEST_HEAD {
        return Err(DeviceError::Unsupported {
            what: format!(
                "attention with heads of {} elements (at most {LARGEST_HEAD})",
                heads.size
            ),
        });
    }
    Ok(())
}

impl Tiles {
    /// Tiles for causal attention of `heads` over `segments`, which are lengths of sequences in order.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for heads of more than 256 elements; as [`Cuda::allocate`].
    pub fn new(cuda: &Cuda, heads: Heads, segments: &[usize]) -> Result<Self, DeviceError> {
        Self::with_sight(Sight::Causal, cuda, heads, segments)
    }

    /// As [`Tiles::new`], but every token sees its whole segment.
    ///
    /// # Errors
    /// The same.
    pub fn whole(cuda: &Cuda, heads: Heads, segments: &[usize]) -> Result<Self, DeviceError> {
        Self::with_sight(Sight::Whole, cuda, heads, segments)
    }

    fn with_sight(
        sight: Sight,
        cuda: &Cuda,
        heads: Heads,
        segments: &[usize],
    ) -> Result<Self, DeviceError> {
        check_heads(heads)?;
        // Larger heads get smaller tiles, so that both fit into shared memory and a thread holds eight elements.
        let rows = match heads.size {
            0..=64 => 32,
            65..=128 => 16,
            _ => 8,
        };
        let mut table = Vec::new();
        let mut start = 0;
        for &length in segments {
            for first in (0..length).step_by(rows) {
                table.extend([start as u32, first as u32, length as u32]);
            }
            start += length;
        }
        Ok(Self {
            sight,
            heads,
            tokens: start,
            rows: rows as u32,
            table: cuda.upload(&table)?,
        })
    }

    fn query_length(&self) -> usize {
        self.tokens * self.heads.queries * self.heads.size
    }

    fn key_length(&self) -> usize {
        self.tokens * self.heads.groups * self.heads.size
    }

    fn log_sums(&self) -> usize {
        self.tokens * self.heads.queries
    }

    /// Blocks for each tile and each of `by`, with shared memory for `tiles` tiles of a head and `squares` of scores.
    fn grid(&self, by: usize, tiles: u32, squares: u32) -> Grid {
        let stride = self.heads.size as u32 + 1;
        Grid {
            blocks: ((self.table.len() / 3) as u32, by as u32),
            threads: ATTENTION_THREADS,
            shared_bytes: 4 * self.rows * (tiles * stride + squares * (self.rows + 1)),
        }
    }

    fn shape(&self) -> [Argument; 6] {
        [
            small(self.heads.queries),
            small(self.heads.groups),
            small(self.heads.size),
            Argument::U32(self.rows),
            Argument::F32(self.heads.scale()),
            Argument::U32(u32::from(self.sight == Sight::Whole)),
        ]
    }
}

impl Cuda {
    /// Rounds to bf16, to nearest even.
    pub fn narrow<'a, 'b>(
        &self,
        source: impl Into<Part<'a, f32>>,
        narrow: impl Into<PartMut<'b, bf16>>,
    ) -> Outcome {
        let (source, narrow) = (source.into(), narrow.into());
        assert_eq!(source.len(), narrow.len());
        self.launch(
            "narrow_values",
            over_elements(source.len()),
            &[address(source), target(&narrow), large(source.len())],
        )
    }

    /// Widens bf16, exactly.
    pub fn widen<'a, 'b>(
        &self,
        source: impl Into<Part<'a, bf16>>,
        wide: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (source, wide) = (source.into(), wide.into());
        assert_eq!(source.len(), wide.len());
        self.launch(
            "widen_values",
            over_elements(source.len()),
            &[address(source), target(&wide), large(source.len())],
        )
    }

    /// `x (T, H)`: the rows of `table` that `tokens (T)` name, with uniform noise of each token's magnitude; element
    /// `i` of `x` uses number `i` of the stream `key`.
    pub fn embed<'a, 'b>(
        &self,
        table: Table<'_>,
        tokens: impl Into<Part<'a, u32>>,
        magnitudes: impl Into<Part<'a, f32>>,
        key: NoiseKey,
        x: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (tokens, magnitudes, x) = (tokens.into(), magnitudes.into(), x.into());
        assert_eq!(magnitudes.len(), tokens.len());
        if tokens.is_empty() {
            return Ok(());
        }
        let width = x.len() / tokens.len();
        assert_eq!(x.len(), width * tokens.len());
        let (kernel, rows) = match table {
            Table::F32(rows) => ("embed_f32", address(rows)),
            Table::Bf16(rows) => ("embed_bf16", address(rows)),
        };
        self.launch(
            kernel,
            over_rows(tokens.len(), width),
            &[
                rows,
                address(tokens),
                address(magnitudes),
                Argument::U64(key.number()),
                small(width),
                target(&x),
            ],
        )
    }

    /// `x (T, H) +=` the rows of `table` that `rows (T)` name.
    pub fn add_table_rows<'a, 'b>(
        &self,
        table: Table<'_>,
        rows: impl Into<Part<'a, u32>>,
        x: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (rows, x) = (rows.into(), x.into());
        let (kernel, table) = match table {
            Table::F32(table) => ("add_table_rows_f32", address(table)),
            Table::Bf16(table) => ("add_table_rows_bf16", address(table)),
        };
        self.move_rows(kernel, table, rows, x.len(), &x)
    }

    /// As [`crate::norm::rms_norm`].
    pub fn rms_norm<'a, 'b>(
        &self,
        x: impl Into<Part<'a, f32>>,
        weight: impl Into<Part<'a, f32>>,
        epsilon: f32,
        y: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (x, y) = (x.into(), y.into());
        assert_eq!(x.len(), y.len());
        self.launch_norm(address(x), weight.into(), epsilon, y)
    }

    /// As [`crate::norm::rms_norm_in_place`].
    pub fn rms_norm_in_place<'a, 'b>(
        &self,
        x: impl Into<PartMut<'b, f32>>,
        weight: impl Into<Part<'a, f32>>,
        epsilon: f32,
    ) -> Outcome {
        let x = x.into();
        self.launch_norm(target(&x), weight.into(), epsilon, x)
    }

    fn launch_norm(
        &self,
        x: Argument,
        weight: Part<'_, f32>,
        epsilon: f32,
        y: PartMut<'_, f32>,
    ) -> Outcome {
        let width = weight.len();
        assert!(y.len().is_multiple_of(width));
        self.launch(
            "rms_norm",
            over_rows(y.len() / width, width),
            &[
                x,
                address(weight),
                Argument::F32(epsilon),
                small(width),
                target(&y),
            ],
        )
    }

    /// As [`crate::norm::rms_norm_backward`] with a frozen weight: adds to `dx`.
    pub fn rms_norm_backward<'a, 'b>(
        &self,
        x: impl Into<Part<'a, f32>>,
        weight: impl Into<Part<'a, f32>>,
        epsilon: f32,
        dy: impl Into<Part<'a, f32>>,
        dx: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (dy, dx) = (dy.into(), dx.into());
        assert_eq!(dy.len(), dx.len());
        self.launch_norm_backward(x.into(), weight.into(), epsilon, address(dy), dx, true)
    }

    /// As [`Cuda::rms_norm_backward`], but replaces the gradient of the output by that of `x`.
    pub fn rms_norm_backward_in_place<'a, 'b>(
        &self,
        x: impl Into<Part<'a, f32>>,
        weight: impl Into<Part<'a, f32>>,
        epsilon: f32,
        gradient: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let gradient = gradient.into();
        let dy = target(&gradient);
        self.launch_norm_backward(x.into(), weight.into(), epsilon, dy, gradient, false)
    }

    fn launch_norm_backward(
        &self,
        x: Part<'_, f32>,
        weight: Part<'_, f32>,
        epsilon: f32,
        dy: Argument,
        dx: PartMut<'_, f32>,
        add: bool,
    ) -> Outcome {
        let width = weight.len();
        assert!(x.len() == dx.len() && x.len().is_multiple_of(width));
        self.launch(
            "rms_norm_backward",
            over_rows(x.len() / width, width),
            &[
                address(x),
                address(weight),
                Argument::F32(epsilon),
                dy,
                small(width),
                target(&dx),
                Argument::U32(u32::from(add)),
            ],
        )
    }

    /// As [`crate::norm::layer_norm`].
    pub fn layer_norm<'a, 'b>(
        &self,
        x: impl Into<Part<'a, f32>>,
        weight: impl Into<Part<'a, f32>>,
        bias: impl Into<Part<'a, f32>>,
        epsilon: f32,
        y: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (x, weight, bias, y) = (x.into(), weight.into(), bias.into(), y.into());
        let width = weight.len();
        assert!(x.len() == y.len() && bias.len() == width && x.len().is_multiple_of(width));
        self.launch(
            "layer_norm",
            over_rows(x.len() / width, width),
            &[
                address(x),
                address(weight),
                address(bias),
                Argument::F32(epsilon),
                small(width),
                target(&y),
            ],
        )
    }

    /// As [`crate::norm::layer_norm_backward`].
    pub fn layer_norm_backward<'a, 'b>(
        &self,
        x: impl Into<Part<'a, f32>>,
        weight: impl Into<Part<'a, f32>>,
        epsilon: f32,
        dy: impl Into<Part<'a, f32>>,
        dx: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (x, weight, dy, dx) = (x.into(), weight.into(), dy.into(), dx.into());
        let width = weight.len();
        assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(width));
        self.launch(
            "layer_norm_backward",
            over_rows(x.len() / width, width),
            &[
                address(x),
                address(weight),
                Argument::F32(epsilon),
                address(dy),
                small(width),
                target(&dx),
            ],
        )
    }

    /// A table of angles on the device.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    pub fn upload_rope(&self, table: &RopeTable) -> Result<DeviceRope, DeviceError> {
        let (cosines, sines) = table.angles();
        Ok(DeviceRope {
            half: table.half(),
            cosines: self.upload(cosines)?,
            sines: self.upload(sines)?,
        })
    }

    /// As [`RopeTable::rotate`], with `positions` below those of the table.
    pub fn rotate<'a, 'b>(
        &self,
        rope: &DeviceRope,
        x: impl Into<PartMut<'b, f32>>,
        positions: impl Into<Part<'a, u32>>,
    ) -> Outcome {
        self.turn(rope, x.into(), positions.into(), 1.0)
    }

    /// As [`RopeTable::rotate_back`].
    pub fn rotate_back<'a, 'b>(
        &self,
        rope: &DeviceRope,
        x: impl Into<PartMut<'b, f32>>,
        positions: impl Into<Part<'a, u32>>,
    ) -> Outcome {
        self.turn(rope, x.into(), positions.into(), -1.0)
    }

    fn turn(
        &self,
        rope: &DeviceRope,
        x: PartMut<'_, f32>,
        positions: Part<'_, u32>,
        direction: f32,
    ) -> Outcome {
        if positions.is_empty() {
            return Ok(());
        }
        let pairs = x.len() / 2;
        let heads = x.len() / (positions.len() * 2 * rope.half);
        assert_eq!(x.len(), positions.len() * heads * 2 * rope.half);
        self.launch(
            "rotate",
            over_elements(pairs),
            &[
                target(&x),
                address(&rope.cosines),
                address(&rope.sines),
                address(positions),
                small(rope.half),
                small(heads),
                Argument::F32(direction),
                large(pairs),
            ],
        )
    }

    /// As [`crate::reduce::add_bias`].
    pub fn add_bias<'a, 'b>(
        &self,
        rows: impl Into<PartMut<'b, f32>>,
        bias: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let (rows, bias) = (rows.into(), bias.into());
        assert!(rows.len().is_multiple_of(bias.len()));
        let arguments = [
            target(&rows),
            address(bias),
            small(bias.len()),
            large(rows.len()),
        ];
        self.launch("add_bias", over_elements(rows.len()), &arguments)
    }

    /// `values -= others`, element by element.
    pub fn subtract<'a, 'b>(
        &self,
        values: impl Into<PartMut<'b, f32>>,
        others: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let (values, others) = (values.into(), others.into());
        assert_eq!(values.len(), others.len());
        let arguments = [target(&values), address(others), large(values.len())];
        self.launch("subtract", over_elements(values.len()), &arguments)
    }

    /// `rows (T, N) += source (T, N) · above / below`, with a factor `(N)` for each column.
    pub fn add_scaled_columns<'a, 'b>(
        &self,
        rows: impl Into<PartMut<'b, f32>>,
        source: impl Into<Part<'a, f32>>,
        above: impl Into<Part<'a, f32>>,
        below: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let scaled = (source.into(), above.into(), below.into());
        self.columns("add_scaled_columns", rows.into(), scaled)
    }

    /// As [`Cuda::add_scaled_columns`], but overwrites `rows`.
    pub fn scale_columns<'a, 'b>(
        &self,
        rows: impl Into<PartMut<'b, f32>>,
        source: impl Into<Part<'a, f32>>,
        above: impl Into<Part<'a, f32>>,
        below: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let scaled = (source.into(), above.into(), below.into());
        self.columns("scale_columns", rows.into(), scaled)
    }

    fn columns(
        &self,
        kernel: &'static str,
        rows: PartMut<'_, f32>,
        (source, above, below): (Part<'_, f32>, Part<'_, f32>, Part<'_, f32>),
    ) -> Outcome {
        assert_eq!(rows.len(), source.len());
        assert!(above.len() == below.len() && rows.len().is_multiple_of(above.len()));
        let arguments = [
            target(&rows),
            address(source),
            address(above),
            address(below),
            small(above.len()),
            large(rows.len()),
        ];
        self.launch(kernel, over_elements(rows.len()), &arguments)
    }

    /// As [`crate::activation::silu_gate`].
    pub fn silu_gate<'a, 'b>(
        &self,
        gate: impl Into<Part<'a, f32>>,
        up: impl Into<Part<'a, f32>>,
        hidden: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (gate, up, hidden) = (gate.into(), up.into(), hidden.into());
        assert!(gate.len() == up.len() && gate.len() == hidden.len());
        let arguments = [
            address(gate),
            address(up),
            target(&hidden),
            large(gate.len()),
        ];
        self.launch("silu_gate", over_elements(gate.len()), &arguments)
    }

    /// As [`crate::activation::silu_gate_backward`].
    pub fn silu_gate_backward<'a, 'b>(
        &self,
        gate: impl Into<Part<'a, f32>>,
        up: impl Into<Part<'a, f32>>,
        dhidden: impl Into<PartMut<'b, f32>>,
        dgate: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (gate, up, dhidden, dgate) = (gate.into(), up.into(), dhidden.into(), dgate.into());
        assert!(gate.len() == up.len() && gate.len() == dhidden.len() && gate.len() == dgate.len());
        let arguments = [
            address(gate),
            address(up),
            target(&dhidden),
            target(&dgate),
            large(gate.len()),
        ];
        self.launch("silu_gate_backward", over_elements(gate.len()), &arguments)
    }

    /// As [`crate::activation::gelu`].
    pub fn gelu<'a, 'b>(
        &self,
        input: impl Into<Part<'a, f32>>,
        output: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        self.activation("gelu", input.into(), output.into())
    }

    /// As [`crate::activation::gelu_backward`].
    pub fn gelu_backward<'a, 'b>(
        &self,
        input: impl Into<Part<'a, f32>>,
        gradient: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        self.activation("gelu_backward", input.into(), gradient.into())
    }

    fn activation(
        &self,
        kernel: &'static str,
        input: Part<'_, f32>,
        output: PartMut<'_, f32>,
    ) -> Outcome {
        assert_eq!(input.len(), output.len());
        let arguments = [address(input), target(&output), large(input.len())];
        self.launch(kernel, over_elements(input.len()), &arguments)
    }

    /// As [`crate::noise::dropout`], with the same elements dropped.
    pub fn dropout<'a, 'b>(
        &self,
        input: impl Into<Part<'a, f32>>,
        output: impl Into<PartMut<'b, f32>>,
        key: NoiseKey,
        probability: f32,
    ) -> Outcome {
        self.drop_some("dropout", input.into(), output.into(), key, probability)
    }

    /// As [`crate::noise::add_dropout`].
    pub fn add_dropout<'a, 'b>(
        &self,
        source: impl Into<Part<'a, f32>>,
        sum: impl Into<PartMut<'b, f32>>,
        key: NoiseKey,
        probability: f32,
    ) -> Outcome {
        self.drop_some("add_dropout", source.into(), sum.into(), key, probability)
    }

    fn drop_some(
        &self,
        kernel: &'static str,
        source: Part<'_, f32>,
        output: PartMut<'_, f32>,
        key: NoiseKey,
        probability: f32,
    ) -> Outcome {
        assert_eq!(source.len(), output.len());
        let arguments = [
            address(source),
            target(&output),
            Argument::U64(key.number()),
            Argument::F32(probability),
            Argument::F32(1.0 / (1.0 - probability)),
            large(source.len()),
        ];
        self.launch(kernel, over_elements(source.len()), &arguments)
    }

    /// `gathered (R, H)`: the rows of `source (T, H)` that `rows (R)` name.
    pub fn gather_rows<'a, 'b>(
        &self,
        source: impl Into<Part<'a, f32>>,
        rows: impl Into<Part<'a, u32>>,
        gathered: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (source, rows, gathered) = (source.into(), rows.into(), gathered.into());
        let moved = gathered.len();
        self.move_rows("gather_rows", address(source), rows, moved, &gathered)
    }

    /// Writes the rows of `source (R, H)` to those of `scattered (T, H)` that `rows (R)` name.
    pub fn scatter_rows<'a, 'b>(
        &self,
        source: impl Into<Part<'a, f32>>,
        rows: impl Into<Part<'a, u32>>,
        scattered: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (source, rows, scattered) = (source.into(), rows.into(), scattered.into());
        let moved = source.len();
        self.move_rows("scatter_rows", address(source), rows, moved, &scattered)
    }

    fn move_rows(
        &self,
        kernel: &'static str,
        source: Argument,
        rows: Part<'_, u32>,
        moved: usize,
        moved_to: &PartMut<'_, f32>,
    ) -> Outcome {
        if rows.is_empty() {
            return Ok(());
        }
        let width = moved / rows.len();
        assert_eq!(moved, width * rows.len());
        let arguments = [source, address(rows), small(width), target(moved_to)];
        self.launch(kernel, over_rows(rows.len(), width), &arguments)
    }

    /// Losses `(R)` of `logits (R, V)` against the ids `targets (R)`, which are below `V`. With `weights (R)`, the
    /// logits turn into the gradient of the weighted sum of losses.
    pub fn cross_entropy<'a, 'b>(
        &self,
        logits: impl Into<PartMut<'b, f32>>,
        targets: impl Into<Part<'a, u32>>,
        weights: Option<Part<'a, f32>>,
        losses: impl Into<PartMut<'b, f64>>,
    ) -> Outcome {
        let (logits, targets, losses) = (logits.into(), targets.into(), losses.into());
        assert_eq!(losses.len(), targets.len());
        if targets.is_empty() {
            return Ok(());
        }
        let vocabulary = logits.len() / targets.len();
        assert_eq!(logits.len(), vocabulary * targets.len());
        assert!(weights.is_none_or(|weights| weights.len() == targets.len()));
        self.launch(
            "cross_entropy",
            Grid {
                // Rows of logits are long, and there are few of them.
                threads: vocabulary.next_power_of_two().clamp(32, 1024) as u32,
                ..over_rows(targets.len(), vocabulary)
            },
            &[
                target(&logits),
                address(targets),
                weights.map_or(Argument::Address(0), address),
                small(vocabulary),
                Argument::U32(u32::from(weights.is_some())),
                target(&losses),
            ],
        )
    }

    /// Lengths `(N)` of the rows of `W + s·B·A`, from the `squares (N)` of those of `W`, `crossed = A·Wᵀ (rank, N)`,
    /// `gram = A·Aᵀ (rank, rank)` and `b (N, rank)`.
    pub fn adapted_lengths<'a, 'b>(
        &self,
        squares: impl Into<Part<'a, f32>>,
        crossed: impl Into<Part<'a, f32>>,
        gram: impl Into<Part<'a, f32>>,
        b: impl Into<Part<'a, f32>>,
        scale: f32,
        lengths: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (squares, crossed, gram) = (squares.into(), crossed.into(), gram.into());
        let (b, lengths) = (b.into(), lengths.into());
        let outputs = squares.len();
        let rank = b.len() / outputs;
        assert!(b.len() == rank * outputs && crossed.len() == b.len());
        assert!(gram.len() == rank * rank && lengths.len() == outputs);
        self.launch(
            "adapted_lengths",
            over_elements(outputs),
            &[
                address(squares),
                address(crossed),
                address(gram),
                address(b),
                small(rank),
                Argument::F64(f64::from(scale)),
                small(outputs),
                target(&lengths),
            ],
        )
    }

    /// `gradient (N)`: the sum over the rows of `dy (T, N) · product (T, N)`, divided by `lengths (N)`.
    pub fn lengths_gradient<'a, 'b>(
        &self,
        dy: impl Into<Part<'a, f32>>,
        product: impl Into<Part<'a, f32>>,
        lengths: impl Into<Part<'a, f32>>,
        gradient: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (dy, product, lengths) = (dy.into(), product.into(), lengths.into());
        let gradient = gradient.into();
        let width = lengths.len();
        assert!(dy.len() == product.len() && dy.len().is_multiple_of(width));
        assert_eq!(gradient.len(), width);
        self.launch(
            "lengths_gradient",
            over_elements(width),
            &[
                address(dy),
                address(product),
                address(lengths),
                small(dy.len() / width),
                small(width),
                target(&gradient),
            ],
        )
    }

    /// As [`crate::attention::forward`], or [`crate::attention::forward_whole`] for [`Tiles::whole`]; logarithms of the
    /// softmax sums are `(T, heads)`.
    pub fn attention<'a, 'b>(
        &self,
        tiles: &Tiles,
        [q, k, v]: [Part<'a, f32>; 3],
        output: impl Into<PartMut<'b, f32>>,
        log_sums: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (output, log_sums) = (output.into(), log_sums.into());
        assert!(q.len() == tiles.query_length() && output.len() == q.len());
        assert!(k.len() == tiles.key_length() && v.len() == k.len());
        assert_eq!(log_sums.len(), tiles.log_sums());
        let mut arguments = vec![address(q), address(k), address(v), address(&tiles.table)];
        arguments.extend(tiles.shape());
        arguments.extend([target(&output), target(&log_sums)]);
        self.launch(
            "attention_forward",
            tiles.grid(tiles.heads.queries, 2, 1),
            &arguments,
        )
    }

    /// As [`crate::attention::backward`], or [`crate::attention::backward_whole`] for [`Tiles::whole`]; `deltas` is room
    /// for one number a token and head.
    pub fn attention_backward<'a, 'b>(
        &self,
        tiles: &Tiles,
        saved: Attended<'a>,
        doutput: impl Into<Part<'a, f32>>,
        deltas: &mut Buffer<f32>,
        [dq, dk, dv]: [PartMut<'b, f32>; 3],
    ) -> Outcome {
        let doutput = doutput.into();
        let Attended {
            q,
            k,
            v,
            output,
            log_sums,
        } = saved;
        assert!(q.len() == tiles.query_length() && doutput.len() == q.len());
        assert!(output.len() == q.len() && dq.len() == q.len());
        assert!(k.len() == tiles.key_length() && v.len() == k.len());
        assert!(dk.len() == k.len() && dv.len() == k.len());
        assert_eq!(log_sums.len(), tiles.log_sums());
        let deltas = deltas.resize(tiles.log_sums())?;
        let size = tiles.heads.size;
        self.launch(
            "row_products",
            over_rows(tiles.log_sums(), size),
            &[
                address(output),
                address(doutput),
                small(size),
                address(&*deltas),
            ],
        )?;
        let mut arguments = vec![
            address(q),
            address(k),
            address(v),
            address(doutput),
            address(log_sums),
            address(&*deltas),
            address(&tiles.table),
        ];
        arguments.extend(tiles.shape());
        let mut of_queries = arguments.clone();
        of_queries.push(target(&dq));
        self.launch(
            "attention_backward_queries",
            tiles.grid(tiles.heads.queries, 4, 1),
            &of_queries,
        )?;
        arguments.extend([target(&dk), target(&dv)]);
        self.launch(
            "attention_backward_keys",
            tiles.grid(tiles.heads.groups, 4, 2),
            &arguments,
        )
    }
}
