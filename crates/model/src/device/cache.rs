//! Blocks of keys and values that a device has set aside.

use std::sync::{Mutex, MutexGuard, PoisonError};
use zerog_kernels::cuda::CacheBlocks;
use zerog_kernels::device::DeviceError;

/// The memory, and which blocks of it nobody uses.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    memory: Mutex<CacheBlocks>,
    free: Mutex<Vec<u32>>,
    blocks: usize,
}

impl DeviceCache {
    pub(super) fn new(memory: CacheBlocks) -> Self {
        let blocks = memory.blocks();
        Self {
            memory: Mutex::new(memory),
            // The first blocks are used first.
            free: Mutex::new((0..blocks as u32).rev().collect()),
            blocks,
        }
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// A block that nobody uses, if there is one.
    pub(crate) fn take(&self) -> Option<u32> {
        self.free().pop()
    }

    pub(crate) fn give_back(&self, block: u32) {
        self.free().push(block);
    }

    /// Copies block `source` over block `copy`.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub(crate) fn copy(&self, source: u32, copy: u32) -> Result<(), DeviceError> {
        self.memory().copy_block(source, copy)
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, CacheBlocks> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
