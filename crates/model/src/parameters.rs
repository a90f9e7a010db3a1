//! Trainable parameters in one buffer, with gradients and optimiser moments beside them.

use crate::error::ModelError;
use std::ops::Range;
use zerog_kernels::adamw::{self, AdamW};
use zerog_kernels::reduce::sum_of_squares;

/// First bytes of exported state: format and version.
const MAGIC: &[u8; 8] = b"ZGTRAIN1";

/// Named tensors that are trained, with everything that an update needs. Names are those of the model's files,
/// for example `model.layers.0.self_attn.q_proj.lora_A`.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    slots: Vec<Slot>,
    pub(crate) values: Vec<f32>,
    pub(crate) gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    pub(crate) updates: u64,
}

#[derive(Clone, Debug)]
struct Slot {
    name: String,
    range: Range<usize>,
    decays: bool,
}

impl Parameters {
    /// Adds a tensor and returns its place. Biases and norm weights do not decay.
    pub(crate) fn add(&mut self, name: String, values: &[f32], decays: bool) -> Range<usize> {
        let range = self.values.len()..self.values.len() + values.len();
        self.values.extend_from_slice(values);
        let length = self.values.len();
        for buffer in [&mut self.gradients, &mut self.first, &mut self.second] {
            buffer.resize(length, 0.0);
        }
        self.slots.push(Slot {
            name,
            range: range.clone(),
            decays,
        });
        range
    }

    /// Number of trained numbers.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Names of the tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.name.as_str())
    }

    /// The numbers of a tensor, row by row.
    pub fn value(&self, name: &str) -> Option<&[f32]> {
        Some(&self.values[self.place(name)?])
    }

    /// The gradient of a tensor, added up since the last update.
    pub fn gradient(&self, name: &str) -> Option<&[f32]> {
        Some(&self.gradients[self.place(name)?])
    }

    /// Replaces the numbers of a tensor; its moments stay.
    ///
    /// # Errors
    /// [`ModelError::StateMismatch`] if there is no such tensor or it has another size.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let place = self
            .place(name)
            .filter(|place| place.len() == values.len())
            .ok_or(ModelError::StateMismatch {
                reason: "it has other parameters",
            })?;
        self.values[place].copy_from_slice(values);
        Ok(())
    }

    fn place(&self, name: &str) -> Option<Range<usize>> {
        let slot = self.slots.iter().find(|slot| slot.name == name)?;
        Some(slot.range.clone())
    }

    /// Names and places, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.slots
            .iter()
            .map(|slot| (slot.name.as_str(), slot.range.clone()))
    }

    pub(crate) fn gradient_norm(&self) -> f64 {
        sum_of_squares(&self.gradients).sqrt()
    }

    pub(crate) fn zero_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    /// One AdamW update from the gradients, which are cleared; `options.step` is filled in here.
    pub(crate) fn update(&mut self, options: AdamW) {
        self.updates += 1;
        let mut start = 0;
        while start < self.slots.len() {
            // Neighbours that decay alike are updated together.
            let decays = self.slots[start].decays;
            let count = self.slots[start..]
                .iter()
                .take_while(|slot| slot.decays == decays)
                .count();
            let range = self.slots[start].range.start..self.slots[start + count - 1].range.end;
            let weight_decay = if decays { options.weight_decay } else { 0.0 };
            adamw::update(
                &mut self.values[range.clone()],
                &self.gradients[range.clone()],
                &mut self.first[range.clone()],
                &mut self.second[range],
                &AdamW {
                    step: self.updates,
                    weight_decay,
                    ..options
                },
            );
            start += count;
        }
        self.zero_gradients();
    }

    /// Values, moments and number of updates as bytes: magic, layout, counts, then little-endian f32.
    pub(crate) fn export(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + 12 * self.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.layout().to_le_bytes());
        bytes.extend_from_slice(&(self.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.updates.to_le_bytes());
        for buffer in [&self.values, &self.first, &self.second] {
            for value in buffer {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }

    /// Takes over exported state; on an error nothing changes.
    pub(crate) fn import(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        let mismatch = |reason| Err(ModelError::StateMismatch { reason });
        let (header, rest) = bytes.as_chunks::<8>();
        let [magic, layout, count, updates, body @ ..] = header else {
            return mismatch("it is too short");
        };
        if magic != MAGIC {
            return mismatch("it has another format");
        }
        if u64::from_le_bytes(*count) != self.len() as u64
            || u64::from_le_bytes(*layout) != self.layout()
        {
            return mismatch("it has other parameters");
        }
        let length = body.len() * 8 + rest.len();
        if length != 12 * self.len() {
            return mismatch("its length is wrong");
        }
        self.updates = u64::from_le_bytes(*updates);
        let mut numbers = bytes[32..]
            .as_chunks::<4>()
            .0
            .iter()
            .map(|value| f32::from_le_bytes(*value));
        for buffer in [&mut self.values, &mut self.first, &mut self.second] {
            for (value, number) in buffer.iter_mut().zip(&mut numbers) {
                *value = number;
            }
        }
        self.zero_gradients();
        Ok(())
    }

    /// A number that differs when names or sizes differ (FNV-1a).
    fn layout(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for slot in &self.slots {
            add(slot.name.as_bytes());
            add(&(slot.range.len() as u64).to_le_bytes());
        }
        hash
    }
}
