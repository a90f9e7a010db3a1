//! When a run measures the examples that were set aside, what counts as better, and when it has waited long enough.

use serde::{Deserialize, Serialize};
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::RenderReport;

use crate::error::TrainError;

/// How many tokens may be read for measuring for each token that is trained, which is what the fee is for. Reading
/// costs about a third of training.
const MEASURED_PER_TRAINED: u64 = 3;

/// When to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Steps between two measurements; `None` = at the end of each epoch.
    every: Option<u64>,
    examples: u64,
    per_step: u64,
    total_steps: u64,
    /// Examples that the whole run reads.
    total_examples: u64,
}

impl Plan {
    /// The plan of a run over `examples` training examples; `None` if nothing was set aside.
    ///
    /// # Errors
    /// [`TrainError::Params`] if measuring would take more than the training that it is for.
    pub(crate) fn new(
        params: &TrainingParams,
        report: &RenderReport,
        total_steps: u64,
    ) -> Result<Option<Self>, TrainError> {
        if report.validation_examples == 0 {
            return Ok(None);
        }
        let plan = Self {
            every: (params.eval_steps > 0).then_some(u64::from(params.eval_steps)),
            examples: report.examples as u64,
            per_step: params.examples_per_step(),
            total_steps,
            total_examples: params.total_examples(report.examples as u64),
        };
        let measured = plan.measurements().saturating_mul(report.validation_tokens);
        let trained = u128::from(report.tokens) * u128::from(plan.total_examples)
            / u128::from(plan.examples.max(1));
        if u128::from(measured) > trained * u128::from(MEASURED_PER_TRAINED) {
            return Err(TrainError::Params(format!(
                "{} evaluations of {} validation examples would read {measured} tokens, more than {MEASURED_PER_TRAINED} times the {trained} tokens of training; raise eval_steps or measure fewer records",
                plan.measurements(),
                report.validation_examples
            )));
        }
        Ok(Some(plan))
    }

    /// Whether to measure after `step` steps. The last state always is.
    pub(crate) fn is_due(&self, step: u64) -> bool {
        let epoch = |step: u64| step * self.per_step / self.examples.max(1);
        step == self.total_steps
            || match self.every {
                Some(every) => step.is_multiple_of(every),
                None => epoch(step) > epoch(step - 1),
            }
    }

    fn measurements(&self) -> u64 {
        match self.every {
            Some(every) => self.total_steps.div_ceil(every),
            // An epoch's end and the run's end are the same step, or the run ends within an epoch.
            None => self.total_examples.div_ceil(self.examples.max(1)),
        }
    }
}

/// A measured state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: u64,
    /// Its loss, as bits, so that it is read exactly as it was written.
    loss_bits: u64,
}

impl State {
    pub(crate) fn eval_loss(self) -> f64 {
        f64::from_bits(self.loss_bits)
    }
}

/// What the measurements so far amount to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurements {
    /// The state with the lowest loss.
    pub(crate) best: Option<State>,
    /// The state that was measured last.
    pub(crate) last: Option<State>,
    /// Measurements since the loss fell by more than the threshold.
    waited: u32,
}

impl Measurements {
    /// Adds the measurement after `step` steps; returns whether it is the best so far. The rules are those of the
    /// transformers library: any lower loss is the best, only a fall by more than the threshold renews the patience.
    pub(crate) fn add(&mut self, step: u64, eval_loss: f64, params: &TrainingParams) -> bool {
        let before = self.best.map_or(f64::INFINITY, State::eval_loss);
        match before - eval_loss > params.early_stopping_threshold {
            true => self.waited = 0,
            false => self.waited += 1,
        }
        let is_best = eval_loss < before;
        self.last = Some(State {
            step,
            loss_bits: eval_loss.to_bits(),
        });
        if is_best {
            self.best = self.last;
        }
        is_best
    }

    /// Whether training should end now.
    pub(crate) fn is_enough(&self, params: &TrainingParams) -> bool {
        params.early_stopping_patience > 0 && self.waited >= params.early_stopping_patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(examples: usize, validation_examples: usize) -> RenderReport {
        RenderReport {
            examples,
            tokens: 10 * examples as u64,
            validation_examples,
            validation_tokens: 10 * validation_examples as u64,
            ..RenderReport::default()
        }
    }

    fn params(eval_steps: u32) -> TrainingParams {
        TrainingParams {
            num_train_epochs: 3,
            per_device_train_batch_size: 4,
            eval_steps,
            ..TrainingParams::default()
        }
    }

    fn due(eval_steps: u32, examples: usize) -> Vec<u64> {
        let params = params(eval_steps);
        let total = params.total_steps(examples as u64);
        let plan = Plan::new(&params, &report(examples, 2), total)
            .unwrap()
            .unwrap();
        let due: Vec<u64> = (1..=total).filter(|step| plan.is_due(*step)).collect();
        assert_eq!(due.len() as u64, plan.measurements());
        due
    }

    #[test]
    fn measurements_come_at_epochs_or_steps_and_at_the_end() {
        assert_eq!(due(0, 8), [2, 4, 6]);
        assert_eq!(due(0, 10), [3, 5, 8]);
        assert_eq!(due(4, 10), [4, 8]);
        assert_eq!(due(5, 10), [5, 8]);
        assert_eq!(due(100, 10), [8]);
        assert!(Plan::new(&params(1), &report(10, 0), 8).unwrap().is_none());
        let error = Plan::new(&params(1), &report(10, 40), 8).unwrap_err();
        assert!(error.to_string().contains("eval_steps"), "{error}");
    }

    #[test]
    fn patience_ends_after_measurements_without_a_better_one() {
        let params = TrainingParams {
            early_stopping_patience: 2,
            early_stopping_threshold: 0.1,
            ..params(1)
        };
        let mut measurements = Measurements::default();
        assert!(measurements.add(1, 2.0, &params));
        // Better, but by too little to wait longer.
        assert!(measurements.add(2, 1.95, &params));
        assert!(!measurements.is_enough(&params));
        assert!(!measurements.add(3, 1.96, &params));
        assert!(measurements.is_enough(&params));
        assert_eq!(measurements.best.map(|best| best.step), Some(2));
        assert!(!measurements.is_enough(&TrainingParams::default()));
        assert!(measurements.add(4, 1.0, &params) && !measurements.is_enough(&params));
    }
}
