//! How many tokens a dataset has, and what a task will cost, before anything is sent.
//!
//! Providers of ours price exactly these numbers: same parser, same template, same count. For others the number follows
//! the published counting rule and is labelled an estimate.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, U256};
use serde::Serialize;
use sha2::{Digest, Sha256};
use zerog_protocol::models::ModelKind;
use zerog_protocol::training_params::{Schema, TrainingParams};
use zerog_tokenization::{
    Dataset, ExampleError, RecordContent, RenderOptions, Tokenizer, billed_tokens, count_tokens,
};

use super::FineTuning;
use super::services::{ModelFacts, path_segment};
use crate::error::{Error, Result};
use crate::provider_client::{MAX_FILE_BYTES, join};

/// Longest sequence assumed of a model that does not tell.
const DEFAULT_MODEL_MAX_TOKENS: u32 = 32_768;
/// Most bytes of one file in a tokenizer package.
const MAX_TOKENIZER_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Files of a tokenizer that matter; everything else in a package is ignored.
const TOKENIZER_FILES: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// The result of counting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenCalculation {
    /// Training tokens of one epoch.
    pub tokens: u64,
    /// Training examples of one epoch.
    pub examples: u64,
    /// Tokens among them that are learned; unknown for an estimate.
    pub supervised_tokens: Option<u64>,
    /// Examples that were cut at `max_seq_length`.
    pub truncated_examples: u64,
    /// Longest example that was counted whole.
    pub max_seq_length: u32,
    /// Where the tokenizer came from.
    pub tokenizer: String,
    /// Whether the provider may count differently.
    pub is_estimate: bool,
}

/// The price of a task, itemised: `billed_tokens × price × coefficient + storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeeQuote {
    /// What was counted.
    pub calculation: TokenCalculation,
    /// Tokens of all passes.
    pub billed_tokens: u64,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Neuron for one token.
    #[serde(
        rename = "price_per_token_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub price_per_token: U256,
    /// Multiplier of the base model.
    pub price_coefficient: u64,
    /// Training part in neuron.
    #[serde(
        rename = "training_fee_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub training_fee: U256,
    /// Storage part in neuron.
    #[serde(
        rename = "storage_fee_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub storage_fee: U256,
    /// Sum in neuron.
    #[serde(rename = "total_neuron", serialize_with = "crate::neuron::serialize")]
    pub total: U256,
    /// Whether the provider may charge a different sum.
    pub is_estimate: bool,
}

impl FineTuning {
    /// Counts a dataset's training tokens. `training_params` is the text of the parameter file, for its
    /// length, method and validation share; `provider` is asked for the tokenizer when it is not at hand.
    ///
    /// # Errors
    /// [`Error::Dataset`], [`Error::TrainingParameters`], [`Error::UnknownModel`], [`Error::Tokenizer`].
    pub async fn calculate_token(
        &self,
        dataset_path: &Path,
        model: &str,
        provider: Option<Address>,
        training_params: Option<&str>,
    ) -> Result<TokenCalculation> {
        super::dataset::check_dataset_file(dataset_path)?;
        let facts = self.model_facts(provider, model).await?;
        let params = parse_params(training_params, &facts)?;
        self.count(dataset_path, provider, &facts, &params).await
    }

    /// What a task will cost with this provider.
    ///
    /// # Errors
    /// As [`FineTuning::calculate_token`].
    pub async fn quote_fee(
        &self,
        provider: Address,
        model: &str,
        dataset_path: &Path,
        training_params: &str,
    ) -> Result<FeeQuote> {
        super::dataset::check_dataset_file(dataset_path)?;
        let service = self.get_service(provider).await?;
        let facts = self.model_facts(Some(provider), model).await?;
        let params = parse_params(Some(training_params), &facts)?;
        let calculation = self
            .count(dataset_path, Some(provider), &facts, &params)
            .await?;
        fee_quote(calculation, &facts, &params, service.price_per_token)
    }

