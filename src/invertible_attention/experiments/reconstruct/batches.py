"""Batches from images held in memory, the same for a given seed and epoch whatever happened before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data import dequantize

__all__ = ["EpochBatches", "evaluation_input", "fixed_target"]

# What each stream of random numbers is for; drawn from different generators, none depends on another.
ORDER, NOISE, TARGET, TEST_NOISE = range(4)


def _generator(seed: int, purpose: int, epoch: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 4 + purpose) * 1_000_003 + epoch)


class EpochBatches:
    r"""The batches of one epoch: images in a random order with fresh dequantization noise.

    Args:
        images: all training images, 0–255.
        batch_size: images per batch; the last batch may be smaller.
        seed: of the run.
        epoch: number of the epoch. Order and noise depend on seed and epoch alone, so a resumed run sees
            what an uninterrupted one would.
    """

    def __init__(
        self, images: UInt8[Tensor, "images 3 height width"], *, batch_size: int, seed: int, epoch: int
    ):
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self._start = 0
        self._next = 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Float[Tensor, "batch 3 height width"]]:
        order = torch.randperm(len(self.images), generator=_generator(self.seed, ORDER, self.epoch))
        noise = _generator(self.seed, NOISE, self.epoch)
        start, self._start = self._start, 0
        for number, indices in enumerate(order.split(self.batch_size)):
            batch = dequantize(self.images[indices], generator=noise)
            if number >= start:
                self._next = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands, for a checkpoint."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken."""
        self._start = state["next"] % len(self)


def fixed_target(
    batch_size: int, size: tuple[int, int], *, seed: int
) -> Float[Tensor, "batch 12 rows columns"]:
    """Return the random normal tensor all batches are trained towards, of the shape of a squeezed batch."""
    shape = (batch_size, 12, size[0] // 2, size[1] // 2)
    return torch.randn(shape, generator=_generator(seed, TARGET))


def evaluation_input(
    images: UInt8[Tensor, "images 3 height width"], *, seed: int
) -> Float[Tensor, "images 3 height width"]:
    """Return the test images as the network sees them, with one fixed draw of noise."""
    return dequantize(images, generator=_generator(seed, TEST_NOISE))
