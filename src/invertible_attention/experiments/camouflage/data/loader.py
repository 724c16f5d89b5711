"""Training batches that depend on seed and epoch alone, over any number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from .cache import Batch, TrainingImages

__all__ = ["EpochBatches", "batches_per_second"]

ORDER, AUGMENTATION = 0, 1

CPU = torch.device("cpu")


class EpochBatches:
    """The batches of one epoch in a random order, or one process's share of each.

    Args:
        images: what the batches are made of.
        batch_size: images per step, over all processes. A last incomplete batch is dropped, unless it is
            the only one.
        seed: of the run.
        epoch: number of the epoch, from 0.
        rank: number of this process.
        processes: how many there are; must divide ``batch_size``.
        device: where batches are made.

    Raises:
        ValueError: when the processes do not divide the batch.
    """

    def __init__(
        self,
        images: TrainingImages,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device = CPU,
    ):
        if batch_size % processes:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {processes} processes")
        self._images = images
        self._key = (seed, AUGMENTATION, epoch)
        self._device = device
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(images)).tolist()
        if len(order) < batch_size:
            order = [order[i % len(order)] for i in range(-(-len(order) // processes) * processes)]
        stop = max(1, len(order) // batch_size) * batch_size
        batches = [order[i : i + batch_size] for i in range(0, min(stop, len(order)), batch_size)]
        self._batches = [batch[rank::processes] for batch in batches]
        self._start = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        for number, indices in enumerate(self._batches[start:], start=start):
            self._next = number + 1
            random = [np.random.default_rng([*self._key, index]) for index in indices]
            yield self._images.batch(indices, random, self._device)

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands, for a checkpoint."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken."""
        self._start = state["next"] % len(self)


def batches_per_second(
    images: TrainingImages, *, batch_size: int, device: torch.device = CPU, batches: int = 10
) -> float:
    """Return how many batches are made in a second where nothing is trained on them."""
    loader = EpochBatches(images, batch_size=min(batch_size, len(images)), seed=0, epoch=0, device=device)
    count, start = 0, time.perf_counter()
    for count, _ in enumerate(loader, start=1):
        if count == batches:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)