    pub(super) async fn count(
        &self,
        dataset_path: &Path,
        provider: Option<Address>,
        facts: &ModelFacts,
        params: &TrainingParams,
    ) -> Result<TokenCalculation> {
        let (folder, source) = self.tokenizer_folder(provider, facts).await?;
        let exact = provider.is_none() || is_ours(facts);
        let (path, options, model) = (
            dataset_path.to_path_buf(),
            RenderOptions::of_run(params, model_kind(facts)),
            facts.name.clone(),
        );
        let counting = tokio::task::spawn_blocking(move || {
            let tokenizer = Tokenizer::from_dir(&folder).map_err(|error| Error::Tokenizer {
                model,
                reason: error.to_string(),
            })?;
            if exact {
                count_exactly(&tokenizer, &path, options)
            } else {
                estimate(&tokenizer, &path, options.max_seq_length as u32)
            }
        });
        let mut calculation = counting.await.expect("counting does not panic")?;
        calculation.tokenizer = source;
        Ok(calculation)
    }

    /// A folder with the model's tokenizer and a word on where it came from: local folder, cache, provider, hub.
    pub(super) async fn tokenizer_folder(
        &self,
        provider: Option<Address>,
        facts: &ModelFacts,
    ) -> Result<(PathBuf, String)> {
        if let Some(folder) = &self.context.options.tokenizer_dir {
            // The folder itself, or a folder of models.
            for candidate in [
                folder.clone(),
                folder.join(facts.name.rsplit('/').next().unwrap_or(&facts.name)),
            ] {
                if candidate.join("tokenizer.json").is_file() {
                    let source = format!("local folder {}", candidate.display());
                    return Ok((candidate, source));
                }
            }
        }
        let cache = self.tokenizer_cache();
        let announced = facts
            .view
            .as_ref()
            .and_then(|view| view.tokenizer_sha256.as_deref())
            .filter(|text| is_sha256(text));
        let by_name = cache.join("by-name").join(path_segment(&facts.name));
        let cached_hash = announced.map(str::to_owned).or_else(|| {
            // Without a provider to ask, the newest package of that name is used.
            let hash = std::fs::read_to_string(&by_name).ok()?;
            is_sha256(hash.trim()).then(|| hash.trim().to_owned())
        });
        if let Some(hash) = &cached_hash {
            let folder = cache.join(hash.to_ascii_lowercase());
            if folder.join("tokenizer.json").is_file() {
                return Ok((folder, "cache".into()));
            }
        }
        let mut tried = Vec::new();
        if let Some(provider) = provider {
            match self
                .provider_tokenizer(provider, facts, announced, &cache, &by_name)
                .await
            {
                Ok(folder) => return Ok((folder, "provider".into())),
                Err(error) => tried.push(format!("provider: {error}")),
            }
        }
        match self.hub_tokenizer(facts, &cache).await {
            Ok(Some(folder)) => return Ok((folder, "model hub".into())),
            Ok(None) => {}
            Err(error) => tried.push(format!("model hub: {error}")),
        }
        let reason = if tried.is_empty() {
            "no source is known".to_owned()
        } else {
            tried.join("; ")
        };
        Err(Error::Tokenizer {
            model: facts.name.clone(),
            reason,
        })
    }

