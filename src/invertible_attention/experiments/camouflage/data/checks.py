"""Whether every file of a dataset can be decoded and fits its partner, found out before anything long begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from ...data.appearance import shown_size
from ...data.problems import Problem
from ...data.source import MAX_PIXELS, UnusableImageError, identify, open_image
from .masks import read_mask
from .pairs import Pair

__all__ = ["check_pair", "check_pairs"]

Report = Callable[[int], None]


def check_pairs(
    pairs: Sequence[Pair], *, same_size: bool = True, report: Report | None = None
) -> dict[int, Problem]:
    """Decode every file and compare sizes; return what is wrong by the pair's index.

    Args:
        pairs: what to check.
        same_size: whether a mask must have the size of its image. A map is scored at the mask's size, so that for
            testing any will do.
        report: called with the number of pairs done.
    """
    found: dict[int, Problem] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for index, problem in enumerate(pool.map(partial(check_pair, same_size=same_size), pairs)):
            if problem is not None:
                found[index] = problem
            if report is not None:
                report(index + 1)
    return found


def check_pair(pair: Pair, *, same_size: bool = True) -> Problem | None:
    """Return what is wrong with a pair, if anything."""
    try:
        size = _decode(pair.image)
        if pair.mask is None:
            return None
        height, width = read_mask(pair.mask).shape
    except UnusableImageError as error:
        return Problem.of(error)
    except (OSError, ValueError) as error:
        return Problem(pair.image, f"or its mask {pair.mask} cannot be read ({error})")
    if same_size and (width, height) != size:
        return Problem(
            pair.mask, f"is {width}×{height} and its image {pair.image.name} is {size[0]}×{size[1]}"
        )
    return None


def _decode(path: Path) -> tuple[int, int]:
    """Decode a whole image file, at an eighth of its size where the format allows it; return the size shown."""
    try:
        with identify(path) as image:
            size, shown = image.size, shown_size(image)
            if image.format == "JPEG" and size[0] * size[1] <= MAX_PIXELS:
                image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))
                image.load()
                return shown
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    # Everything else, and whatever failed, goes through the reader that words the message.
    return open_image(path).size
