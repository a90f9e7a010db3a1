//! The losses in a task's log.

use pyo3::prelude::*;
use zerog_sdk::loss_curve::{EvaluationPoint, LossPoint};

use crate::call::Answer;
use crate::convert::{Binary, ToPython, record};

record!(LossPoint, this: step, loss, learning_rate, epoch, at_s);
record!(EvaluationPoint, this: step, eval_loss, epoch, at_s);

#[pyclass(frozen)]
pub(crate) struct LossCurve(zerog_sdk::loss_curve::LossCurve);

#[pymethods]
impl LossCurve {
    #[new]
    fn from_log(log: &str) -> Self {
        Self(zerog_sdk::loss_curve::LossCurve::from_log(log))
    }

    fn points(&self, py: Python<'_>) -> Answer {
        Ok(self.0.points.to_python(py)?.unbind())
    }

    fn evaluations(&self, py: Python<'_>) -> Answer {
        Ok(self.0.evaluations.to_python(py)?.unbind())
    }

    fn to_csv(&self) -> String {
        self.0.to_csv()
    }

    fn to_text(&self, width: usize, height: usize) -> String {
        self.0.to_text(width, height)
    }

    fn to_svg(&self) -> String {
        self.0.to_svg()
    }

    fn to_tensorboard(&self, py: Python<'_>) -> Answer {
        Ok(Binary(&self.0.to_tensorboard()).to_python(py)?.unbind())
    }

    fn tensorboard_file_name(&self) -> String {
        self.0.tensorboard_file_name()
    }
}
