//! A whole run: from the sealed dataset to the sealed archive.

use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use zerog_model::ModelError;
use zerog_protocol::FileKey;
use zerog_protocol::manifest::AdapterManifest;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{
    Dataset, ExampleError, Objective, RenderOptions, RenderReport, RenderedDataset, Tokenizer,
    render_dataset,
};

use crate::archive::{self, Contents};
use crate::batches::Order;
use crate::checkpoint::{Checkpoint, RunState};
use crate::error::TrainError;
use crate::job::{Job, JobDirectory};
use crate::memory::{self, Fit, Load, Shape};
use crate::method::{Base, Conclusion, Method};
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::sealing::{open_file, seal_file, with_opened};
use crate::step::run_step;
use crate::validation::{Measurements, Plan};

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
    let mut base = Base::load(&job)?;
    base.place(job.device)?;
    let options = base.render_options(&job.params);
    let mut dataset = read_dataset(&directory.dataset(), key, &tokenizer, options)??;
    if job.params.validation_dataset.is_some() {
        read_dataset(&directory.validation(), key, &tokenizer, options)?
            .and_then(|validation| dataset.validate_on(validation))
            .map_err(TrainError::Validation)?;
    }
    let report_of_dataset = dataset.report;
    let base_model_sha256 = base.sha256_hex();
    let initial = match job.params.continue_from {
        Some(_) => Some(base.read_adapter(&open_file(&directory.initial(), key)?)?),
        None => None,
    };
    let shape = base.shape(&job.params);
    let load = load_of(&dataset, &job.params, options);
    let free_device_bytes = base.free_device_bytes()?;

    let mut run = Run {
        fingerprint: job.fingerprint(&base_model_sha256),
        total_steps: job.params.total_steps(dataset.training.len() as u64),
        dataset: report_of_dataset,
        method: base.method(&job.params, initial, dataset, shape.pack_tokens())?,
        job: &job,
        directory,
        key,
        stop,
        report,
        quiet: false,
        memory: Fit::default(),
    };
    run.check_memory(&shape, load, free_device_bytes)?;
    let state = run.train()?;
    let delivered = run.load_best(&state)?;
    let Run { mut method, .. } = run;

    let conclusion = method.conclude(&tokenizer, &base_model_sha256)?;
    let Conclusion {
        adapter,
        evaluation,
        canary,
        labels,
    } = conclusion;
    let _ = report(&Progress::Evaluated {
        base_loss: evaluation.base_loss,
        tuned_loss: evaluation.tuned_loss,
        examples: evaluation.examples,
        metrics: evaluation.metrics,
    });
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
        examples: report_of_dataset.examples as u64,
        tokens: report_of_dataset.tokens,
        steps: state.step,
        loss_first: state.loss_first(),
        loss_last: state.loss_last(),
        best_step: delivered.best_step,
        eval_loss: delivered.eval_loss,
        labels,
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
        loss_first: state.loss_first(),
        loss_last: state.loss_last(),
        adapter_bytes,
    });
    Ok(manifest)
}

/// Opens and renders a sealed dataset; the inner error is about what it holds.
fn read_dataset(
    path: &Path,
    key: &FileKey,
    tokenizer: &Tokenizer,
    options: RenderOptions,
) -> Result<Result<RenderedDataset, ExampleError>, TrainError> {
    with_opened(path, key, |reader| {
        let records = Dataset::parse(BufReader::new(reader));
        Ok(render_dataset(tokenizer, records, options))
    })
}

/// What the dataset and the parameters add to the memory of a run, all but the parameters' number.
fn load_of(dataset: &RenderedDataset, params: &TrainingParams, options: RenderOptions) -> Load {
    let samples = dataset.training.iter().chain(&dataset.validation);
    let longest = samples.map(|sample| sample.cost().tokens).max();
    Load {
        trained_parameters: 0,
        longest: longest.unwrap_or(0) as u64,
        sequences: match options.objective {
            Objective::Preference => 2,
            Objective::Language | Objective::Classification => 1,
        },
        batch: u64::from(params.per_device_train_batch_size),
        per_step: params.examples_per_step(),
    }
}

