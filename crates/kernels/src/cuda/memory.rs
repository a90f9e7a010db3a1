//! Device memory: buffers that own it, and borrowed parts of them.

use super::session::Cuda;
use crate::device::DeviceError;
use half::bf16;
use std::ffi::c_int;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// A number that device memory holds.
pub trait Element: bytemuck::Pod {
    /// cuBLAS's number of the type, if products can be made of it.
    const PRODUCT_TYPE: Option<c_int> = None;
}

impl Element for f32 {
    const PRODUCT_TYPE: Option<c_int> = Some(0);
}

impl Element for bf16 {
    const PRODUCT_TYPE: Option<c_int> = Some(14);
}

impl Element for f64 {}
impl Element for u32 {}
impl Element for u64 {}

/// Memory of a device; given back when it is dropped.
pub struct Buffer<T> {
    cuda: Cuda,
    address: u64,
    length: usize,
    capacity: usize,
    kind: PhantomData<T>,
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} elements)", self.length)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.cuda.free(self.address);
    }
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(cuda: Cuda, address: u64, length: usize) -> Self {
        Self {
            cuda,
            address,
            length,
            capacity: length,
            kind: PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Sets the length; the content is undefined afterwards. Memory is taken only when the buffer was never as long.
    ///
    /// # Errors
    /// As [`Cuda::allocate`].
    pub fn resize(&mut self, length: usize) -> Result<&mut Self, DeviceError> {
        if length > self.capacity {
            // The old memory is given back first, where it can be used again.
            let cuda = self.cuda.clone();
            *self = cuda.allocate(0)?;
            *self = cuda.allocate(length)?;
        }
        self.length = length;
        Ok(self)
    }

    /// The elements `range`.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn part(&self, range: Range<usize>) -> Part<'_, T> {
        Part::from(self).part(range)
    }

    /// The elements `range`, to be written.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn part_mut(&mut self, range: Range<usize>) -> PartMut<'_, T> {
        let part = self.part(range);
        let (address, length) = (part.address, part.length);
        PartMut {
            address,
            length,
            borrow: PhantomData,
        }
    }

    /// A copy on the host.
    ///
    /// # Errors
    /// As [`Cuda::read`].
    pub fn to_vec(&self) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); self.length];
        self.cuda.read(self, &mut values)?;
        Ok(values)
    }
}

/// Elements of a buffer, to be read.
#[derive(Debug)]
pub struct Part<'a, T> {
    address: u64,
    length: usize,
    borrow: PhantomData<&'a T>,
}

impl<T> Clone for Part<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Part<'_, T> {}

impl<T: Element> Part<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The elements `range` of this part.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.length);
        Self {
            address: self.address + (range.start * size_of::<T>()) as u64,
            length: range.len(),
            borrow: PhantomData,
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl<'a, T: Element> From<&'a Buffer<T>> for Part<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        Self {
            address: buffer.address,
            length: buffer.length,
            borrow: PhantomData,
        }
    }
}

/// Elements of a buffer, to be written.
#[derive(Debug)]
pub struct PartMut<'a, T> {
    address: u64,
    length: usize,
    borrow: PhantomData<&'a mut T>,
}

impl<T: Element> PartMut<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl<'a, T: Element> From<&'a mut Buffer<T>> for PartMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        Self {
            address: buffer.address,
            length: buffer.length,
            borrow: PhantomData,
        }
    }
}
