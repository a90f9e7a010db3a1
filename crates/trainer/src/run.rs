//! A whole run: from the sealed dataset to the sealed archive.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use zerog_model::{
    BaseModel, LoraConfig, ModelFamily, Precision, Projection, Trainable, TrainableModel,
};
use zerog_protocol::FileKey;
use zerog_protocol::manifest::AdapterManifest;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{Dataset, RenderOptions, RenderedDataset, Tokenizer, render_examples};

use crate::archive::{self, Contents};
use crate::batches::{Order, pack};
use crate::canary::Canary;
use crate::checkpoint::{Checkpoint, RunState};
use crate::error::TrainError;
use crate::evaluate::{evaluate, mean_loss};
use crate::job::{Job, JobDirectory};
use crate::memory;
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::sealing::{seal_file, with_opened};
use crate::step::run_step;

/// Checkpoints of a run whose job does not say how often.
const CHECKPOINTS_PER_RUN: u64 = 10;
/// A checkpoint is written at least this often, however long a step takes.
const LONGEST_WITHOUT_CHECKPOINT: Duration = Duration::from_secs(300);

/// Trains the adapter of a job, from its newest checkpoint if there is one.
///
/// `stop` is looked at between steps; when it is set, a checkpoint is written and the run
/// ends with [`TrainError::Stopped`]. `report` gets every progress record but `Failed`; when
/// it returns an error nobody listens any more, and the run stops in the same way.
///
/// # Errors
/// Any [`TrainError`]; its exit code says whether to try again.
pub fn run(
    directory: &JobDirectory,
    key: &FileKey,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Progress) -> std::io::Result<()>,
) -> Result<AdapterManifest, TrainError> {
    let job = Job::read(directory)?;
    let tokenizer = Tokenizer::from_dir(&job.base_model_dir)?;
    let base = BaseModel::load(&job.base_model_dir)?;
    let dataset = read_dataset(&job, directory, key, &tokenizer, &base)?;
    let base_model_sha256 = base.sha256_hex();

    let mut run = Run {
        fingerprint: job.fingerprint(&base_model_sha256),
        total_steps: job.params.total_steps(dataset.examples.len() as u64),
        model: new_model(&job, &base)?,
        job: &job,
        directory,
        key,
        stop,
        dataset: &dataset,
        report,
        quiet: false,
    };
    let state = run.train()?;

    let Run { mut model, .. } = run;
    let adapter = Arc::new(model.adapter()?);
    // A fresh adapter changes nothing, so its loss is the base model's.
    let base_loss = mean_loss(&mut new_model(&job, &base)?, &dataset.examples)?;
    let evaluation = evaluate(
        &mut model,
        base_loss,
        &base,
        &adapter,
        &tokenizer,
        &dataset.examples,
    )?;
    let _ = report(&Progress::Evaluated {
        base_loss: evaluation.base_loss,
        tuned_loss: evaluation.tuned_loss,
        examples: evaluation.examples,
    });
    let canary = Canary::record(&model, &base_model_sha256, &tokenizer, &dataset.examples)?;
    if canary.largest_effect() == 0.0 {
        return Err(TrainError::NothingLearned { step: state.step });
    }
    let manifest = AdapterManifest {
        version: 1,
        task_id: job.task_id.clone(),
        base_model: job.base_model.clone(),
        base_model_sha256,
        stand_in: job.stand_in,
        tokenizer_sha256: tokenizer_sha256(&job)?,
        dataset_hash: job.dataset_hash.clone(),
        examples: dataset.report.examples as u64,
        tokens: dataset.report.tokens,
        steps: state.step,
        loss_first: state.loss_first,
        loss_last: state.loss_last,
        params: job.params.clone(),
    };
    let archive = archive::build(&Contents {
        adapter: &adapter,
        base_model_dir: &job.base_model_dir,
        manifest: &manifest,
        canary: &canary,
        evaluation: &evaluation,
    })?;
    let path = directory.adapter();
    seal_file(&path, &mut archive.as_slice(), key)?;
    let adapter_bytes = std::fs::metadata(&path)
        .map_err(TrainError::io(&path))?
        .len();
    let _ = report(&Progress::Finished {
        steps: state.step,
        loss_first: state.loss_first,
        loss_last: state.loss_last,
        adapter_bytes,
    });
    Ok(manifest)
}

