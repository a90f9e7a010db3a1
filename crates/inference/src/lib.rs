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

pub mod adapter_package;
pub mod canary;
pub mod engine;
pub mod error;
pub mod generation;
pub mod openai_api;
pub mod router;
pub mod service;

mod adapters;
mod answer_text;
mod executor;
mod fair_queue;
mod grammar;
mod loading;
mod prefix_cache;
mod scheduler;
mod sequence;
mod tool_calls;

pub use adapter_package::{AdapterPackage, PackageError, PackageSource};
pub use adapters::{AdapterInfo, NoRoom};
pub use canary::{Canary, CanaryError, CanaryProbe, CanaryReport};
pub use engine::{AdapterPin, EngineConfig, EngineHandle, EngineStats};
pub use error::{ApiError, EngineError, StartError};
pub use generation::{Completion, GenerateRequest, Generation, GenerationEvent};
pub use grammar::Grammar;
pub use loading::{CanaryCheck, LoadError, LoadReport, Trust};
pub use openai_api::{CheckedRequest, FinishReason, Usage};
pub use router::{Served, router};
pub use service::{
    AnswerId, DONE, Prepared, Reply, ReplyEvent, ReplyStream, Started, Target, UsageMeter,
};
pub use zerog_model::SamplingParams;
