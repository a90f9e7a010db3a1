//! The recipe of the base model: every number that decides its bytes, and the training run.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use sha2::{Digest, Sha256};
use zerog_model::{
    BaseModel, Biases, ModelConfig, ModelFamily, PackedBatch, RopeScaling, RopeSettings, StepLoss,
    StepOptions, Trainable, TrainableModel, UpdateOptions,
};
use zerog_tokenization::{
    ChatMessage, Example, Record, RecordContent, RenderOptions, SourcePosition, Tokenizer,
    render_example,
};
use zerog_trainer::{Order, PACK_TOKENS, pack};

use crate::corpus::{self, Document};
use crate::tokenizer;

/// Every choice of the recipe.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Recipe {
    pub(crate) seed: u64,
    pub(crate) documents: usize,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) query_heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) steps: u64,
    pub(crate) documents_per_step: u64,
    pub(crate) learning_rate: f64,
    pub(crate) warmup_steps: u64,
    pub(crate) weight_decay: f64,
    pub(crate) checkpoint_every_steps: u64,
    /// Steps after the first ones, with chats about strange words mixed in.
    pub(crate) word_steps: u64,
    pub(crate) word_documents: usize,
    pub(crate) word_documents_per_step: u64,
    pub(crate) word_learning_rate: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 20_260_101,
            documents: 48_000,
            vocabulary: 2048,
            hidden: 192,
            layers: 6,
            query_heads: 6,
            key_value_heads: 2,
            intermediate: 512,
            steps: 1500,
            documents_per_step: 48,
            learning_rate: 3e-3,
            warmup_steps: 60,
            weight_decay: 0.05,
            checkpoint_every_steps: 100,
            word_steps: 400,
            word_documents: 10_000,
            word_documents_per_step: 24,
            word_learning_rate: 1.5e-3,
        }
    }
}

impl Recipe {
    fn config(&self) -> ModelConfig {
        ModelConfig {
            family: ModelFamily::Qwen2,
            vocabulary_size: self.vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            layers: self.layers,
            query_heads: self.query_heads,
            key_value_heads: self.key_value_heads,
            head_size: self.hidden / self.query_heads,
            maximum_positions: tokenizer::CONTEXT,
            norm_epsilon: 1e-6,
            rope: RopeSettings {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            tied_embeddings: true,
            biases: Biases {
                query_key_value: true,
                ..Biases::default()
            },
            head_norms: false,
            bos_token_id: None,
            eos_token_ids: vec![2],
        }
    }

    /// In both parts: warm-up, then a cosine down to a tenth of the peak.
    fn learning_rate(&self, step: u64) -> f64 {
        let (peak, step, steps) = match step.checked_sub(self.steps) {
            None => (self.learning_rate, step, self.steps),
            Some(step) => (self.word_learning_rate, step, self.word_steps),
        };
        let warmup_steps = self.warmup_steps.min(steps / 4).max(1);
        if step < warmup_steps {
            return peak * (step + 1) as f64 / warmup_steps as f64;
        }
        let progress = (step - warmup_steps) as f64 / (steps - warmup_steps).max(1) as f64;
        peak * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * progress).cos()))
    }
}

/// The corpus as it is hashed: one JSON object a line.
pub(crate) fn corpus_text(documents: &[Document]) -> serde_json::Result<String> {
    let mut text = String::new();
    for document in documents {
        text.push_str(&serde_json::to_string(document)?);
        text.push('\n');
    }
    Ok(text)
}

