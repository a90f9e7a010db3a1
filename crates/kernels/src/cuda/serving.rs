//! What serving needs beside the operations of training: keys and values in blocks of device memory, attention over
//! them, and the deltas of several adapters in one launch. Errors are those of [`super::operations`].

use super::memory::{Buffer, Part, PartMut};
use super::operations::{
    ATTENTION_THREADS, Outcome, THREADS, Table, address, check_heads, large, over_elements,
    over_rows, small, target,
};
use super::session::{Argument, Cuda, Grid};
use crate::attention::Heads;
use crate::cached_attention::{BLOCK_TOKENS, block_elements};
use crate::device::DeviceError;
use std::marker::PhantomData;

const _: () = assert!(BLOCK_TOKENS == 16, "`serving.cu` has the number too");
/// Keys that a block of threads scores at a time, as in `serving.cu`.
const KEYS: u32 = 32;
/// Tokens of one adapter that a block of threads treats, as in `serving.cu`.
const DELTA_TOKENS: usize = 8;
/// Numbers that describe the delta of one adapter, as in `serving.cu`.
const DELTA_ENTRY: usize = 5;

/// Keys and values of all layers in device memory, in numbered blocks of [`BLOCK_TOKENS`] tokens.
#[derive(Debug)]
pub struct CacheBlocks {
    cuda: Cuda,
    heads: Heads,
    layers: usize,
    blocks: usize,
    values: Buffer<f32>,
}

/// New tokens of one sequence and its blocks.
#[derive(Clone, Copy, Debug)]
pub struct PagedRow<'a> {
    /// New tokens.
    pub tokens: usize,
    /// Tokens that the sequence had before.
    pub before: usize,
    /// Numbers of its blocks in order, at least as many as all its tokens need.
    pub blocks: &'a [u32],
}

/// The rows of a step, described for the device. The memory is used again for the next step.
#[derive(Debug)]
pub struct PagedRows {
    /// For each tile: first token of its sequence in the step, first row of the tile, rows of the sequence, tokens
    /// before, first place in `blocks`.
    tiles: Buffer<u32>,
    blocks: Buffer<u32>,
    /// Where the keys and values of each new token go: block · [`BLOCK_TOKENS`] + place.
    slots: Buffer<u32>,
    /// Rows of a tile.
    rows: u32,
    /// Blocks that the numbers are below of.
    limit: usize,
}

impl CacheBlocks {
    /// Takes memory for `blocks` blocks; their content is undefined.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for heads of more than 256 elements, [`DeviceError::OutOfMemory`],
    /// [`DeviceError::Call`].
    pub fn new(
        cuda: &Cuda,
        heads: Heads,
        layers: usize,
        blocks: usize,
    ) -> Result<Self, DeviceError> {
        check_heads(heads)?;
        assert!(
            u32::try_from(blocks * BLOCK_TOKENS).is_ok(),
            "places fit 32 bits"
        );
        Ok(Self {
            heads,
            layers,
            blocks,
            values: cuda.allocate(blocks * layers * block_elements(heads))?,
            cuda: cuda.clone(),
        })
    }

    /// Bytes of device memory that a block takes.
    pub fn block_bytes(heads: Heads, layers: usize) -> usize {
        layers * block_elements(heads) * size_of::<f32>()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies block `source` over block `copy`.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    ///
    /// # Panics
    /// If there are no such two blocks.
    pub fn copy_block(&mut self, source: u32, copy: u32) -> Outcome {
        let elements = self.layers * block_elements(self.heads);
        let start = source as usize * elements;
        let target = copy as usize * elements;
        self.cuda
            .copy_within(&mut self.values, start..start + elements, target)
    }

    /// Writes keys and values `(T, groups·D)` of the new tokens of `rows` to their places in one layer.
    pub fn store<'a>(
        &mut self,
        layer: usize,
        rows: &PagedRows,
        k: impl Into<Part<'a, f32>>,
        v: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let (k, v) = (k.into(), v.into());
        let width = self.heads.groups * self.heads.size;
        assert!(layer < self.layers && rows.limit == self.blocks);
        assert!(k.len() == rows.slots.len() * width && v.len() == k.len());
        self.cuda.launch(
            "store_cached",
            over_rows(rows.slots.len(), width),
            &[
                address(k),
                address(v),
                address(&rows.slots),
                small(self.heads.groups),
                small(self.heads.size),
                small(self.layers),
                small(layer),
                address(&self.values),
            ],
        )
    }

