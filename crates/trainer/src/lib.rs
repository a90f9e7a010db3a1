//! One fine-tuning run, as a child process over a job directory.
//!
//! The crate turns a sealed dataset and a base model into a sealed adapter archive. It knows
//! no network and no chain; the provider starts it, feeds it the job key, and reads progress
//! records from its standard output. [`child_main`] is the whole process.
//!
//! The order of examples, the initial adapter, dropout and noise depend on the job's seed
//! alone, and a checkpoint holds the exact state of the optimiser, so a run that was
//! interrupted ends with the same adapter bytes as one that was not.

mod archive;
mod batches;
mod canary;
mod checkpoint;
mod child;
mod classification;
mod error;
mod evaluate;
mod greedy;
mod job;
mod language;
mod memory;
mod method;
mod preference;
mod progress;
mod run;
mod schedule;
mod sealing;
mod step;
mod validation;

pub use batches::{Order, PACK_TOKENS, pack};
pub use canary::{CANARY_MEMBER, CANARY_VERSION, Canary, CanaryProbe};
pub use child::{child_main, child_status};
pub use error::{TrainError, exit};
pub use greedy::greedy_answer;
pub use job::{JOB_VERSION, Job, JobDirectory, read_key};
pub use memory::pack_tokens;
pub use progress::{Metrics, Progress};
pub use run::run;
pub use schedule::Schedule;
pub use sealing::{open_file, seal_file, with_opened};
pub use zerog_model::{Device, DeviceError, UnknownDevice};
