"""The command ``invertible-attention camouflage`` and its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import Device, ListCommand, Output, Overwrite, Quick, Resume, Seed
from ...cli.checks import check_resume
from . import options as given
from .apply_command import evaluate, predict
from .models import ModelName
from .study_command import measure, study

__all__ = ["APPLICATION"]

APPLICATION = typer.Typer(
    help="""Detect camouflaged objects with ordinary and invertible attention (Table 4, Figures 6 and 7).

train a network, predict maps, evaluate maps (anybody's), compare all rows of the table in a study, measure what a
step costs. Without --data, images are generated from photographs that are installed already.""",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
APPLICATION.command("predict", cls=ListCommand)(predict)
APPLICATION.command("evaluate", cls=ListCommand)(evaluate)
APPLICATION.command("study", cls=ListCommand)(study)
APPLICATION.command("measure", cls=ListCommand)(measure)


@APPLICATION.command("train", cls=ListCommand)
def train(
    output: Output = Path("runs/camouflage"),
    data: given.Data = None,
    train_data: given.TrainData = None,
    test_data: given.TestData = None,
    leave_out_bad: given.LeaveOutBad = False,
    model: Annotated[
        ModelName, typer.Option(help="Row of Table 4: which attention.")
    ] = ModelName.CERTIFIED_CONCATENATION,
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
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one network, predict and score its test images, audit its attention, and write a report.

    The output folder gets model.safetensors, maps, result.json, report.html, figures and logs.
    """
    from .cell import Cell
    from .run import DataFolders, run_one

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
    parallel = given.parallel(configuration, devices, nodes, strategy)
    check_resume(resume, overwrite)
    run_one(
        Cell(model.value, seed),
        configuration,
        folders,
        output=output,
        device=device,
        parallel=parallel,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
    )
