"""Scoring folders of maps, ours or anybody's, against folders of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..data.appearance import UnclearImageError
from ..data.source import UnusableImageError, open_image
from ..errors import ExperimentError
from ..published import TABLE_4_DATASETS
from .data.layouts import MASK_FOLDERS
from .data.masks import gray_values, read_mask
from .data.pairs import Collection, files_in
from .data.problems import Problem, report_problems
from .metrics import Scores, score_map

__all__ = ["Evaluation", "Matches", "ScoredPair", "match_folders", "score_collection", "score_pairs"]

REMEDY = "mend or remove these files, or go on without them with --leave-out-bad"

Report = Callable[[int, int], None]
"""What is told of scoring: maps done so far, and how many there are."""


@dataclass(frozen=True)
class ScoredPair:
    """A map's file and the file of the mask it is scored against."""

    prediction: Path
    mask: Path


class Matches(NamedTuple):
    """What a folder of maps and a folder of masks have in common.

    Args:
        pairs: by dataset.
        problems: files without a partner.
        unmatched: whole datasets without one, and what they lack.
    """

    pairs: dict[str, list[ScoredPair]]
    problems: list[Problem]
    unmatched: list[str]


@dataclass(frozen=True)
class Evaluation:
    """Scores of some datasets, and what they are of.

    Args:
        scores: by dataset.
        images: how many were scored, by dataset.
        left_out: files that were left out, and why.
        unmatched: datasets that were not scored, and why.
    """

    scores: dict[str, Scores]
    images: dict[str, int]
    left_out: Sequence[Problem] = ()
    unmatched: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "scores": {name: values.to_json() for name, values in self.scores.items()},
            "images": self.images,
            "left_out": [str(problem) for problem in self.left_out],
            "not_scored": list(self.unmatched),
        }


def score_collection(maps: Path, collection: Collection) -> Scores:
    """Score the maps written for a collection."""
    pairs = [
        ScoredPair(maps / collection.name / f"{pair.name}.png", pair.mask)
        for pair in collection.pairs
        if pair.mask is not None
    ]
    scores, problems = score_pairs(pairs)
    report_problems(problems)
    return scores


def score_pairs(
    pairs: Sequence[ScoredPair], *, resize: bool = False, report: Report | None = None
) -> tuple[Scores, list[Problem]]:
    """Score every map; return the mean over those that could be scored, and what was wrong with the others.

    Args:
        pairs: maps and masks.
        resize: scale a map of another size than its mask, instead of reporting it.
        report: called while maps are scored.

    Raises:
        ExperimentError: when not one could be scored.
    """
    scores, problems = [], []
    for number, pair in enumerate(pairs, start=1):
        try:
            mask = read_mask(pair.mask)
            prediction = read_map(pair.prediction, mask.shape if resize else None)
        except UnusableImageError as error:
            problems.append(Problem.of(error))
        else:
            if prediction.shape == mask.shape:
                scores.append(score_map(prediction, mask))
            else:
                problems.append(_other_size(pair, prediction.shape, mask.shape))
        if report is not None:
            report(number, len(pairs))
    if not scores:
        report_problems(problems)
        raise ExperimentError("there is nothing to score")
    return Scores.mean(scores), problems


def read_map(path: Path, size: tuple[int, ...] | None = None) -> UInt8[np.ndarray, "height width"]:
    """Read a map as 0–255, scaled to ``size`` (height, width) if given.

    Raises:
        ExperimentError: naming the file, when it is missing or damaged.
    """
    image = open_image(path, mode=None)
    try:
        values = gray_values(image)
    except UnclearImageError as error:
        raise UnusableImageError(str(path), str(error), "save it in gray, without transparency") from error
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8:
        # Deeper than 8 bits: scores are of the stretched map, so its own range is what counts.
        low, high = float(values.min()), float(values.max())
        values = np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    if size is not None and values.shape != size:
        scaled = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        values = np.asarray(scaled)
    return values


def match_folders(predictions: Path, masks: Path) -> Matches:
    """Find the datasets in a folder of maps and one of masks, and pair their files by stem.

    Either folder may hold files directly, or one folder per dataset (masks in ``DATASET/GT`` too, as datasets
    come). A single folder of maps goes with a single folder of masks, whatever they are called.

    Returns:
        Pairs by dataset, and the files and datasets without a partner.

    Raises:
        ExperimentError: when a folder does not exist or is empty, or no names agree.
    """
    found, truths = file_sets(predictions, "maps"), file_sets(masks, "masks")
    if len(found) == len(truths) == 1:
        found = dict(zip(truths, found.values(), strict=True))
    common = [name for name in truths if name in found]
    if not common:
        raise ExperimentError(
            f"{predictions} has maps for {', '.join(found)}, {masks} has masks for {', '.join(truths)}: "
            "name the folders alike"
        )
    unmatched = [f"{name} has masks and no maps" for name in truths if name not in found]
    unmatched += [f"{name} has maps and no masks" for name in found if name not in truths]
    pairs: dict[str, list[ScoredPair]] = {}
    problems = []
    for name in common:
        by_stem = {path.stem: path for path in found[name]}
        truth = {path.stem: path for path in truths[name]}
        pairs[name] = [ScoredPair(by_stem[stem], path) for stem, path in truth.items() if stem in by_stem]
        problems += [Problem(path, "has no map") for stem, path in truth.items() if stem not in by_stem]
        problems += [Problem(path, "has no mask") for stem, path in by_stem.items() if stem not in truth]
    return Matches(pairs, problems, unmatched)


def file_sets(root: Path, what: str) -> Mapping[str, list[Path]]:
    """Return the image files below ``root`` by the dataset they belong to.

    Raises:
        ExperimentError: when there is none.
    """
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    root = root.resolve()
    if loose := files_in(root):
        return {_dataset(root, root): loose}
    folders = [folder for folder in sorted(root.rglob("*")) if folder.is_dir() and files_in(folder)]
    named = [folder for folder in folders if folder.name.lower() in MASK_FOLDERS]
    tested = [folder for folder in named if not _trains(root, folder)]
    sets: dict[str, list[Path]] = {}
    for folder in tested or named or folders:
        sets.setdefault(_dataset(root, folder), []).extend(files_in(folder))
    if not sets:
        raise ExperimentError(f"{root} holds no {what}")
    return sets


def _dataset(root: Path, folder: Path) -> str:
    names = [*reversed(folder.relative_to(root).parts), root.name]
    for name in names:
        for known in TABLE_4_DATASETS:
            if known.lower() in name.lower():
                return known
    return next((name for name in names if name.lower() not in MASK_FOLDERS), folder.name)


def _trains(root: Path, folder: Path) -> bool:
    return any(part.lower().startswith("train") for part in folder.relative_to(root).parts)


def _other_size(pair: ScoredPair, found: tuple[int, ...], wanted: tuple[int, ...]) -> Problem:
    return Problem(
        pair.prediction,
        f"is {found[1]}×{found[0]} and its mask {pair.mask.name} is {wanted[1]}×{wanted[0]} "
        "(--resize scales maps)",
    )
