//! The lineage record inside every adapter archive.

use serde::{Deserialize, Serialize};

use crate::training_params::TrainingParams;

/// Where an adapter comes from; the archive member `output_model/manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterManifest {
    /// Format version: 1.
    pub version: u32,
    /// Task id text.
    pub task_id: String,
    /// The base model's name as the user asked for it.
    pub base_model: String,
    /// SHA-256 of the weights that were trained on, hex.
    pub base_model_sha256: String,
    /// True when other weights than the named ones were used (chain 31337 only).
    pub stand_in: bool,
    /// SHA-256 of the tokenizer file, hex.
    pub tokenizer_sha256: String,
    /// Dataset hash as in the task.
    pub dataset_hash: String,
    /// Training examples.
    pub examples: u64,
    /// Training tokens of one epoch.
    pub tokens: u64,
    /// Optimiser steps done.
    pub steps: u64,
    /// Loss per supervised token at the first step.
    pub loss_first: f64,
    /// Loss per supervised token at the last step.
    pub loss_last: f64,
    /// Step whose state was delivered, where it is not the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// Loss of the delivered state on the records set aside for validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Names of the classes in the order of their logits; empty for language models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// All parameters, defaults included.
    pub params: TrainingParams,
}

/// Name of the manifest inside the archive.
pub const MANIFEST_MEMBER: &str = "output_model/manifest.json";
/// Folder of all members inside the archive.
pub const ARCHIVE_FOLDER: &str = "output_model";
