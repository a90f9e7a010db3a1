//! A buffer that several threads write at places that never overlap.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A mutable slice handed to several threads, each of which writes its own part of it.
///
/// Row-major matrices are often split by columns, which safe slices cannot express.
#[derive(Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through `slice`, whose callers promise that parts do not overlap.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            length: buffer.len(),
            borrow: PhantomData,
        }
    }

    /// The part `start..start + length`.
    ///
    /// # Safety
    /// While the returned slice lives, no other part that shares an element with it may be taken.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &mut [T] {
        assert!(
            start
                .checked_add(length)
                .is_some_and(|end| end <= self.length)
        );
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }

    /// A pointer to element `start`, for kernels that write with a row stride.
    #[inline]
    pub(crate) fn pointer(&self, start: usize) -> *mut T {
        assert!(start <= self.length);
        self.start.wrapping_add(start)
    }
}
