//! Adapters in the memory of a device: copied there when they are used first, and kept as long as they live on the host
//! and there is room.

use crate::base_model::BaseModel;
use crate::inference::Group;
use crate::lora::{LoraAdapter, Projection};
use half::bf16;
use std::ops::Range;
use std::sync::{Arc, Weak};
use zerog_kernels::cuda::{Buffer, Cuda, Delta, Table};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::Weight;

/// The adapters that are on the device.
#[derive(Debug, Default)]
pub(super) struct Residents {
    list: Vec<Resident>,
    /// Number of the step.
    clock: u64,
}

#[derive(Debug)]
struct Resident {
    adapter: Weak<LoraAdapter>,
    copy: AdapterOnDevice,
    last_used: u64,
}

/// The matrices of an adapter, packed by type.
#[derive(Debug)]
struct AdapterOnDevice {
    wide: Buffer<f32>,
    narrow: Buffer<bf16>,
    /// The linear layers of the first layer, then those of the second, and so on.
    pairs: Vec<Option<Pair>>,
}

#[derive(Debug)]
struct Pair {
    a: Place,
    b: Place,
    factors: Option<Range<usize>>,
    rank: usize,
    scale: f32,
}

/// Which of the packed numbers.
#[derive(Debug)]
enum Place {
    Wide(Range<usize>),
    Narrow(Range<usize>),
}

impl Residents {
    /// Copies the adapters of a step that are not on the device. Adapters that are gone from the host give their memory
    /// back; where memory is short, so do those that were used longest ago and are not of this step.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Call`].
    pub(super) fn load(
        &mut self,
        cuda: &Cuda,
        base: &BaseModel,
        groups: &[Group],
    ) -> Result<(), DeviceError> {
        self.list
            .retain(|resident| resident.adapter.strong_count() > 0);
        self.clock += 1;
        for resident in &mut self.list {
            let is_used = |group: &Group| resident.is(&group.adapter);
            if groups.iter().any(is_used) {
                resident.last_used = self.clock;
            }
        }
        for Group { adapter, .. } in groups {
            if self.list.iter().any(|resident| resident.is(adapter)) {
                continue;
            }
            let copy = loop {
                match AdapterOnDevice::upload(cuda, base, adapter) {
                    Err(DeviceError::OutOfMemory { .. }) if self.give_way() => {}
                    outcome => break outcome?,
                }
            };
            self.list.push(Resident {
                adapter: Arc::downgrade(adapter),
                copy,
                last_used: self.clock,
            });
        }
        Ok(())
    }

    /// Frees the adapter that was used longest ago; false where all are of this step.
    fn give_way(&mut self) -> bool {
        let idle = self.list.iter().enumerate();
        let oldest = idle
            .filter(|(_, resident)| resident.last_used < self.clock)
            .min_by_key(|(_, resident)| resident.last_used);
        let Some((index, _)) = oldest else {
            return false;
        };
        self.list.swap_remove(index);
        true
    }

    /// For each linear layer of the model, the deltas of the adapters of `groups`, which were loaded.
    pub(super) fn deltas(&self, groups: &[Group], layers: usize) -> Vec<Vec<Option<Delta<'_>>>> {
        let copies: Vec<&AdapterOnDevice> = groups
            .iter()
            .map(|group| {
                let mut residents = self.list.iter();
                let found = residents.find(|resident| resident.is(&group.adapter));
                &found.expect("the step's adapters were loaded").copy
            })
            .collect();
        (0..layers * Projection::ALL.len())
            .map(|place| copies.iter().map(|copy| copy.delta(place)).collect())
            .collect()
    }
}

impl Resident {
    fn is(&self, adapter: &Arc<LoraAdapter>) -> bool {
        std::ptr::eq(self.adapter.as_ptr(), Arc::as_ptr(adapter))
    }
}

impl AdapterOnDevice {
    fn upload(cuda: &Cuda, base: &BaseModel, adapter: &LoraAdapter) -> Result<Self, DeviceError> {
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        let mut pairs = Vec::with_capacity(base.layers.len() * Projection::ALL.len());
        for (index, layer) in base.layers.iter().enumerate() {
            for (projection, tensor) in Projection::ALL.into_iter().zip(&layer.linears) {
                let pair = adapter.pair(index, projection).map(|pair| {
                    let [a, b] = pair
                        .matrices()
                        .map(|values| pack(values, &mut wide, &mut narrow));
                    let factors = pair.factors(tensor.weight());
                    Pair {
                        a,
                        b,
                        factors: factors.map(|factors| append(&mut wide, factors)),
                        rank: pair.rank,
                        scale: pair.scale,
                    }
                });
                pairs.push(pair);
            }
        }
        Ok(Self {
            wide: cuda.upload(&wide)?,
            narrow: cuda.upload(&narrow)?,
            pairs,
        })
    }

    fn delta(&self, place: usize) -> Option<Delta<'_>> {
        let pair = self.pairs[place].as_ref()?;
        let table = |place: &Place| match place {
            Place::Wide(range) => Table::F32(self.wide.part(range.clone())),
            Place::Narrow(range) => Table::Bf16(self.narrow.part(range.clone())),
        };
        Some(Delta {
            a: table(&pair.a),
            b: table(&pair.b),
            factors: pair.factors.clone().map(|range| self.wide.part(range)),
            rank: pair.rank,
            scale: pair.scale,
        })
    }
}

fn pack(values: Weight<'_>, wide: &mut Vec<f32>, narrow: &mut Vec<bf16>) -> Place {
    match values {
        Weight::F32(values) => Place::Wide(append(wide, values)),
        Weight::Bf16(values) => Place::Narrow(append(narrow, values)),
        Weight::Int8(_) => unreachable!("matrices of adapters are not rounded to 8 bits"),
    }
}

fn append<T: Copy>(all: &mut Vec<T>, values: &[T]) -> Range<usize> {
    let start = all.len();
    all.extend_from_slice(values);
    start..all.len()
}