    fn tokenizer_cache(&self) -> PathBuf {
        let base = self
            .context
            .options
            .cache_dir
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join("zerog-cache"));
        base.join("tokenizers")
    }

    async fn provider_tokenizer(
        &self,
        provider: Address,
        facts: &ModelFacts,
        announced: Option<&str>,
        cache: &Path,
        by_name: &Path,
    ) -> Result<PathBuf> {
        let base = self.get_provider_url(provider).await?;
        let url = join(
            &base,
            &format!("/v1/model/{}/tokenizer", path_segment(&facts.name)),
        );
        let answer = self
            .context
            .http
            .get("get tokenizer", &url, None, MAX_FILE_BYTES)
            .await?;
        let hash = hex::encode(Sha256::digest(&answer.body));
        if let Some(announced) =
            announced.filter(|announced| !announced.eq_ignore_ascii_case(&hash))
        {
            return Err(Error::ProviderAnswer {
                operation: "get tokenizer",
                reason: format!(
                    "the package has SHA-256 {hash}, the model's entry says {announced}"
                ),
            });
        }
        let folder = cache.join(&hash);
        unpack_tokenizer(answer.body, &folder)?;
        super::services::write_file(by_name, hash.as_bytes())?;
        Ok(folder)
    }

    /// The tokenizer from the model hub; `None` where no hub is configured or the model has no name there.
    async fn hub_tokenizer(&self, facts: &ModelFacts, cache: &Path) -> Result<Option<PathBuf>> {
        let named = facts.predefined.map(|model| model.tokenizer.to_owned());
        let named = named.or_else(|| facts.view.as_ref().map(|view| view.tokenizer.clone()));
        let (Some(hub), Some(name)) = (&self.context.options.hub_url, named) else {
            return Ok(None);
        };
        if !name.contains('/') || name.starts_with("0x") {
            return Ok(None);
        }
        let folder = cache.join("hub").join(path_segment(&name));
        if folder.join("tokenizer.json").is_file() {
            return Ok(Some(folder));
        }
        for file in TOKENIZER_FILES {
            let url = join(hub, &format!("{name}/resolve/main/{file}"));
            match self
                .context
                .http
                .get("get tokenizer", &url, None, MAX_FILE_BYTES)
                .await
            {
                Ok(answer) => super::services::write_file(&folder.join(file), &answer.body)?,
                Err(Error::ProviderRefused { status: 404, .. }) if file != "tokenizer.json" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(folder))
    }
}

/// Providers of ours announce the tokenizer that they count with.
pub(super) fn is_ours(facts: &ModelFacts) -> bool {
    facts
        .view
        .as_ref()
        .is_some_and(|view| view.tokenizer_sha256.is_some())
}

