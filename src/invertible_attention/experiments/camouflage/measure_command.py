"""``camouflage measure``: what a step of each row of the table costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ...cli.options import Device, Options, number
from .configuration import Configuration
from .models import STUDY
from .options import Models, Results, check_file

__all__ = ["measure"]


class Measured(
    Options,
    of=Configuration,
    only=("backbone", "weights", "levels", "size", "batch_size", "precision"),
    defaults={"weights": "random"},
):
    """The settings a step's cost depends on."""


def measure(
    *,
    output: Results = None,
    models: Models = STUDY,
    given: Measured = Measured(),
    steps: Annotated[int, number("Training steps; the first one includes one-time setup.")] = 1,
    threads: Annotated[int | None, number("CPU threads.", show_default="all")] = None,
    device: Device = "auto",
) -> None:
    """Measure seconds and peak memory of a training step and an evaluation, each model in a separate process.

    Images are random; so are the weights unless --weights is given.
    """
    from rich.console import Console

    from ..files import write_json
    from ..metadata import run_metadata
    from ..report.summary import print_run
    from .measure import measure_apart
    from .tables import COST

    check_file(output)
    configuration = Configuration.from_json(given.given())
    names = list(dict.fromkeys(models))
    found = measure_apart(names, configuration, steps=steps, device=device, threads=threads, report=print)
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
