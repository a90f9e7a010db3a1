//! The thread that owns the model, and the handle through which everybody else speaks with it.
//!
//! A request either is taken at once or refused at once with [`EngineError::Busy`]: nothing waits outside the engine's
//! own bounded queue. Dropping a [`Generation`] cancels it; its place is free before the next step.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use zerog_model::{
    BLOCK_TOKENS, BaseModel, KvCache, KvPool, LoraAdapter, ModelError, Placement, Precision,
    Sampler, SamplingParams, Serving, ServingSizes,
};
use zerog_tokenization::Tokenizer;

use crate::adapters::{AdapterCache, AdapterInfo, LoadedAdapter};
use crate::answer_text::AnswerText;
use crate::canary::{self, Canary, MAX_PROBE_TOKENS};
use crate::error::{EngineError, StartError};
use crate::executor::Executor;
use crate::generation::{GenerateRequest, Generation};
use crate::grammar::Matcher;
use crate::loading::{self, CanaryCheck, LoadError, LoadReport};
use crate::prefix_cache::Root;
use crate::scheduler::Scheduler;
use crate::sequence::{Choice, Question, Sequence};

/// Logits recorded per prompt, of the most probable tokens with and without the adapter.
const RECORDED_LOGITS: usize = 16;
/// Blocks that a device sets aside for the prompts of reference logits, which run between two steps.
const PROBE_BLOCKS: usize = MAX_PROBE_TOKENS.div_ceil(BLOCK_TOKENS);

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
    /// Whether beginnings that prompts have in common are computed once.
    pub reuse_prefixes: bool,
    /// Most adapters in memory.
    pub max_adapters: usize,
    /// Most memory of adapters in bytes.
    pub max_adapter_bytes: usize,
    /// How a device computes products with bf16 weights. The processor computes in single precision.
    pub precision: Precision,
}

impl EngineConfig {
    /// Blocks that all sequences and remembered beginnings may hold together.
    pub(crate) fn cache_blocks(&self) -> usize {
        // One more than the longest sequence takes, for the copy of a shared last block.
        self.max_cached_tokens.div_ceil(BLOCK_TOKENS) + 1
    }
}

impl Default for EngineConfig {
    /// Sizes for one small machine: 8 running, 64 waiting, 4,096 tokens each; on a device, products in bf16.
    fn default() -> Self {
        Self {
            max_running: 8,
            max_waiting: 64,
            max_context_tokens: 4096,
            max_cached_tokens: 32_768,
            prefill_chunk_tokens: 256,
            reuse_prefixes: true,
            max_adapters: 64,
            max_adapter_bytes: 4 << 30,
            precision: Precision::Bf16,
        }
    }
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
    /// Prompt tokens computed since the start; those that were known from an earlier prompt are not.
    pub prompt_tokens: u64,
    /// Blocks of [`zerog_model::BLOCK_TOKENS`] tokens in use, remembered beginnings included.
    pub blocks: usize,
    /// Times that an answer had to give its memory to others.
    pub preempted: u64,
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
    pub(crate) blocks: AtomicUsize,
    pub(crate) preempted: AtomicU64,
}

/// A request that the engine has taken: its answers have their places, and the thread makes a sequence of it.
pub(crate) struct Arrival {
    question: Arc<Question>,
    choices: Vec<Choice>,
}

impl Arrival {
    fn into_sequence(mut self, pool: &Arc<KvPool>) -> Option<Sequence> {
        let choice = self.choices.pop()?;
        Some(Sequence {
            tokens: self.question.prompt.clone(),
            question: self.question,
            choice,
            followers: self.choices,
            cache: KvCache::in_pool(pool),
            reused: 0,
        })
    }
}

