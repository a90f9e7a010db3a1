//! The life of a deployed adapter: `init → pending → downloading → ready → loading → active`, with `offloaded` and
//! `archived` as tiers it can come back from, and `failed`, which a new deployment leaves.

use serde::{Deserialize, Serialize};
use zerog_protocol::adapter::AdapterState;

use crate::deadline::Timestamp;

/// Attempts of a fetch or a load before the adapter fails.
const ATTEMPTS: u32 = 6;
/// First and longest pause between attempts in milliseconds.
const PAUSES_MS: (u64, u64) = (1_000, 60_000);

/// What decides about an adapter's future.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Where it stands.
    pub state: AdapterState,
    /// Number of the newest effect.
    pub generation: u32,
    /// The effect whose outcome it waits for.
    pub work: Option<AdapterEffectKey>,
    /// Failures of the present work.
    pub failures: u32,
    /// Whether somebody wants it served, so that it is loaded as soon as its files are there.
    pub is_wanted: bool,
    /// Whether its files are on this machine.
    pub has_files: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// Work on an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterEffectKind {
    /// Download, check, decrypt and seal the files at rest.
    FetchAdapter,
    /// Load into the engine and compare the canary.
    LoadAdapter,
    /// Take out of the engine.
    UnloadAdapter,
}

impl AdapterEffectKind {
    /// The stable name, as stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FetchAdapter => "fetch_adapter",
            Self::LoadAdapter => "load_adapter",
            Self::UnloadAdapter => "unload_adapter",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::FetchAdapter, Self::LoadAdapter, Self::UnloadAdapter]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// Names one effect of one adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AdapterEffectKey {
    /// What is done.
    pub kind: AdapterEffectKind,
    /// Number within the adapter.
    pub generation: u32,
}

/// One effect to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterEffect {
    /// Its name within the adapter.
    pub key: AdapterEffectKey,
    /// Not before.
    pub due: Timestamp,
}

/// What can happen to an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterEvent {
    /// The acknowledgement is on chain.
    Acknowledged,
    /// Its owner wants it served: a deployment, or a chat with an adapter that is not loaded.
    DeployRequested,
    /// An executor has begun.
    Started {
        /// Which effect.
        effect: AdapterEffectKey,
    },
    /// The files are on this machine.
    Fetched {
        /// The fetch.
        effect: AdapterEffectKey,
    },
    /// The engine serves it and the canary agreed.
    Loaded {
        /// The load.
        effect: AdapterEffectKey,
    },
    /// An effect failed.
    Failed {
        /// Which one.
        effect: AdapterEffectKey,
        /// Text for the owner.
        detail: String,
        /// Whether trying again cannot help.
        is_permanent: bool,
    },
    /// The engine dropped it to make room.
    Offloaded,
    /// It is back in the engine, from files whose canary had passed before.
    Resumed,
    /// Its files were removed to make room; they are still in storage.
    Archived,
    /// The engine is new and holds nothing.
    EngineRestarted,
}

/// An adapter after an event, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterTransition {
    /// The new state.
    pub adapter: Adapter,
    /// New effects.
    pub effects: Vec<AdapterEffect>,
}

/// An event that changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not apply to an adapter that is {state}")]
pub struct AdapterRejected {
    /// State of the adapter.
    pub state: AdapterState,
    /// Name of the event.
    pub event: &'static str,
}

impl Adapter {
    /// An adapter whose key is known and whose acknowledgement has not been seen.
    #[must_use]
    pub fn announced() -> Self {
        Self {
            state: AdapterState::Init,
            generation: 0,
            work: None,
            failures: 0,
            is_wanted: false,
            has_files: false,
            error: None,
        }
    }

    /// Whether the outcome of this effect would still be accepted.
    #[must_use]
    pub fn waits_for(&self, effect: AdapterEffectKey) -> bool {
        self.work == Some(effect)
    }
}

impl AdapterTransition {
    fn issue(&mut self, kind: AdapterEffectKind, due: Timestamp) -> AdapterEffectKey {
        self.adapter.generation = self.adapter.generation.saturating_add(1);
        let key = AdapterEffectKey {
            kind,
            generation: self.adapter.generation,
        };
        self.effects.push(AdapterEffect { key, due });
        key
    }

