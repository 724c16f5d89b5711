"""``camouflage predict`` and ``camouflage evaluate``: maps from a trained network, scores of anybody's maps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...cli.arguments import Device
from ..errors import ExperimentError
from ..files import write_json
from ..metadata import run_metadata
from ..progress import RunProgress
from . import options as given
from .console import print_evaluation
from .data import Collection, DetectionData, open_data, open_images, report_problems
from .data.problems import REMEDY
from .evaluation import Evaluation, match_folders, score_collection, score_pairs

__all__ = ["evaluate", "predict"]

MODEL = "model.safetensors"

Checkpoint = Annotated[
    Path | None,
    typer.Option(help="A trained network: model.safetensors, or the folder it is in.", show_default=False),
]


def predict(
    checkpoint: Checkpoint = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the maps.")] = Path("maps"),
    data: given.TestParts = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="Folders of images, with or without masks.", show_default=False),
    ] = None,
    leave_out_bad: given.LeaveOutBad = False,
    device: Device = "auto",
) -> None:
    """Write the map of every image as OUTPUT/DATASET/NAME.png, 8 bits, at the image's own size.

    --data takes datasets and predicts their test parts; --images takes any folders.
    """
    if checkpoint is None:
        raise typer.BadParameter("--checkpoint is needed: which network?")
    if not data and not images:
        raise typer.BadParameter("--data or --images is needed: which images?")
    console = Console()
    with RunProgress(1, console, "prediction") as progress:
        collections: list[Collection] = []
        if data:
            collections += open_data(data, need_train=False, leave_out_bad=leave_out_bad).test
        for folder in images or ():
            collections += open_images(folder)
        count = _write_maps(checkpoint, collections, output, device, progress)
        progress.finish_cell(f"{count} maps in {output}")


def evaluate(
    checkpoint: Checkpoint = None,
    data: given.TestParts = None,
    test_data: given.TestData = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Folder of anybody's maps: DATASET/NAME.png, METHOD/DATASET/NAME.png, or NAME.png.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of masks, directly or in one folder per dataset.", show_default=False),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize/--no-resize",
            help="Scale maps of another size than their masks to them, as other evaluators do; or report them.",
        ),
    ] = True,
    leave_out_bad: given.LeaveOutBad = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the scores as JSON.", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Score a trained network on test sets, or anybody's folder of maps against a folder of masks.

    Scores: S, F, E, weighted F and mean absolute error, with pysodmetrics, at the size of the masks.
    """
    console = Console()
    by_network, by_maps = checkpoint is not None, predictions is not None and masks is not None
    if by_network == by_maps or (predictions is None) != (masks is None):
        raise typer.BadParameter("give --checkpoint with --data, or --predictions with --masks")
    if by_maps and (data or test_data):
        raise typer.BadParameter(
            "--predictions are scored against --masks alone: --data and --test-data go with --checkpoint"
        )
    if by_network and not data and not test_data:
        raise typer.BadParameter("--data or --test-data is needed: which images?")
    given.check_file(output)
    with RunProgress(1, console, "evaluation") as progress:
        if predictions is not None and masks is not None:
            found = _score_folders(predictions, masks, resize, leave_out_bad, progress)
        else:
            assert checkpoint is not None
            opened = open_data(
                data or (), test_roots=test_data or (), need_train=False, leave_out_bad=leave_out_bad
            )
            found = _score_network(checkpoint, opened, device, progress)
    print_evaluation(console, found)
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
        scored = score_pairs(pairs, resize=resize, report=lambda done, total, tell=advance: tell(done))
        scores[name] = scored.scores
        images[name] = len(pairs) - len(scored.problems)
        found += scored.problems
        if scored.resized:
            resized[name] = scored.resized
    if not leave_out_bad:
        report_problems(found, remedy=REMEDY)
    return Evaluation(scores, images, [*problems, *found], unmatched, resized)