    /// As [`crate::cached_attention::forward_cached`] in one layer: `q` and `output` are `(T, heads·D)`, and the keys
    /// and values of the new tokens are stored already.
    pub fn attend<'a, 'b>(
        &self,
        layer: usize,
        rows: &PagedRows,
        q: impl Into<Part<'a, f32>>,
        output: impl Into<PartMut<'b, f32>>,
    ) -> Outcome {
        let (q, output) = (q.into(), output.into());
        let heads = self.heads;
        assert!(layer < self.layers && rows.limit == self.blocks);
        assert_eq!(q.len(), rows.slots.len() * heads.queries * heads.size);
        assert_eq!(output.len(), q.len());
        let stride = heads.size as u32 + 1;
        let grid = Grid {
            blocks: ((rows.tiles.len() / 5) as u32, heads.groups as u32),
            threads: ATTENTION_THREADS,
            shared_bytes: 4 * ((rows.rows + KEYS) * stride + rows.rows * (KEYS + 1)),
        };
        self.cuda.launch(
            "cached_attention",
            grid,
            &[
                address(q),
                address(&self.values),
                address(&rows.tiles),
                address(&rows.blocks),
                small(heads.queries),
                small(heads.groups),
                small(heads.size),
                Argument::U32(rows.rows),
                small(self.layers),
                small(layer),
                Argument::F32(heads.scale()),
                target(&output),
            ],
        )
    }
}

impl PagedRows {
    /// Without rows.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    pub fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            tiles: cuda.allocate(0)?,
            blocks: cuda.allocate(0)?,
            slots: cuda.allocate(0)?,
            rows: 0,
            limit: 0,
        })
    }

    /// Describes the rows of a step over `cache`, in the order of their tokens.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    ///
    /// # Panics
    /// If a sequence has too few blocks or one that `cache` does not have.
    pub fn describe(&mut self, cache: &CacheBlocks, rows: &[PagedRow<'_>]) -> Outcome {
        let heads = cache.heads;
        let shared = heads.queries / heads.groups;
        // Larger heads get smaller tiles, so that a thread holds eight elements. A step of single tokens needs few rows.
        let most = match heads.size {
            0..=64 => 32,
            65..=128 => 16,
            _ => 8,
        };
        let longest = rows.iter().map(|row| row.tokens).max().unwrap_or(0) * shared;
        let tile = longest.next_power_of_two().clamp(8, most);
        let (mut tiles, mut blocks, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let length = row.before + row.tokens;
            let own = &row.blocks[..length.div_ceil(BLOCK_TOKENS)];
            assert!(own.iter().all(|block| (*block as usize) < cache.blocks));
            let start = slots.len();
            for first in (0..row.tokens * shared).step_by(tile) {
                let numbers = [start, first, row.tokens * shared, row.before, blocks.len()];
                tiles.extend(numbers.map(|number| u32::try_from(number).expect("32 bits suffice")));
            }
            for position in row.before..length {
                let block = own[position / BLOCK_TOKENS] as usize;
                slots.push((block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
            }
            blocks.extend_from_slice(own);
        }
        for (buffer, numbers) in [
            (&mut self.tiles, &tiles),
            (&mut self.blocks, &blocks),
            (&mut self.slots, &slots),
        ] {
            cache.cuda.write(numbers, buffer.resize(numbers.len())?)?;
        }
        self.rows = tile as u32;
        self.limit = cache.blocks;
        Ok(())
    }
}

/// The delta of one adapter in one linear layer with `N` outputs and `K` inputs.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// `A (rank, K)`.
    pub a: Table<'a>,
    /// `B` transposed, `(rank, N)`.
    pub b: Table<'a>,
    /// What the adapted outputs without the bias are multiplied by, `(N)`.
    pub factors: Option<Part<'a, f32>>,
    /// Columns of `B`.
    pub rank: usize,
    /// What the delta is multiplied by.
    pub scale: f32,
}

/// Memory of [`Deltas`] that is used again for the next step.
#[derive(Debug)]
pub struct DeltaRoom {
    entries: Buffer<u64>,
    tiles: Buffer<u32>,
    low: Buffer<f32>,
}

/// The deltas of all adapters of a step in all linear layers.
#[derive(Debug)]
pub struct Deltas<'a> {
    cuda: Cuda,
    room: &'a mut DeltaRoom,
    /// For each linear layer: inputs, outputs and the greatest rank, where an adapter has a delta.
    places: Vec<Option<(usize, usize, usize)>>,
    adapters: usize,
    tokens: usize,
    kept: PhantomData<Part<'a, f32>>,
}

impl Table<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The address, and whether the numbers are bf16.
    fn place(&self) -> (u64, bool) {
        match self {
            Self::F32(values) => (values.address(), false),
            Self::Bf16(values) => (values.address(), true),
        }
    }
}

impl DeltaRoom {
    /// Without deltas.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    pub fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            entries: cuda.allocate(0)?,
            tiles: cuda.allocate(0)?,
            low: cuda.allocate(0)?,
        })
    }
}

