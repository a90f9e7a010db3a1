//! The pass of [`crate::inference`] on a device: tokens go in and logits come out; weights, keys and values, adapters and
//! activations stay there.

use super::adapters::Residents;
use super::cache::DeviceCache;
use super::linear::{Direction, ProductScratch, product};
use super::shared::put;
use super::weights::{DeviceWeights, Matrix};
use crate::error::ModelError;
use crate::inference::{Arrangement, Row, places_of};
use crate::kv_cache::KvPool;
use crate::lora::Projection;
use crate::serving::ServingSizes;
use std::ops::Range;
use std::sync::Arc;
use zerog_kernels::cuda::{
    Buffer, CacheBlocks, Cuda, DeltaRoom, Deltas, PagedRow, PagedRows, Part, PartMut,
};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::{Precision, Write};
use zerog_kernels::noise::NoiseKey;

/// Device memory that the blocks of keys and values leave to adapters.
const ADAPTER_BYTES: usize = 512 << 20;

/// A base model that serves on a device.
#[derive(Debug)]
pub(crate) struct DeviceServing {
    weights: Arc<DeviceWeights>,
    residents: Residents,
    precision: Precision,
    /// Blocks of keys and values that would have fitted.
    fitting: usize,
    space: Space,
    /// Those of the last step, on the host.
    logits: Vec<f32>,
}

/// Buffers kept between steps; they grow to the largest.
#[derive(Debug)]
struct Space {
    tokens: Buffer<u32>,
    positions: Buffer<u32>,
    /// Of the noise of embeddings: zeros.
    magnitudes: Buffer<f32>,
    rows: PagedRows,
    deltas: DeltaRoom,
    x: Buffer<f32>,
    y: Buffer<f32>,
    q: Buffer<f32>,
    k: Buffer<f32>,
    v: Buffer<f32>,
    attended: Buffer<f32>,
    gate: Buffer<f32>,
    up: Buffer<f32>,
    gated: Buffer<f32>,
    wanted: Buffer<u32>,
    hidden: Buffer<f32>,
    logits: Buffer<f32>,
    products: ProductScratch,
}

impl Space {
    fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        let empty = || cuda.allocate(0);
        Ok(Self {
            tokens: cuda.allocate(0)?,
            positions: cuda.allocate(0)?,
            magnitudes: empty()?,
            rows: PagedRows::new(cuda)?,
            deltas: DeltaRoom::new(cuda)?,
            x: empty()?,
            y: empty()?,
            q: empty()?,
            k: empty()?,
            v: empty()?,
            attended: empty()?,
            gate: empty()?,
            up: empty()?,
            gated: empty()?,
            wanted: cuda.allocate(0)?,
            hidden: empty()?,
            logits: empty()?,
            products: ProductScratch::new(cuda)?,
        })
    }
}

impl DeviceServing {
    /// Sets memory aside for steps and for blocks of keys and values.
    ///
    /// # Errors
    /// [`ModelError::CacheTooLarge`], [`ModelError::Device`].
    pub(crate) fn new(
        weights: Arc<DeviceWeights>,
        sizes: &ServingSizes,
    ) -> Result<(Self, DeviceCache), ModelError> {
        let cuda = &weights.cuda;
        let config = weights.base.config();
        let (heads, layers) = (config.heads(), config.layers);
        // Shapes that the kernels do not cover are found before the memory is counted.
        CacheBlocks::new(cuda, heads, layers, 0)?;
        let mut space = Space::new(cuda)?;
        space.reserve(&weights, sizes)?;
        let free = cuda.free_bytes()?.saturating_sub(ADAPTER_BYTES);
        let fitting = free / CacheBlocks::block_bytes(heads, layers);
        if sizes.blocks > fitting {
            return Err(ModelError::CacheTooLarge {
                blocks: sizes.blocks,
                fitting,
            });
        }
        let memory = CacheBlocks::new(cuda, heads, layers, sizes.blocks)?;
        let serving = Self {
            residents: Residents::default(),
            precision: sizes.precision,
            fitting,
            space,
            logits: Vec::new(),
            weights,
        };
        Ok((serving, DeviceCache::new(memory)))
    }

    /// Blocks of keys and values that would have fitted.
    pub(crate) fn fitting_blocks(&self) -> usize {
        self.fitting
    }

