"""Images in folders: any tree of image files, train and test parts, or CelebA as it is distributed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..errors import ExperimentError
from .source import ImageSource, open_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_FOLDERS",
    "ImageFolder",
    "describe_folder",
    "folder_splits",
    "folders_in",
    "image_files",
    "split_of",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MASK_FOLDERS = ("gt_object", "gt", "gts", "masks", "mask")
NO_IMAGES = frozenset({*MASK_FOLDERS, "edge", "edges", "annotations"})
CELEBA_IMAGES = "img_align_celeba"
CELEBA_PARTITION = "list_eval_partition.txt"
CELEBA_SPLITS = {"0": "train", "1": "valid", "2": "test"}

NAMED = 5
"""How many skipped files are named."""

SPLIT = re.compile(
    r"(?i:(train|test)(?:val|ing)?(?:dataset|data|set|images?|imgs?|masks?)?)(?![a-z]).*|.*[-_](?i:(tr|te)(?:ain|st)?)"
)
"""A folder for training or for testing: TrainDataset, TestImages, train_2, COD10K-TR; not trains, not testudo."""


class ImageFolder(ImageSource):
    """Image files, in the order given.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.paths[index])


def folders_in(root: Path) -> Iterator[Path]:
    """Yield ``root`` and every folder below it, links followed unless they lead back up; hidden ones are skipped."""
    pending = [(root, frozenset({root.resolve()}))]
    while pending:
        folder, above = pending.pop()
        yield folder
        inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
        found = [(path, path.resolve()) for path in sorted(inner, reverse=True)]
        pending += [(path, above | {real}) for path, real in found if real not in above]


def image_files(root: Path) -> list[Path]:
    """Return every image file below ``root``, sorted, each once; hidden files and folders of masks are skipped."""
    files: dict[Path, Path] = {}
    for folder in folders_in(root):
        if any(part.lower() in NO_IMAGES for part in folder.relative_to(root).parts):
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
                files.setdefault(path.resolve(), path)
    return sorted(files.values())


def folder_splits(root: Path) -> dict[str, ImageSource]:
    """Find the images of a folder and how they are divided.

    Understood are CelebA as it is distributed (``img_align_celeba`` and ``list_eval_partition.txt``), a
    folder with subfolders whose names begin with ``train`` and ``test``, and any other tree of image files,
    which is one undivided split named ``"all"``.

    Raises:
        ExperimentError: when there is no such folder, or no image in it.
    """
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    found = _celeba(root) or _named_parts(root) or {"all": image_files(root)}
    if not any(found.values()):
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise ExperimentError(f"{root} holds no images (files ending in {known})")
    return {split: ImageFolder(paths) for split, paths in found.items()}


def describe_folder(root: Path, splits: Mapping[str, ImageSource]) -> str:
    """Say how the images of a folder are divided, and which of its files are skipped.

    Args:
        root: the folder.
        splits: what :func:`folder_splits` found in it.
    """
    found = [path for source in splits.values() if isinstance(source, ImageFolder) for path in source.paths]
    count = f"{len(found)} image{'s' if len(found) != 1 else ''}"
    if {"train", "test"} <= set(splits):
        division = f"{count}, divided into training and test as its folders say"
    else:
        division = f"{count}, divided into training and test at random, by the seed"
    used = {path.resolve() for path in found}
    files = (path for folder in folders_in(root) for path in sorted(folder.iterdir()) if path.is_file())
    skipped = [path.name for path in files if path.resolve() not in used and not path.name.startswith(".")]
    if not skipped:
        return f"{division}; no file is skipped."
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return (
        f"{division}; skipped (no image format that is read, or a mask): {', '.join(skipped[:NAMED])}{more}."
    )


def split_of(name: str) -> str | None:
    """Return whether a folder's name says that it is for training or for testing.

    Example:
        >>> split_of("TrainValDataset"), split_of("CAMO-TE"), split_of("testudo")
        ('train', 'test', None)
    """
    found = SPLIT.fullmatch(name)
    return {"tr": "train", "te": "test"}[(found[1] or found[2])[:2].lower()] if found else None


def _named_parts(root: Path) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        folders = sorted(p for p in root.iterdir() if p.is_dir() and split_of(p.name) == split)
        if folders:
            parts[split] = [path for folder in folders for path in image_files(folder)]
    return parts if len(parts) == 2 else {}


def _celeba(root: Path) -> dict[str, list[Path]]:
    images = root / CELEBA_IMAGES
    if not images.is_dir():
        return {}
    partition = root / CELEBA_PARTITION
    if not partition.is_file():
        return {"all": image_files(images)}
    splits: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    for number, line in enumerate(partition.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, part = line.strip().rpartition(" ")
        if part not in CELEBA_SPLITS or Path(name.strip()).name != name.strip():
            raise ExperimentError(f"{partition}, line {number}: expected 'file.jpg 0|1|2', got {line!r}")
        splits[CELEBA_SPLITS[part]].append(images / name.strip())
    return splits
