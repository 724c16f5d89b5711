"""Drawing the images of an experiment: a number of train and test images, by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..errors import ExperimentError
from .datasets import DATASETS, open_splits
from .folder import describe_folder
from .hub import parquet_files
from .preparation import random_crop, to_tensor
from .problems import Problem, report_problems
from .source import ImageSource, UnusableImageError

__all__ = ["Images", "draw_images", "fit_counts", "whole_test_images"]


@dataclass(frozen=True)
class Images:
    """Train and test images, 0–255, all of one size, what to call them, and what else there is to say of them."""

    train: UInt8[Tensor, "train 3 height width"]
    test: UInt8[Tensor, "test 3 height width"]
    title: str
    about: str = ""

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

    No image (with ``random_crops``, no photograph) is in both parts. A dataset without its own division
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
        ExperimentError: when there are too few images, or naming every one that cannot be read.
    """
    dataset = DATASETS[name]
    splits = open_splits(name, data_dir)
    crops = dataset.random_crops if random_crops is None else random_crops
    parts = []
    problems: list[Problem] = []
    for part, (source, indices) in enumerate(_choose(splits, (train, test), seed, repeat=crops)):
        if part == 0 and name == "celeba" and title is None:
            _check_celeba(source, indices)
        prepare = dataset.prepare
        if crops:
            inner, shape = dataset.prepare, dataset.native_size or size
            random = np.random.default_rng([seed, 2, part])
            prepare = _cropped(inner, shape, random)
        parts.append(_read(source, indices, size, prepare, problems))
    report_problems(list(dict.fromkeys(problems)))
    if name != "folder" or data_dir is None or parquet_files(data_dir):
        return Images(*parts, title=title or dataset.title)
    named = f"Folder {data_dir.resolve().name}"
    return Images(*parts, title=title or named, about=describe_folder(data_dir, splits))


def whole_test_images(
    name: str, *, train: int, test: int, seed: int = 0, data_dir: Path | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the test images that :func:`draw_images` draws without random crops, at their own size, with their names.

    Args:
        name: as in :func:`draw_images`, as are the other arguments.
        train: number of training images.
        test: number of test images.
        seed: of the draw.
        data_dir: local data instead of the hub.
    """
    _, (source, indices) = _choose(open_splits(name, data_dir), (train, test), seed, repeat=False)
    for index in indices:
        yield source.name(index), source[index]


def fit_counts(
    name: str,
    *,
    train: int,
    test: int,
    fixed: tuple[bool, bool] = (False, False),
    data_dir: Path | None = None,
    random_crops: bool | None = None,
) -> tuple[int, int]:
    """Return how many train and test images to draw: those wanted, or as many as there are, in their proportion.

    Args:
        name: one of :data:`~invertible_attention.experiments.data.DATASETS`.
        train: number of training images wanted.
        test: number of test images wanted.
        fixed: whether each number must stay as it is.
        data_dir: local data instead of the hub.
        random_crops: as in :func:`draw_images`; with them photographs are never too few.

    Raises:
        ExperimentError: when the data cannot be opened.
    """
    splits = open_splits(name, data_dir)
    if DATASETS[name].random_crops if random_crops is None else random_crops:
        return train, test
    if "train" in splits and "test" in splits:
        own = [len(splits[split]) for split in ("train", "test")]
        counts = zip((train, test), fixed, own, strict=True)
        first, second = (wanted if kept else min(wanted, available) for wanted, kept, available in counts)
        return first, second
    return _divide(len(_undivided(splits)), (train, test), fixed)


def _divide(
    available: int, counts: tuple[int, int], fixed: tuple[bool, bool] = (False, False)
) -> tuple[int, int]:
    """Divide images in the proportion wanted, none of the parts empty; what is fixed stays."""
    train, test = counts
    if train + test <= available or all(fixed) or available < 2:
        return counts
    if any(fixed):
        rest = max(1, available - (train if fixed[0] else test))
        return (train, rest) if fixed[0] else (rest, test)
    first = min(max(1, round(available * train / (train + test))), available - 1)
    return first, available - first


def _undivided(splits: dict[str, ImageSource]) -> ImageSource:
    return splits.get("all") or next(iter(splits.values()))


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
        own = (len(splits["train"]), len(splits["test"]))
        if (not repeat and (own[0] < counts[0] or own[1] < counts[1])) or not all(own):
            raise _too_few(counts, f"{own[0]} and {own[1]}", (min(counts[0], own[0]), min(counts[1], own[1])))
        return [
            (splits[split], _draw(np.arange(len(splits[split])), count, random))
            for split, count in zip(("train", "test"), counts, strict=True)
        ]
    whole = _undivided(splits)
    if len(whole) < 2 or (len(whole) < sum(counts) and not repeat):
        raise _too_few(counts, str(len(whole)), _divide(len(whole), counts))
    order = random.permutation(len(whole))
    # Without repetition the first part takes what it needs; otherwise photographs are shared in proportion.
    border = _divide(len(whole), counts)[0] if not repeat else round(len(whole) * counts[0] / sum(counts))
    border = min(max(1, border), len(whole) - 1)
    return [
        (whole, _draw(half, count, random))
        for half, count in zip((order[:border], order[border:]), counts, strict=True)
    ]


def _too_few(counts: tuple[int, int], available: str, possible: tuple[int, int]) -> ExperimentError:
    asked = f"{counts[0]} training and {counts[1]} test images were asked for and there are {available}"
    if min(possible) < 1 or available == "1":
        return ExperimentError(f"{asked}: each part needs at least one image of its own")
    return ExperimentError(
        f"{asked}: pass --train-images {possible[0]} --test-images {possible[1]}, "
        "or --random-crops for several crops of each"
    )


def _draw(indices: np.ndarray, count: int, random: np.random.Generator) -> list[int]:
    rounds = -(-count // len(indices))
    return np.concatenate([random.permutation(indices) for _ in range(rounds)])[:count].tolist()


def _read(
    source: ImageSource,
    indices: Sequence[int],
    size: tuple[int, int],
    prepare: Callable[[Image.Image, tuple[int, int]], Image.Image],
    problems: list[Problem],
) -> UInt8[Tensor, "images 3 height width"]:
    pixels = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    opened: dict[int, Image.Image] = {}
    keep = len(source) <= 32  # few photographs, many crops: decode each once
    for row, index in enumerate(indices):
        try:
            image = opened.get(index) or source[index]
        except UnusableImageError as error:
            problems.append(Problem.of(error))
            continue
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
