"""The command ``invertible-attention benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import Device, Options, Output, Overwrite, Quick, Resume
from .configuration import QUICK, Configuration

__all__ = ["benchmark"]


class Given(Options, of=Configuration, otherwise={"with --quick": QUICK}):
    """How much is measured, as options."""


def benchmark(
    *,
    output: Output = Path("runs/benchmark"),
    given: Given = Given(),
    authors_code: Annotated[
        Path | None, Parameter(help="Checkout of the authors' code, to time as well.")
    ] = None,
    device: Device = "cpu",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure time and memory of attention against the N×N matrix and PyTorch's fused attention in the same run.

    All four responses are measured. The output folder gets benchmark.json, report.html and attention.png.
    """
    configuration = Configuration.from_json((QUICK if quick else {}) | given.given())
    from ..training import choose_device
    from .run import run

    run(
        configuration,
        output=output,
        device="cpu" if device == "auto" else str(choose_device(device)),
        authors_code=authors_code,
        resume=resume,
        overwrite=overwrite,
    )
