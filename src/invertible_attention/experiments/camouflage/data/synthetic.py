"""Camouflaged images made from the bundled photographs.

An object-shaped region is filled with texture from elsewhere in the same photograph.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFilter

from ...data.photographs import PHOTOGRAPHS, bundled_photograph
from ...files import atomic_path
from .augmentation import mask_image

__all__ = ["TEST_NAME", "camouflage", "generate_data", "random_shape"]

TEST_NAME = "PHOTOS"
"""What the generated test set is called."""

HARMONICS = range(2, 7)
AREA = (0.05, 0.25)
CANDIDATES = 8


def random_shape(size: int, random: np.random.Generator) -> Bool[np.ndarray, "size size"]:
    r"""Draw one connected shape with a smooth outline.

    The outline is :math:`r(\theta) = 1 + \sum_k a_k \cos(k\theta + \varphi_k)`, stretched and turned.

    Args:
        size: side of the square it is in; the shape covers between 5 and 25 % of it, less where it touches a side.
        random: all chance comes from it.
    """
    stretch = np.exp(random.uniform(-0.5, 0.5))
    angle = random.uniform(0, np.pi)
    amplitudes = {k: (random.normal(0, 0.35 / k), random.uniform(0, 2 * np.pi)) for k in HARMONICS}
    center = random.uniform(0.3, 0.7, size=2) * size
    radius = np.sqrt(random.uniform(*AREA) / np.pi) * size
    row, column = np.mgrid[:size, :size] + 0.5
    y, x = row - center[0], column - center[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    v = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    theta = np.arctan2(v, u)
    outline = 1 + sum(a * np.cos(k * theta + phase) for k, (a, phase) in amplitudes.items())
    return np.hypot(u, v) < radius * np.maximum(outline, 0.2)


def camouflage(
    photograph: Image.Image,
    size: int,
    random: np.random.Generator,
    *,
    strength: tuple[float, float] = (0.1, 0.6),
    vary: bool = False,
) -> tuple[Image.Image, Bool[np.ndarray, "size size"]]:
    """Hide an object in a window of a photograph.

    The object is filled with texture from elsewhere in the photograph, its colors drawn towards those it
    covers, its border softened.

    Args:
        photograph: in RGB.
        size: side of the square image returned.
        random: all chance comes from it.
        strength: range of how far colors are drawn, from 0 (as they were) to 1 (the same mean and contrast).
        vary: rotate and mirror the photograph and exchange its colors at random.

    Returns:
        The image and where the object is.

    Example:
        >>> photograph = bundled_photograph("skimage/data/chelsea.png")
        >>> image, mask = camouflage(photograph, 64, np.random.default_rng(0))
        >>> image.size, mask.shape, bool(0.01 < mask.mean() < 0.3)
        ((64, 64), (64, 64), True)
    """
    if vary:
        photograph = _varied(photograph, random)
    side = int(min(photograph.size) / random.uniform(1.0, 3.0))
    here = _place(photograph.size, side, random)
    places = [_place(photograph.size, side, random) for _ in range(CANDIDATES)]
    there = max(places, key=lambda place: abs(place[0] - here[0]) + abs(place[1] - here[1]))
    background = _cut(photograph, here, side, size)
    texture = np.rot90(_cut(photograph, there, side, size), k=int(random.integers(4)))
    mask = random_shape(size, random)
    covered, filling = background[mask], texture[mask]
    towards = random.uniform(*strength)
    shift = towards * (covered.mean(0) - filling.mean(0))
    scale = (covered.std() / max(filling.std(), 1.0)) ** towards
    adapted = (texture - filling.mean(0)) * np.clip(scale, 0.5, 2.0) + filling.mean(0) + shift
    soft = mask_image(mask).filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.0)))
    alpha = np.asarray(soft, dtype=np.float64)[..., None] / 255
    pixels = np.clip(alpha * adapted + (1 - alpha) * background, 0, 255)
    return Image.fromarray(np.round(pixels).astype(np.uint8)), mask


def generate_data(root: Path, *, train: int, test: int, size: int, seed: int = 0) -> Path:
    """Write generated images and masks in the most common layout; a folder that is there already is kept.

    Args:
        root: gets ``TrainDataset/{Imgs,GT}`` and ``TestDataset/PHOTOS/{Imgs,GT}``, whole or not at all.
        train: number of training images, from other photographs than the test images.
        test: number of test images.
        size: side of the images.
        seed: what is drawn depends on it and on nothing else.

    Returns:
        ``root``.
    """
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        folders = {"train": building / "TrainDataset", "test": building / "TestDataset" / TEST_NAME}
        for number, (split, count) in enumerate((("train", train), ("test", test))):
            photographs = [bundled_photograph(path) for path in PHOTOGRAPHS[split]]
            for index in range(count):
                random = np.random.default_rng([seed, number, index])
                photograph = photographs[index % len(photographs)]
                # What is to be learned is how objects are hidden, not the few photographs.
                image, mask = camouflage(photograph, size, random, vary=split == "train")
                _save(folders[split], f"{split}_{index + 1:05d}", image, mask)
        building.chmod(0o755)
        building.rename(root)
    except OSError:
        # Another process of the same run may have been first.
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _save(folder: Path, name: str, image: Image.Image, mask: Bool[np.ndarray, "height width"]) -> None:
    for part, picture in (("Imgs", image), ("GT", mask_image(mask))):
        with atomic_path(folder / part / f"{name}.png") as temporary:
            picture.save(temporary)


def _varied(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Rotate and mirror a photograph, and exchange its colors."""
    pixels = np.asarray(photograph)[..., random.permutation(3)]
    pixels = np.rot90(pixels, k=int(random.integers(4)))
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _place(size: tuple[int, int], side: int, random: np.random.Generator) -> tuple[int, int]:
    """Return the left and top of a square window."""
    left, top = (int(random.integers(length - side + 1)) for length in size)
    return left, top


def _cut(photograph: Image.Image, place: tuple[int, int], side: int, size: int) -> np.ndarray:
    box = (*place, place[0] + side, place[1] + side)
    window = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(window, dtype=np.float64)