fn tokenizer_sha256(job: &Job) -> Result<String, TrainError> {
    let path = job.base_model_dir.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// Which state the adapter is of.
#[derive(Debug, Clone, Copy, Default)]
struct Delivered {
    /// Its step, where it is not the last one.
    best_step: Option<u64>,
    /// Its loss on the validation examples.
    eval_loss: Option<f64>,
}

/// The training loop with what it needs at hand.
struct Run<'a> {
    job: &'a Job,
    directory: &'a JobDirectory,
    key: &'a FileKey,
    stop: &'a AtomicBool,
    dataset: RenderReport,
    report: &'a mut dyn FnMut(&Progress) -> std::io::Result<()>,
    /// Nobody reads the records any more.
    quiet: bool,
    fingerprint: String,
    total_steps: u64,
    memory: Fit,
    method: Box<dyn Method>,
}

impl Run<'_> {
    fn check_memory(
        &mut self,
        shape: &Shape,
        load: Load,
        free_device_bytes: Option<u64>,
    ) -> Result<(), TrainError> {
        let load = Load {
            trained_parameters: self.method.trainable().trainable_parameters() as u64,
            ..load
        };
        if let Some(free) = free_device_bytes {
            memory::check_device(shape, &load, free)?;
        }
        self.memory = memory::check(shape, &load, self.job.memory_limit_bytes)?;
        self.method.recompute(self.memory.recomputes);
        Ok(())
    }

    fn train(&mut self) -> Result<RunState, TrainError> {
        let params = &self.job.params;
        let examples = self.dataset.examples;
        let plan = Plan::new(params, &self.dataset, self.total_steps)?;
        let mut state = self.resume()?;
        self.tell(&self.started(state.step));
        let mut checkpoint_step = state.step;
        let mut checkpoint_time = Instant::now();
        let every = self
            .job
            .checkpoint_every_steps
            .unwrap_or_else(|| self.total_steps.div_ceil(CHECKPOINTS_PER_RUN))
            .max(1);

        let mut order = Order::new(examples, u64::from(params.num_train_epochs), params.seed);
        let schedule = Schedule::new(params, self.total_steps);
        let per_step = params.examples_per_step();
        let (began, first) = (Instant::now(), state.step);
        let mut tokens = 0.0;
        while state.step < self.total_steps && !state.measurements.is_enough(params) {
            if self.quiet || self.stop.load(Ordering::Relaxed) {
                if checkpoint_step < state.step {
                    self.checkpoint(&state)?;
                }
                return Err(TrainError::Stopped { step: state.step });
            }
            let chosen = order.of_step(state.step, per_step);
            let learning_rate = schedule.learning_rate(state.step);
            let done = run_step(
                self.method.as_mut(),
                &chosen,
                params,
                learning_rate,
                state.step,
                checkpoint_step,
            )?;
            state.add_loss(done.loss);
            tokens += tokens_of(&self.dataset, chosen.len());
            let seconds = began.elapsed().as_secs_f64();
            let steps_left = (self.total_steps - state.step) as f64;
            self.tell(&Progress::Step {
                step: state.step,
                total: self.total_steps,
                loss: done.loss,
                learning_rate,
                epoch: self.epoch(state.step),
                grad_norm: done.gradient_norm,
                tokens_per_s: tokens / seconds.max(1e-9),
                eta_s: seconds / (state.step - first) as f64 * steps_left,
                metrics: done.metrics,
            });
            // Before the checkpoint, so that what was measured is part of it.
            if plan.is_some_and(|plan| plan.is_due(state.step)) {
                self.validate(&mut state, checkpoint_step)?;
            }
            let due =
                state.step % every == 0 || checkpoint_time.elapsed() > LONGEST_WITHOUT_CHECKPOINT;
            if due && state.step < self.total_steps {
                self.checkpoint(&state)?;
                checkpoint_step = state.step;
                checkpoint_time = Instant::now();
            }
        }
        if state.step < self.total_steps {
            self.tell(&Progress::StoppedEarly {
                step: state.step,
                total: self.total_steps,
            });
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
                self.method.trainable().import_state(&checkpoint.model)?;
                Ok(checkpoint.state)
            }
            None => Ok(RunState::new(self.fingerprint.clone())),
        }
    }

    /// Measures the validation examples and keeps the state if it is the best so far.
    fn validate(&mut self, state: &mut RunState, checkpoint_step: u64) -> Result<(), TrainError> {
        let measured = match self.method.validate() {
            Ok(measured) if measured.mean().is_finite() => measured,
            Ok(_) | Err(ModelError::LossNotFinite) => {
                return Err(TrainError::Diverged {
                    what: "validation loss",
                    step: state.step,
                    checkpoint_step,
                });
            }
            Err(error) => return Err(error.into()),
        };
        let params = &self.job.params;
        let is_best = state.measurements.add(state.step, measured.mean(), params);
        if is_best && params.load_best_model_at_end {
            self.snapshot(state).write_best(self.directory, self.key)?;
        }
        self.tell(&Progress::Validated {
            step: state.step,
            epoch: self.epoch(state.step),
            eval_loss: measured.mean(),
            examples: self.dataset.validation_examples as u64,
            is_best,
            metrics: measured.metrics,
        });
        Ok(())
    }

    /// Takes the best state back, where it is asked for and not the last one.
    fn load_best(&mut self, state: &RunState) -> Result<Delivered, TrainError> {
        let Measurements {
            best: Some(best),
            last: Some(last),
            ..
        } = state.measurements
        else {
            return Ok(Delivered::default());
        };
        if !self.job.params.load_best_model_at_end || best.step == state.step {
            return Ok(Delivered {
                best_step: None,
                eval_loss: Some(last.eval_loss()),
            });
        }
        let checkpoint =
            Checkpoint::read_best(self.directory, self.key, &self.fingerprint, best.step)?;
        self.method.trainable().import_state(&checkpoint.model)?;
        self.tell(&Progress::BestLoaded {
            step: best.step,
            eval_loss: best.eval_loss(),
        });
        Ok(Delivered {
            best_step: Some(best.step),
            eval_loss: Some(best.eval_loss()),
        })
    }

    fn snapshot(&mut self, state: &RunState) -> Checkpoint {
        Checkpoint {
            state: state.clone(),
            model: self.method.trainable().export_state(),
        }
    }

    fn checkpoint(&mut self, state: &RunState) -> Result<(), TrainError> {
        self.snapshot(state).write(self.directory, self.key)?;
        self.tell(&Progress::Checkpoint { step: state.step });
        Ok(())
    }

    fn started(&self, resumed_at: u64) -> Progress {
        let report = &self.dataset;
        Progress::Started {
            total_steps: self.total_steps,
            resumed_at,
            examples: report.examples as u64,
            tokens: report.tokens,
            supervised_tokens: report.supervised_tokens,
            truncated_examples: report.truncated_examples as u64,
            truncated_tokens: report.truncated_tokens,
            split_examples: report.split_examples as u64,
            dropped_examples: report.dropped_examples as u64,
            skipped_examples: report.skipped_examples as u64,
            validation_examples: report.validation_examples as u64,
            expected_memory_bytes: self.memory.bytes,
            recomputes_layers: self.memory.recomputes,
            stand_in: self.job.stand_in,
        }
    }

    /// Epochs with fraction after `step` steps, never more than the run has.
    fn epoch(&self, step: u64) -> f64 {
        let params = &self.job.params;
        let read = (step * params.examples_per_step()) as f64;
        (read / self.dataset.examples.max(1) as f64).min(f64::from(params.num_train_epochs))
    }

    fn tell(&mut self, record: &Progress) {
        self.quiet |= (self.report)(record).is_err();
    }
}

/// Tokens of `examples` examples of average length.
fn tokens_of(dataset: &RenderReport, examples: usize) -> f64 {
    dataset.tokens as f64 * examples as f64 / dataset.examples.max(1) as f64
}
