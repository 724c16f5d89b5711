"""The search over many groups and networks, each a cell of a study."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, write_json, write_tensors
from ..metadata import run_metadata
from ..study import CELLS, RESULT, Cell, Report, RunProgress, Study, Workers
from .attack_figure import draw_attack
from .attack_results import collect
from .networks import search_network
from .search import search_group
from .settings import Campaign

__all__ = ["run_campaign"]

STATE = "search.json"
"""Where earlier versions kept everything that was found."""

OWNED = (STATE, "violations", "results.json", "report.html", "figures")


def run_campaign(
    campaign: Campaign,
    *,
    output: Path,
    workers: Workers | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Search every group and network that is not done yet, then write results.json, the figure and report.html.

    Args:
        campaign: what is searched.
        output: folder for everything written.
        workers: where; what is found does not depend on it.
        resume: continue an interrupted search, or add to a finished one.
        overwrite: delete an earlier search first.
        console: where progress and the table are shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the folder cannot be used.
    """
    study = Study(
        output,
        campaign.shared(),
        owned=OWNED,
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        console=console,
        unit="groups and networks",
    )

    with study:
        adopt(output)
    return study.run(
        cells(campaign),
        partial(search_cell, campaign),
        Report(
            collect=lambda found: collect(list(found.values()), campaign.shared(), run_metadata()),
            draw=lambda results: [draw_attack(results)],
            shown=["violations", "ranges", "cases"],
        ),
    )


def cells(campaign: Campaign) -> Iterator[Cell]:
    """Yield every group and network."""
    for kind, count in (("group", campaign.groups), ("network", campaign.networks)):
        for number in range(count):
            settings = campaign.shared() | {kind: number}
            yield Cell(cell_name(kind, number), settings, (kind, number), f"{kind} {number}")


def search_cell(
    campaign: Campaign, what: tuple[str, int], folder: Path, progress: RunProgress
) -> dict[str, Any]:
    """Search one group or network; the weights of a group that exceeds its bound are kept."""
    kind, number = what
    start = time.process_time()
    if kind == "network":
        found = search_network(campaign.seed, number, steps=campaign.steps)
    else:
        found = search_group(campaign, number)
        if found.violations:
            write_tensors(folder.parents[1] / "violations" / f"{number}.safetensors", found.worst)
    return found.to_json() | {"processor_seconds": time.process_time() - start}


def cell_name(kind: str, number: int) -> str:
    """Return the folder name of a group or network; names are in the order of numbers."""
    return f"{kind}-{number:06d}"


def adopt(output: Path) -> None:
    """Make cells of what an earlier version found, which it kept in one file.

    Raises:
        ExperimentError: when the file is not a search's.
    """
    path = output / STATE
    if not path.is_file():
        return
    stored = read_json(path)
    try:
        found = {cell_name("group", item["group"]): item for item in stored["groups"]}
        found |= {cell_name("network", item["network"]): item for item in stored["networks"]}
        seconds = stored["processor_seconds"] / max(1, len(found))
    except (KeyError, TypeError) as error:
        raise ExperimentError(f"{path} is not a search of this command: choose another --output") from error
    for name, item in found.items():
        write_json(output / CELLS / name / RESULT, item | {"processor_seconds": seconds})
    path.unlink()
