"""The command ``invertible-attention benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import Device, Output, Overwrite, Quick, Resume

__all__ = ["benchmark"]


def benchmark(
    *,
    output: Output = Path("runs/benchmark"),
    authors_code: Annotated[
        Path | None, Parameter(help="Checkout of the authors' code, to time as well.")
    ] = None,
    device: Device = "cpu",
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure time and memory of attention against the N×N matrix and PyTorch's fused attention in the same run.

    The four responses at 64 to 65,536 tokens. The output folder gets benchmark.json, report.html and attention.png.
    """
    from ..training import choose_device
    from .run import run

    run(
        output,
        quick=quick,
        device="cpu" if device == "auto" else str(choose_device(device)),
        authors_code=authors_code,
        resume=resume,
        overwrite=overwrite,
    )
