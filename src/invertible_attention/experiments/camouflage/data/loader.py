"""Training batches that depend on seed and epoch alone, over any number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.source import open_image
from .augmentation import augment, image_tensor, mask_tensor
from .masks import read_mask
from .pairs import Pair

__all__ = ["Batch", "EpochBatches", "PairImages"]

ORDER, AUGMENTATION = 0, 1


class Batch(NamedTuple):
    """Images and masks as the network takes them."""

    image: Float[Tensor, "batch 3 size size"]
    mask: Float[Tensor, "batch 1 size size"]


class PairImages(Dataset[Batch]):
    """Pairs as augmented tensors.

    Args:
        pairs: all with masks.
        size: side of the square they are scaled to.
        seed: of the run.
        epoch: augmentation depends on it, the seed and the pair's index, and on nothing else.
    """

    def __init__(self, pairs: Sequence[Pair], *, size: int, seed: int, epoch: int):
        self.pairs = tuple(pairs)
        self.size = size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Batch:
        pair = self.pairs[index]
        if pair.mask is None:
            raise ValueError(f"{pair.image} has no mask to train on")
        random = np.random.default_rng([self.seed, AUGMENTATION, self.epoch, index])
        image, mask = augment(open_image(pair.image), read_mask(pair.mask), random)
        return Batch(image_tensor(image, self.size), mask_tensor(mask, self.size))


class EpochBatches:
    """The batches of one epoch in a random order, or one process's share of each.

    Args:
        pairs: all with masks.
        size: side of the square they are scaled to.
        batch_size: images per step, over all processes. A last incomplete batch is left out, unless it is
            the only one.
        seed: of the run.
        epoch: number of the epoch, from 0.
        rank: number of this process.
        processes: how many there are; must divide ``batch_size``.
        workers: processes that read files beside this one.

    Raises:
        ValueError: when the processes do not divide the batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: int,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        if batch_size % processes:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {processes} processes")
        self._images = PairImages(pairs, size=size, seed=seed, epoch=epoch)
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(pairs)).tolist()
        if len(order) < batch_size:
            order = [order[i % len(order)] for i in range(-(-len(order) // processes) * processes)]
        stop = max(1, len(order) // batch_size) * batch_size
        batches = [order[i : i + batch_size] for i in range(0, min(stop, len(order)), batch_size)]
        self._batches = [batch[rank::processes] for batch in batches]
        self._workers = workers
        self._start = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        # The generator only keeps the loader from drawing on the global one.
        loader = DataLoader(
            self._images,
            batch_sampler=self._batches[start:],
            num_workers=self._workers,
            generator=torch.Generator(),
        )
        for number, batch in enumerate(loader, start=start):
            self._next = number + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands, for a checkpoint."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self._start = state["next"] % len(self)
