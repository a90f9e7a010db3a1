//! Dense math with forward and backward, on the CPU and, with the feature `cuda`, on NVIDIA GPUs.
//!
//! About fifteen fused operations on plain row-major slices. Shapes are written with these letters:
//! `T` tokens (rows), `H` hidden size, `N` output features, `K` input features, `V` vocabulary,
//! `D` head size, `R` adapter rank. Nothing here knows about models, files of weights or adapters.
//!
//! Rules that every operation keeps:
//! - results do not depend on the number of threads, bit for bit: work is split into pieces of fixed
//!   size and partial sums are added in a fixed order;
//! - the instruction set is chosen at run time and there is always a portable path;
//! - wrong slice lengths are bugs of the caller and panic; input from outside is checked above.

mod dispatch;
mod shared;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cached_attention;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod map;
pub mod matmul;
pub mod noise;
pub mod norm;
pub mod reduce;
pub mod rope;
pub mod softmax;
pub mod vocabulary;
