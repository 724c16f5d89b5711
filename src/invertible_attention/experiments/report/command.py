"""The command ``invertible-attention report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import flag
from ..errors import ExperimentError

__all__ = ["report"]


def report(
    folders: Annotated[tuple[Path, ...], Parameter(help="Result folders.", negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"), help="The page to write.")] = Path("report.html"),
    migrate: Annotated[
        bool, flag("Rewrite results files of earlier versions with today's schema first.")
    ] = False,
) -> None:
    """Put result folders on one page, next to the paper's tables and figures.

    A folder is one that reconstruct, density, camouflage, benchmark or audit wrote; the folders in it are searched,
    too. The page is a single HTML file that needs nothing else, and prints.
    """
    from ..files import write_text
    from .migrate import migrate as rewrite
    from .results import find_results
    from .summary import build_page

    if output.is_dir():
        raise ExperimentError(f"{output} is a folder: --output is the page, such as {output / 'report.html'}")
    for path in rewrite(folders) if migrate else ():
        print(f"{path}: migrated")
    results, unknown = find_results(folders)
    write_text(output, build_page(results, unknown))
    for result in results:
        print(f"{result.name}: {result.kind.title}")
    for line in unknown:
        print(f"{line}: skipped")
    print(f"Report: {output}")