/// Makes corpus, tokenizer and weights, and records how.
pub(crate) fn train(recipe: &Recipe, work: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(work)?;
    std::fs::create_dir_all(output)?;
    let documents = corpus::documents(recipe.seed, recipe.documents);
    let corpus_sha256 = hex::encode(Sha256::digest(corpus_text(&documents)?));
    tokenizer::train(&documents, recipe.vocabulary, output)?;
    let tokenizer = Tokenizer::from_dir(output)?;
    let examples = rendered(&tokenizer, documents)?;
    let words = corpus::strange_words(
        recipe.seed,
        recipe.word_documents,
        &word_pieces(&tokenizer)?,
    );
    let words_sha256 = hex::encode(Sha256::digest(corpus_text(&words)?));
    let words = rendered(&tokenizer, words)?;

    let base = BaseModel::init_random(recipe.config(), recipe.seed)?;
    let mut model = TrainableModel::full(&base, recipe.seed);
    let checkpoint = work.join("checkpoint.bin");
    if checkpoint.exists() {
        model.import_state(&std::fs::read(&checkpoint)?)?;
        eprintln!("continuing after step {}", model.updates());
    }
    // One pass is never enough, and the run ends by steps.
    let endless = |count: usize| Order::new(count, u64::MAX / count as u64, recipe.seed);
    let (mut order, mut word_order) = (endless(examples.len()), endless(words.len()));
    let started = Instant::now();
    let mut losses: Vec<f64> = Vec::new();
    let mut tokens = 0;
    for step in model.updates()..recipe.steps + recipe.word_steps {
        let mut chosen: Vec<&Example> = order
            .of_step(step, recipe.documents_per_step)
            .into_iter()
            .map(|index| &examples[index])
            .collect();
        if let Some(step) = step.checked_sub(recipe.steps) {
            let more = word_order.of_step(step, recipe.word_documents_per_step);
            chosen.extend(more.into_iter().map(|index| &words[index]));
        }
        let packs = pack(chosen, PACK_TOKENS);
        let loss = update(&mut model, recipe, step, &packs)?;
        tokens += packs.iter().map(|pack| pack.tokens.len()).sum::<usize>();
        losses.push(loss.mean());
        if step % 10 == 0 {
            let seconds = started.elapsed().as_secs_f64();
            eprintln!(
                "step {step} loss {:.4} {:.0} tokens/s",
                loss.mean(),
                tokens as f64 / seconds
            );
        }
        if (step + 1) % recipe.checkpoint_every_steps == 0 {
            let temporary: PathBuf = work.join("checkpoint.tmp");
            std::fs::write(&temporary, model.export_state())?;
            std::fs::rename(&temporary, &checkpoint)?;
        }
    }
    model.save_base_model(output)?;
    let last = &losses[losses.len().saturating_sub(50)..];
    let record = serde_json::json!({
        "command": "cargo run --release -p zerog-trainer --example base-model -- train WORK_DIR fixtures/tiny-qwen",
        "recipe": recipe,
        "corpus_sha256": corpus_sha256,
        "words_sha256": words_sha256,
        "tokenizer_sha256": sha256_of(&output.join("tokenizer.json"))?,
        "model_sha256": sha256_of(&output.join("model.safetensors"))?,
        "parameters": recipe.config().parameter_count(),
        "examples": examples.len(),
        "tokens_of_corpus": examples.iter().map(|example| example.token_ids.len()).sum::<usize>(),
        "loss_last_50_steps": last.iter().sum::<f64>() / last.len().max(1) as f64,
    });
    tokenizer::write_json(&output.join("RECIPE.json"), &record)?;
    Ok(())
}

fn update(
    model: &mut TrainableModel,
    recipe: &Recipe,
    step: u64,
    packs: &[PackedBatch],
) -> Result<StepLoss, Box<dyn Error>> {
    let mut loss = StepLoss::default();
    for (index, pack) in packs.iter().enumerate() {
        // No step has a thousand packs, so the numbers never meet.
        let options = StepOptions {
            batch_number: step * 1000 + index as u64,
            neftune_alpha: 0.0,
        };
        loss.add(model.forward_backward(pack, &options)?);
    }
    let clipped = model.clipped_scale(loss.supervised_tokens, Some(1.0));
    model.apply_update(&UpdateOptions {
        learning_rate: recipe.learning_rate(step) as f32,
        weight_decay: recipe.weight_decay as f32,
        betas: (0.9, 0.95),
        epsilon: 1e-8,
        gradient_scale: clipped.scale,
    });
    Ok(loss)
}

fn rendered(
    tokenizer: &Tokenizer,
    documents: Vec<Document>,
) -> Result<Vec<Example>, Box<dyn Error>> {
    documents
        .into_iter()
        .map(|document| example(tokenizer, document))
        .collect()
}

/// The pieces of the vocabulary that are lower-case letters only, without the space in front.
fn word_pieces(tokenizer: &Tokenizer) -> Result<Vec<String>, Box<dyn Error>> {
    let mut pieces = Vec::new();
    for id in 0..u32::try_from(tokenizer.vocabulary_size())? {
        let piece = tokenizer.decode(&[id], true)?;
        let piece = piece.trim_start();
        if !piece.is_empty()
            && piece
                .chars()
                .all(|character| character.is_ascii_alphabetic())
        {
            pieces.push(piece.to_lowercase());
        }
    }
    Ok(pieces)
}

/// Documents become examples by the same code as datasets, so that the model is trained on
/// the very bytes that tuning and serving use.
fn example(tokenizer: &Tokenizer, document: Document) -> Result<Example, Box<dyn Error>> {
    let content = match document {
        Document::Chat { messages } => RecordContent::Messages(
            messages
                .into_iter()
                .map(|turn| ChatMessage::new(turn.role, turn.content))
                .collect(),
        ),
        Document::Text { text } => RecordContent::Text(text),
    };
    let record = Record {
        position: SourcePosition { line: 1, column: 1 },
        content,
    };
    Ok(render_example(
        tokenizer,
        &record,
        RenderOptions::new(tokenizer::CONTEXT),
    )?)
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    Ok(hex::encode(Sha256::digest(std::fs::read(path)?)))
}
