//! The finished archive: PEFT files, tokenizer, model card, manifest and canary in one zip,
//! byte for byte the same for the same run. It is built in memory and sealed on its way to
//! disk, because the adapter may not lie there in clear.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use zerog_model::{
    ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, AdapterIdentity, LoraAdapter, ModelConfig,
};
use zerog_protocol::manifest::{ARCHIVE_FOLDER, AdapterManifest, MANIFEST_MEMBER};
use zerog_protocol::models;
use zerog_protocol::training_params::TrainingMethod;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::canary::{CANARY_MEMBER, Canary};
use crate::error::TrainError;
use crate::evaluate::Evaluation;

/// Tokenizer files that are passed on when the base model has them, so that the adapter is
/// used with the tokenizer and template that it was trained with.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// Everything that goes into the archive.
pub(crate) struct Contents<'a> {
    pub(crate) adapter: &'a LoraAdapter,
    pub(crate) base_model_dir: &'a Path,
    pub(crate) manifest: &'a AdapterManifest,
    pub(crate) canary: &'a Canary,
    pub(crate) evaluation: &'a Evaluation,
}

/// The bytes of the zip file.
pub(crate) fn build(contents: &Contents<'_>) -> Result<Vec<u8>, TrainError> {
    let failed = |error: &dyn std::fmt::Display| TrainError::Archive(error.to_string());
    let identity = AdapterIdentity {
        base_model: hub_name(&contents.manifest.base_model),
        revision: None,
    };
    let (config, weights) = contents
        .adapter
        .to_bytes(&identity)
        .map_err(|error| failed(&error))?;
    let json = |value: serde_json::Result<Vec<u8>>| value.map_err(|error| failed(&error));

    let mut zip = Zip(ZipWriter::new(Cursor::new(Vec::with_capacity(
        weights.len() + (1 << 20),
    ))));
    zip.add(&member(ADAPTER_CONFIG_FILE), &config)?;
    zip.add(&member(ADAPTER_WEIGHTS_FILE), &weights)?;
    for name in TOKENIZER_FILES {
        let path = contents.base_model_dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => zip.add(&member(name), &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(TrainError::Io { path, source }),
        }
    }
    zip.add(&member("README.md"), model_card(contents).as_bytes())?;
    zip.add(
        MANIFEST_MEMBER,
        &json(serde_json::to_vec_pretty(contents.manifest))?,
    )?;
    zip.add(CANARY_MEMBER, &json(serde_json::to_vec(contents.canary))?)?;
    zip.0
        .finish()
        .map(Cursor::into_inner)
        .map_err(|error| failed(&error))
}

/// The adapter of an archive that [`build`] made, for a base model of `config`.
pub(crate) fn read_adapter(
    archive: &[u8],
    config: &ModelConfig,
) -> Result<LoraAdapter, TrainError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        TrainError::Params(format!(
            "the archive of the task in continue_from cannot be read: {error}"
        ))
    };
    let mut zip = ZipArchive::new(Cursor::new(archive)).map_err(|error| unreadable(&error))?;
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        let mut file = zip
            .by_name(&member(name))
            .map_err(|error| unreadable(&error))?;
        file.read_to_end(&mut bytes)
            .map_err(|error| unreadable(&error))?;
        Ok::<_, TrainError>(bytes)
    };
    let (settings, weights) = (read(ADAPTER_CONFIG_FILE)?, read(ADAPTER_WEIGHTS_FILE)?);
    LoraAdapter::from_bytes(&settings, &weights, config).map_err(|error| unreadable(&error))
}

struct Zip(ZipWriter<Cursor<Vec<u8>>>);

impl Zip {
    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        // A fixed time and mode keep the bytes the same on every machine. Weights hardly shrink,
        // so nothing is compressed.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(u32::try_from(bytes.len()).is_err());
        self.0
            .start_file(name, options)
            .map_err(|error| TrainError::Archive(error.to_string()))?;
        self.0
            .write_all(bytes)
            .map_err(|error| TrainError::Archive(error.to_string()))
    }
}

fn member(name: &str) -> String {
    format!("{ARCHIVE_FOLDER}/{name}")
}

/// The name under which the base model is found on the model hub, as PEFT expects it.
fn hub_name(model: &str) -> String {
    models::find(model)
        .map(|predefined| predefined.tokenizer)
        .filter(|name| name.contains('/'))
        .unwrap_or(model)
        .to_owned()
}

