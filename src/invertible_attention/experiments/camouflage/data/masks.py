"""Masks from files: whatever the values in them, an object and its surroundings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num
from PIL import Image

from ...data.source import open_image

__all__ = ["binarize", "mask_values", "read_mask"]

FIELD_THRESHOLD = 128
"""Where the field's evaluators cut masks of 0–255."""

DEEP_MODES = ("I", "F")


def binarize(values: Num[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return where the object is.

    Masks of 0–255 are cut above 128, as the field's evaluators do. Where nothing exceeds that (masks of 0
    and 1, of 0 and a class number) or the values are deeper than 8 bits, the cut is at half of the largest value.

    Example:
        >>> binarize(np.array([[0, 1]])).tolist(), binarize(np.array([[0, 128, 129, 255]])).tolist()
        ([[False, True]], [[False, False, True, True]])
        >>> binarize(np.array([[0, 0]])).tolist(), binarize(np.array([[0, 65535]])).tolist()
        ([[False, False]], [[False, True]])
    """
    if values.dtype == bool:
        return values
    largest = values.max(initial=0)
    return values > (FIELD_THRESHOLD if FIELD_THRESHOLD < largest <= 255 else largest / 2)


def mask_values(image: Image.Image) -> Num[np.ndarray, "height width"]:
    """Return a mask image's values in one channel; of colours, the brightest component."""
    if image.mode == "1":
        return np.asarray(image, dtype=bool)
    if image.mode.startswith(DEEP_MODES):
        return np.asarray(image)
    if image.mode == "L":
        return np.asarray(image)
    # By way of RGBA: a palette's colours are what is meant, and transparency is not.
    return np.asarray(image.convert("RGBA"))[..., :3].max(axis=-1)


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read a mask.

    Raises:
        ExperimentError: naming the file, when it is missing or damaged.
    """
    return binarize(mask_values(open_image(path, mode=None)))
