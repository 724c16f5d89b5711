"""The command ``invertible-attention reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import (
    DataDir,
    Device,
    Implementation,
    ListCommand,
    Output,
    Overwrite,
    Quick,
    Resume,
    Seed,
)
from ...cli.checks import check_folders, check_resume
from .configuration import Configuration, Constraint, Dataset, Normalization, Response, SolverName

__all__ = ["COMMAND", "reconstruct"]

HELP = """Train invertible attention on images, invert it, and measure what comes back (Tables 2 and 5).

One attention block on squeezed images is trained towards a fixed random target, then inverted on all test \
images. The output folder gets results.json, report.html, figures and checkpoints.

Options that are lists take several values: --constraints certified released."""


def reconstruct(
    output: Output = Path("runs/reconstruct"),
    dataset: Annotated[
        Dataset,
        typer.Option(
            help="Images to use: photos come with scikit-image and scikit-learn, folder is --data-dir."
        ),
    ] = Dataset.PHOTOS,
    data_dir: DataDir = None,
    title: Annotated[
        str | None, typer.Option(help="What to call the data in reports, where the name would mislead.")
    ] = None,
    size: Annotated[tuple[int, int], typer.Option(metavar="HEIGHT WIDTH", help="Size of the images.")] = (
        32,
        32,
    ),
    random_crops: Annotated[
        bool | None,
        typer.Option(
            "--random-crops/--whole-images",
            help="Several random crops per photograph, or one centred image each.",
            show_default=False,
        ),
    ] = None,
    own_size: Annotated[
        bool,
        typer.Option(
            "--own-size",
            help="Invert the test images at their own size too, and write the result as PNG; training is at --size.",
        ),
    ] = False,
    responses: Annotated[
        list[Response] | None, typer.Option(help="Responses.", show_default="all four")
    ] = None,
    constraints: Annotated[
        list[Constraint] | None,
        typer.Option(help="Constraints; released is the authors' code as it is.", show_default="all three"),
    ] = None,
    normalization: Annotated[
        list[Normalization] | None,
        typer.Option(help="What attention weights sum to one along.", show_default="column"),
    ] = None,
    solver: Annotated[
        SolverName,
        typer.Option(
            help="Solver of the inverse; picard is fixed-point iteration, the paper's (released: 50 steps of it)."
        ),
    ] = SolverName.ANDERSON,
    coefficient: Annotated[
        float, typer.Option(help="Lipschitz coefficient, between 0 and 1 (released: its own).")
    ] = 0.9,
    train_images: Annotated[
        int | None,
        typer.Option(min=1, help="Training images.", show_default="1000; of a folder, as many as it has"),
    ] = None,
    test_images: Annotated[
        int | None,
        typer.Option(min=1, help="Test images.", show_default="1000; of a folder, as many as it has"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs.", show_default="100; 1 above 64 pixels")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default="64; 1 above 64 pixels")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Repeats, each with its own seed.", show_default="3")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images processed at once.", show_default="by memory")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    reevaluate: Annotated[
        bool, typer.Option("--reevaluate", help="With --resume: invert what is trained already once more.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the reconstruction experiment as the options say."""
    try:
        configuration = Configuration.choose(
            quick=quick,
            dataset=dataset.value,
            title=title,
            size=size,
            random_crops=random_crops,
            own_size=own_size,
            responses=responses,
            constraints=constraints,
            normalizations=normalization,
            solver=solver.value,
            coefficient=coefficient,
            train_images=train_images,
            test_images=test_images,
            epochs=epochs,
            batch_size=batch_size,
            repeats=repeats,
            micro_batch=micro_batch,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    check_resume(resume, overwrite)
    if reevaluate and not resume:
        raise typer.BadParameter("--reevaluate is about an earlier run: give --resume too")
    check_folders(data_dir)

    from .run import divide_folder, run

    if configuration.dataset == "folder":
        fixed = (train_images is not None, test_images is not None)
        configuration = divide_folder(configuration, data_dir, fixed=fixed)
    run(
        configuration,
        output=output,
        data_dir=data_dir,
        device=device,
        resume=resume,
        reevaluate=reevaluate,
        overwrite=overwrite,
    )


COMMAND = Implementation(reconstruct, help=HELP, kind=ListCommand)
