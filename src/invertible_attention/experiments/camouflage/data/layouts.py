"""Where images and masks are in the layouts camouflage datasets come in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.folder import MASK_FOLDERS, image_files, split_of
from ...data.problems import Problem
from ...errors import ExperimentError
from ...published import TABLE_4_DATASETS
from .pairs import Collection, Pair, by_stem, files_in, pair_by_stem

__all__ = ["LAYOUTS", "TRUTH_FOLDERS", "Part", "collect", "dataset_of", "find_parts"]

IMAGE_FOLDERS = ("imgs", "img", "images", "image", "im")
TRUTH_FOLDERS = (*MASK_FOLDERS, "objects")
LAYOUTS = (
    "TrainDataset/{Imgs,GT} and TestDataset/NAME/{Imgs,GT}",
    "Train/NAME/{Image,Mask} and Test/NAME/{Image,Mask}",
    "…/{im,gt}",
    "COD10K-v3/{Train,Test}/{Image,GT_Object}",
    "CAMO-V.1.0-CVIU2019/{Images/{Train,Test},GT}",
    "…/{images/image,objects/GT_Object}",
)
"""The layouts that are understood, for messages."""

ALIAS = re.compile(
    rf"({'|'.join(TABLE_4_DATASETS)})([-_ ](tr|te|train|test|training|testing|cam|v\.?\d+(\.\d+)*|cviu2019))*",
    re.IGNORECASE,
)
"""A dataset of Table 4 by its name, and whatever its distributors append: COD10K-v3, CAMO-V.1.0-CVIU2019, CAMO-TE."""


@dataclass(frozen=True)
class Part:
    """One dataset's training or test part on disk.

    Args:
        name: the dataset's.
        split: ``"train"``, ``"test"``, or ``None`` where the folders do not say.
        images: the folder of images.
        masks: the folder of masks, ``None`` where there is none.
        shared_masks: whether ``masks`` holds those of other parts too.
    """

    name: str
    split: str | None
    images: Path
    masks: Path | None
    shared_masks: bool = False


def find_parts(root: Path) -> list[Part]:
    """Find every folder of images below ``root`` that has its masks next to it, or should have.

    Raises:
        ExperimentError: when there is none, saying what was expected.
    """
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    parts = list(_walk(root.resolve()))
    if not parts:
        held = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
        expected = "; ".join(LAYOUTS)
        raise ExperimentError(
            f"{root} has no folder of images next to a folder of masks (it holds {held}): expected {expected}"
        )
    return parts


def collect(
    parts: Sequence[Part], *, masks: bool = True
) -> tuple[list[tuple[str | None, Collection]], list[Problem]]:
    """Pair the files of every part, and say which have no partner.

    Args:
        parts: from :func:`find_parts`.
        masks: whether every image needs one; without, masks are taken where they are.

    Returns:
        Each collection with its split, parts of one name and split joined, and the problems found.
    """
    pairs: dict[tuple[str, str | None], list[Pair]] = {}
    left_out: dict[tuple[str, str | None], int] = {}
    problems: list[Problem] = []
    for part in parts:
        found, dropped, wrong = _pairs_of(part, [other for other in parts if other is not part], masks)
        key = (part.name, part.split)
        pairs.setdefault(key, []).extend(found)
        left_out[key] = left_out.get(key, 0) + dropped
        problems += wrong
    collections = [
        (split, Collection(name, tuple(sorted(found, key=lambda pair: pair.image)), left_out[name, split]))
        for (name, split), found in pairs.items()
    ]
    return collections, problems


def _pairs_of(part: Part, others: Sequence[Part], need: bool) -> tuple[list[Pair], int, list[Problem]]:
    images = files_in(part.images)
    if not images:
        return [], 0, [Problem(part.images, "holds no images")]
    deeper = [
        Problem(
            folder, "holds images inside a folder of images, which is not looked into: move them up or away"
        )
        for folder in sorted(part.images.iterdir())
        if folder.is_dir() and not folder.name.startswith((".", "__")) and image_files(folder)
    ]
    pairs, left_out, problems = _paired(part, images, others, need)
    return pairs, left_out, [*deeper, *problems]


def _paired(
    part: Part, images: Sequence[Path], others: Sequence[Part], need: bool
) -> tuple[list[Pair], int, list[Problem]]:
    if part.masks is None:
        if need:
            return [], 0, [Problem(part.images, "has no folder of masks next to it (GT, Mask …)")]
        named, problems = by_stem(images)
        return [Pair(stem, path, None) for stem, path in named.items()], 0, problems
    masks = files_in(part.masks)
    if not masks and need:
        return [], 0, [Problem(part.masks, "holds no masks")]
    kept = [path for path in images if _camouflaged(path, part.masks)]
    masks = [path for path in masks if _camouflaged(path, part.masks)]
    if part.shared_masks:
        elsewhere = {
            path.stem for other in others if other.masks == part.masks for path in files_in(other.images)
        }
        own = {path.stem for path in kept}
        masks = [path for path in masks if path.stem not in elsewhere - own]
    pairs, problems = pair_by_stem(kept, masks)
    if not need:
        named, problems = by_stem(kept)
        paired = {pair.name for pair in pairs}
        pairs += [Pair(stem, path, None) for stem, path in named.items() if stem not in paired]
    return pairs, len(images) - len(kept), problems


def _camouflaged(path: Path, masks: Path) -> bool:
    # COD10K as distributed also has images without a camouflaged object.
    return masks.name.lower() != "gt_object" or not path.name.startswith("COD10K-NonCAM-")


def _walk(root: Path) -> Iterator[Part]:
    visited: set[Path] = set()
    for folder, names, _ in os.walk(root, followlinks=True):
        here = Path(folder)
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        # Links may lead back up.
        names[:] = [] if here.resolve() in visited else names
        visited.add(here.resolve())
        images = _named(here, names, IMAGE_FOLDERS)
        if images is None:
            continue
        masks = _named(here, names, TRUTH_FOLDERS)
        names[:] = [name for name in names if here / name not in (images, masks)]
        images, masks = _innermost(images, IMAGE_FOLDERS), masks and _innermost(masks, TRUTH_FOLDERS)
        divided = [path for path in sorted(images.iterdir()) if path.is_dir() and split_of(path.name)]
        if divided and not files_in(images):
            for path in divided:
                yield Part(_name(root, here), split_of(path.name), path, masks, shared_masks=True)
        else:
            yield Part(_name(root, here), _split(root, here), images, masks)


def _named(folder: Path, names: Sequence[str], wanted: Sequence[str]) -> Path | None:
    found = [folder / name for name in names if name.lower() in wanted]
    if len(found) > 1:
        raise ExperimentError(
            f"{folder} holds {' and '.join(path.name for path in found)}: which of them is meant? Move the others"
        )
    return found[0] if found else None


def _innermost(folder: Path, wanted: Sequence[str]) -> Path:
    """Return the folder that holds the files where folders of such names are nested, as in images/image."""
    while not files_in(folder):
        inner = _named(folder, sorted(path.name for path in folder.iterdir() if path.is_dir()), wanted)
        if inner is None:
            break
        folder = inner
    return folder


def _lineage(root: Path, folder: Path) -> list[str]:
    """Return the names from ``folder`` up to and with ``root``."""
    inside = folder.relative_to(root).parts
    return [*reversed(inside), root.name]


def _split(root: Path, folder: Path) -> str | None:
    return next((split for name in _lineage(root, folder) if (split := split_of(name))), None)


def dataset_of(name: str) -> str:
    """Return what a folder's name calls a dataset: Table 4's where it is one of those, and else itself.

    Example:
        >>> dataset_of("COD10K-v3"), dataset_of("camo-te"), dataset_of("PlantCAMO"), dataset_of("CAMO++")
        ('COD10K', 'CAMO', 'PlantCAMO', 'CAMO++')
    """
    found = ALIAS.fullmatch(name)
    return found[1].upper() if found else name


def _name(root: Path, folder: Path) -> str:
    lineage = [name for name in _lineage(root, folder) if name]
    own = next((name for name in lineage if ALIAS.fullmatch(name) or split_of(name) is None), None)
    return dataset_of(own or next(iter(lineage), "images"))
