//! Adapters into the engine: from files or matrices, checked, into memory.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use zerog_model::LoraAdapter;
use zerog_tokenization::ChatMessage;

use crate::adapter_package::{PackageError, PackageSource};
use crate::adapters::{AdapterCache, LoadedAdapter, NoRoom};
use crate::canary::{self, Canary, CanaryError, CanaryReport, Tolerance};
use crate::engine::{Command, EngineHandle};
use crate::error::EngineError;
use crate::scheduler::Scheduler;

/// How the reference logits of an adapter are dealt with when it is loaded.
#[derive(Debug, Clone)]
pub enum CanaryCheck {
    /// Run them: the first load of this adapter on this base by this program.
    Run(Canary),
    /// There are none, and the operator accepts that: the adapter must make a difference to these prompts.
    EffectOnly(Vec<Vec<u32>>),
    /// They have passed before on this base and this program (`docs/protocol.md`, adapters).
    PassedBefore,
}

/// Whether a package has been loaded on this base by this program before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It has, and everything held; only its files are read.
    PassedBefore,
    /// It has not.
    FirstLoad {
        /// Whether a package without reference logits is accepted when it makes a difference to the base model.
        accepts_unrecorded: bool,
    },
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
#[derive(Debug, thiserror::Error)]
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
    /// The package is refused before anything is computed.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Every loaded adapter is in use.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl EngineHandle {
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
        if !weights.fits(self.model().config()) {
            return Err(CanaryError::WrongShape.into());
        }
        let adapter = LoadedAdapter::new(id, weights);
        // Nothing has to be computed, so nothing has to wait for the step that is being computed.
        if matches!(canary, CanaryCheck::PassedBefore) {
            return insert(adapter, None, &mut self.adapters());
        }
        let adapter = Box::new(adapter);
        let (answer, result) = oneshot::channel();
        self.send(Command::Load {
            adapter,
            canary: Box::new(canary),
            answer,
        })?;
        result.await.map_err(|_| EngineError::Stopped)?
    }

    /// Loads an adapter from its package. Reading runs off the caller's thread.
    ///
    /// The first time everything about the package is compared with what is served, and its reference logits are run.
    ///
    /// # Errors
    /// [`LoadError`] with the reason; nothing is loaded then.
    pub async fn load_package(
        &self,
        id: &str,
        source: PackageSource,
        trust: Trust,
    ) -> Result<LoadReport, LoadError> {
        let engine = self.clone();
        let read = move || engine.read_package(&source, trust);
        let read = tokio::task::spawn_blocking(read).await;
        let (weights, check) = read.map_err(|_| EngineError::Computation {
            reason: "reading the adapter panicked".into(),
        })??;
        self.load_adapter(id, weights, check).await
    }

    fn read_package(
        &self,
        source: &PackageSource,
        trust: Trust,
    ) -> Result<(Arc<LoraAdapter>, CanaryCheck), LoadError> {
        let package = source.read()?;
        let model = self.model();
        let check = match (trust, package.canary.as_ref()) {
            (Trust::PassedBefore, _) => CanaryCheck::PassedBefore,
            (_, Some(canary)) => CanaryCheck::Run(canary.clone()),
            (Trust::FirstLoad { accepts_unrecorded }, None) if accepts_unrecorded => {
                CanaryCheck::EffectOnly(self.effect_prompts())
            }
            (Trust::FirstLoad { .. }, None) => return Err(CanaryError::NoRecord.into()),
        };
        if !matches!(check, CanaryCheck::PassedBefore) {
            package.check_fits(model, self.tokenizer())?;
        }
        let weights = LoraAdapter::from_bytes(&package.config, &package.weights, model.config());
        let weights = weights.map_err(|error| LoadError::Files {
            reason: error.to_string(),
        })?;
        Ok((Arc::new(weights), check))
    }

    /// Prompts by which an adapter without a record is compared with the base model.
    fn effect_prompts(&self) -> Vec<Vec<u32>> {
        let tokenizer = self.tokenizer();
        let texts = [
            "Hello! Who are you?",
            "What can you help me with?",
            "1 + 1 =",
        ];
        let prompts = texts.iter().filter_map(|text| {
            let message = [ChatMessage::new("user", *text)];
            let rendered = tokenizer.render_chat(&message, None, true);
            let tokens = tokenizer.encode(rendered.as_deref().unwrap_or(text), false);
            tokens.ok().filter(|tokens| !tokens.is_empty())
        });
        prompts.collect()
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
}

pub(crate) fn load(
    adapter: LoadedAdapter,
    check: &CanaryCheck,
    scheduler: &mut Scheduler,
    adapters: &Mutex<AdapterCache>,
) -> Result<LoadReport, LoadError> {
    let executor = scheduler.executor();
    let canary = match check {
        CanaryCheck::Run(reference) => {
            let tolerance = if executor.is_rounded() {
                Tolerance::ROUNDED
            } else {
                Tolerance::EXACT
            };
            Some(canary::check(
                reference,
                &adapter.weights,
                tolerance,
                executor,
            )?)
        }
        CanaryCheck::EffectOnly(prompts) => {
            let effect = canary::effect(prompts, &adapter.weights, executor)?;
            tracing::debug!(
                adapter.id = adapter.id,
                effect,
                "an adapter without a record was probed"
            );
            None
        }
        CanaryCheck::PassedBefore => None,
    };
    let mut adapters = adapters.lock().unwrap_or_else(PoisonError::into_inner);
    insert(adapter, canary, &mut adapters)
}

fn insert(
    adapter: LoadedAdapter,
    canary: Option<CanaryReport>,
    adapters: &mut AdapterCache,
) -> Result<LoadReport, LoadError> {
    let bytes = adapter.bytes;
    let evicted = adapters.insert(adapter)?;
    Ok(LoadReport {
        canary,
        evicted,
        bytes,
    })
}