impl<'a> Deltas<'a> {
    /// `layers` has, for each linear layer, the delta of each adapter. `users` are, for each adapter, the tokens of the
    /// step that use it, of `tokens` in all; they do not overlap.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    ///
    /// # Panics
    /// If the lengths of lists or matrices contradict each other.
    pub fn new(
        cuda: &Cuda,
        room: &'a mut DeltaRoom,
        layers: &[Vec<Option<Delta<'a>>>],
        users: &[std::ops::Range<usize>],
        tokens: usize,
    ) -> Result<Self, DeviceError> {
        let mut entries = Vec::with_capacity(layers.len() * users.len() * DELTA_ENTRY);
        let mut places = Vec::with_capacity(layers.len());
        for layer in layers {
            assert_eq!(layer.len(), users.len());
            let mut place = None;
            for delta in layer {
                let Some(delta) = delta else {
                    entries.extend([0; DELTA_ENTRY]);
                    continue;
                };
                let rank = delta.rank;
                let (inputs, outputs) = (delta.a.len() / rank, delta.b.len() / rank);
                assert!(delta.a.len() == rank * inputs && delta.b.len() == rank * outputs);
                assert!(delta.factors.is_none_or(|factors| factors.len() == outputs));
                let (_, _, greatest) = *place.get_or_insert((inputs, outputs, 0));
                assert_eq!(place, Some((inputs, outputs, greatest)));
                place = Some((inputs, outputs, rank.max(greatest)));
                let ((a, is_a_narrow), (b, is_b_narrow)) = (delta.a.place(), delta.b.place());
                entries.extend([
                    a,
                    b,
                    delta.factors.map_or(0, |factors| factors.address()),
                    rank as u64 | u64::from(is_a_narrow) << 32 | u64::from(is_b_narrow) << 33,
                    u64::from(delta.scale.to_bits()),
                ]);
            }
            places.push(place);
        }
        let mut tiles = Vec::new();
        for (adapter, users) in users.iter().enumerate() {
            assert!(users.end <= tokens);
            for first in users.clone().step_by(DELTA_TOKENS) {
                let count = DELTA_TOKENS.min(users.end - first);
                tiles.extend([first as u32, count as u32, adapter as u32]);
            }
        }
        cuda.write(&entries, room.entries.resize(entries.len())?)?;
        cuda.write(&tiles, room.tiles.resize(tiles.len())?)?;
        Ok(Self {
            cuda: cuda.clone(),
            room,
            places,
            adapters: users.len(),
            tokens,
            kept: PhantomData,
        })
    }

    /// Turns `y (T, N) = x (T, K)·Wᵀ + bias` of linear layer `place` into the adapted output for the tokens that use
    /// an adapter.
    pub fn adapt<'b, 'c>(
        &mut self,
        place: usize,
        x: impl Into<Part<'b, f32>>,
        bias: Option<Part<'b, f32>>,
        y: impl Into<PartMut<'c, f32>>,
    ) -> Outcome {
        let (x, y) = (x.into(), y.into());
        let Some((inputs, outputs, rank)) = self.places[place] else {
            return Ok(());
        };
        assert!(x.len() == self.tokens * inputs && y.len() == self.tokens * outputs);
        assert!(bias.is_none_or(|bias| bias.len() == outputs));
        let row = self.adapters * DELTA_ENTRY;
        let entries = self.room.entries.part(place * row..(place + 1) * row);
        let tiles = self.room.tiles.len() / 3;
        let low = self.room.low.resize(self.tokens * rank)?;
        self.cuda.launch(
            "delta_down",
            Grid {
                blocks: (tiles as u32, rank as u32),
                ..over_rows(tiles, inputs)
            },
            &[
                address(x),
                address(entries),
                address(&self.room.tiles),
                small(inputs),
                small(rank),
                address(&*low),
            ],
        )?;
        self.cuda.launch(
            "delta_up",
            Grid {
                blocks: (tiles as u32, outputs.div_ceil(THREADS as usize) as u32),
                threads: THREADS,
                shared_bytes: 0,
            },
            &[
                address(&*low),
                address(entries),
                address(&self.room.tiles),
                bias.map_or(Argument::Address(0), address),
                small(outputs),
                small(rank),
                target(&y),
            ],
        )
    }
}

impl Cuda {
    /// `values += others`, element by element.
    pub fn add<'a, 'b>(
        &self,
        values: impl Into<PartMut<'b, f32>>,
        others: impl Into<Part<'a, f32>>,
    ) -> Outcome {
        let (values, others) = (values.into(), others.into());
        assert_eq!(values.len(), others.len());
        let arguments = [target(&values), address(others), large(values.len())];
        self.launch("add_values", over_elements(values.len()), &arguments)
    }
}
