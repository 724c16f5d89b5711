"""Masks from files: an object and its surroundings, or a refusal where a file does not say which is which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image

from ...data.appearance import UnclearImageError
from ...data.source import UnusableImageError, open_image

__all__ = ["binarize", "gray_values", "read_mask"]

FIELD_THRESHOLD = 128
"""Where the field's evaluators cut masks of 0–255."""
_BRIGHT = 192  # what the object is, at least, where a mask has several values

REMEDY = "save it in gray without transparency, 255 in the object and 0 around it"

COLOR_TOLERANCE = 16
"""How far, of 255, colors may be from gray or from shades of one color: what lossy compression does to them."""

LEVEL_TOLERANCE = 8
"""How far, of 255, lossy compression moves a level."""

FEW_LEVELS = 16
"""An image of so few levels was not compressed with loss: its levels are meant."""

SCATTERED, FEWEST = 0.8, 64
"""How often, compared with chance, neighbors differ where pixels have nothing to do with each other; and in how many
pixels that is distinguished from an object."""


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read a mask.

    Raises:
        ExperimentError: naming the file, when it is missing, damaged, or does not say where the object is.
    """
    image = open_image(path, mode=None)
    try:
        return _object(image)
    except UnclearImageError as error:
        raise UnusableImageError(str(path), str(error), REMEDY) from error


def binarize(values: Num[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return where the object is.

    Where there is one value besides 0, the object has it: 1, 255 or any other. Else values are cut above 128 of 255
    (in proportion for 16 bits and for floating point up to 1), as the field's evaluators do.

    Raises:
        UnclearImageError: where such a cut would lose something: with several values of which none is bright,
            with regions of a value between dark and bright (numbers of instances or classes), with noise instead
            of an object, and with values that are negative or no numbers.

    Example:
        >>> binarize(np.array([[0, 1]])).tolist(), binarize(np.array([[0, 128, 129, 255]])).tolist()
        ([[False, True]], [[False, False, True, True]])
    """
    if values.dtype == bool:
        return values
    levels = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    if not np.isfinite(levels).all() or (levels < 0).any():
        raise UnclearImageError("has values that are negative or no numbers")
    others = levels[levels > 0]
    if len(others) < 2:
        found = values > 0
        if len(others) and _is_dark(others[0]) and _is_noise(found):
            raise UnclearImageError(f"has {others[0]:g} scattered over it: noise, and no object")
        return found
    scaled = _eight_bits(values, levels)
    if scaled.max() < _BRIGHT:
        named = ", ".join(f"{level:g}" for level in levels[:6]) + (" …" if len(levels) > 6 else "")
        raise UnclearImageError(f"has the values {named}, none of them bright: instances, classes or noise")
    if (level := _plateau(scaled)) is not None:
        raise UnclearImageError(
            f"has regions of {level} of 255 between dark and bright: instances or classes"
        )
    return scaled > FIELD_THRESHOLD


def gray_values(image: Image.Image) -> Num[np.ndarray, "height width"]:
    """Return the values of a gray image, whatever its mode, as they are stored.

    Raises:
        UnclearImageError: for a file of several pages, with transparency, or in color.
    """
    values, opaque = _values(image, color=False)
    if opaque is not None:
        raise UnclearImageError("is transparent in part")
    return values


def _object(image: Image.Image) -> Bool[np.ndarray, "height width"]:
    values, opaque = _values(image, color=True)
    found = binarize(values)
    # An object cut out from transparency says the same twice.
    if opaque is not None and not np.array_equal(found, opaque):
        raise UnclearImageError("is transparent where its colors do not say so")
    return found


def _values(
    image: Image.Image, *, color: bool
) -> tuple[Num[np.ndarray, "height width"], Bool[np.ndarray, "height width"] | None]:
    """Return the values of an image in one channel, and what is opaque, ``None`` where all is."""
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise UnclearImageError(f"has {pages} pages")
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
        if not image.has_transparency_data:
            return values, None
        return values, values != image.info["transparency"]
    try:
        pixels = np.asarray(image.convert("RGBA"))
    except ValueError:
        raise UnclearImageError(f"is in a color space that is not read ({image.mode})") from None
    opaque = pixels[..., 3] > FIELD_THRESHOLD
    return _one_channel(pixels[..., :3], color), None if (pixels[..., 3] == 255).all() else opaque


def _one_channel(
    pixels: UInt8[np.ndarray, "height width 3"], color: bool
) -> UInt8[np.ndarray, "height width"]:
    """Return the brightest components of gray, or how near black is to the one color of an image."""
    strongest = pixels.max(axis=-1)
    if (strongest - pixels.min(axis=-1)).max(initial=0) <= COLOR_TOLERANCE:
        return strongest
    if not color:
        raise UnclearImageError("is in color")
    top = pixels.reshape(-1, 3)[strongest.argmax()].astype(float)
    shade = strongest / top.max()
    if np.abs(pixels - shade[..., None] * top).max() > COLOR_TOLERANCE:
        raise UnclearImageError("has colors other than black and shades of one color")
    return np.round(255 * shade).astype(np.uint8)


def _eight_bits(
    values: Num[np.ndarray, "height width"], levels: Num[np.ndarray, "levels"]
) -> UInt8[np.ndarray, "height width"]:
    """Bring values to 0–255 by the white of their kind."""
    largest = levels[-1]
    if values.dtype == np.uint8:
        return values
    whites = (1, 255) if np.issubdtype(values.dtype, np.floating) else (255, 65535)
    white = next((white for white in whites if largest <= white), None)
    if white is None:
        raise UnclearImageError(f"has values up to {largest:g}, and nothing says which is white")
    return np.floor(values.astype(float) * (255 / white)).astype(np.uint8)


def _is_dark(value: float) -> bool:
    return value <= FIELD_THRESHOLD


def _is_noise(found: Bool[np.ndarray, "height width"]) -> bool:
    """Return whether neighbors agree no more than chance makes them, in every direction."""
    share = found.mean()
    if min(found.sum(), (~found).sum()) < FEWEST:
        return False
    pairs = (
        (found[:, 1:], found[:, :-1]),
        (found[1:], found[:-1]),
        (found[1:, 1:], found[:-1, :-1]),
        (found[1:, :-1], found[:-1, 1:]),
    )
    differ = [(a != b).mean() for a, b in pairs if a.size]
    return min(differ, default=0) > SCATTERED * 2 * share * (1 - share)


def _plateau(values: UInt8[np.ndarray, "height width"]) -> int | None:
    """Return a level between the darkest and the brightest that fills regions, not borders; ``None`` without one."""
    counts = np.bincount(values.ravel(), minlength=256)
    present = np.flatnonzero(counts)
    dark = present[0] + (0 if len(present) <= FEW_LEVELS else LEVEL_TOLERANCE)
    middle = values[1:-1, 1:-1]
    height, width = middle.shape
    between = (middle > dark) & (middle < present[-1] - LEVEL_TOLERANCE)
    if not between.any():
        return None
    for down in range(3):
        for right in range(3):
            between &= values[down : down + height, right : right + width] == middle
    flat = np.bincount(middle[between], minlength=256)
    # A border may be level in places.
    return int(flat.argmax()) if flat.sum() > 0.01 * (values > dark).sum() else None
