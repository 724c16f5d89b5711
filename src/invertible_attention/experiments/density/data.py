"""The images of a density run: scikit-learn's digits, or any dataset of the reconstruction experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..data import draw_images
from ..data.images import Images
from ..errors import ExperimentError
from .configuration import Configuration

__all__ = ["DensityData", "load_data"]

SPLIT_SEED = 0
"""Which images are for testing depends on this alone, so that runs with different seeds compare."""


@dataclass(frozen=True)
class DensityData:
    """Train and test images, and how many values a pixel can take.

    Args:
        train: for training.
        test: for evaluation only.
        levels: values of a pixel.
        title: what to call the data.
        fingerprint: digest of every pixel.
    """

    train: UInt8[Tensor, "train channels height width"]
    test: UInt8[Tensor, "test channels height width"]
    levels: int
    title: str
    fingerprint: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, channels first."""
        return tuple(self.train.shape[1:])


def load_data(configuration: Configuration, data_dir: Path | None = None) -> DensityData:
    """Load the images a configuration asks for.

    Raises:
        ExperimentError: when there are too few images, or one cannot be read.
    """
    if configuration.dataset == "digits":
        images, levels = _digits(configuration), 17
    else:
        images = draw_images(
            configuration.dataset,
            train=configuration.train_images,
            test=configuration.test_images,
            size=configuration.size,
            seed=SPLIT_SEED,
            data_dir=data_dir,
            title=configuration.title,
        )
        levels = 256
    return DensityData(images.train, images.test, levels, images.title, images.fingerprint())


def _digits(configuration: Configuration) -> Images:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    wanted = configuration.train_images + configuration.test_images
    if configuration.size != (8, 8):
        raise ExperimentError(f"the digits are 8×8: pass --size 8 8, not {configuration.size}")
    if wanted > len(pixels):
        raise ExperimentError(
            f"{wanted} digits were asked for and there are {len(pixels)}: pass smaller --train-images or "
            "--test-images"
        )
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = pixels[order[:wanted]]
    split = configuration.train_images
    return Images(chosen[:split], chosen[split:], configuration.title or "Handwritten digits (UCI, 8×8)")
