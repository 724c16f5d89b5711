"""What commands refuse before they begin."""

from __future__ import annotations

from pathlib import Path

import typer

from ..experiments.errors import ExperimentError

__all__ = ["check_folders", "check_resume"]


def check_folders(*folders: Path | None) -> None:
    """Raise for a folder that does not exist.

    Raises:
        ExperimentError: naming it.
    """
    for folder in folders:
        if folder is not None and not folder.is_dir():
            raise ExperimentError(f"there is no folder {folder}")


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise when an earlier run is to be both continued and deleted.

    Raises:
        typer.BadParameter: naming both options.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume continues a run and --overwrite starts it again: give one of them")
