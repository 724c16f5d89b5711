"""The command ``invertible-attention report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import Implementation
from ..errors import ExperimentError
from ..files import write_text

__all__ = ["COMMAND", "report"]

HELP = """Put any set of result folders on one page, beside the paper's tables and figures.

A folder is one that reconstruct, density, camouflage, benchmark or audit wrote; one that holds several is searched. \
The page is a single HTML file that needs nothing else, and prints."""


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Result folders.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write the page as the options say."""
    from .page import build_page
    from .recognition import KINDS, find_results

    if output.is_dir():
        raise ExperimentError(f"{output} is a folder: --output is the page, such as {output / 'report.html'}")
    results, left_out = find_results(folders)
    write_text(output, build_page(results, left_out))
    for result in results:
        typer.echo(f"{result.name}: {KINDS[result.kind]}")
    for name in left_out:
        typer.echo(f"{name}: left out, of a kind this version does not know")
    typer.echo(f"Report: {output}")


COMMAND = Implementation(report, help=HELP)
