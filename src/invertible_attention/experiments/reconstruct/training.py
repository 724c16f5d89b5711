"""Training a reconstruction network towards its fixed target."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ..training import Report, ResumableModule, fit
from .batches import EpochBatches, fixed_target
from .configuration import Configuration

__all__ = ["TrainingRun", "train"]

CHECKPOINTS = 20


class TrainingRun(ResumableModule):
    """The paper's training: mean squared error between the output and one fixed random tensor.

    Args:
        network: what is trained.
        images: training images, 0–255.
        configuration: sizes and rates.
        seed: of this repeat.
        micro_batch: images processed at once; gradients of a batch add up over its parts.
        report: called after every batch.
    """

    kept = "losses"
    target: Tensor

    def __init__(
        self,
        network: nn.Module,
        images: UInt8[Tensor, "images 3 height width"],
        configuration: Configuration,
        *,
        seed: int,
        micro_batch: int,
        report: Report | None = None,
    ):
        super().__init__()
        # Several parts of a batch are one optimizer step.
        self.automatic_optimization = False
        self.network = network
        self.images = images
        self.configuration = configuration
        self.seed = seed
        self.micro_batch = micro_batch
        self.report = report
        self.losses: list[float] = []
        target = fixed_target(configuration.batch_size, configuration.size, seed=seed)
        self.register_buffer("target", target, persistent=False)

    def train_dataloader(self) -> EpochBatches:
        """Return the batches of the current epoch."""
        return EpochBatches(
            self.images,
            batch_size=self.configuration.batch_size,
            seed=self.seed,
            epoch=self.trainer.current_epoch,
        )

    def training_step(self, batch: Float[Tensor, "batch 3 height width"], index: int) -> None:
        """Take one step of Adam on a batch."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        total = torch.zeros((), device=batch.device)
        for part, target in zip(
            batch.split(self.micro_batch), self.target[: len(batch)].split(self.micro_batch), strict=True
        ):
            loss = nn.functional.mse_loss(self.network(part), target) * (len(part) / len(batch))
            self.manual_backward(loss)
            total += loss.detach()
        optimizer.step()
        self.losses.append(total.item())
        if self.report is not None:
            self.report(self.trainer.global_step, self.losses[-1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self.configuration.learning_rate)


def train(
    network: nn.Module,
    images: UInt8[Tensor, "images 3 height width"],
    configuration: Configuration,
    *,
    seed: int,
    micro_batch: int,
    device: torch.device,
    folder: Path,
    report: Report | None = None,
) -> tuple[list[float], float]:
    """Train ``network`` in place; return the loss of every step, and the seconds on the clock over all attempts.

    A checkpoint in ``folder`` is continued where it stopped; the result is that of an uninterrupted run. It
    stays there until the caller has stored what it is for.
    """
    run = TrainingRun(network, images, configuration, seed=seed, micro_batch=micro_batch, report=report)
    steps = configuration.epochs * len(
        EpochBatches(images, batch_size=configuration.batch_size, seed=0, epoch=0)
    )
    _, seconds = fit(
        run,
        device,
        folder=folder,
        epochs=configuration.epochs,
        checkpoint_steps=max(1, steps // CHECKPOINTS),
    )
    network.to(device).eval()
    return run.losses, seconds
