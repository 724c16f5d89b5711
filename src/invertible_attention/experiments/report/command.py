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

A folder is one that reconstruct, density, camouflage, benchmark or audit wrote; the folders in it are searched too. \
The page is a single HTML file that needs nothing else, and prints."""


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Result folders.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    migrate: Annotated[
        bool,
        typer.Option(
            "--migrate", help="Rewrite results files of earlier versions with today's schema first."
        ),
    ] = False,
) -> None:
    """Write the page as the options say."""
    from .migrate import migrate as rewrite
    from .results import find_results
    from .summary import build_page

    if output.is_dir():
        raise ExperimentError(f"{output} is a folder: --output is the page, such as {output / 'report.html'}")
    for path in rewrite(folders) if migrate else ():
        typer.echo(f"{path}: migrated")
    results, unknown = find_results(folders)
    write_text(output, build_page(results, unknown))
    for result in results:
        typer.echo(f"{result.name}: {result.kind.title}")
    for line in unknown:
        typer.echo(f"{line}: skipped")
    typer.echo(f"Report: {output}")


COMMAND = Implementation(report, help=HELP)