fn read_dataset(
    job: &Job,
    directory: &JobDirectory,
    key: &FileKey,
    tokenizer: &Tokenizer,
    base: &BaseModel,
) -> Result<RenderedDataset, TrainError> {
    let max_seq_length = job.params.max_seq_length as usize;
    let positions = base.config().maximum_positions;
    if max_seq_length > positions {
        return Err(TrainError::Params(format!(
            "max_seq_length {max_seq_length} is longer than the {positions} positions of {}; use {positions} or less",
            job.base_model
        )));
    }
    with_opened(&directory.dataset(), key, |reader| {
        let records = Dataset::parse(BufReader::new(reader));
        Ok(render_examples(
            tokenizer,
            records,
            RenderOptions { max_seq_length },
        )?)
    })
}

fn new_model(job: &Job, base: &Arc<BaseModel>) -> Result<TrainableModel, TrainError> {
    let params = &job.params;
    let mut model = TrainableModel::lora(
        Arc::clone(base),
        LoraConfig {
            rank: params.lora_rank as usize,
            alpha: params.lora_alpha as f32,
            dropout: params.lora_dropout as f32,
            rank_stabilized: params.use_rslora,
            dora: params.use_dora,
            targets: targets(params, base.config().family)?,
            seed: params.seed,
        },
    )?;
    model.set_precision(Precision::fastest());
    Ok(model)
}

/// The linear layers that get an adapter.
fn targets(
    params: &TrainingParams,
    family: ModelFamily,
) -> Result<BTreeSet<Projection>, TrainError> {
    if params.lora_target_modules.is_empty() {
        return Ok(family.default_targets());
    }
    let layers = family.linear_layers();
    let find = |name: &String| {
        let found = layers.iter().find(|(known, _)| known == name);
        found.map(|(_, layer)| *layer).ok_or_else(|| {
            let known: Vec<&str> = layers.iter().map(|(known, _)| *known).collect();
            TrainError::Params(format!(
                "lora_target_modules names '{name}', which this model does not have; it has {}",
                known.join(", ")
            ))
        })
    };
    params.lora_target_modules.iter().map(find).collect()
}

fn tokenizer_sha256(job: &Job) -> Result<String, TrainError> {
    let path = job.base_model_dir.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// The training loop with what it needs at hand.
struct Run<'a> {
    job: &'a Job,
    directory: &'a JobDirectory,
    key: &'a FileKey,
    stop: &'a AtomicBool,
    dataset: &'a RenderedDataset,
    report: &'a mut dyn FnMut(&Progress) -> std::io::Result<()>,
    /// Nobody reads the records any more.
    quiet: bool,
    fingerprint: String,
    total_steps: u64,
    model: TrainableModel,
}

