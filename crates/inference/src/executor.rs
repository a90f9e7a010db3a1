//! The model and the memory of its caches: the only code of this crate that runs the network.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use zerog_model::{BaseModel, KvCache, KvPool, LogitsWanted, LoraAdapter, Row, Serving};

use crate::error::EngineError;

/// New tokens of one sequence.
pub(crate) struct SequenceRow<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) cache: &'a mut KvCache,
    pub(crate) adapter: Option<Arc<LoraAdapter>>,
    /// Whether a token is chosen after this row.
    pub(crate) samples: bool,
}

/// A base model where it serves.
pub(crate) struct Executor {
    serving: Serving,
}

impl Executor {
    pub(crate) fn new(serving: Serving) -> Self {
        Self { serving }
    }

    pub(crate) fn model(&self) -> &Arc<BaseModel> {
        self.serving.model()
    }

    pub(crate) fn pool(&self) -> &Arc<KvPool> {
        self.serving.pool()
    }

    /// Whether weights or activations are rounded more than in the model's files.
    pub(crate) fn is_rounded(&self) -> bool {
        self.serving.is_rounded()
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
        self.serving.logits(place)
    }

    /// Logits after the last of `tokens`, on a cache of their own.
    pub(crate) fn probe(
        &mut self,
        tokens: &[u32],
        adapter: Option<Arc<LoraAdapter>>,
    ) -> Result<Vec<f32>, EngineError> {
        let mut cache = KvCache::in_pool(self.pool());
        let mut batch = [Row {
            tokens,
            cache: &mut cache,
            adapter,
            wanted: LogitsWanted::Last,
        }];
        let place = self.run(&mut batch)?.pop().unwrap_or_default();
        Ok(self.logits(place).to_vec())
    }

    /// Runs the network. A panic in the numeric code is a bug, and a device can fail; both cost the requests of this
    /// step, not the engine.
    fn run(&mut self, batch: &mut [Row<'_>]) -> Result<Vec<Range<usize>>, EngineError> {
        catch_unwind(AssertUnwindSafe(|| self.serving.forward(batch)))
            .map_err(|_| "the numeric code panicked".to_owned())
            .and_then(|outcome| outcome.map_err(|error| error.to_string()))
            .map_err(|reason| EngineError::Computation { reason })
    }
}