/// What the model learns from: the provider's word, or what is known of the name.
pub(super) fn model_kind(facts: &ModelFacts) -> ModelKind {
    let announced = facts.view.as_ref().and_then(|view| view.task_type);
    announced
        .or_else(|| facts.predefined.map(|model| model.kind))
        .unwrap_or(ModelKind::CausalLanguage)
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(crate) fn parse_params(text: Option<&str>, facts: &ModelFacts) -> Result<TrainingParams> {
    let max_tokens = facts
        .view
        .as_ref()
        .and_then(|view| view.max_tokens)
        .unwrap_or(DEFAULT_MODEL_MAX_TOKENS);
    TrainingParams::parse(text.unwrap_or("{}"), Schema::Extended, max_tokens).map_err(|error| {
        Error::TrainingParameters {
            reason: error.to_string(),
        }
    })
}

fn count_exactly(
    tokenizer: &Tokenizer,
    path: &Path,
    options: RenderOptions,
) -> Result<TokenCalculation> {
    let refused = |reason: String| Error::Dataset {
        path: path.to_path_buf(),
        reason,
    };
    let dataset = Dataset::open(path).map_err(|error| refused(error.to_string()))?;
    let count = count_tokens(tokenizer, dataset, options)
        .map_err(|error: ExampleError| refused(error.to_string()))?;
    Ok(TokenCalculation {
        tokens: count.tokens,
        examples: count.examples,
        supervised_tokens: Some(count.report.supervised_tokens),
        truncated_examples: count.report.truncated_examples as u64,
        max_seq_length: options.max_seq_length as u32,
        tokenizer: String::new(),
        is_estimate: false,
    })
}

/// The published broker's rule: the token counts of all string values of the converted records, no template.
fn estimate(tokenizer: &Tokenizer, path: &Path, max_seq_length: u32) -> Result<TokenCalculation> {
    let refused = |reason: String| Error::Dataset {
        path: path.to_path_buf(),
        reason,
    };
    let (mut tokens, mut examples) = (0u64, 0u64);
    for record in Dataset::open(path).map_err(|error| refused(error.to_string()))? {
        let record = record.map_err(|error| refused(error.to_string()))?;
        examples += 1;
        for text in counted_texts(&record.content) {
            let ids = tokenizer
                .encode(text, true)
                .map_err(|error| refused(error.to_string()))?;
            tokens += ids.len() as u64;
        }
    }
    Ok(TokenCalculation {
        tokens,
        examples,
        supervised_tokens: None,
        truncated_examples: 0,
        max_seq_length,
        tokenizer: String::new(),
        is_estimate: true,
    })
}

fn counted_texts(content: &RecordContent) -> Vec<&str> {
    match content {
        RecordContent::Messages(messages) => {
            let last = |role: &str| messages.iter().rev().find(|message| message.role == role);
            [last("user"), last("assistant")]
                .into_iter()
                .flatten()
                .map(|message| message.content.as_str())
                .collect()
        }
        RecordContent::Instruction {
            instruction,
            input,
            output,
        } => vec![instruction, input, output],
        RecordContent::PromptCompletion { prompt, completion } => vec![prompt, completion],
        RecordContent::Text(text) => vec![text],
        RecordContent::Classification { text, label } => vec![text, label],
        RecordContent::Preference {
            prompt,
            chosen,
            rejected,
        } => prompt
            .iter()
            .map(|message| message.content.as_str())
            .chain([chosen.as_str(), rejected])
            .collect(),
    }
}

pub(super) fn fee_quote(
    calculation: TokenCalculation,
    facts: &ModelFacts,
    params: &TrainingParams,
    price_per_token: U256,
) -> Result<FeeQuote> {
    let view = facts.view.as_ref();
    let price_coefficient = view
        .and_then(|view| view.price_coefficient)
        .or_else(|| facts.predefined.map(|model| model.price_coefficient))
        .unwrap_or(1);
    let storage_fee = view
        .and_then(|view| view.storage_fee.as_deref())
        .and_then(|text| text.parse().ok())
        .or_else(|| facts.predefined.map(|model| model.storage_fee()))
        .unwrap_or(U256::from(10_000_000_000_000_000u64));
    let billed = if calculation.is_estimate {
        // The published broker charges all epochs, whatever max_steps says.
        calculation
            .tokens
            .saturating_mul(u64::from(params.num_train_epochs))
    } else {
        billed_tokens(
            calculation.tokens,
            calculation.examples,
            params.total_examples(calculation.examples),
        )
    };
    let too_large = || Error::TrainingParameters {
        reason: "the fee is too large to be written down".into(),
    };
    let training_fee = U256::from(billed)
        .checked_mul(price_per_token)
        .and_then(|fee| fee.checked_mul(U256::from(price_coefficient)))
        .ok_or_else(too_large)?;
    Ok(FeeQuote {
        billed_tokens: billed,
        total_steps: params.total_steps(calculation.examples),
        price_per_token,
        price_coefficient,
        training_fee,
        storage_fee,
        total: training_fee
            .checked_add(storage_fee)
            .ok_or_else(too_large)?,
        is_estimate: calculation.is_estimate,
        calculation,
    })
}

/// Unpacks the known files of a tokenizer package, wherever in it they are, into a folder that appears whole.
fn unpack_tokenizer(package: Vec<u8>, folder: &Path) -> Result<()> {
    let malformed = |reason: String| Error::ProviderAnswer {
        operation: "get tokenizer",
        reason,
    };
    let failed = |error| Error::file("write", folder, error);
    let mut archive =
        zip::ZipArchive::new(Cursor::new(package)).map_err(|error| malformed(error.to_string()))?;
    let parent = folder.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let temporary = tempfile::tempdir_in(parent).map_err(failed)?;
    for index in 0..archive.len() {
        let member = archive
            .by_index(index)
            .map_err(|error| malformed(error.to_string()))?;
        let Ok(path) = member.name() else { continue };
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        drop(path);
        if !TOKENIZER_FILES.contains(&name.as_str()) || !member.is_file() {
            continue;
        }
        let mut content = Vec::new();
        let mut limited = member.take(MAX_TOKENIZER_FILE_BYTES + 1);
        limited
            .read_to_end(&mut content)
            .map_err(|error| malformed(error.to_string()))?;
        if content.len() as u64 > MAX_TOKENIZER_FILE_BYTES {
            return Err(malformed(format!(
                "{name} is larger than {MAX_TOKENIZER_FILE_BYTES} bytes"
            )));
        }
        std::fs::write(temporary.path().join(&name), content).map_err(failed)?;
    }
    if !temporary.path().join("tokenizer.json").is_file() {
        return Err(malformed("the package holds no tokenizer.json".into()));
    }
    let kept = temporary.keep();
    match std::fs::rename(&kept, folder) {
        Ok(()) => Ok(()),
        // Another process was faster with the same content.
        Err(_) if folder.join("tokenizer.json").is_file() => {
            let _ = std::fs::remove_dir_all(&kept);
            Ok(())
        }
        Err(error) => {
            let _ = std::fs::remove_dir_all(&kept);
            Err(failed(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str) -> ModelFacts {
        let predefined = zerog_protocol::models::find(name);
        ModelFacts {
            name: name.into(),
            hash: predefined.unwrap().hash,
            predefined,
            view: None,
        }
    }

    fn calculation(tokens: u64, examples: u64, is_estimate: bool) -> TokenCalculation {
        TokenCalculation {
            tokens,
            examples,
            supervised_tokens: None,
            truncated_examples: 0,
            max_seq_length: 512,
            tokenizer: String::new(),
            is_estimate,
        }
    }

    /// `fine-tuning-broker.md` section 5.1: the published examples.
    #[test]
    fn estimates_equal_the_published_examples() {
        let facts = facts("Qwen2.5-0.5B-Instruct");
        let params =
            parse_params(Some("{\"num_train_epochs\":3,\"max_steps\":10}"), &facts).unwrap();
        let quote = fee_quote(
            calculation(10_000, 50, true),
            &facts,
            &params,
            U256::from(500_000_000_000u64),
        )
        .unwrap();
        assert_eq!(quote.total, U256::from(25_000_000_000_000_000u64));
        let quote = fee_quote(
            calculation(772, 20, true),
            &facts,
            &params,
            U256::from(800_000_000_000u64),
        )
        .unwrap();
        assert_eq!(quote.total, U256::from(11_852_800_000_000_000u64));
        assert!(quote.is_estimate);
    }

    #[test]
    fn our_price_follows_max_steps() {
        let facts = facts("mock-model");
        let params = parse_params(
            Some("{\"num_train_epochs\":3,\"max_steps\":5,\"per_device_train_batch_size\":4}"),
            &facts,
        )
        .unwrap();
        let quote = fee_quote(
            calculation(1001, 100, false),
            &facts,
            &params,
            U256::from(10),
        )
        .unwrap();
        // 20 of 100 examples: 1001 × 20 / 100 = 200.2, rounded up.
        assert_eq!(
            (quote.billed_tokens, quote.total, quote.storage_fee),
            (201, U256::from(2010), U256::ZERO)
        );
        let huge = fee_quote(calculation(u64::MAX, 1, false), &facts, &params, U256::MAX);
        assert_eq!(huge.unwrap_err().code(), "invalid_training_parameters");
    }

    #[test]
    fn tokenizer_packages_are_unpacked_without_paths() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for (name, content) in [
            ("x/tokenizer.json", "{}"),
            ("../../evil", "no"),
            ("x/weights.bin", "no"),
        ] {
            writer.start_file(name, options).unwrap();
            writer.write_all(content.as_bytes()).unwrap();
        }
        let package = writer.finish().unwrap().into_inner();
        let target = folder.path().join("cache/abc");
        unpack_tokenizer(package.clone(), &target).unwrap();
        unpack_tokenizer(package, &target).unwrap();
        let names: Vec<_> = std::fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["tokenizer.json"]);
        assert_eq!(
            std::fs::read_dir(folder.path().join("cache"))
                .unwrap()
                .count(),
            1
        );
        assert!(unpack_tokenizer(b"PK nonsense".to_vec(), &folder.path().join("other")).is_err());
    }
}
