"""Scoring folders of maps, ours or anybody's, against folders of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from ..data.appearance import UnclearImageError
from ..data.folder import folders_in, split_of
from ..data.problems import Problem, report_problems
from ..data.source import UnusableImageError, open_image
from ..errors import ExperimentError
from .data.layouts import TRUTH_FOLDERS, dataset_of
from .data.masks import gray_values, read_mask
from .data.pairs import Collection, by_stem, files_in
from .metrics import CONVENTIONS, Scores, score_map

__all__ = [
    "Evaluation",
    "Matches",
    "Scored",
    "ScoredPair",
    "match_folders",
    "score_collection",
    "score_pairs",
]

Report = Callable[[int, int], None]
"""What is reported of scoring: maps done so far, and how many there are."""


@dataclass(frozen=True)
class ScoredPair:
    """A map's file and the file of the mask it is scored against."""

    prediction: Path
    mask: Path


class Matches(NamedTuple):
    """What a folder of maps and a folder of masks have in common.

    Args:
        pairs: by dataset, or by ``METHOD/DATASET``.
        problems: files without a partner.
        unmatched: whole datasets without one, and what they lack.
    """

    pairs: dict[str, list[ScoredPair]]
    problems: list[Problem]
    unmatched: list[str]


class Scored(NamedTuple):
    """What scoring some maps gave.

    Args:
        scores: their mean.
        problems: maps that could not be scored, and why.
        resized: maps that were scaled to their masks, with both sizes.
    """

    scores: Scores
    problems: list[Problem]
    resized: list[Problem]


@dataclass(frozen=True)
class Evaluation:
    """Scores of some datasets, and what they are of.

    Args:
        scores: by dataset, or by ``METHOD/DATASET``.
        images: how many were scored, by the same.
        left_out: files that were skipped, and why.
        unmatched: datasets that were not scored, and why.
        resized: maps that were scaled to their masks, by the same.
    """

    scores: dict[str, Scores]
    images: dict[str, int]
    left_out: Sequence[Problem] = ()
    unmatched: Sequence[str] = ()
    resized: Mapping[str, Sequence[Problem]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "scores": {name: values.to_json() for name, values in self.scores.items()},
            "images": self.images,
            "left_out": [str(problem) for problem in self.left_out],
            "not_scored": list(self.unmatched),
            "resized": {name: len(found) for name, found in self.resized.items()},
            "conventions": CONVENTIONS,
        }


def score_collection(maps: Path, collection: Collection) -> Scores:
    """Score the maps written for a collection."""
    pairs = [
        ScoredPair(maps / collection.name / f"{pair.name}.png", pair.mask)
        for pair in collection.pairs
        if pair.mask is not None
    ]
    found = score_pairs(pairs)
    report_problems(found.problems)
    return found.scores


def score_pairs(pairs: Sequence[ScoredPair], *, resize: bool = True, report: Report | None = None) -> Scored:
    """Score every map; return the mean over those that could be scored, and what was wrong with the others.

    Args:
        pairs: maps and masks.
        resize: scale a map of another size than its mask to the mask, as the field's evaluators do, instead of
            reporting it.
        report: called while maps are scored.

    Raises:
        ExperimentError: when not one could be scored.
    """
    scores, problems, resized = [], [], []
    for number, pair in enumerate(pairs, start=1):
        try:
            mask, prediction = read_mask(pair.mask), read_map(pair.prediction)
        except UnusableImageError as error:
            problems.append(Problem.of(error))
        else:
            if prediction.shape != mask.shape:
                (resized if resize else problems).append(_other_size(pair, prediction.shape, mask.shape))
            if resize or prediction.shape == mask.shape:
                scores.append(score_map(resize_map(prediction, mask.shape), mask))
        if report is not None:
            report(number, len(pairs))
    if not scores:
        report_problems(problems)
        raise ExperimentError("there is nothing to score")
    return Scored(Scores.mean(scores), problems, resized)


