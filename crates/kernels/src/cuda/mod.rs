//! The operations on NVIDIA GPUs: own kernels for everything that is fused, cuBLAS for products of matrices.
//!
//! Nothing of NVIDIA's is needed to build: the driver, the compiler NVRTC and cuBLAS are opened at run time, and the
//! kernels' text (`source/*.cu`) is compiled for the device when it is opened. Results are the same bits for the same
//! input on the same device: no kernel uses atomic operations, and sums have a fixed order.

mod compile;
mod libraries;
mod memory;
mod operations;
mod serving;
mod session;

pub use compile::check_source;
pub use libraries::Libraries;
pub use memory::{Buffer, Element, Part, PartMut};
pub use operations::{Attended, DeviceRope, Table, Tiles};
pub use serving::{CacheBlocks, Delta, DeltaRoom, Deltas, PagedRow, PagedRows};
pub use session::{Cuda, Operand};
