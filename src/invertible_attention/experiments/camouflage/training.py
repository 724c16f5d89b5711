"""Training a detection network: Adam on binary cross-entropy, exactly resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..averaging import WeightAverage
from ..errors import ExperimentError
from ..training import Parallel, Report, ResumableModule, fit
from .configuration import Configuration
from .data import Batch, CachedFeatures, CachedImages, EpochBatches, Pair, TrainingImages
from .network import Detector

__all__ = ["DivergedError", "TrainingRun", "learning_rate_factor", "train", "training_images"]

CHECKPOINT_STEPS = 200
WARMUP = 0.05


class DivergedError(ExperimentError):
    """Training whose loss stopped being a number."""


class TrainingRun(ResumableModule):
    """Binary cross-entropy between the logits and the masks.

    Args:
        network: what is trained.
        images: what it is trained on.
        configuration: sizes and rates.
        seed: of order and augmentation.
        report: called after every step.
    """

    kept = "losses"

    def __init__(
        self,
        network: Detector,
        images: TrainingImages,
        configuration: Configuration,
        *,
        seed: int,
        report: Report | None = None,
    ):
        super().__init__()
        self.network = network
        self.images = images
        self.configuration = configuration
        self.seed = seed
        self.report = report
        self.losses: list[float] = []

    def train_dataloader(self) -> EpochBatches:
        """Return this process's share of the current epoch's batches."""
        return EpochBatches(
            self.images,
            batch_size=self.configuration.batch_size,
            seed=self.seed,
            epoch=self.trainer.current_epoch,
            rank=self.global_rank,
            processes=self.trainer.world_size,
            device=self.device,
        )

    @property
    def settling_step(self) -> int:
        """The step at which the radius of certified attention is set again: the end of the warm-up."""
        return warmup_steps(int((self.trainer.max_epochs or 0) * self.trainer.num_training_batches))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        image, size = batch.image, batch.mask.shape[-2:]
        features = self.network.backbone(image) if isinstance(image, Tensor) else image
        if self.global_step == self.settling_step:
            self.network.settle(features)
        logits = self.network.decode(features, size).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.mask)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {self.global_step + 1}: lower --learning-rate or set --gradient-clip"
            )
        self.losses.append(value)
        self.log("loss", value)
        if self.report is not None:
            self.report(self.global_step + 1, value)
        return loss

    def configure_optimizers(self) -> Any:
        """Return Adam and the course of its learning rate."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.configuration.learning_rate)
        steps = self.configuration.epochs * len(self.train_dataloader())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, learning_rate_factor(self.configuration.schedule, steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def training_images(
    network: Detector,
    pairs: Sequence[Pair],
    configuration: Configuration,
    *,
    folder: Path,
    device: torch.device,
    workers: int = 0,
    report: Callable[[int], None] | None = None,
) -> TrainingImages:
    """Return what a network is trained on: images, or features of them where its backbone is frozen.

    Args:
        network: which backbone it has.
        pairs: training images and masks.
        configuration: how large the network sees them.
        folder: for the cache.
        device: where a frozen backbone computes.
        workers: threads that decode images; 0 for as many as there are cores.
        report: called with how many images are done.
    """
    if not configuration.freeze_backbone:
        return CachedImages(pairs, size=configuration.size, folder=folder, workers=workers, report=report)
    backbone = network.backbone.to(device)
    return CachedFeatures(
        backbone, pairs, size=configuration.size, folder=folder, device=device, report=report
    )


def warmup_steps(steps: float) -> int:
    """Return how many of the steps belong to the warm-up."""
    return max(1, round(WARMUP * steps))


def learning_rate_factor(schedule: str, steps: int) -> Callable[[int], float]:
    """Return what the learning rate is multiplied by at a step.

    Example:
        >>> factor = learning_rate_factor("cosine", 100)
        >>> [round(factor(step), 2) for step in (0, 4, 5, 52, 100)]
        [0.2, 1.0, 1.0, 0.51, 0.0]
    """
    if schedule == "constant":
        return lambda step: 1.0
    warmup = warmup_steps(steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def train(
    network: Detector,
    images: TrainingImages,
    configuration: Configuration,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    parallel: Parallel | None = None,
    report: Report | None = None,
) -> tuple[list[float], float]:
    """Train ``network`` in place; return the loss of every step, and the seconds on the clock over all attempts.

    A checkpoint in ``folder`` is continued where it stopped; the result is that of an uninterrupted run. It
    stays there until the caller has stored what it is for.

    Raises:
        DivergedError: when the loss stops being a number.
    """
    # Convolutions are a quarter faster with the channels of a pixel side by side.
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # Pretrained backbones come in evaluation mode, and Lightning would leave their batch statistics frozen.
    network.train()
    run = TrainingRun(network, images, configuration, seed=seed, report=report)
    averages = [WeightAverage(configuration.average)] if configuration.average else []
    _, seconds = fit(
        run,
        device,
        folder=folder,
        epochs=configuration.epochs,
        checkpoint_steps=min(max(1, len(images) // configuration.batch_size), CHECKPOINT_STEPS),
        callbacks=averages,
        parallel=parallel,
        logs=True,
        gradient_clip=configuration.gradient_clip,
    )
    for average in averages:
        average.copy_to(run)
    network.to(device).eval()
    return run.losses, seconds
