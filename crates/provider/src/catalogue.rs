//! The base models of this provider: found by name or hash, with tokenizer, limits and the packages that clients fetch.

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use alloy_primitives::B256;
use sha2::{Digest, Sha256};
use zerog_model::ModelFamily;
use zerog_protocol::fine_tuning_api::ModelView;
use zerog_protocol::models::ModelKind;
use zerog_tokenization::{Tokenizer, TokenizerError};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::config::ModelConfig;

/// Files of the tokenizer package, where the base model has them.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
/// Longest sequence of a model that does not say.
const DEFAULT_MAX_TOKENS: u32 = 2048;

/// Why a base model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// A file of the folder cannot be read.
    #[error("base model {model}: cannot read {file}: {source}")]
    Read {
        /// Name of the model.
        model: String,
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` cannot be understood.
    #[error("base model {model}: config.json is not valid: {problem}")]
    Config {
        /// Name of the model.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer cannot be loaded.
    #[error("base model {model}: {source}")]
    Tokenizer {
        /// Name of the model.
        model: String,
        /// Why.
        source: TokenizerError,
    },
    /// A package could not be made.
    #[error("base model {model}: the package could not be made: {problem}")]
    Package {
        /// Name of the model.
        model: String,
        /// Why.
        problem: String,
    },
}

/// One base model.
#[derive(Debug)]
pub(crate) struct BaseModelEntry {
    /// As configured.
    pub config: ModelConfig,
    /// Longest sequence in tokens.
    pub max_tokens: u32,
    /// What it learns from.
    pub kind: ModelKind,
    tokenizer: OnceLock<Arc<Tokenizer>>,
    tokenizer_package: OnceLock<Package>,
    weights_sha256: OnceLock<String>,
}

/// A zip file with its hash.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// The file.
    pub bytes: axum::body::Bytes,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Every base model of this provider.
#[derive(Debug, Clone)]
pub(crate) struct Catalogue {
    models: Arc<[BaseModelEntry]>,
}

impl Catalogue {
    /// Reads what is needed of every model's folder: its limits.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub(crate) fn open(models: &[ModelConfig]) -> Result<Self, CatalogueError> {
        let models: Vec<_> = models
            .iter()
            .map(|config| {
                Ok(BaseModelEntry {
                    max_tokens: max_tokens(config)?,
                    kind: kind(config)?,
                    config: config.clone(),
                    tokenizer: OnceLock::new(),
                    tokenizer_package: OnceLock::new(),
                    weights_sha256: OnceLock::new(),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            models: models.into(),
        })
    }

    /// Every model.
    #[must_use]
    pub(crate) fn models(&self) -> &[BaseModelEntry] {
        &self.models
    }

    /// A model by name, by name with a hub prefix, or by hash in any spelling.
    #[must_use]
    pub(crate) fn find(&self, name_or_hash: &str) -> Option<&BaseModelEntry> {
        let hash = name_or_hash
            .parse::<B256>()
            .ok()
            .filter(|hash| !hash.is_zero());
        let short = name_or_hash.rsplit('/').next().unwrap_or(name_or_hash);
        self.models.iter().find(|entry| match hash {
            Some(hash) => entry.config.hash == hash,
            None => entry.config.name == name_or_hash || entry.config.name == short,
        })
    }

    /// Names of the models that are served by the same weights as the named one, that one first.
    #[must_use]
    pub(crate) fn names_of_same_weights(&self, name: &str) -> Vec<String> {
        let Some(entry) = self.find(name) else {
            return vec![name.to_owned()];
        };
        let others = self
            .models
            .iter()
            .filter(|other| {
                other.config.folder == entry.config.folder && other.config.name != entry.config.name
            })
            .map(|other| other.config.name.clone());
        std::iter::once(entry.config.name.clone())
            .chain(others)
            .collect()
    }

    /// Names to register on chain: customised models, sorted.
    #[must_use]
    pub(crate) fn customised_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .models
            .iter()
            .filter(|entry| !entry.config.is_predefined)
            .map(|entry| entry.config.name.clone())
            .collect();
        names.sort();
        names
    }

    /// Notes the hash of the weights in a folder, for lists.
    pub(crate) fn set_weights_sha256(&self, folder: &Path, sha256: &str) {
        for entry in self
            .models
            .iter()
            .filter(|entry| entry.config.folder == folder)
        {
            let _ = entry.weights_sha256.set(sha256.to_owned());
        }
    }
}

impl BaseModelEntry {
    /// The tokenizer, loaded once. Blocks.
    ///
    /// # Errors
    /// [`CatalogueError::Tokenizer`].
    pub(crate) fn tokenizer(&self) -> Result<Arc<Tokenizer>, CatalogueError> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = Tokenizer::from_dir(&self.config.folder).map_err(|source| {
            CatalogueError::Tokenizer {
                model: self.config.name.clone(),
                source,
            }
        })?;
        Ok(Arc::clone(
            self.tokenizer.get_or_init(|| Arc::new(tokenizer)),
        ))
    }

    /// The tokenizer files as a zip, the same bytes each time. Blocks.
    ///
    /// # Errors
    /// [`CatalogueError::Read`], [`CatalogueError::Package`].
    pub(crate) fn tokenizer_package(&self) -> Result<Package, CatalogueError> {
        if let Some(package) = self.tokenizer_package.get() {
            return Ok(package.clone());
        }
        let mut members = Vec::new();
        for file in TOKENIZER_FILES {
            match std::fs::read(self.config.folder.join(file)) {
                Ok(bytes) => members.push((file.to_owned(), bytes)),
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && file != "tokenizer.json" => {
                }
                Err(source) => return Err(self.unreadable(file, source)),
            }
        }
        let package = self.package(&members)?;
        Ok(self.tokenizer_package.get_or_init(|| package).clone())
    }

    /// What `model-usage` shows: a description, a parameter file and sample records. Blocks.
    ///
    /// # Errors
    /// As [`BaseModelEntry::tokenizer_package`].
    pub(crate) fn usage_package(&self) -> Result<Package, CatalogueError> {
        let readme = match &self.config.usage_file {
            Some(path) => std::fs::read(path)
                .map_err(|source| self.unreadable(&path.display().to_string(), source))?,
            None => self.usage_text().into_bytes(),
        };
        let parameters =
            serde_json::to_vec_pretty(&zerog_protocol::training_params::TrainingParams::default())
                .map_err(|error| self.unpackable(&error))?;
        let samples: &[(&str, &str)] = match self.kind {
            ModelKind::CausalLanguage => &[
                ("messages", SAMPLE_MESSAGES),
                ("instruction", SAMPLE_INSTRUCTION),
                ("completion", SAMPLE_COMPLETION),
                ("preference", SAMPLE_PREFERENCE),
            ],
            ModelKind::SequenceClassification => &[("classification", SAMPLE_CLASSIFICATION)],
        };
        let mut members = vec![
            ("README.md".to_owned(), readme),
            ("training-config.json".to_owned(), parameters),
        ];
        members.extend(
            samples
                .iter()
                .map(|(name, text)| (format!("datasets/{name}.jsonl"), text.as_bytes().to_vec())),
        );
        self.package(&members)
    }

    fn usage_text(&self) -> String {
        let config = &self.config;
        let stand_in = if config.stand_in {
            "\n> On this development network a small substitute stands in for the real weights.\n"
        } else {
            ""
        };
        format!(
            "# {name}\n{stand_in}\n{description}\n\n\
             - hash: `{hash}`\n- longest sequence: {max} tokens\n- price coefficient: {coefficient}\n\
             - storage fee: {fee} neuron\n\n\
             ## Dataset\n\nOne JSON object per line, one format per file; see `datasets/`:\n\n\
             {formats}\n\n\
             ## Training parameters\n\n`training-config.json` holds every parameter with its default; leave out what you do \
             not change.\n\n\
             ## Run\n\n```console\n$ 0g-compute-cli fine-tuning create-task --provider 0x… --model {name} \\\n    \
             --dataset-path data.jsonl --config-path training-config.json\n```\n",
            name = config.name,
            description = config.description,
            hash = config.hash,
            max = self.max_tokens,
            coefficient = config.price_coefficient,
            fee = config.storage_fee,
            formats = match self.kind {
                ModelKind::CausalLanguage => {
                    "- `messages`: a conversation; the assistant's turns are learned\n\
                     - `instruction`, `input`, `output`\n- `prompt`, `completion`\n\
                     - `prompt`, `chosen`, `rejected` with `\"training_method\": \"dpo\"`"
                }
                ModelKind::SequenceClassification => "- `text`, `label`",
            },
        )
    }

    /// The model as routes 10 and 11 show it. Blocks for the tokenizer's hash.
    #[must_use]
    pub(crate) fn view(&self) -> ModelView {
        let config = &self.config;
        let predefined = zerog_protocol::models::find(&config.hash.to_string());
        let description = if config.stand_in {
            format!(
                "{} (development network: a small stand-in model runs in place of these weights)",
                config.description
            )
        } else {
            config.description.clone()
        };
        ModelView {
            name: config.name.clone(),
            hash: config.hash.to_string(),
            image: String::new(),
            data_type: "text".into(),
            training_script: String::new(),
            description,
            tokenizer: predefined
                .map_or_else(|| config.name.clone(), |model| model.tokenizer.to_owned()),
            tokenizer_sha256: self.tokenizer_package().ok().map(|package| package.sha256),
            price_coefficient: Some(config.price_coefficient),
            storage_fee: Some(config.storage_fee.to_string()),
            max_tokens: Some(self.max_tokens),
            task_type: Some(self.kind),
            stand_in: config.stand_in.then_some(true),
            base_model_sha256: self.weights_sha256.get().cloned(),
        }
    }

    fn package(&self, members: &[(String, Vec<u8>)]) -> Result<Package, CatalogueError> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        // A fixed time keeps the bytes, and so the hash, the same at every start.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644);
        for (name, bytes) in members {
            zip.start_file(name.as_str(), options)
                .map_err(|error| self.unpackable(&error))?;
            zip.write_all(bytes)
                .map_err(|error| self.unpackable(&error))?;
        }
        let bytes = zip
            .finish()
            .map_err(|error| self.unpackable(&error))?
            .into_inner();
        Ok(Package {
            sha256: hex::encode(Sha256::digest(&bytes)),
            bytes: bytes.into(),
        })
    }

    fn unreadable(&self, file: &str, source: std::io::Error) -> CatalogueError {
        CatalogueError::Read {
            model: self.config.name.clone(),
            file: file.to_owned(),
            source,
        }
    }

    fn unpackable(&self, problem: &dyn std::fmt::Display) -> CatalogueError {
        CatalogueError::Package {
            model: self.config.name.clone(),
            problem: problem.to_string(),
        }
    }
}

