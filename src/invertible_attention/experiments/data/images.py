"""Drawing the images of an experiment: a number of train and test images, by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..errors import ExperimentError
from .datasets import DATASETS, open_splits
from .preparation import random_crop, to_tensor
from .source import ImageSource

__all__ = ["Images", "draw_images"]


@dataclass(frozen=True)
class Images:
    """Train and test images, 0–255, all of one size, and what to call them."""

    train: UInt8[Tensor, "train 3 height width"]
    test: UInt8[Tensor, "test 3 height width"]
    title: str

    def fingerprint(self) -> str:
        """Return a digest of every pixel, by which a resumed run knows its data."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def draw_images(
    name: str,
    *,
    train: int,
    test: int,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
    data_dir: Path | None = None,
    title: str | None = None,
    random_crops: bool | None = None,
) -> Images:
    """Draw the train and test images of an experiment.

    No image (with ``random_crops``, no photograph) is in both parts. A dataset without a division of its own
    is divided at random.

    Args:
        name: one of :data:`~invertible_attention.experiments.data.DATASETS`.
        train: number of training images.
        test: number of test images.
        size: height and width.
        seed: what is drawn depends on it and on nothing else.
        data_dir: local data instead of the hub.
        title: what to call the data in reports; the dataset's own name by default. Required for images
            that stand in for CelebA, which are brought to its format.
        random_crops: draw random windows, several per photograph where there are few, rather than one image
            per file; by default only for ``photos``.

    Raises:
        ExperimentError: when there are too few images, or one cannot be read.
    """
    dataset = DATASETS[name]
    splits = open_splits(name, data_dir)
    crops = dataset.random_crops if random_crops is None else random_crops
    parts = []
    for part, (source, indices) in enumerate(_choose(splits, (train, test), seed, repeat=crops)):
        if part == 0 and name == "celeba" and title is None:
            _check_celeba(source, indices)
        prepare = dataset.prepare
        if crops:
            inner, shape = dataset.prepare, dataset.native_size or size
            random = np.random.default_rng([seed, 2, part])
            prepare = _cropped(inner, shape, random)
        parts.append(_read(source, indices, size, prepare))
    return Images(*parts, title=title or dataset.title)


def _cropped(
    prepare: Callable[[Image.Image, tuple[int, int]], Image.Image],
    shape: tuple[int, int],
    random: np.random.Generator,
) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    return lambda image, size: prepare(random_crop(image, shape, random), size)


def _choose(
    splits: dict[str, ImageSource], counts: tuple[int, int], seed: int, *, repeat: bool
) -> list[tuple[ImageSource, list[int]]]:
    random = np.random.default_rng([seed, 1])
    if "train" in splits and "test" in splits:
        return [
            (splits[split], _draw(np.arange(len(splits[split])), count, random, repeat, split))
            for split, count in zip(("train", "test"), counts, strict=True)
        ]
    whole = splits.get("all") or next(iter(splits.values()))
    order = random.permutation(len(whole))
    # Without repetition the first part takes what it needs; otherwise photographs are shared in proportion.
    border = round(len(whole) * counts[0] / sum(counts)) if repeat or len(whole) < sum(counts) else counts[0]
    halves = (order[:border], order[border:])
    return [
        (whole, _draw(half, count, random, repeat, split))
        for half, count, split in zip(halves, counts, ("train", "test"), strict=True)
    ]


def _draw(
    indices: np.ndarray, count: int, random: np.random.Generator, repeat: bool, split: str
) -> list[int]:
    available = len(indices)
    if available < count and not (repeat and available):
        raise ExperimentError(
            f"{count} {split} images were asked for and there are {available}: "
            f"pass --{split}-images {available}, or --random-crops for several crops of each"
        )
    rounds = -(-count // available)
    return np.concatenate([random.permutation(indices) for _ in range(rounds)])[:count].tolist()


def _read(
    source: ImageSource,
    indices: Sequence[int],
    size: tuple[int, int],
    prepare: Callable[[Image.Image, tuple[int, int]], Image.Image],
) -> UInt8[Tensor, "images 3 height width"]:
    pixels = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    opened: dict[int, Image.Image] = {}
    keep = len(source) <= 32  # few photographs, many crops: decode each once
    for row, index in enumerate(indices):
        image = opened.get(index) or source[index]
        if keep:
            opened[index] = image
        pixels[row] = to_tensor(prepare(image, size))
    return pixels


def _check_celeba(source: ImageSource, indices: Sequence[int]) -> None:
    height, width = DATASETS["celeba"].native_size or (0, 0)
    for index in indices[:8]:
        image = source[index]
        if image.size != (width, height):
            raise ExperimentError(
                f"these are not CelebA's images, {width}×{height} ({source.name(index)} is "
                f"{image.width}×{image.height}): say what they are with --title to use them in its format"
            )
