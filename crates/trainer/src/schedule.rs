//! The learning rate of every step.

use zerog_protocol::training_params::{LearningRateSchedule, TrainingParams};

/// Warm-up and decay of one run.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    peak: f64,
    warmup_steps: u64,
    total_steps: u64,
    shape: LearningRateSchedule,
}

impl Schedule {
    /// The schedule of a run of `total_steps`. `warmup_steps` wins over `warmup_ratio`; warm-up
    /// never takes the whole run, so that short runs reach their learning rate.
    pub fn new(params: &TrainingParams, total_steps: u64) -> Self {
        let wanted = match params.warmup_steps {
            0 => (params.warmup_ratio * total_steps as f64).ceil() as u64,
            steps => u64::from(steps),
        };
        Self {
            peak: params.learning_rate,
            warmup_steps: wanted.min(total_steps.saturating_sub(1)),
            total_steps,
            shape: params.lr_scheduler_type,
        }
    }

    /// Learning rate of step `step`, counted from 0.
    ///
    /// Warm-up ends at the peak in its last step and does not begin at zero: a first step
    /// without effect would waste a noticeable part of a short run.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decaying = (self.total_steps - self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / decaying).min(1.0);
        match self.shape {
            LearningRateSchedule::Cosine => {
                self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            LearningRateSchedule::Linear => self.peak * (1.0 - progress),
            LearningRateSchedule::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: LearningRateSchedule, warmup_steps: u32, total: u64) -> Schedule {
        let params = TrainingParams {
            learning_rate: 1.0,
            warmup_steps,
            warmup_ratio: 0.0,
            lr_scheduler_type: shape,
            ..TrainingParams::default()
        };
        Schedule::new(&params, total)
    }

    #[test]
    fn every_shape_warms_up_and_decays() {
        let at = |shape, step| schedule(shape, 4, 12).learning_rate(step);
        for shape in [
            LearningRateSchedule::Cosine,
            LearningRateSchedule::Linear,
            LearningRateSchedule::Constant,
        ] {
            assert_eq!(
                [at(shape, 0), at(shape, 1), at(shape, 3), at(shape, 4)],
                [0.25, 0.5, 1.0, 1.0]
            );
        }
        assert_eq!(at(LearningRateSchedule::Constant, 11), 1.0);
        assert!((at(LearningRateSchedule::Linear, 8) - 0.5).abs() < 1e-12);
        assert!((at(LearningRateSchedule::Cosine, 8) - 0.5).abs() < 1e-12);
        assert!(at(LearningRateSchedule::Cosine, 11) > 0.0);
    }

    #[test]
    fn warm_up_leaves_room_in_short_runs() {
        assert_eq!(
            schedule(LearningRateSchedule::Linear, 100, 3).learning_rate(2),
            1.0
        );
        assert_eq!(
            schedule(LearningRateSchedule::Cosine, 10, 1).learning_rate(0),
            1.0
        );
        let params = TrainingParams {
            warmup_ratio: 0.1,
            learning_rate: 1.0,
            ..TrainingParams::default()
        };
        assert_eq!(Schedule::new(&params, 20).learning_rate(0), 0.5);
    }
}
