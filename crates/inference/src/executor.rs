//! The model with one cache per place: the only code of this crate that runs the network.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use zerog_model::{BaseModel, InferenceScratch, KvCache, LogitsWanted, LoraAdapter, Row};

use crate::error::EngineError;

/// New tokens of the sequence in one slot.
pub(crate) struct SlotRow<'a> {
    pub(crate) slot: usize,
    pub(crate) tokens: &'a [u32],
    pub(crate) adapter: Option<Arc<LoraAdapter>>,
    /// Whether a token is chosen after this row.
    pub(crate) samples: bool,
}

/// A base model and the caches of its slots.
pub(crate) struct Executor {
    model: Arc<BaseModel>,
    caches: Vec<KvCache>,
    scratch: InferenceScratch,
}

impl Executor {
    pub(crate) fn new(model: Arc<BaseModel>, slots: usize) -> Self {
        let caches = (0..slots)
            .map(|_| KvCache::new(model.config(), 0))
            .collect();
        Self {
            model,
            caches,
            scratch: InferenceScratch::default(),
        }
    }

    pub(crate) fn model(&self) -> &BaseModel {
        &self.model
    }

    /// Forgets the sequence of a slot and gives its memory back.
    pub(crate) fn clear(&mut self, slot: usize) {
        self.caches[slot] = KvCache::new(self.model.config(), 0);
    }

    /// Reserves memory for a sequence about to start.
    pub(crate) fn prepare(&mut self, slot: usize, expected_tokens: usize) {
        self.caches[slot] = KvCache::new(self.model.config(), expected_tokens);
    }

    /// Advances the slots of `rows`, which are all different. Returns logits for the rows that sample, empty ones for
    /// the others.
    pub(crate) fn forward(&mut self, rows: &[SlotRow<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut caches: Vec<Option<&mut KvCache>> = self.caches.iter_mut().map(Some).collect();
        let mut batch = Vec::with_capacity(rows.len());
        for row in rows {
            let cache = caches
                .get_mut(row.slot)
                .and_then(Option::take)
                .expect("rows have different slots");
            let wanted = if row.samples {
                LogitsWanted::Last
            } else {
                LogitsWanted::None
            };
            batch.push(Row {
                tokens: row.tokens,
                cache,
                adapter: row.adapter.clone(),
                wanted,
            });
        }
        run(&self.model, &mut batch, &mut self.scratch)
    }

    /// Logits after the last of `tokens`, on a cache of their own.
    pub(crate) fn probe(
        &mut self,
        tokens: &[u32],
        adapter: Option<Arc<LoraAdapter>>,
    ) -> Result<Vec<f32>, EngineError> {
        let mut cache = KvCache::new(self.model.config(), tokens.len());
        let mut batch = [Row {
            tokens,
            cache: &mut cache,
            adapter,
            wanted: LogitsWanted::Last,
        }];
        let mut logits = run(&self.model, &mut batch, &mut self.scratch)?;
        logits.pop().ok_or_else(|| EngineError::Computation {
            reason: "no logits".into(),
        })
    }
}

/// Runs the network. A panic in the numeric code is a bug; it costs the requests of this step, not the engine.
fn run(
    model: &BaseModel,
    batch: &mut [Row<'_>],
    scratch: &mut InferenceScratch,
) -> Result<Vec<Vec<f32>>, EngineError> {
    catch_unwind(AssertUnwindSafe(|| model.forward(batch, scratch)))
        .map_err(|_| "the numeric code panicked".to_owned())
        .and_then(|outcome| outcome.map_err(|error| error.to_string()))
        .map_err(|reason| EngineError::Computation { reason })
}
