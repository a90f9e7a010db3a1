"""The losses of a training run, drawn or written for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from . import _native
from ._arguments import Arguments
from .models import EvaluationPoint, LossPoint, build_all


class LossCurve:
    """Losses in the order of their steps: ``broker.fine_tuning.get_loss_curve(...)``, or :meth:`from_log`."""

    def __init__(self, native: _native.LossCurve) -> None:
        self._native = native
        #: Every step that has a training loss.
        self.points: list[LossPoint] = build_all(LossPoint, native.points())
        #: Every measurement on validation records; empty where none were set aside.
        self.evaluations: list[EvaluationPoint] = build_all(EvaluationPoint, native.evaluations())

    @classmethod
    def from_log(cls, log: str) -> LossCurve:
        """Reads a task's log; lines of other kinds are passed over."""
        return cls(_native.LossCurve(Arguments("lossCurve").text("log", log, allow_empty=True)))

    def to_csv(self) -> str:
        """A table with the columns ``step,loss,learning_rate,epoch,unix_time_s,eval_loss``; unknown values are empty."""
        return self._native.to_csv()

    def to_svg(self) -> str:
        """A drawing of the training loss and, where it was measured, of the validation loss."""
        return self._native.to_svg()

    def to_text(self, width: int = 64, height: int = 12) -> str:
        """A chart of block characters."""
        given = Arguments("lossCurve")
        columns = given.integer("width", width, 8, 400)
        return self._native.to_text(columns, given.integer("height", height, 2, 100))

    def write_tensorboard(self, folder: str | os.PathLike[str]) -> str:
        """Writes an event file for TensorBoard into a folder and returns its path."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        path = path / self._native.tensorboard_file_name()
        path.write_bytes(self._native.to_tensorboard())
        return str(path)

    def __repr__(self) -> str:
        return f"<LossCurve of {len(self.points)} steps and {len(self.evaluations)} evaluations>"