    fn start(&mut self, kind: AdapterEffectKind, due: Timestamp) {
        self.adapter.error = None;
        self.adapter.work = Some(self.issue(kind, due));
        self.adapter.state = match kind {
            AdapterEffectKind::LoadAdapter => AdapterState::Loading,
            _ if self.adapter.state == AdapterState::Downloading => AdapterState::Downloading,
            _ => AdapterState::Pending,
        };
    }

    /// The shortest way to a served adapter from what is on this machine.
    fn bring_up(&mut self, now: Timestamp) {
        self.adapter.failures = 0;
        let kind = if self.adapter.has_files {
            AdapterEffectKind::LoadAdapter
        } else {
            AdapterEffectKind::FetchAdapter
        };
        self.start(kind, now);
    }
}

/// Applies one event to an adapter.
///
/// # Errors
/// [`AdapterRejected`]: the event changes nothing.
pub fn apply(
    adapter: &Adapter,
    event: &AdapterEvent,
    now: Timestamp,
) -> Result<AdapterTransition, AdapterRejected> {
    let rejected = |event| {
        Err(AdapterRejected {
            state: adapter.state,
            event,
        })
    };
    let mut next = AdapterTransition {
        adapter: adapter.clone(),
        effects: Vec::new(),
    };
    match event {
        AdapterEvent::Acknowledged => {
            if adapter.state != AdapterState::Init {
                return rejected("an acknowledgement");
            }
            next.bring_up(now);
        }
        AdapterEvent::DeployRequested => match adapter.state {
            // Without the acknowledgement nothing may be fetched; the wish is kept.
            AdapterState::Init => next.adapter.is_wanted = true,
            AdapterState::Pending | AdapterState::Downloading => next.adapter.is_wanted = true,
            AdapterState::Loading | AdapterState::Active => {
                if adapter.is_wanted {
                    return rejected("a deployment");
                }
                next.adapter.is_wanted = true;
            }
            _ => {
                next.adapter.is_wanted = true;
                next.bring_up(now);
            }
        },
        AdapterEvent::Started { effect } => {
            if !adapter.waits_for(*effect) {
                return rejected("a late start");
            }
            if effect.kind == AdapterEffectKind::FetchAdapter {
                next.adapter.state = AdapterState::Downloading;
            }
        }
        AdapterEvent::Fetched { effect } => {
            if !adapter.waits_for(*effect) || effect.kind != AdapterEffectKind::FetchAdapter {
                return rejected("a late fetch");
            }
            next.adapter.has_files = true;
            next.adapter.failures = 0;
            next.adapter.work = None;
            next.adapter.state = AdapterState::Ready;
            if adapter.is_wanted {
                next.start(AdapterEffectKind::LoadAdapter, now);
            }
        }
        AdapterEvent::Loaded { effect } => {
            if !adapter.waits_for(*effect) || effect.kind != AdapterEffectKind::LoadAdapter {
                return rejected("a late load");
            }
            next.adapter.failures = 0;
            next.adapter.work = None;
            next.adapter.state = AdapterState::Active;
        }
        AdapterEvent::Failed {
            effect,
            detail,
            is_permanent,
        } => {
            if !adapter.waits_for(*effect) {
                return rejected("a late failure");
            }
            let failures = adapter.failures.saturating_add(1);
            if *is_permanent || failures >= ATTEMPTS {
                next.adapter.work = None;
                next.adapter.failures = 0;
                next.adapter.is_wanted = false;
                next.adapter.state = AdapterState::Failed;
                next.adapter.error = Some(detail.clone());
            } else {
                let pause = PAUSES_MS
                    .0
                    .saturating_mul(1u64 << failures.saturating_sub(1).min(20))
                    .min(PAUSES_MS.1);
                next.start(effect.kind, now.plus_ms(pause));
                next.adapter.failures = failures;
                next.adapter.error = Some(detail.clone());
            }
        }
        AdapterEvent::Offloaded => {
            if adapter.state != AdapterState::Active {
                return rejected("an offload");
            }
            next.adapter.is_wanted = false;
            next.adapter.state = AdapterState::Offloaded;
        }
        AdapterEvent::Resumed => {
            let has_passed = matches!(adapter.state, AdapterState::Ready | AdapterState::Offloaded);
            if !has_passed || !adapter.has_files {
                return rejected("a return to the engine");
            }
            next.adapter.is_wanted = true;
            next.adapter.failures = 0;
            next.adapter.error = None;
            next.adapter.state = AdapterState::Active;
        }
        AdapterEvent::Archived => {
            if !matches!(adapter.state, AdapterState::Ready | AdapterState::Offloaded) {
                return rejected("an archival");
            }
            next.adapter.has_files = false;
            next.adapter.is_wanted = false;
            next.adapter.state = AdapterState::Archived;
        }
        AdapterEvent::EngineRestarted => match adapter.state {
            AdapterState::Loading | AdapterState::Active => {
                next.adapter.work = None;
                next.adapter.failures = 0;
                next.adapter.is_wanted = false;
                next.adapter.state = AdapterState::Ready;
            }
            _ => return rejected("an engine restart"),
        },
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn step(adapter: &Adapter, event: &AdapterEvent) -> AdapterTransition {
        apply(adapter, event, NOW).unwrap()
    }

    #[test]
    fn a_wanted_adapter_becomes_active_and_comes_back_after_a_restart() {
        let announced = Adapter::announced();
        let next = step(&announced, &AdapterEvent::DeployRequested);
        assert_eq!(
            (next.adapter.state, next.effects.len()),
            (AdapterState::Init, 0)
        );
        let next = step(&next.adapter, &AdapterEvent::Acknowledged);
        assert_eq!(next.adapter.state, AdapterState::Pending);
        let fetch = next.effects.first().unwrap().key;
        let next = step(&next.adapter, &AdapterEvent::Started { effect: fetch });
        assert_eq!(next.adapter.state, AdapterState::Downloading);
        let next = step(&next.adapter, &AdapterEvent::Fetched { effect: fetch });
        assert_eq!(next.adapter.state, AdapterState::Loading);
        let load = next.effects.first().unwrap().key;
        assert!(apply(&next.adapter, &AdapterEvent::Fetched { effect: fetch }, NOW).is_err());
        let next = step(&next.adapter, &AdapterEvent::Loaded { effect: load });
        assert_eq!(next.adapter.state, AdapterState::Active);
        let next = step(&next.adapter, &AdapterEvent::EngineRestarted);
        assert_eq!(next.adapter.state, AdapterState::Ready);
        let next = step(&next.adapter, &AdapterEvent::DeployRequested);
        assert_eq!(next.adapter.state, AdapterState::Loading);
        assert_eq!(
            next.effects.first().unwrap().key.kind,
            AdapterEffectKind::LoadAdapter
        );
    }

    #[test]
    fn a_failed_adapter_says_why_and_can_be_deployed_again() {
        let mut adapter = step(&Adapter::announced(), &AdapterEvent::Acknowledged).adapter;
        for attempt in 1..=ATTEMPTS {
            let effect = adapter.work.unwrap();
            let event = AdapterEvent::Failed {
                effect,
                detail: format!("no {attempt}"),
                is_permanent: false,
            };
            adapter = step(&adapter, &event).adapter;
        }
        assert_eq!(
            (adapter.state, adapter.error.as_deref()),
            (AdapterState::Failed, Some("no 6"))
        );
        let next = step(&adapter, &AdapterEvent::DeployRequested);
        assert_eq!(
            (next.adapter.state, next.adapter.error),
            (AdapterState::Pending, None)
        );
    }

    #[test]
    fn an_offloaded_adapter_comes_back_without_an_effect_but_an_archived_one_does_not() {
        let mut adapter = Adapter::announced();
        adapter.state = AdapterState::Offloaded;
        adapter.has_files = true;
        let next = step(&adapter, &AdapterEvent::Resumed);
        assert_eq!(
            (next.adapter.state, next.effects.len()),
            (AdapterState::Active, 0)
        );
        assert!(apply(&next.adapter, &AdapterEvent::Resumed, NOW).is_err());
        let archived = step(&adapter, &AdapterEvent::Archived).adapter;
        assert!(apply(&archived, &AdapterEvent::Resumed, NOW).is_err());
    }

    #[test]
    fn an_archived_adapter_is_fetched_again() {
        let mut adapter = Adapter::announced();
        adapter.state = AdapterState::Offloaded;
        adapter.has_files = true;
        let adapter = step(&adapter, &AdapterEvent::Archived).adapter;
        let next = step(&adapter, &AdapterEvent::DeployRequested);
        assert_eq!(
            next.effects.first().unwrap().key.kind,
            AdapterEffectKind::FetchAdapter
        );
        assert!(apply(&next.adapter, &AdapterEvent::Offloaded, NOW).is_err());
    }
}
