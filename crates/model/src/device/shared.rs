//! What the passes of training of all models on a device share: copies there and back, embeddings of tokens.

use crate::linear::Linear;
use crate::lora::Projection;
use crate::noise::Noise;
use zerog_kernels::cuda::{Buffer, Cuda, Element, Table};
use zerog_kernels::device::DeviceError;
use zerog_kernels::reduce::add_assign;

/// Squared lengths of the rows of adapted weights, where lengths are trained.
#[derive(Debug)]
pub(super) struct Squares(Vec<[Option<Buffer<f32>>; 7]>);

/// The tokens of a batch.
#[derive(Debug)]
pub(super) struct Tokens {
    ids: Buffer<u32>,
    /// Places in their segments.
    pub(super) positions: Buffer<u32>,
    magnitudes: Buffer<f32>,
}

impl Squares {
    /// Those of the deltas in `layers`.
    pub(super) fn upload<'a>(
        cuda: &Cuda,
        layers: impl Iterator<Item = [Option<&'a Linear<'a>>; 7]>,
    ) -> Result<Self, DeviceError> {
        let mut squares = Vec::new();
        for linears in layers {
            let mut row = <[Option<Buffer<f32>>; 7]>::default();
            for (place, linear) in row.iter_mut().zip(linears) {
                let delta = linear.and_then(|linear| linear.delta.as_ref());
                if let Some(lengths) = delta.and_then(|delta| delta.magnitude.as_ref()) {
                    *place = Some(cuda.upload(lengths.squares)?);
                }
            }
            squares.push(row);
        }
        Ok(Self(squares))
    }

    pub(super) fn of(&self, layer: usize, projection: Projection) -> Option<&Buffer<f32>> {
        self.0[layer][projection.index()].as_ref()
    }
}

impl Tokens {
    pub(super) fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        Ok(Self {
            ids: cuda.allocate(0)?,
            positions: cuda.allocate(0)?,
            magnitudes: cuda.allocate(0)?,
        })
    }

    /// Copies the tokens `ids` of segments with these `lengths` to the device.
    pub(super) fn put(
        &mut self,
        cuda: &Cuda,
        ids: &[u32],
        lengths: &[usize],
    ) -> Result<(), DeviceError> {
        let mut positions = Vec::with_capacity(ids.len());
        for length in lengths {
            positions.extend(0..*length as u32);
        }
        put(cuda, &mut self.positions, &positions)?;
        put(cuda, &mut self.ids, ids)
    }

    /// Their rows of `table` into `x`, with noise in training.
    pub(super) fn embed(
        &mut self,
        cuda: &Cuda,
        table: Table<'_>,
        lengths: &[usize],
        noise: Option<&Noise>,
        x: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let noise = noise.copied().unwrap_or(Noise::new(0, 0, 0.0, 0.0));
        let width = x.len() / self.ids.len();
        let mut magnitudes = Vec::with_capacity(self.ids.len());
        for length in lengths {
            let magnitude = noise.embedding_magnitude(*length, width);
            magnitudes.extend(std::iter::repeat_n(magnitude, *length));
        }
        put(cuda, &mut self.magnitudes, &magnitudes)?;
        let key = noise.embedding_key();
        cuda.embed(table, &self.ids, &self.magnitudes, key, x)
    }
}

/// Copies `values` into a buffer of their length.
pub(super) fn put<T: Element>(
    cuda: &Cuda,
    buffer: &mut Buffer<T>,
    values: &[T],
) -> Result<(), DeviceError> {
    cuda.write(values, buffer.resize(values.len())?)
}

/// Copies a buffer into another of its length.
pub(super) fn keep_copy(
    cuda: &Cuda,
    source: &Buffer<f32>,
    target: &mut Buffer<f32>,
) -> Result<(), DeviceError> {
    cuda.copy(source, target.resize(source.len())?)
}

/// Adds the gradients of a pass to those on the host.
pub(super) fn add_gradients(
    cuda: &Cuda,
    of_pass: &Buffer<f32>,
    gradients: &mut [f32],
) -> Result<(), DeviceError> {
    let mut added = vec![0.0; gradients.len()];
    cuda.read(of_pass, &mut added)?;
    add_assign(gradients, &added);
    Ok(())
}