fn model_card(contents: &Contents<'_>) -> String {
    let manifest = contents.manifest;
    let params = &manifest.params;
    let base = hub_name(&manifest.base_model);
    let stand_in = if manifest.stand_in {
        "\n> **Stand-in:** this adapter was trained on a small substitute for the named base model, on a\n> development network. It does not fit the real weights; the hash below says which weights it fits.\n"
    } else {
        ""
    };
    let evaluation = contents.evaluation;
    let optional = |name: &str, value: Option<f64>| {
        value.map_or_else(String::new, |value| format!("| {name} | {value:.4} |\n"))
    };
    let metrics = evaluation.metrics;
    let scores = [
        optional("validation loss of the delivered state", manifest.eval_loss),
        optional("accuracy on those examples", metrics.accuracy),
        optional("F1 on those examples, mean over classes", metrics.f1),
        optional("reward margin on those examples", metrics.reward_margin),
        optional("reward accuracy on those examples", metrics.reward_accuracy),
        match manifest.best_step {
            Some(step) => format!("| delivered state | the best one, of step {step} |\n"),
            None => String::new(),
        },
        match evaluation.answers {
            0 => String::new(),
            answers => format!(
                "| greedy answers that end by themselves | {} of {answers} |\n",
                evaluation.stopped
            ),
        },
    ]
    .concat();
    let method = match (manifest.labels.is_empty(), params.training_method) {
        (false, _) => "classification, head trained whole",
        (true, TrainingMethod::Sft) => "supervised fine-tuning",
        (true, TrainingMethod::Dpo) => "direct preference optimisation",
    };
    let pipeline = match manifest.labels.is_empty() {
        true => "text-generation",
        false => "text-classification",
    };
    format!(
        "---\n\
         base_model: {base}\n\
         library_name: peft\n\
         pipeline_tag: {pipeline}\n\
         tags:\n- lora\n- zerog\n\
         ---\n\n\
         # Adapter of task {task}\n{stand_in}\n\
         A LoRA adapter for `{base}`, fine-tuned on the 0G Compute Network.\n\n\
         | | |\n|---|---|\n\
         | method | {method} |\n\
         | base weights (SHA-256) | `{base_sha256}` |\n\
         | dataset hash | `{dataset}` |\n\
         | examples, tokens of one epoch | {examples}, {tokens} |\n\
         | optimiser steps | {steps} |\n\
         | loss, first and last step | {loss_first:.4}, {loss_last:.4} |\n\
         | loss on {evaluated} training examples, base and tuned | {base_loss:.4}, {tuned_loss:.4} |\n\
         {scores}\
         | rank, alpha, dropout | {rank}, {alpha}, {dropout} |\n\
         | learning rate, epochs, seed | {learning_rate}, {epochs}, {seed} |\n\n\
         {usage}\n\
         `manifest.json` holds every parameter; `canary.json` holds reference logits by which a\n\
         server can prove that it applies this adapter.\n",
        task = manifest.task_id,
        base_sha256 = manifest.base_model_sha256,
        dataset = manifest.dataset_hash,
        examples = manifest.examples,
        tokens = manifest.tokens,
        steps = manifest.steps,
        loss_first = manifest.loss_first,
        loss_last = manifest.loss_last,
        evaluated = evaluation.examples,
        base_loss = evaluation.base_loss,
        tuned_loss = evaluation.tuned_loss,
        rank = params.lora_rank,
        alpha = params.lora_alpha,
        dropout = params.lora_dropout,
        learning_rate = params.learning_rate,
        epochs = params.num_train_epochs,
        seed = params.seed,
        usage = match manifest.labels.is_empty() {
            true => chat_usage(&base),
            false => classifier_usage(&base, &manifest.labels),
        },
    )
}

fn chat_usage(base: &str) -> String {
    format!(
        "```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"output_model\")\n\
         model = AutoModelForCausalLM.from_pretrained(\"{base}\")\n\
         model = PeftModel.from_pretrained(model, \"output_model\")\n\
         prompt = tokenizer.apply_chat_template(\n    \
         [{{\"role\": \"user\", \"content\": \"Hello!\"}}],\n    \
         add_generation_prompt=True, return_tensors=\"pt\", return_dict=True,\n)\n\
         print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))\n\
         ```\n"
    )
}

fn classifier_usage(base: &str, labels: &[String]) -> String {
    // A list of plain texts is the same in JSON and in Python.
    let labels = serde_json::to_string(labels).unwrap_or_default();
    format!(
        "```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
         labels = {labels}\n\
         tokenizer = AutoTokenizer.from_pretrained(\"output_model\")\n\
         model = AutoModelForSequenceClassification.from_pretrained(\"{base}\", num_labels=len(labels))\n\
         model = PeftModel.from_pretrained(model, \"output_model\")\n\
         text = tokenizer(\"What a day!\", return_tensors=\"pt\")\n\
         print(labels[model(**text).logits.argmax().item()])\n\
         ```\n"
    )
}
