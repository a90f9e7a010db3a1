//! The thread that owns the model, and the handle through which everybody else speaks with it.
//!
//! A request either is taken at once or refused at once with [`EngineError::Busy`]: nothing waits outside the engine's
//! own bounded queue. Dropping a [`Generation`] cancels it; its place is free before the next step.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use zerog_model::{BaseModel, LoraAdapter, SamplingParams};
use zerog_tokenization::Tokenizer;

use crate::adapters::{AdapterCache, AdapterInfo, LoadedAdapter, NoRoom};
use crate::canary::{self, Canary, CanaryError, CanaryReport};
use crate::error::EngineError;
use crate::executor::Executor;
use crate::openai_api::{FinishReason, TokenLogprob, Usage};
use crate::scheduler::{Arrival, Scheduler};

/// Logits recorded per prompt, of the most probable tokens with and without the adapter.
const RECORDED_LOGITS: usize = 16;

/// Sizes of an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Sequences that are computed together.
    pub max_running: usize,
    /// Requests that wait for a place; one more is refused.
    pub max_waiting: usize,
    /// Most tokens of prompt and answer together; the model's own limit also holds.
    pub max_context_tokens: usize,
    /// Most tokens that all running sequences may occupy in the key-value cache.
    pub max_cached_tokens: usize,
    /// Most prompt tokens computed in one step, so that a long prompt does not hold up running answers.
    pub prefill_chunk_tokens: usize,
    /// Most adapters in memory.
    pub max_adapters: usize,
    /// Most memory of adapters in bytes.
    pub max_adapter_bytes: usize,
}

impl Default for EngineConfig {
    /// Sizes for one small machine: 8 running, 64 waiting, 4,096 tokens each.
    fn default() -> Self {
        Self {
            max_running: 8,
            max_waiting: 64,
            max_context_tokens: 4096,
            max_cached_tokens: 32_768,
            prefill_chunk_tokens: 256,
            max_adapters: 64,
            max_adapter_bytes: 4 << 30,
        }
    }
}

/// One answer to generate.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Adapter to answer with; none means the base model.
    pub adapter: Option<String>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate; without it the context is the limit.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// `Some(k)`: log probabilities with k alternatives.
    pub logprobs: Option<usize>,
}

impl GenerateRequest {
    /// A greedy answer of the base model.
    pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            adapter: None,
            sampling: SamplingParams::default(),
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            logprobs: None,
        }
    }
}

/// What comes out of a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerationEvent {
    /// Text and, if asked for, log probabilities. The text may be empty while characters are incomplete.
    Delta {
        /// Text to append.
        text: String,
        /// Log probabilities of the tokens since the last event.
        logprobs: Vec<TokenLogprob>,
    },
    /// The end; nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens of prompt and answer.
        usage: Usage,
    },
    /// The request is lost; nothing follows.
    Failed(EngineError),
}

/// A running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    events: mpsc::UnboundedReceiver<GenerationEvent>,
    progress: Arc<AtomicU64>,
}

impl Generation {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        self.events.recv().await
    }

    /// Tokens generated so far, whether or not their events were read.
    pub fn generated_tokens(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// A counter that outlives the generation, for billing a request whose caller went away.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The error that ended the generation.
    pub async fn collect(mut self) -> Result<Completion, EngineError> {
        let mut completion = Completion::default();
        loop {
            match self.next().await {
                Some(GenerationEvent::Delta { text, logprobs }) => {
                    completion.text.push_str(&text);
                    completion.logprobs.extend(logprobs);
                }
                Some(GenerationEvent::Finished { reason, usage }) => {
                    completion.finish_reason = Some(reason);
                    completion.usage = usage;
                    return Ok(completion);
                }
                Some(GenerationEvent::Failed(error)) => return Err(error),
                None => return Err(EngineError::Stopped),
            }
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of prompt and answer.
    pub usage: Usage,
    /// Log probabilities, if asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// How the reference logits of an adapter are dealt with when it is loaded.
#[derive(Debug, Clone)]
pub enum CanaryCheck {
    /// Run them: the first load of this adapter on this base by this program.
    Run(Canary),
    /// They have passed before on this base and this program (`docs/protocol.md`, adapters).
    PassedBefore,
}

/// What loading an adapter did.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// Result of the reference logits, if they were run.
    pub canary: Option<CanaryReport>,
    /// Adapters that left memory to make room; their files are still on disk.
    pub evicted: Vec<String>,
    /// Memory of the adapter in bytes.
    pub bytes: usize,
}

/// Why an adapter was not loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The files are not an adapter of the served base model.
    #[error("the adapter's files are refused: {reason}")]
    Files {
        /// What is wrong with them.
        reason: String,
    },
    /// The reference logits do not hold.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// Every loaded adapter is in use.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What the engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that are being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens computed since the start.
    pub prompt_tokens: u64,
}

pub(crate) enum Command {
    Generate(Box<Arrival>),
    Load {
        adapter: Box<LoadedAdapter>,
        canary: Box<CanaryCheck>,
        answer: oneshot::Sender<Result<LoadReport, LoadError>>,
    },
    Record {
        prompts: Vec<Vec<u32>>,
        weights: Arc<LoraAdapter>,
        answer: oneshot::Sender<Result<Canary, EngineError>>,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) running: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) generated: AtomicU64,
    pub(crate) prompt: AtomicU64,
}