impl Run<'_> {
    fn train(&mut self) -> Result<RunState, TrainError> {
        let params = &self.job.params;
        let examples = &self.dataset.examples;
        let pack_tokens = memory::pack_tokens(self.model.config(), params.lora_rank);
        let longest = examples
            .iter()
            .map(|example| example.token_ids.len())
            .max()
            .unwrap_or(0);
        memory::check(
            self.model.config(),
            params.lora_rank,
            self.model.trainable_parameters(),
            longest.max(pack_tokens),
            self.job.memory_limit_bytes,
        )?;

        let mut state = self.resume()?;
        self.tell(&self.started(state.step));
        let mut checkpoint_step = state.step;
        let mut checkpoint_time = Instant::now();
        let every = self
            .job
            .checkpoint_every_steps
            .unwrap_or_else(|| self.total_steps.div_ceil(CHECKPOINTS_PER_RUN))
            .max(1);

        let mut order = Order::new(
            examples.len(),
            u64::from(params.num_train_epochs),
            params.seed,
        );
        let schedule = Schedule::new(params, self.total_steps);
        let per_step = params.examples_per_step();
        let (began, first) = (Instant::now(), state.step);
        let mut tokens = 0_u64;
        while state.step < self.total_steps {
            if self.quiet || self.stop.load(Ordering::Relaxed) {
                if checkpoint_step < state.step {
                    self.checkpoint(&state)?;
                }
                return Err(TrainError::Stopped { step: state.step });
            }
            let chosen = order.of_step(state.step, per_step);
            let packs = pack(chosen.iter().map(|index| &examples[*index]), pack_tokens);
            let learning_rate = schedule.learning_rate(state.step);
            let done = run_step(
                &mut self.model,
                &packs,
                params,
                learning_rate,
                state.step,
                checkpoint_step,
            )?;
            if state.step == 0 {
                state.loss_first = done.loss;
            }
            state.loss_last = done.loss;
            state.step += 1;

            tokens += packs
                .iter()
                .map(|pack| pack.tokens.len() as u64)
                .sum::<u64>();
            let seconds = began.elapsed().as_secs_f64();
            let steps_left = (self.total_steps - state.step) as f64;
            self.tell(&Progress::Step {
                step: state.step,
                total: self.total_steps,
                loss: done.loss,
                learning_rate,
                epoch: epochs_done(
                    state.step * per_step,
                    examples.len(),
                    params.num_train_epochs,
                ),
                grad_norm: done.gradient_norm,
                tokens_per_s: tokens as f64 / seconds.max(1e-9),
                eta_s: seconds / (state.step - first) as f64 * steps_left,
            });
            let due =
                state.step % every == 0 || checkpoint_time.elapsed() > LONGEST_WITHOUT_CHECKPOINT;
            if due && state.step < self.total_steps {
                self.checkpoint(&state)?;
                checkpoint_step = state.step;
                checkpoint_time = Instant::now();
            }
        }
        // The last state is kept too: if writing the archive fails, only that is done again.
        if checkpoint_step < state.step {
            self.checkpoint(&state)?;
        }
        Ok(state)
    }

    fn resume(&mut self) -> Result<RunState, TrainError> {
        match Checkpoint::newest(self.directory, self.key, &self.fingerprint)? {
            Some(checkpoint) => {
                self.model.import_state(&checkpoint.model)?;
                Ok(checkpoint.state)
            }
            None => Ok(RunState {
                fingerprint: self.fingerprint.clone(),
                step: 0,
                loss_first: 0.0,
                loss_last: 0.0,
            }),
        }
    }

    fn checkpoint(&mut self, state: &RunState) -> Result<(), TrainError> {
        let checkpoint = Checkpoint {
            state: state.clone(),
            model: self.model.export_state(),
        };
        checkpoint.write(self.directory, self.key)?;
        self.tell(&Progress::Checkpoint { step: state.step });
        Ok(())
    }

    fn started(&self, resumed_at: u64) -> Progress {
        let report = &self.dataset.report;
        Progress::Started {
            total_steps: self.total_steps,
            resumed_at,
            examples: report.examples as u64,
            tokens: report.tokens,
            supervised_tokens: report.supervised_tokens,
            truncated_examples: report.truncated_examples as u64,
            skipped_examples: report.skipped_examples as u64,
            stand_in: self.job.stand_in,
        }
    }

    fn tell(&mut self, record: &Progress) {
        self.quiet |= (self.report)(record).is_err();
    }
}

/// Epochs with fraction after reading `read` examples, never more than the run has.
fn epochs_done(read: u64, examples: usize, epochs: u32) -> f64 {
    (read as f64 / examples.max(1) as f64).min(f64::from(epochs))
}
