"""The command ``invertible-attention camouflage`` and its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ...cli.options import Device, Output, Overwrite, Quick, Resume, Seed, Spread, Work, many
from ..errors import UsageError
from .apply_command import evaluate, predict
from .configuration import QUICK_STUDY, Configuration
from .measure_command import measure
from .models import STUDY
from .options import DataFolders, Decoders, Given, Model, Models

__all__ = ["APPLICATION"]

APPLICATION = App(
    "camouflage",
    group_parameters="Options",
    help="""Detect camouflaged objects with ordinary and invertible attention (Table 4, Figures 6 to 8).

Train a network, predict maps, evaluate anybody's maps, compare all rows of the table in a study, or measure the cost
of a training step. Without --data, images are generated from photographs that are installed already.""",
)
for part in (predict, evaluate, measure):
    APPLICATION.command(part)


@APPLICATION.command
def train(
    *,
    output: Output = Path("runs/camouflage"),
    folders: DataFolders = DataFolders(),
    model: Model = "concatenation/certified",
    given: Given = Given(),
    spread: Spread = Spread(),
    decoders: Decoders = 0,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one network, predict and score its test images, audit its attention, and write a report.

    The output folder gets model.safetensors, maps, result.json, report.html, figures and logs.
    """
    configuration = Configuration.choose(generated=not folders.given, quick=quick, **given.given())
    parallel = spread.parallel(batch_size=configuration.batch_size, precision=configuration.precision)
    from .cell import Cell
    from .run import run_one

    run_one(
        Cell(model, seed),
        configuration,
        folders,
        output=output,
        device=device,
        parallel=parallel,
        decoders=decoders,
        resume=resume,
        overwrite=overwrite,
    )


@APPLICATION.command
def study(
    *,
    output: Output = Path("runs/camouflage-study"),
    folders: DataFolders = DataFolders(),
    models: Models = STUDY,
    seeds: Annotated[tuple[int, ...], many("Seeds; every model is trained with each.")] = (0,),
    given: Given = Given(),
    spread: Spread = Spread(),
    work: Work = Work(),
    decoders: Decoders = 0,
    results: Annotated[
        Path | None,
        Parameter(
            help="Another folder for results.json, report and figures; networks in its results are kept."
        ),
    ] = None,
    device: Device = "auto",
    quick: Quick = False,
    resume: Resume = False,
) -> None:
    """Train every row of Table 4 with every seed, one after another, and report on all of them.

    Finished networks are kept; an interrupted one continues where it stopped. More models and seeds can be added to a
    folder with --resume, and several processes may work on one folder at once:

        invertible-attention camouflage study --data COD10K CAMO --models none concatenation/certified --seeds 0 1 2
    """
    fewer = dict(QUICK_STUDY) if quick else {}
    if folders.given:
        fewer = {name: value for name, value in fewer.items() if name not in ("train_images", "test_images")}
    configuration = Configuration.choose(generated=not folders.given, quick=quick, **fewer | given.given())
    parallel = spread.parallel(batch_size=configuration.batch_size, precision=configuration.precision)
    if parallel.processes > 1 and work != Work():
        raise UsageError("--devices and --nodes spread one network: give no --workers or --cluster too")
    from .run import run_study

    run_study(
        list(dict.fromkeys(models)),
        seeds,
        configuration,
        folders,
        output=output,
        device=device,
        parallel=parallel,
        decoders=decoders,
        workers=work.pool(),
        resume=resume,
        results_folder=results,
    )
