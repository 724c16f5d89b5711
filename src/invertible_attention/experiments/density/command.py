"""The command ``invertible-attention density`` with its parts ``train``, ``evaluate``, ``sample``, ``study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ...cli.options import DataDir, Device, Output, Overwrite, Quick, Resume, Seed, Spread, number
from .configuration import Configuration
from .options import Draws, Given
from .study_command import study, table

__all__ = ["APPLICATION"]

Trained = Annotated[
    Path, Parameter(("--output", "-o"), help="Folder of the trained density; the files go there, too.")
]

APPLICATION = App(
    "density",
    group_parameters="Options",
    help="""Estimate densities of images with invertible residual networks and attention (Table 3, Figure 5).

Train a density, evaluate it with an exact or unbiased estimator, draw samples; compare models in a study.""",
)
APPLICATION.command(study)
APPLICATION.command(table)


@APPLICATION.command
def train(
    *,
    output: Output = Path("runs/density"),
    data_dir: DataDir = None,
    given: Given = Given(),
    draws: Draws = 4,
    spread: Spread = Spread(),
    precision: Annotated[
        str, Parameter(help="Lightning precision: 32-true, bf16-mixed, …; log-determinants stay in float32.")
    ] = "32-true",
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a density; print its exact or unbiased bits per dimension, draw samples, write a report.

    For example, four heads of certified attention after the first and the last block of the first scale:

        invertible-attention density train --attention embedded_gaussian --heads 4 --attention-after 0:0 0:-1
    """
    configuration = Configuration.choose(quick=quick, **given.given())
    parallel = spread.parallel(batch_size=configuration.batch_size, precision=precision)
    from .run import train_run

    train_run(
        configuration,
        output=output,
        data_dir=data_dir,
        device=device,
        parallel=parallel,
        resume=resume,
        overwrite=overwrite,
        draws=draws,
    )


@APPLICATION.command
def evaluate(
    *,
    output: Trained = Path("runs/density"),
    data_dir: DataDir = None,
    estimator: Annotated[
        Literal["roulette", "exact"],
        Parameter(help="roulette is unbiased; exact computes the Jacobian: small images only."),
    ] = "roulette",
    terms: Annotated[int, number("Exact terms of roulette.")] = 20,
    probes: Annotated[int, number("Probes.")] = 4,
    draws: Draws = 4,
    images: Annotated[int | None, number("Test images.", 2, show_default="all of the run")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a trained density: bits per dimension with standard error, never from a truncated series."""
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


@APPLICATION.command
def sample(
    *,
    output: Trained = Path("runs/density"),
    data_dir: DataDir = None,
    count: Annotated[int, number("Samples.")] = 64,
    temperature: Annotated[float, number("Scale of the latents' standard deviation.", 0)] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw samples of a trained density, and interpolations between test images, as PNG."""
    from .run import sample_run

    sample_run(output, data_dir=data_dir, device=device, count=count, temperature=temperature, seed=seed)
