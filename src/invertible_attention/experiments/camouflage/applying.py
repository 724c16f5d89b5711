"""A trained network on images, and scores of its maps or of anybody's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..data.problems import REMEDY
from ..errors import ExperimentError
from ..files import write_json
from ..metadata import run_metadata
from ..study import RunProgress
from .console import print_evaluation
from .data import Collection, DetectionData, open_data, open_images, report_problems
from .evaluation import Evaluation, match_folders, score_collection, score_pairs

__all__ = ["MODEL", "predict_images", "score_maps", "score_network"]

MODEL = "model.safetensors"


def predict_images(
    checkpoint: Path,
    *,
    data: Sequence[Path],
    images: Sequence[Path],
    output: Path,
    leave_out_bad: bool,
    device: str,
) -> None:
    """Write the maps of the test parts of ``data`` and of the folders ``images``."""
    with RunProgress(1, Console(), "prediction") as progress:
        collections: list[Collection] = []
        if data:
            collections += open_data(data, need_train=False, leave_out_bad=leave_out_bad).test
        for folder in images:
            collections += open_images(folder)
        count = _write_maps(checkpoint, collections, output, device, progress)
        progress.finish_cell(f"{count} maps in {output}")


def score_network(
    checkpoint: Path,
    *,
    data: Sequence[Path],
    test_data: Sequence[Path],
    leave_out_bad: bool,
    device: str,
    output: Path | None,
) -> None:
    """Score a network on the test parts of ``data`` and on ``test_data``."""
    with RunProgress(1, Console(), "evaluation") as progress:
        opened = open_data(data, test_roots=test_data, need_train=False, leave_out_bad=leave_out_bad)
        found = _score_network(checkpoint, opened, device, progress)
    _tell(found, output)


def score_maps(
    predictions: Path, masks: Path, *, resize: bool, leave_out_bad: bool, output: Path | None
) -> None:
    """Score a folder of maps against a folder of masks."""
    with RunProgress(1, Console(), "evaluation") as progress:
        found = _score_folders(predictions, masks, resize, leave_out_bad, progress)
    _tell(found, output)


def _tell(found: Evaluation, output: Path | None) -> None:
    print_evaluation(Console(), found)
    if output is not None:
        head = {"schema": "invertible-attention/camouflage-scores/1", "run": run_metadata()}
        write_json(output, head | found.to_json())


def _write_maps(
    checkpoint: Path,
    collections: list[Collection] | tuple[Collection, ...],
    output: Path,
    device: str,
    progress: RunProgress,
) -> int:
    # Only here: scoring maps needs neither Lightning nor transformers.
    from ..training import choose_device
    from .network import load_detector
    from .predicting import write_maps

    place = choose_device(device)
    network, description = load_detector(checkpoint / MODEL if checkpoint.is_dir() else checkpoint)
    count = sum(len(collection) for collection in collections)
    report = progress.stage("predicting", count)
    return write_maps(
        network.to(place), collections, output, size=description.size, device=place, report=report
    )


def _score_network(checkpoint: Path, data: DetectionData, device: str, progress: RunProgress) -> Evaluation:
    if not data.test:
        raise ExperimentError("there is nothing to test on: give --test-data, or --data with a test part")
    with tempfile.TemporaryDirectory() as folder:
        _write_maps(checkpoint, data.test, Path(folder), device, progress)
        progress.stage("scoring", None)
        scores = {item.name: score_collection(Path(folder), item) for item in data.test}
    return Evaluation(scores, {item.name: len(item) for item in data.test}, data.unusable)


def _score_folders(
    predictions: Path, masks: Path, resize: bool, leave_out_bad: bool, progress: RunProgress
) -> Evaluation:
    datasets, problems, unmatched = match_folders(predictions, masks)
    if not leave_out_bad:
        report_problems(problems, remedy=REMEDY)
    scores, images, resized, found = {}, {}, {}, []
    for name, pairs in datasets.items():
        advance = progress.stage(f"scoring {name}", len(pairs))
        scored = score_pairs(pairs, resize=resize, report=lambda done, total, advance=advance: advance(done))
        scores[name] = scored.scores
        images[name] = len(pairs) - len(scored.problems)
        found += scored.problems
        if scored.resized:
            resized[name] = scored.resized
    if not leave_out_bad:
        report_problems(found, remedy=REMEDY)
    return Evaluation(scores, images, [*problems, *found], unmatched, resized)