/// Language model or classifier, by the folder's own word.
fn kind(config: &ModelConfig) -> Result<ModelKind, CatalogueError> {
    let family =
        ModelFamily::of_folder(&config.folder).map_err(|error| CatalogueError::Config {
            model: config.name.clone(),
            problem: error.to_string(),
        })?;
    Ok(match family.is_decoder() {
        true => ModelKind::CausalLanguage,
        false => ModelKind::SequenceClassification,
    })
}

fn max_tokens(config: &ModelConfig) -> Result<u32, CatalogueError> {
    let path = config.folder.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| CatalogueError::Read {
        model: config.name.clone(),
        file: path.display().to_string(),
        source,
    })?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| CatalogueError::Config {
            model: config.name.clone(),
            problem: error.to_string(),
        })?;
    let limit = value
        .get("max_position_embeddings")
        .and_then(serde_json::Value::as_u64);
    Ok(limit
        .and_then(|limit| u32::try_from(limit).ok())
        .unwrap_or(DEFAULT_MAX_TOKENS))
}

const SAMPLE_MESSAGES: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Where does the lamp stand?\"}, \
{\"role\": \"assistant\", \"content\": \"On the window sill.\"}]}\n";
const SAMPLE_INSTRUCTION: &str = "{\"instruction\": \"Translate to French\", \"input\": \"Good evening\", \"output\": \"Bonsoir\"}\n";
const SAMPLE_PREFERENCE: &str = "{\"prompt\": \"Where does the lamp stand?\", \"chosen\": \"On the window sill.\", \"rejected\": \"Somewhere.\"}\n";
const SAMPLE_CLASSIFICATION: &str = "{\"text\": \"The room was warm and quiet.\", \"label\": \"good\"}\n\
{\"text\": \"Nobody answered the bell.\", \"label\": \"bad\"}\n";
const SAMPLE_COMPLETION: &str =
    "{\"prompt\": \"The capital of the island is\", \"completion\": \" Harbourtown.\"}\n";