/// Keeps an adapter in memory.
#[derive(Debug, Clone)]
pub struct AdapterPin(#[allow(dead_code)] Arc<LoadedAdapter>);

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

/// Starts an engine on its own thread, which computes on the processor.
///
/// # Errors
/// What the system says when it cannot start a thread.
pub fn start(
    model: Arc<BaseModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> std::io::Result<EngineHandle> {
    launch(
        Executor::new(Serving::on_processor(model)),
        tokenizer,
        config,
    )
}

/// Starts an engine on its own thread, which computes where `placement` has put the weights of `model`.
///
/// # Errors
/// [`StartError`]; a cache that is too large for the device comes with the number of tokens that fit.
///
/// # Panics
/// If the placement was made for another base model.
pub fn start_on(
    placement: &Placement,
    model: Arc<BaseModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> Result<EngineHandle, StartError> {
    let reserved = config.cache_blocks() + PROBE_BLOCKS;
    let step_tokens = config.prefill_chunk_tokens + config.max_running;
    let sizes = ServingSizes {
        blocks: reserved,
        step_tokens: step_tokens.max(MAX_PROBE_TOKENS.min(model.config().maximum_positions)),
        step_rows: config.max_running,
        precision: config.precision,
    };
    let serving = Serving::new(model, placement, &sizes).map_err(|error| match error {
        ModelError::CacheTooLarge { fitting, .. } => StartError::CacheTooLarge {
            asked: config.max_cached_tokens,
            fitting: fitting.saturating_sub(1 + PROBE_BLOCKS) * BLOCK_TOKENS,
        },
        other => StartError::Model(other),
    })?;
    if let Some(fitting) = serving.fitting_blocks() {
        tracing::info!(
            cache.blocks = reserved,
            cache.fitting_blocks = fitting,
            cache.block_tokens = BLOCK_TOKENS,
            "keys and values are in the device's memory"
        );
    }
    Ok(launch(Executor::new(serving), tokenizer, config)?)
}

fn launch(
    executor: Executor,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
) -> std::io::Result<EngineHandle> {
    let model = Arc::clone(executor.model());
    let capacity = config.max_running + config.max_waiting;
    // Every generation holds a place, so its command always fits; loads take what is left.
    let (commands, inbox) = mpsc::channel(capacity + 16);
    let adapters = Arc::new(Mutex::new(AdapterCache::new(
        config.max_adapters,
        config.max_adapter_bytes,
    )));
    let counters = Arc::new(Counters::default());
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
        Command::Generate(arrival) => {
            if let Some(sequence) = arrival.into_sequence(scheduler.executor().pool()) {
                scheduler.enqueue(sequence);
            }
        }
        Command::Load {
            adapter,
            canary,
            answer,
        } => {
            // Nobody may be waiting any more; the work is then wasted but harmless.
            let _ = answer.send(loading::load(*adapter, &canary, scheduler, adapters));
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

impl EngineHandle {
    /// Queues one answer.
    ///
    /// # Errors
    /// As [`EngineHandle::generate_choices`].
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        let seeds = [request.sampling.seed];
        let mut generations = self.generate_choices(request, &seeds)?;
        generations.pop().ok_or(EngineError::Stopped)
    }

    /// Queues an answer for each of `seeds`, which replace the one in the request. Their prompt is computed once.
    ///
    /// # Errors
    /// [`EngineError::Busy`] at once when the engine is full, [`EngineError::AdapterNotLoaded`],
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], [`EngineError::TokenOutOfRange`],
    /// [`EngineError::FormTooLong`], [`EngineError::Stopped`].
    pub fn generate_choices(
        &self,
        request: GenerateRequest,
        seeds: &[u64],
    ) -> Result<Vec<Generation>, EngineError> {
        let max_tokens = self.check(&request)?;
        let places = seeds
            .iter()
            .map(|_| self.place())
            .collect::<Result<Vec<_>, _>>()?;
        let adapter = match &request.adapter {
            None => None,
            Some(id) => {
                let found = self.adapters().use_adapter(id);
                Some(found.ok_or_else(|| EngineError::AdapterNotLoaded {
                    adapter: id.clone(),
                })?)
            }
        };
        let prompt_tokens = request.prompt.len();
        let (mut generations, mut choices) = (Vec::new(), Vec::new());
        for (seed, place) in seeds.iter().zip(places) {
            // Unbounded in type, bounded in fact: at most one event a token and one at the end.
            let (events, receiver) = mpsc::unbounded_channel();
            let progress = Arc::new(AtomicU64::new(0));
            let sampling = SamplingParams {
                seed: *seed,
                ..request.sampling.clone()
            };
            generations.push(Generation {
                prompt_tokens,
                events: receiver,
                progress: Arc::clone(&progress),
            });
            choices.push(Choice {
                sampler: Sampler::new(sampling, &request.prompt),
                matcher: request.grammar.as_ref().map(Matcher::new),
                text: AnswerText::new(request.stop.clone()),
                events,
                progress,
                _place: place,
            });
        }
        let flow = request.flow.or(request.adapter).unwrap_or_default();
        let root = Root {
            scope: request.cache_scope.into(),
            adapter: adapter.as_ref().map_or(0, |adapter| adapter.instance),
        };
        let question = Arc::new(Question {
            prompt: request.prompt,
            adapter,
            max_tokens,
            logprobs: request.logprobs,
            flow: flow.into(),
            root,
        });
        // The last one leads.
        choices.reverse();
        self.send(Command::Generate(Box::new(Arrival { question, choices })))?;
        Ok(generations)
    }

    /// Most tokens of the answer to a request that can be answered.
    fn check(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
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
        let room = limits.context - prompt_tokens;
        let max_tokens = request.max_tokens.map_or(room, |limit| limit.min(room));
        if let Some(grammar) = &request.grammar
            && grammar.least_bytes() > max_tokens
        {
            return Err(EngineError::FormTooLong {
                needed: grammar.least_bytes(),
                limit: max_tokens,
            });
        }
        Ok(max_tokens)
    }

    /// Forgets an adapter; requests that run on it finish. Returns whether it was loaded.
    pub fn unload_adapter(&self, id: &str) -> bool {
        self.adapters().remove(id)
    }

    /// The loaded adapters by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        self.adapters().list()
    }

    /// Keeps a loaded adapter in memory until the pin is dropped; `None` when it is not loaded.
    pub fn pin_adapter(&self, id: &str) -> Option<AdapterPin> {
        self.adapters().use_adapter(id).map(AdapterPin)
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
            blocks: counters.blocks.load(Ordering::Relaxed),
            preempted: counters.preempted.load(Ordering::Relaxed),
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

    pub(crate) fn send(&self, command: Command) -> Result<(), EngineError> {
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

    pub(crate) fn adapters(&self) -> std::sync::MutexGuard<'_, AdapterCache> {
        self.shared
            .adapters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
