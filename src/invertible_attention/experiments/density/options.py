"""Options that several parts of the density command share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from .configuration import AttentionKind, Augmentation, Configuration, Dataset, Estimator, Model

__all__ = [
    "AttentionOption",
    "AugmentationOption",
    "BatchSize",
    "Blocks",
    "CoefficientOption",
    "DatasetOption",
    "Draws",
    "EstimatorOption",
    "EvaluateEvery",
    "HiddenChannels",
    "LearningRate",
    "Minutes",
    "ModelOption",
    "Size",
    "Steps",
    "Terms",
    "TestImages",
    "Title",
    "TrainImages",
    "choose",
]

BY_DATASET = "by dataset"


def _number(text: str) -> Any:
    return typer.Option(min=1, help=text, show_default=BY_DATASET)


DatasetOption = Annotated[Dataset, typer.Option("--dataset", help="Images to use.")]
Title = Annotated[str | None, typer.Option(help="What to call the data in reports.")]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(metavar="HEIGHT WIDTH", help="Size of the images.", show_default=BY_DATASET),
]
TrainImages = Annotated[int | None, _number("Training images.")]
TestImages = Annotated[int | None, _number("Test images.")]
AugmentationOption = Annotated[
    Augmentation | None, typer.Option(help="Of training images.", show_default=BY_DATASET)
]
ModelOption = Annotated[Model, typer.Option(help="Family of densities.")]
Blocks = Annotated[
    list[int] | None, typer.Option(help="Blocks per scale: --blocks 16 16 16.", show_default=BY_DATASET)
]
HiddenChannels = Annotated[int | None, _number("Width inside a block.")]
CoefficientOption = Annotated[
    float | None, typer.Option(help="Norm of a convolution.", show_default="0.9; residual-flow 0.98")
]
AttentionOption = Annotated[
    AttentionKind | None, typer.Option(help="Response of the attention.", show_default="concatenation")
]
EstimatorOption = Annotated[
    Estimator, typer.Option(help="Log-determinant in training; power-series is the paper's, biased.")
]
Terms = Annotated[
    int | None,
    typer.Option(min=1, help="Exact terms of roulette, all terms of power-series.", show_default="2; 5"),
]
Steps = Annotated[int | None, _number("Optimizer steps.")]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Processor time after which training ends, if --steps are not done before; the learning rate "
        "then does not decay.",
        show_default="no limit",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step, over all devices.")]
LearningRate = Annotated[float, typer.Option(help="Of Adamax.")]
EvaluateEvery = Annotated[int | None, _number("Steps between points of the learning curve.")]
Draws = Annotated[int, typer.Option(min=2, help="Dequantizations per image in the evaluation.")]


def choose(make: Callable[..., Configuration] = Configuration.choose, **given: Any) -> Configuration:
    """Return the configuration that options ask for; one out of range is a usage error."""
    if given.get("estimator") == Estimator.POWER_SERIES and given.get("terms") is None:
        given["terms"] = 5
    try:
        return make(**given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
