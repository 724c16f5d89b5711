"""Training a density by maximum likelihood, with an average of the weights and a learning curve."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ...flows import Flow
from ..averaging import WeightAverage
from ..training import Parallel, Report, ResumableModule, fit
from .batches import NOISE, TrainingBatches, step_seed
from .configuration import Configuration
from .curve import LearningCurve
from .data import DensityData

__all__ = ["DensityTraining", "initialize", "train"]

CHECKPOINTS = 50
CHECKPOINT_STEPS = 200
"""A checkpoint is written at least this often: a run that time ends may have any number of steps before it."""
INITIAL_IMAGES = 1024
"""How many images set what sets itself from data (the paper and i-ResNet)."""


def initialize(model: Flow, images: UInt8[Tensor, "images channels height width"], seed: int) -> None:
    """Let ``model`` set itself from the first training images, the same on every process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.initialize(images[:INITIAL_IMAGES].to(next(model.parameters()).device))


class DensityTraining(ResumableModule):
    """Maximum likelihood on dequantized images.

    Args:
        model: the density.
        data: the images.
        configuration: sizes and rates.
        report: called after every step.
    """

    kept = "skipped_steps"

    def __init__(
        self, model: Flow, data: DensityData, configuration: Configuration, report: Report | None = None
    ):
        super().__init__()
        self.model = model
        self.data = data
        self.configuration = configuration
        self.report = report
        self.skipped_steps = 0

    def train_dataloader(self) -> TrainingBatches:
        """Return this process's share of all batches of the run."""
        return TrainingBatches(
            self.data.train,
            batch_size=self.configuration.batch_size,
            steps=self.configuration.steps,
            seed=self.configuration.seed,
            augmentation=self.configuration.augmentation,
            rank=self.trainer.global_rank,
            processes=self.trainer.world_size,
        )

    def training_step(self, batch: UInt8[Tensor, "batch channels height width"], index: int) -> Tensor:
        """Return the bits per dimension of a batch, averaged."""
        # Noise and probes depend on seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(step_seed(self.configuration.seed, NOISE, self.global_step, self.global_rank))
        loss = self.model(batch).mean() / (-math.log(2) * math.prod(batch.shape[1:]))
        self.log("bits_per_dim", loss)
        if self.report is not None:
            self.report(self.global_step + 1, loss.item())
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient; a step whose gradient is not finite is skipped and counted."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.configuration.clip)
        self.log("gradient_norm", norm)
        if not bool(norm.isfinite()):
            self.skipped_steps += 1
            for parameter in self.model.parameters():
                parameter.grad = None

    def configure_optimizers(self) -> Any:
        """Return Adamax (i-ResNet) and its schedule."""
        settings = self.configuration
        optimizer = torch.optim.Adamax(self.model.parameters(), lr=settings.learning_rate)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, settings.warmup))
            if not settings.decay:
                return warm
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    model: Flow,
    data: DensityData,
    configuration: Configuration,
    *,
    device: torch.device,
    folder: Path,
    parallel: Parallel | None = None,
    report: Report | None = None,
    report_point: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any] | None:
    """Train ``model`` and give it the average of its weights.

    A checkpoint in ``folder`` is continued where it stopped; the result is that of an uninterrupted run. It
    stays there until the caller has stored what it is for.

    Args:
        model: the density, set from data already.
        data: the images.
        configuration: sizes and rates.
        device: where.
        folder: for checkpoint and logs.
        parallel: how many devices.
        report: called after every step with the steps done, or, where time ends training, its CPU seconds.
        report_point: called with every point of the learning curve.

    Returns:
        Steps, times without evaluation, and the learning curve; ``None`` on all processes but the first.
    """
    average = WeightAverage(configuration.average)
    curve = LearningCurve(copy.deepcopy(model), average, report_point)

    def report_seconds(step: int, loss: float) -> None:
        cast(Report, report)(round(curve.processor_seconds), loss)

    timed = report is not None and configuration.minutes is not None
    run = DensityTraining(model, data, configuration, report_seconds if timed else report)
    trainer, _ = fit(
        run,
        device,
        folder=folder,
        epochs=1,
        checkpoint_steps=max(1, min(configuration.steps // CHECKPOINTS, CHECKPOINT_STEPS)),
        callbacks=[average, curve],  # in this order: the new average is what is evaluated
        parallel=parallel,
        logs=True,
    )
    average.copy_to(run)
    cast(nn.Module, run.model).to(device).eval()
    if not trainer.is_global_zero:
        return None
    return {
        "steps": trainer.global_step,
        "skipped_steps": run.skipped_steps,
        "seconds": curve.seconds,
        "processor_seconds": curve.processor_seconds,
        "curve": curve.points,
    }
