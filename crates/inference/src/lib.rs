//! Serving a base model and many adapters on it: an engine thread and OpenAI-compatible routes over it.
//!
//! - [`engine`] owns the weights and the key-value caches on a thread of its own; [`EngineHandle`] is how everybody
//!   else speaks with it. A request is taken at once or refused at once.
//! - [`service`] turns a checked OpenAI request into the exact bytes of its answer, whole or streamed, with usage known
//!   at the end; a provider that signs and bills answers builds on it.
//! - [`mod@router`] serves the routes without a chain.
//! - [`canary`] is why an adapter that does nothing never counts as loaded.
//!
//! Accounts, prices and the life of an adapter outside memory are the provider's business.

pub mod canary;
pub mod engine;
pub mod error;
pub mod openai_api;
pub mod router;
pub mod service;

mod adapters;
mod executor;
mod scheduler;
mod sequence;
mod stream;

pub use adapters::{AdapterInfo, NoRoom};
pub use canary::{Canary, CanaryError, CanaryProbe, CanaryReport};
pub use engine::{
    CanaryCheck, Completion, EngineConfig, EngineHandle, EngineStats, GenerateRequest, Generation,
    GenerationEvent, LoadError, LoadReport,
};
pub use error::{ApiError, EngineError};
pub use openai_api::{CheckedRequest, FinishReason, Usage};
pub use router::{Served, router};
pub use service::{AnswerId, Reply, ReplyEvent, ReplyStream, Started, Target, UsageMeter};
pub use stream::DONE;
pub use zerog_model::SamplingParams;
