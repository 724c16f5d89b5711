"""``camouflage study`` and ``camouflage measure``: many rows of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...cli.arguments import Device, Output, Quick, Resume
from ..files import write_json
from ..metadata import run_metadata
from . import options as given
from .configuration import SMALLEST
from .models import STUDY, ModelName

__all__ = ["measure", "study"]

Models = Annotated[
    list[ModelName] | None, typer.Option(help="Rows of Table 4.", show_default="the paper's nine and ours")
]


def study(
    output: Output = Path("runs/camouflage-study"),
    data: given.Data = None,
    train_data: given.TrainData = None,
    test_data: given.TestData = None,
    leave_out_bad: given.LeaveOutBad = False,
    models: Models = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds; every model is trained with each.", show_default="0")
    ] = None,
    backbone: given.BackboneOption = None,
    weights: given.Weights = None,
    freeze_backbone: given.FreezeBackbone = None,
    levels: given.Levels = None,
    coefficient: given.Coefficient = None,
    heads: given.Heads = None,
    size: given.Size = None,
    batch_size: given.BatchSize = None,
    epochs: given.Epochs = None,
    learning_rate: given.LearningRate = None,
    schedule: given.ScheduleOption = None,
    average: given.Average = None,
    gradient_clip: given.Clip = None,
    precision: given.Precision = "32-true",
    devices: given.Devices = 1,
    nodes: given.Nodes = 1,
    strategy: given.Strategy = "auto",
    workers: given.Workers = 0,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder that gets results.json, the report and figures too.", show_default=False),
    ] = None,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
) -> None:
    """Train every row of Table 4 with every seed, one after another, and report on all of them.

    Networks that are done are kept; an interrupted one continues where it stopped. More models and seeds can be
    added to a folder with --resume, and several processes may work on one folder at once.
    """
    from .run import DataFolders, run_study

    folders = DataFolders(tuple(data or ()), tuple(train_data or ()), tuple(test_data or ()), leave_out_bad)
    configuration = given.choose(
        data=folders.given,
        quick=quick,
        backbone=backbone,
        weights=weights,
        freeze_backbone=freeze_backbone,
        levels=None if levels is None else tuple(levels),
        coefficient=coefficient,
        heads=heads,
        size=size,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=schedule,
        average=average,
        gradient_clip=gradient_clip,
        precision=precision,
    )
    run_study(
        _names(models),
        seeds or [0],
        configuration,
        folders,
        output=output,
        device=device,
        parallel=given.parallel(configuration, devices, nodes, strategy),
        workers=workers,
        resume=resume,
        results_folder=results,
    )


def measure(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the numbers as JSON.", show_default=False)
    ] = None,
    models: Models = None,
    backbone: Annotated[
        str,
        typer.Option(help="resnet50, resnet18, efficientnet-lite0, efficientnet-lite2, mobilenet or tiny."),
    ] = "resnet50",
    weights: Annotated[
        str, typer.Option(help="Weights of the backbone: a folder, a file, a name on the hub, or 'random'.")
    ] = "random",
    levels: given.Levels = None,
    size: Annotated[int, typer.Option(min=SMALLEST, help="Side of the images the network sees.")] = 352,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 6,
    precision: given.Precision = "32-true",
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps; the first does some things only once.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU.", show_default="all")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure seconds and peak memory of a training step and an evaluation, each model in a process of its own.

    Images are random; so are the weights unless --weights is given.
    """
    from ..report.summary import print_run
    from .measure import measure_apart
    from .tables import COST

    given.check_file(output)
    configuration = given.choose(
        data=True,
        quick=False,
        backbone=backbone,
        weights=weights,
        levels=None if levels is None else tuple(levels),
        size=size,
        batch_size=batch_size,
        precision=precision,
    )
    found = measure_apart(
        _names(models), configuration, steps=steps, device=device, threads=threads, report=print
    )
    content = {
        "schema": COST.schema,
        "configuration": configuration.portable(),
        "threads": threads,
        "run": run_metadata(),
        "models": [measurement.to_json() for measurement in found],
    }
    print_run(Console(), content, (output or Path(configuration.backbone)).parent, ["costs"])
    if output is not None:
        write_json(output, content)


def _names(models: list[ModelName] | None) -> list[str]:
    return list(STUDY) if not models else list(dict.fromkeys(model.value for model in models))