def read_map(path: Path) -> UInt8[np.ndarray, "height width"]:
    """Read a map as 0–255.

    Raises:
        ExperimentError: naming the file, when it is missing, damaged, or not gray.
    """
    image = open_image(path, mode=None)
    try:
        values = gray_values(image)
        if not np.isfinite(values).all():
            raise UnclearImageError("has values that are no numbers")
    except UnclearImageError as error:
        raise UnusableImageError(str(path), str(error), "save it in gray, without transparency") from error
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return values
    # Deeper than 8 bits: scores are of the stretched map, so its own range is what counts.
    low, high = float(values.min()), float(values.max())
    return np.round((values.astype(float) - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def resize_map(
    values: UInt8[np.ndarray, "rows columns"], size: Sequence[int]
) -> UInt8[np.ndarray, "height width"]:
    """Scale a map to ``size = (height, width)`` as OpenCV's ``resize`` does by default, which the field's Python
    evaluators use: bilinear, not smoothed where it gets smaller."""
    if values.shape == tuple(size):
        return values
    pixels = torch.from_numpy(values.astype(np.float32))[None, None]
    scaled = torch.nn.functional.interpolate(pixels, size=tuple(size), mode="bilinear", align_corners=False)
    return scaled[0, 0].round().to(torch.uint8).numpy()


def match_folders(predictions: Path, masks: Path) -> Matches:
    """Find the datasets in a folder of maps and one of masks, and pair their files by stem.

    Masks are in the folder itself, or in one folder per dataset (``DATASET/GT`` too, as datasets come). Maps are in
    the folder itself, in one folder per dataset, or in one per method and dataset, ``METHOD/DATASET``; next to the
    masks of a single dataset, in one folder per method. A single folder of maps goes with a single folder of masks,
    whatever they are called. Names are compared whole: PlantCAMO is not CAMO.

    Returns:
        Pairs by dataset, or by ``METHOD/DATASET``, and the files and datasets without a partner.

    Raises:
        ExperimentError: when a folder does not exist or is empty, two have the same name, or no names agree.
    """
    truths, folders = _truths(masks), _with_files(predictions, "maps")
    found = _by_dataset(predictions, folders, truths)
    if not any(dataset in truths for _, dataset in found):
        if len(truths) > 1:
            held = ", ".join(dataset for _, dataset in found)
            raise ExperimentError(
                f"{predictions} has maps for {held}, {masks} has masks for {', '.join(truths)}: "
                "name the folders alike"
            )
        (only,) = truths
        alone = len(folders) == 1
        found = {("" if alone else _method(predictions, folder), only): folder for folder in folders}
    covered = {dataset for _, dataset in found}
    unmatched = [f"{dataset} has masks and no maps" for dataset in truths if dataset not in covered]
    unmatched += [
        f"{_label(method, dataset)} has maps and no masks"
        for method, dataset in found
        if dataset not in truths
    ]
    for method in dict.fromkeys(method for method, _ in found if method):
        unmatched += [
            f"{method} has no maps for {dataset}"
            for dataset in truths
            if dataset in covered and (method, dataset) not in found
        ]
    pairs: dict[str, list[ScoredPair]] = {}
    problems: dict[Problem, None] = {}
    for (method, dataset), folder in found.items():
        if dataset not in truths:
            continue
        maps, doubled = by_stem(files_in(folder))
        truth, same = by_stem(files_in(truths[dataset]))
        pairs[_label(method, dataset)] = [
            ScoredPair(maps[stem], path) for stem, path in truth.items() if stem in maps
        ]
        lacking = " has no map" if not method else f" has no map of {method}"
        wrong = [*doubled, *same]
        wrong += [Problem(path, lacking.strip()) for stem, path in truth.items() if stem not in maps]
        wrong += [Problem(path, "has no mask") for stem, path in maps.items() if stem not in truth]
        problems |= dict.fromkeys(wrong)
    return Matches(pairs, list(problems), unmatched)


def _with_files(root: Path, what: str) -> list[Path]:
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    folders = [folder for folder in folders_in(root) if files_in(folder)]
    if not folders:
        raise ExperimentError(f"{root} holds no {what}")
    return folders


def _truths(root: Path) -> dict[str, Path]:
    """Return the folder of masks of every dataset; those for training are left aside where there are others."""
    folders = _with_files(root, "masks")
    named = [folder for folder in folders if folder.name.lower() in TRUTH_FOLDERS]
    tested = [folder for folder in named if "train" not in map(split_of, folder.relative_to(root).parts)]
    found: dict[str, Path] = {}
    for folder in tested or named or folders:
        names = [name for name in _lineage(root, folder) if name.lower() not in TRUTH_FOLDERS]
        own = next((name for name in names if _is_own(name)), None)
        _add(found, dataset_of(own or next(iter(names), folder.name)), folder)
    return found


def _by_dataset(root: Path, folders: Sequence[Path], truths: Iterable[str]) -> dict[tuple[str, str], Path]:
    """Return folders of maps by method and dataset, the dataset being the innermost name that masks have too."""
    known = set(truths)
    found: dict[tuple[str, str], Path] = {}
    for folder in folders:
        names = _lineage(root, folder)
        inside = names[:-1] or names
        dataset = next((name for name in inside if dataset_of(name) in known), inside[0])
        _add(found, (_method(root, folder, dataset), dataset_of(dataset)), folder)
    return found


def _method(root: Path, folder: Path, dataset: str = "") -> str:
    """Return what a folder's path says besides the dataset and the split."""
    parts = [part for part in folder.relative_to(root).parts if _is_own(part)]
    if dataset in parts:
        parts.remove(dataset)
    return "/".join(parts)


def _is_own(name: str) -> bool:
    """Return whether a name is a dataset's or a method's, not only that of a part."""
    return split_of(name) is None or dataset_of(name) != name


def _lineage(root: Path, folder: Path) -> list[str]:
    return [*reversed(folder.relative_to(root).parts), root.resolve().name]


def _add(found: dict[Any, Path], name: Any, folder: Path) -> None:
    if (other := found.setdefault(name, folder)) is not folder:
        what = name if isinstance(name, str) else _label(*name)
        raise ExperimentError(f"{other} and {folder} are both called {what}: rename one, or move it away")


def _label(method: str, dataset: str) -> str:
    return f"{method}/{dataset}" if method else dataset


def _other_size(pair: ScoredPair, found: tuple[int, ...], wanted: tuple[int, ...]) -> Problem:
    return Problem(
        pair.prediction,
        f"is {found[1]}×{found[0]} and its mask {pair.mask.name} is {wanted[1]}×{wanted[0]}",
    )
