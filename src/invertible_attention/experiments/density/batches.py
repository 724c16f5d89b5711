"""Training batches from images held in memory; which ones depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["TrainingBatches", "augment", "step_seed"]

ORDER, AUGMENTATION, NOISE, EVALUATION = range(4)


def step_seed(seed: int, purpose: int, step: int, rank: int = 0) -> int:
    """Return a different seed for every run, purpose, step and process."""
    return (((seed * 4 + purpose) * 1_000_003 + step) * 4099 + rank) % 2**63


class TrainingBatches:
    """The batches of a whole run, epoch after epoch in a new random order.

    Batch ``k`` is the same whether the run was interrupted before it or not. In an epoch every image occurs
    once; images left over at its end, fewer than a batch, are dropped.

    Args:
        images: all training images.
        batch_size: images per batch over all processes; a process gets its share.
        steps: number of batches.
        seed: of the run.
        augmentation: done to every image.
        rank, processes: which process this is, and how many there are.

    Raises:
        ValueError: when a batch is larger than the data or cannot be shared evenly.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "images channels height width"],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        augmentation: str,
        rank: int = 0,
        processes: int = 1,
    ):
        if batch_size > len(images):
            raise ValueError(f"batch_size {batch_size} is larger than the {len(images)} training images")
        if batch_size % processes:
            raise ValueError(f"batch_size must be divisible by {processes} processes, got {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.augmentation = augmentation
        self.rank = rank
        self.processes = processes
        self._start = 0
        self._next = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
        start, self._start = self._start, 0
        per_epoch = len(self.images) // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(start, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(step_seed(self.seed, ORDER, epoch))
                order = torch.randperm(len(self.images), generator=generator)
            first = (step % per_epoch) * self.batch_size
            indices = order[first + self.rank : first + self.batch_size : self.processes]
            generator = torch.Generator().manual_seed(step_seed(self.seed, AUGMENTATION, step, self.rank))
            self._next = step + 1
            yield augment(self.images[indices], self.augmentation, generator)

    def state_dict(self) -> dict[str, int]:
        """Return where the run stands, for a checkpoint."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken."""
        self._start = state["next"]


def augment(
    images: UInt8[Tensor, "batch channels height width"], kind: str, generator: torch.Generator
) -> UInt8[Tensor, "batch channels height width"]:
    """Flip half of the images, and with ``"crop-flip"`` move them by up to 4 pixels over black."""
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    flipped = torch.rand(batch, generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if kind == "flip":
        return images
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, batch), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    index = torch.arange(batch)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