/// The way to an engine; clones speak to the same one. When the last is dropped, the engine stops.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    commands: mpsc::Sender<Command>,
    places: Arc<Semaphore>,
    capacity: usize,
    adapters: Arc<Mutex<AdapterCache>>,
    counters: Arc<Counters>,
    model: Arc<BaseModel>,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    context: usize,
    vocabulary: usize,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Starts an engine on its own thread.
///
/// # Errors
/// What the system says when it cannot start a thread.
pub fn start(
    model: Arc<BaseModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> std::io::Result<EngineHandle> {
    let capacity = config.max_running + config.max_waiting;
    // Every generation holds a place, so its command always fits; loads take what is left.
    let (commands, inbox) = mpsc::channel(capacity + 16);
    let adapters = Arc::new(Mutex::new(AdapterCache::new(
        config.max_adapters,
        config.max_adapter_bytes,
    )));
    let counters = Arc::new(Counters::default());
    let executor = Executor::new(Arc::clone(&model), config.max_running);
    let limits = Limits {
        context: config
            .max_context_tokens
            .min(config.max_cached_tokens)
            .min(model.config().maximum_positions),
        vocabulary: model.config().vocabulary_size,
    };
    let scheduler = Scheduler::new(
        executor,
        Arc::clone(&tokenizer),
        config,
        Arc::clone(&counters),
    );
    let thread_adapters = Arc::clone(&adapters);
    thread::Builder::new()
        .name("inference-engine".into())
        .spawn(move || run(inbox, scheduler, &thread_adapters))?;
    let places = Arc::new(Semaphore::new(capacity));
    Ok(EngineHandle {
        shared: Arc::new(Shared {
            commands,
            places,
            capacity,
            adapters,
            counters,
            model,
            tokenizer,
            limits,
        }),
    })
}

fn run(
    mut inbox: mpsc::Receiver<Command>,
    mut scheduler: Scheduler,
    adapters: &Mutex<AdapterCache>,
) {
    loop {
        if scheduler.is_idle() {
            let Some(command) = inbox.blocking_recv() else {
                return;
            };
            obey(command, &mut scheduler, adapters);
        }
        while let Ok(command) = inbox.try_recv() {
            obey(command, &mut scheduler, adapters);
        }
        scheduler.step();
    }
}

fn obey(command: Command, scheduler: &mut Scheduler, adapters: &Mutex<AdapterCache>) {
    match command {
        Command::Generate(arrival) => scheduler.enqueue(*arrival),
        Command::Load {
            adapter,
            canary,
            answer,
        } => {
            // Nobody may be waiting any more; the work is then wasted but harmless.
            let _ = answer.send(load(*adapter, &canary, scheduler, adapters));
        }
        Command::Record {
            prompts,
            weights,
            answer,
        } => {
            let _ = answer.send(canary::record(
                &prompts,
                RECORDED_LOGITS,
                &weights,
                scheduler.executor(),
            ));
        }
    }
}

fn load(
    adapter: LoadedAdapter,
    check: &CanaryCheck,
    scheduler: &mut Scheduler,
    adapters: &Mutex<AdapterCache>,
) -> Result<LoadReport, LoadError> {
    let canary = match check {
        CanaryCheck::Run(reference) => Some(canary::check(
            reference,
            &adapter.weights,
            scheduler.executor(),
        )?),
        CanaryCheck::PassedBefore => None,
    };
    let bytes = adapter.bytes;
    let evicted = adapters
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(adapter)?;
    Ok(LoadReport {
        canary,
        evicted,
        bytes,
    })
}

impl EngineHandle {
    /// Queues an answer.
    ///
    /// # Errors
    /// [`EngineError::Busy`] at once when the engine is full, [`EngineError::AdapterNotLoaded`],
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], [`EngineError::TokenOutOfRange`],
    /// [`EngineError::Stopped`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        let limits = self.shared.limits;
        let prompt_tokens = request.prompt.len();
        if prompt_tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        // One place must remain for the answer.
        if prompt_tokens >= limits.context {
            return Err(EngineError::PromptTooLong {
                prompt_tokens,
                limit: limits.context - 1,
            });
        }
        if let Some(id) = request
            .prompt
            .iter()
            .find(|id| **id as usize >= limits.vocabulary)
        {
            return Err(EngineError::TokenOutOfRange {
                id: *id,
                vocabulary: limits.vocabulary,
            });
        }
        let place = self.place()?;
        let adapter = match &request.adapter {
            None => None,
            Some(id) => {
                let found = self.adapters().use_adapter(id);
                Some(found.ok_or_else(|| EngineError::AdapterNotLoaded {
                    adapter: id.clone(),
                })?)
            }
        };
        let room = limits.context - prompt_tokens;
        let max_tokens = request.max_tokens.map_or(room, |limit| limit.min(room));
        // Unbounded in type, bounded in fact: at most one event a token and one at the end.
        let (events, receiver) = mpsc::unbounded_channel();
        let progress = Arc::new(AtomicU64::new(0));
        let arrival = Arrival {
            request,
            adapter,
            max_tokens,
            events,
            progress: Arc::clone(&progress),
            _place: place,
        };
        self.send(Command::Generate(Box::new(arrival)))?;
        Ok(Generation {
            prompt_tokens,
            events: receiver,
            progress,
        })
    }

    /// Loads an adapter under a name: checks that it fits and its reference logits, makes room.
    ///
    /// # Errors
    /// [`LoadError`] with the reason; nothing is loaded then.
    pub async fn load_adapter(
        &self,
        id: &str,
        weights: Arc<LoraAdapter>,
        canary: CanaryCheck,
    ) -> Result<LoadReport, LoadError> {
        if !weights.fits(self.shared.model.config()) {
            return Err(CanaryError::WrongShape.into());
        }
        let bytes = weights.bytes();
        let adapter = Box::new(LoadedAdapter {
            id: id.to_owned(),
            weights,
            bytes,
        });
        let (answer, result) = oneshot::channel();
        self.send(Command::Load {
            adapter,
            canary: Box::new(canary),
            answer,
        })?;
        result.await.map_err(|_| EngineError::Stopped)?
    }

    /// Loads an adapter from the bytes of its two PEFT files; parsing runs off the caller's thread.
    ///
    /// # Errors
    /// [`LoadError::Files`] for files that are no adapter of this base model, and those of
    /// [`EngineHandle::load_adapter`].
    pub async fn load_adapter_files(
        &self,
        id: &str,
        config_json: Vec<u8>,
        weights: Vec<u8>,
        canary: CanaryCheck,
    ) -> Result<LoadReport, LoadError> {
        let model = Arc::clone(&self.shared.model);
        let parsed = tokio::task::spawn_blocking(move || {
            LoraAdapter::from_bytes(&config_json, &weights, model.config())
        })
        .await
        .map_err(|_| EngineError::Computation {
            reason: "reading the adapter panicked".into(),
        })?;
        let adapter = parsed.map_err(|error| LoadError::Files {
            reason: error.to_string(),
        })?;
        self.load_adapter(id, Arc::new(adapter), canary).await
    }

    /// Records reference logits of an adapter on this engine, for adapters that come without a record.
    ///
    /// # Errors
    /// [`EngineError`]; prompts must be made of tokens of the vocabulary.
    pub async fn record_canary(
        &self,
        prompts: Vec<Vec<u32>>,
        weights: Arc<LoraAdapter>,
    ) -> Result<Canary, EngineError> {
        let (answer, result) = oneshot::channel();
        self.send(Command::Record {
            prompts,
            weights,
            answer,
        })?;
        result.await.map_err(|_| EngineError::Stopped)?
    }

    /// Forgets an adapter; requests that run on it finish. Returns whether it was loaded.
    pub fn unload_adapter(&self, id: &str) -> bool {
        self.adapters().remove(id)
    }

    /// The loaded adapters by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        self.adapters().list()
    }

    /// Whether an adapter is loaded.
    pub fn has_adapter(&self, id: &str) -> bool {
        self.adapters().contains(id)
    }

    /// What the engine is doing now.
    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        EngineStats {
            running: counters.running.load(Ordering::Relaxed),
            waiting: counters.waiting.load(Ordering::Relaxed),
            generated_tokens: counters.generated.load(Ordering::Relaxed),
            prompt_tokens: counters.prompt.load(Ordering::Relaxed),
        }
    }

    /// The base model.
    pub fn model(&self) -> &Arc<BaseModel> {
        &self.shared.model
    }

    /// The tokenizer of the base model.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }

    /// Most tokens of prompt and answer together.
    pub fn max_context_tokens(&self) -> usize {
        self.shared.limits.context
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        self.shared
            .commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => EngineError::Busy {
                    in_flight: self.shared.capacity,
                },
                mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
            })
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        Arc::clone(&self.shared.places)
            .try_acquire_owned()
            .map_err(|error| match error {
                TryAcquireError::NoPermits => EngineError::Busy {
                    in_flight: self.shared.capacity,
                },
                TryAcquireError::Closed => EngineError::Stopped,
            })
    }

    fn adapters(&self) -> std::sync::MutexGuard<'_, AdapterCache> {
        self.shared
            .adapters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
