//! Text to tokens and back: tokenizer files, chat templates, dataset records,
//! training examples with their loss mask, and the token count that prices a task.
//!
//! One renderer serves all of them. The bytes that are counted are the bytes that are
//! trained on, and the same template turns a chat request into a prompt when the
//! adapter is served. The crate links no tensor code, so that clients can use it.
//!
//! ```no_run
//! use std::path::Path;
//! use zerog_tokenization::{Dataset, RenderOptions, Tokenizer, count_tokens};
//!
//! let tokenizer = Tokenizer::from_dir(Path::new("fixtures/tiny-qwen"))?;
//! let dataset = Dataset::open(Path::new("fixtures/datasets/support.messages.jsonl"))?;
//! let count = count_tokens(&tokenizer, dataset, RenderOptions::new(512))?;
//! println!("{} tokens in {} examples", count.tokens, count.examples);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chat_template;
mod count;
mod dataset;
mod examples;
mod inspect;
mod samples;
mod token_table;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatTemplate, TemplateError};
pub use count::{TokenCount, billed_tokens, count_tokens, trained_examples};
pub use dataset::{
    Dataset, DatasetError, DatasetSummary, Format, MAX_DATASET_BYTES, MAX_MESSAGES_PER_RECORD,
    MAX_RECORD_BYTES, MAX_RECORDS, Record, RecordContent, SourcePosition, check_dataset,
};
pub use examples::{Example, ExampleError, render_example};
pub use inspect::{Finding, Inspection, MAX_FINDINGS, Severity, inspect};
pub use samples::{
    LabelledText, MAXIMUM_LABELS, Objective, PreferencePair, RenderOptions, RenderReport,
    RenderedDataset, Sample, SampleCost, ValidationSplit, render_dataset,
};
pub use token_table::TokenTable;
pub use tokenizer::{IncrementalDecoder, Tokenizer, TokenizerError};