    /// Whether products are of rounded activations.
    pub(crate) fn is_rounded(&self) -> bool {
        self.precision == Precision::Bf16 && self.weights.matrices().any(Matrix::is_narrow)
    }

    /// The logits of the last [`DeviceServing::forward`], where it said that they are.
    pub(crate) fn logits(&self, place: Range<usize>) -> &[f32] {
        &self.logits[place]
    }

    /// As [`crate::BaseModel::forward_in_place`], with caches of `pool`, which has this device's blocks.
    ///
    /// # Errors
    /// Those of [`crate::BaseModel::forward_in_place`], [`ModelError::CacheFull`], [`ModelError::Device`]. The tokens
    /// in the caches are the same then.
    pub(crate) fn forward(
        &mut self,
        pool: &Arc<KvPool>,
        rows: &mut [Row<'_>],
    ) -> Result<Vec<Range<usize>>, ModelError> {
        for row in rows.iter() {
            self.weights.base.check_row(row)?;
            if !Arc::ptr_eq(row.cache.pool(), pool) {
                return Err(ModelError::CacheMismatch);
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        for row in rows.iter_mut() {
            row.cache.reserve(row.tokens.len())?;
        }
        let arrangement = Arrangement::of(rows);
        let (cuda, base) = (&self.weights.cuda, &self.weights.base);
        self.residents.load(cuda, base, &arrangement.groups)?;
        let cache = pool.device().expect("the pool is on the device");
        self.advance(&mut cache.memory(), rows, &arrangement)?;
        let wanted = arrangement.wanted(rows);
        self.head_logits(&wanted)?;
        for row in rows {
            row.cache.advance(row.tokens.len());
        }
        let vocabulary = self.weights.base.config().vocabulary_size;
        Ok(places_of(&wanted, vocabulary))
    }

    /// Computes the states of all tokens after the last layer, in `space.x`.
    fn advance(
        &mut self,
        cache: &mut CacheBlocks,
        rows: &[Row<'_>],
        arrangement: &Arrangement,
    ) -> Result<(), DeviceError> {
        let weights = &*self.weights;
        let (cuda, config) = (&weights.cuda, weights.base.config());
        let precision = self.precision;
        let tokens = arrangement.positions.len();
        let epsilon = config.norm_epsilon;
        let Space {
            tokens: ids,
            positions,
            magnitudes,
            rows: paged,
            deltas,
            x,
            y,
            q,
            k,
            v,
            attended,
            gate,
            up,
            gated,
            products,
            ..
        } = &mut self.space;

        let users: Vec<Range<usize>> = arrangement
            .groups
            .iter()
            .map(|group| group.tokens.clone())
            .collect();
        let of_adapters = self.residents.deltas(&arrangement.groups, config.layers);
        let mut deltas = Deltas::new(cuda, deltas, &of_adapters, &users, tokens)?;
        let in_order = || arrangement.order.iter().map(|index| &rows[*index]);
        let blocks: Vec<Vec<u32>> = in_order().map(|row| row.cache.device_blocks()).collect();
        let described: Vec<PagedRow<'_>> = in_order()
            .zip(&blocks)
            .map(|(row, blocks)| PagedRow {
                tokens: row.tokens.len(),
                before: row.cache.len(),
                blocks,
            })
            .collect();
        paged.describe(cache, &described)?;
        put(cuda, positions, &arrangement.positions)?;
        let of_rows: Vec<&[u32]> = in_order().map(|row| row.tokens).collect();
        put(cuda, ids, &of_rows.concat())?;
        cuda.clear(magnitudes.resize(tokens)?)?;

        x.resize(tokens * config.hidden_size)?;
        let table = weights.embedding.table();
        cuda.embed(table, &*ids, &*magnitudes, NoiseKey::new(0), &mut *x)?;
        y.resize(tokens * config.hidden_size)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let mut run =
                |projection: Projection, input: &Buffer<f32>, output: &mut Buffer<f32>| {
                    let (outputs, inputs) = config.projection_shape(projection);
                    let linear = &layer.linears[projection.index()];
                    output.resize(tokens * outputs)?;
                    product(
                        cuda,
                        Direction::Forward,
                        Part::from(input),
                        (&linear.weight, inputs),
                        PartMut::from(&mut *output),
                        Write::Replace,
                        precision,
                        products,
                    )?;
                    if let Some(bias) = &linear.bias {
                        cuda.add_bias(&mut *output, bias)?;
                    }
                    let place = index * Projection::ALL.len() + projection.index();
                    deltas.adapt(place, input, linear.bias.as_ref().map(Part::from), output)
                };
            cuda.rms_norm(&*x, &layer.input_norm, epsilon, &mut *y)?;
            run(Projection::Query, y, q)?;
            run(Projection::Key, y, k)?;
            run(Projection::Value, y, v)?;
            if let Some([queries, keys]) = &layer.head_norms {
                cuda.rms_norm_in_place(&mut *q, queries, epsilon)?;
                cuda.rms_norm_in_place(&mut *k, keys, epsilon)?;
            }
            cuda.rotate(&weights.rope, &mut *q, &*positions)?;
            cuda.rotate(&weights.rope, &mut *k, &*positions)?;
            cache.store(index, paged, &*k, &*v)?;
            cache.attend(index, paged, &*q, attended.resize(q.len())?)?;
            run(Projection::Output, attended, y)?;
            cuda.add(&mut *x, &*y)?;

            cuda.rms_norm(&*x, &layer.post_norm, epsilon, &mut *y)?;
            run(Projection::Gate, y, gate)?;
            run(Projection::Up, y, up)?;
            cuda.silu_gate(&*gate, &*up, gated.resize(gate.len())?)?;
            run(Projection::Down, gated, y)?;
            cuda.add(&mut *x, &*y)?;
        }
        Ok(())
    }

    /// Logits of the `wanted` tokens of each row, one after the other, from the states in `space.x`.
    fn head_logits(&mut self, wanted: &[Range<usize>]) -> Result<(), DeviceError> {
        let weights = &*self.weights;
        let (cuda, config) = (&weights.cuda, weights.base.config());
        let Space {
            x,
            wanted: places,
            hidden,
            logits,
            products,
            ..
        } = &mut self.space;
        let tokens: Vec<u32> = wanted
            .iter()
            .flat_map(|range| range.start as u32..range.end as u32)
            .collect();
        self.logits
            .resize(tokens.len() * config.vocabulary_size, 0.0);
        if tokens.is_empty() {
            return Ok(());
        }
        put(cuda, places, &tokens)?;
        hidden.resize(tokens.len() * config.hidden_size)?;
        cuda.gather_rows(&*x, &*places, &mut *hidden)?;
        cuda.rms_norm_in_place(&mut *hidden, &weights.final_norm, config.norm_epsilon)?;
        logits.resize(self.logits.len())?;
        product(
            cuda,
            Direction::Forward,
            Part::from(&*hidden),
            (weights.head(), config.hidden_size),
            PartMut::from(&mut *logits),
            Write::Replace,
            self.precision,
            products,
        )?;
        cuda.read(&*logits, &mut self.logits)
    }
}

impl Space {
    /// Takes the memory of the largest step at once, so that what is free afterwards can be given away.
    fn reserve(
        &mut self,
        weights: &DeviceWeights,
        sizes: &ServingSizes,
    ) -> Result<(), DeviceError> {
        let config = weights.base.config();
        let (tokens, rows) = (sizes.step_tokens, sizes.step_rows);
        for (buffer, elements) in [
            (&mut self.magnitudes, tokens),
            (&mut self.x, tokens * config.hidden_size),
            (&mut self.y, tokens * config.hidden_size),
            (&mut self.q, tokens * config.query_width()),
            (&mut self.k, tokens * config.key_width()),
            (&mut self.v, tokens * config.key_width()),
            (&mut self.attended, tokens * config.query_width()),
            (&mut self.gate, tokens * config.intermediate_size),
            (&mut self.up, tokens * config.intermediate_size),
            (&mut self.gated, tokens * config.intermediate_size),
            (&mut self.hidden, rows * config.hidden_size),
            (&mut self.logits, rows * config.vocabulary_size),
        ] {
            buffer.resize(elements)?;
        }
        self.tokens.resize(tokens)?;
        self.positions.resize(tokens)?;
        let inputs = Projection::ALL.map(|projection| config.projection_shape(projection).1);
        let widest = inputs.into_iter().max().unwrap_or(0);
        let narrow = weights.matrices().filter(|matrix| matrix.is_narrow());
        let largest = narrow.map(Matrix::len).max().unwrap_or(0);
        self.products
            .reserve(sizes.precision, tokens.max(rows) * widest, largest)
    }
}
