//! The model and the memory of its caches: the only code of this crate that runs the network.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use zerog_model::{BaseModel, InferenceScratch, KvCache, KvPool, LogitsWanted, LoraAdapter, Row};

use crate::error::EngineError;

/// New tokens of one sequence.
pub(crate) struct SequenceRow<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) cache: &'a mut KvCache,
    pub(crate) adapter: Option<Arc<LoraAdapter>>,
    /// Whether a token is chosen after this row.
    pub(crate) samples: bool,
}

/// A base model, the blocks of its caches and its working memory.
pub(crate) struct Executor {
    model: Arc<BaseModel>,
    pool: Arc<KvPool>,
    scratch: InferenceScratch,
}

impl Executor {
    pub(crate) fn new(model: Arc<BaseModel>) -> Self {
        Self {
            pool: KvPool::new(model.config()),
            model,
            scratch: InferenceScratch::default(),
        }
    }

    pub(crate) fn model(&self) -> &BaseModel {
        &self.model
    }

    pub(crate) fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// Advances the sequences of `rows` and returns where the logits of each one are; an empty place for those that do
    /// not sample.
    pub(crate) fn forward(
        &mut self,
        rows: Vec<SequenceRow<'_>>,
    ) -> Result<Vec<Range<usize>>, EngineError> {
        let mut batch: Vec<Row<'_>> = rows
            .into_iter()
            .map(|row| Row {
                tokens: row.tokens,
                cache: row.cache,
                adapter: row.adapter,
                wanted: if row.samples {
                    LogitsWanted::Last
                } else {
                    LogitsWanted::None
                },
            })
            .collect();
        self.run(&mut batch)
    }

    /// The logits at a place of the last step.
    pub(crate) fn logits(&self, place: Range<usize>) -> &[f32] {
        self.scratch.logits(place)
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
        let place = self.run(&mut batch)?.pop().unwrap_or_default();
        Ok(self.logits(place).to_vec())
    }

    /// Runs the network. A panic in the numeric code is a bug; it costs the requests of this step, not the engine.
    fn run(&mut self, batch: &mut [Row<'_>]) -> Result<Vec<Range<usize>>, EngineError> {
        let Self { model, scratch, .. } = self;
        catch_unwind(AssertUnwindSafe(|| model.forward_in_place(batch, scratch)))
            .map_err(|_| "the numeric code panicked".to_owned())
            .and_then(|outcome| outcome.map_err(|error| error.to_string()))
            .map_err(|reason| EngineError::Computation { reason })
    }
}
