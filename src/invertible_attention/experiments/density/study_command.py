"""The commands ``density study`` and ``density table``: many densities on the same data and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...cli.arguments import DataDir, Device, Output, Overwrite, Quick, Resume, Seed
from ...cli.checks import check_folders, check_resume
from . import options as given
from .configuration import AttentionKind, Dataset, Estimator, Model
from .variants import FAIR_STUDY, TABLE_3

__all__ = ["study", "table"]

Seeds = Annotated[int, typer.Option(min=1, help="Seeds per variant, counted from --seed.")]
Jobs = Annotated[int, typer.Option(min=1, help="Densities trained at once, each with one thread.")]


def study(
    output: Output = Path("runs/density-study"),
    variants: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compare, the first being the reference: none, concatenation/certified, "
            "gaussian/relaxed/heads=4, dot_product/certified/position/after=0:0+0:-1, made, maf …",
            show_default="none and the four responses, certified and relaxed",
        ),
    ] = None,
    seeds: Seeds = 3,
    jobs: Jobs = 1,
    dataset: given.DatasetOption = Dataset.DIGITS,
    data_dir: DataDir = None,
    title: given.Title = None,
    size: given.Size = None,
    train_images: given.TrainImages = None,
    test_images: given.TestImages = None,
    augmentation: given.AugmentationOption = None,
    model: given.ModelOption = Model.I_RESNET,
    blocks: given.Blocks = None,
    hidden_channels: given.HiddenChannels = None,
    coefficient: given.CoefficientOption = None,
    estimator: given.EstimatorOption = Estimator.ROULETTE,
    terms: given.Terms = None,
    steps: given.Steps = None,
    minutes: given.Minutes = None,
    batch_size: given.BatchSize = 64,
    learning_rate: given.LearningRate = 0.003,
    evaluate_every: given.EvaluateEvery = None,
    draws: given.Draws = 4,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train every variant with every seed and compare them, paired by seed, with the first."""
    _run(locals(), variants or FAIR_STUDY)


def table(
    output: Output = Path("runs/density-table"),
    variants: Annotated[
        list[str] | None,
        typer.Option(help="Rows of the table.", show_default="the paper's Table 3 and Residual Flow"),
    ] = None,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    dataset: given.DatasetOption = Dataset.DIGITS,
    data_dir: DataDir = None,
    train_images: given.TrainImages = None,
    test_images: given.TestImages = None,
    blocks: given.Blocks = None,
    hidden_channels: given.HiddenChannels = None,
    minutes: Annotated[float, typer.Option(help="Processor time each density may train.")] = 3.0,
    batch_size: given.BatchSize = 64,
    draws: given.Draws = 4,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the other rows of Table 3 too (zuko, normflows), all on the same data for the same time."""
    settings = locals()
    # Time is the budget: no schedule that depends on the number of steps.
    _run(settings | {"steps": 1_000_000, "decay": False, "evaluate_every": 10**9}, variants or TABLE_3)


def _run(settings: dict[str, Any], variants: Any) -> None:
    check_resume(settings["resume"], settings["overwrite"])
    check_folders(settings["data_dir"])
    names = ("seeds", "output", "data_dir", "device", "jobs", "draws", "resume", "overwrite")
    running = {name: settings[name] for name in names}
    base = given.choose(attention=AttentionKind.NONE, **settings)

    from .study import run_study

    run_study(base, tuple(variants), **running)
