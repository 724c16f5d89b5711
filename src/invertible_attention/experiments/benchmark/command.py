"""The command ``invertible-attention benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import Device, Implementation, Output, Quick
from .run import run

__all__ = ["COMMAND", "benchmark"]

HELP = """Measure time and memory of attention (the four responses, 64 to 65,536 tokens) against the N×N matrix \
and PyTorch's fused attention in the same run.

The output folder gets benchmark.json and attention.png."""


def benchmark(
    output: Output = Path("runs/benchmark"),
    authors_code: Annotated[
        Path | None, typer.Option(help="Checkout of the authors' code, to time beside.")
    ] = None,
    device: Device = "cpu",
    quick: Quick = False,
) -> None:
    """Run the benchmark as the options say."""
    from ..training import choose_device

    run(
        output,
        quick=quick,
        device="cpu" if device == "auto" else str(choose_device(device)),
        authors_code=authors_code,
        say=typer.echo,
    )


COMMAND = Implementation(benchmark, help=HELP)
