"""The learning curve of a run: test bits per dimension against steps and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning

from ...flows import Flow
from ...logdet import RussianRoulette
from ..averaging import WeightAverage
from ..files import finite
from .evaluation import evaluation_estimator, score

__all__ = ["LearningCurve", "is_due"]


FIRST = 10
"""Steps before the first point of a curve whose points lie ever farther apart."""


def is_due(step: int, every: int) -> bool:
    """Return whether a point is taken after ``step`` steps: every so many, or, for 0, at 10, 14, 20, 28, 40, …"""
    if every:
        return step % every == 0
    doublings = round(2 * math.log2(step / FIRST)) / 2
    return doublings >= 0 and step == round(FIRST * 2**doublings)


class LearningCurve(lightning.Callback):
    """Evaluate the averaged weights every so many steps, and keep the time that training alone took.

    Where the configuration limits the time, this ends training.

    Args:
        model: a copy of the trained model, to be given the averaged weights.
        average: has them.
        report: called with every point of the curve.
    """

    def __init__(
        self,
        model: Flow,
        average: WeightAverage,
        report: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.model = model
        self.average = average
        self.report = report
        self.seconds = 0.0
        self.processor_seconds = 0.0
        self.points: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return times and points, for a checkpoint."""
        return {
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "points": list(self.points),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore times and points."""
        self.seconds = state_dict["seconds"]
        self.processor_seconds = state_dict["processor_seconds"]
        self.points = list(state_dict["points"])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clocks."""
        self._start = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clocks; evaluate when it is time."""
        self.seconds += time.perf_counter() - self._start[0]
        self.processor_seconds += time.process_time() - self._start[1]
        settings = pl_module.configuration
        step = trainer.global_step
        if settings.minutes is not None and self.processor_seconds > 60 * settings.minutes:
            trainer.should_stop = True
        last = step == settings.steps or trainer.should_stop
        if trainer.is_global_zero and (last or is_due(step, settings.evaluate_every)):
            self._evaluate(pl_module, step, outputs)

    def _evaluate(self, run: Any, step: int, outputs: Any) -> None:
        settings = run.configuration
        prefix = "model."
        weights = {name.removeprefix(prefix): value for name, value in self.average.average.items()}
        self.model.load_state_dict(weights)
        result = score(
            self.model.to(run.device),
            run.data.test[: settings.curve_images],
            estimator=evaluation_estimator(
                run.data.test[0].numel(), RussianRoulette(evaluation_exact_terms=10)
            ),
            draws=1,
            seed=settings.seed,
            batch_size=settings.batch_size,
            device=run.device,
        )
        train = float(outputs["loss"])
        point = {
            "step": step,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "test": finite(result.mean),
            "train": finite(train),
        }
        self.points.append(point)
        if point["test"] is not None:
            run.log("test_bits_per_dim", result.mean, rank_zero_only=True)
        if self.report is not None:
            self.report(point)
