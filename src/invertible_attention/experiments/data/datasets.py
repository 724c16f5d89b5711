"""Which datasets there are, and how each is found by name or on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import ExperimentError
from .folder import folder_splits
from .hub import hub_splits, parquet_files, parquet_splits
from .photographs import PHOTOGRAPHS, BundledPhotographs
from .preparation import CELEBA_SIZE, cover, to_celeba
from .source import ImageSource

__all__ = ["DATASETS", "Dataset", "open_splits"]


@dataclass(frozen=True)
class Dataset:
    """A dataset: what it is called, where it is, and how its images are brought to one size.

    Args:
        title: name in tables and figures.
        hub: name on the Hugging Face hub, ``None`` where there is none.
        configuration: the hub dataset's configuration.
        prepare: brings an image to ``(height, width)``.
        native_size: the size every image must have, ``None`` for any.
        random_crops: whether images are random windows rather than one per photograph.
    """

    title: str
    hub: str | None = None
    configuration: str | None = None
    prepare: Callable[[Image.Image, tuple[int, int]], Image.Image] = cover
    native_size: tuple[int, int] | None = None
    random_crops: bool = False


DATASETS = {
    "photos": Dataset("Photographs of scikit-image and scikit-learn", random_crops=True),
    "cifar10": Dataset("CIFAR-10", "uoft-cs/cifar10", native_size=(32, 32)),
    "svhn": Dataset("SVHN", "ufldl-stanford/svhn", "cropped_digits", native_size=(32, 32)),
    "celeba": Dataset("CelebA", "flwrlabs/celeba", prepare=to_celeba, native_size=CELEBA_SIZE),
    "folder": Dataset("Image folder"),
}


def open_splits(name: str, data_dir: Path | None = None) -> dict[str, ImageSource]:
    """Open a dataset: one source of images per split, ``"all"`` where it is undivided.

    Args:
        name: one of :data:`DATASETS`.
        data_dir: where the data are on disk, as parquet files or images, directly or in a subfolder of the
            dataset's name; ``None`` loads by hub name.

    Raises:
        ValueError: for an unknown name.
        ExperimentError: when the data cannot be found or read.

    Example:
        >>> {split: len(images) for split, images in open_splits("photos").items()}
        {'train': 5, 'test': 3}
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    dataset = DATASETS[name]
    if name == "photos":
        return {split: BundledPhotographs(split) for split in PHOTOGRAPHS}
    if data_dir is not None:
        root = data_dir / name if (data_dir / name).is_dir() else data_dir
        return parquet_splits(root) if parquet_files(root) else folder_splits(root)
    if dataset.hub is None:
        raise ExperimentError("--dataset folder needs --data-dir: which folder holds the images?")
    return hub_splits(dataset.hub, dataset.configuration, dataset.title)
