"""The command ``invertible-attention density`` with its parts ``train``, ``evaluate``, ``sample``, ``study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import DataDir, Device, ListCommand, Output, Overwrite, Quick, Resume, Seed
from ...cli.checks import check_folders, check_resume
from . import options as given
from .configuration import Constraint, Dataset, Estimator, Model, Normalization
from .study_command import study, table

__all__ = ["APPLICATION"]

APPLICATION = typer.Typer(
    help="""Estimate densities of images with invertible residual networks and attention (Table 3, Figure 5).

train a density, evaluate it with an exact or unbiased estimator, draw samples; compare models in a study.""",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
APPLICATION.command("study", cls=ListCommand)(study)
APPLICATION.command("table", cls=ListCommand)(table)


@APPLICATION.command("train", cls=ListCommand)
def train(
    output: Output = Path("runs/density"),
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
    attention: given.AttentionOption = None,
    constraint: Annotated[Constraint, typer.Option(help="What limits the attention.")] = Constraint.CERTIFIED,
    affine: Annotated[
        bool, typer.Option("--affine", help="Let triangular attention scale tokens too.")
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Width of triangular attention.", show_default="4 times the channels"),
    ] = None,
    attention_coefficient: Annotated[
        float, typer.Option(help="Lipschitz coefficient of the attention.")
    ] = 0.9,
    normalization: Annotated[
        Normalization, typer.Option(help="What attention weights sum to one along.")
    ] = Normalization.COLUMN,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the attention.")] = 1,
    position_prior: Annotated[
        bool, typer.Option("--position-prior", help="Multiply the response by a learned kernel of position.")
    ] = False,
    attention_after: Annotated[
        list[str] | None,
        typer.Option(help="Where attention goes, as scale:block from 0.", show_default="0:-1"),
    ] = None,
    estimator: given.EstimatorOption = Estimator.ROULETTE,
    terms: given.Terms = None,
    probes: Annotated[int, typer.Option(min=1, help="Probes of the estimator.")] = 1,
    steps: given.Steps = None,
    minutes: given.Minutes = None,
    batch_size: given.BatchSize = 64,
    learning_rate: given.LearningRate = 0.003,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 20.0,
    average: Annotated[
        float | None, typer.Option(help="Decay of the average of weights.", show_default="by dataset")
    ] = None,
    evaluate_every: given.EvaluateEvery = None,
    draws: given.Draws = 4,
    devices: Annotated[int, typer.Option(min=1, help="Devices, or processes, of each machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="How devices work together: auto, ddp …")] = "auto",
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed, 16-mixed …; log-determinants stay in float32.")
    ] = "32-true",
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a density; print its exact or unbiased bits per dimension, draw samples, write a report."""
    configuration = given.choose(**locals())
    check_resume(resume, overwrite)
    check_folders(data_dir)

    from ..training import Parallel
    from .run import train_run

    train_run(
        configuration,
        output=output,
        data_dir=data_dir,
        device=device,
        parallel=Parallel(devices, nodes, strategy, precision),
        resume=resume,
        overwrite=overwrite,
        draws=draws,
    )


@APPLICATION.command("evaluate")
def evaluate(
    output: Output = Path("runs/density"),
    data_dir: DataDir = None,
    estimator: Annotated[
        Estimator, typer.Option(help="roulette is unbiased; exact needs a Jacobian: small images only.")
    ] = Estimator.ROULETTE,
    terms: Annotated[int, typer.Option(min=1, help="Exact terms of roulette.")] = 20,
    probes: Annotated[int, typer.Option(min=1, help="Probes.")] = 4,
    draws: given.Draws = 4,
    images: Annotated[
        int | None, typer.Option(min=2, help="Test images.", show_default="all of the run")
    ] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a trained density: bits per dimension with standard error, never from a truncated series."""
    if estimator == Estimator.POWER_SERIES:
        raise typer.BadParameter("a truncated series is biased: choose --estimator roulette or exact")
    check_folders(data_dir)
    from .run import evaluate_run

    evaluate_run(
        output,
        data_dir=data_dir,
        device=device,
        estimator=estimator,
        terms=terms,
        probes=probes,
        draws=draws,
        images=images,
    )


@APPLICATION.command("sample")
def sample(
    output: Output = Path("runs/density"),
    data_dir: DataDir = None,
    count: Annotated[int, typer.Option(min=1, help="Samples.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Factor on the spread of latents.")] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw samples of a trained density, and interpolations between test images, as PNG."""
    check_folders(data_dir)
    from .run import sample_run

    sample_run(output, data_dir=data_dir, device=device, count=count, temperature=temperature, seed=seed)
