"""What a reconstruction run shows on the terminal: progress while it works, a table when it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..published import RESPONSES
from .results import Group, groups

__all__ = ["RunProgress", "print_summary"]


class RunProgress:
    """Two bars: the cells of the run, and what the current cell is doing.

    Args:
        cells: how many there are.
        console: where to draw.
    """

    def __init__(self, cells: int, console: Console):
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._all = self._progress.add_task("networks", total=cells, note="")
        self._current = self._progress.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._current, visible=False)
        self._progress.stop()

    def stage(self, description: str, total: int | None) -> Callable[..., None]:
        """Begin a stage of the current cell; return what to call as ``advance(done, loss)``."""
        self._progress.reset(self._current, total=total, description=description, note="", visible=True)

        def advance(done: int, loss: float | None = None) -> None:
            note = "" if loss is None else f"loss {loss:.4f}"
            self._progress.update(self._current, completed=done, note=note)

        return advance

    def finish_cell(self, line: str) -> None:
        """Count a cell as done and leave a line about it."""
        self._progress.update(self._all, advance=1)
        self._progress.console.print(line, highlight=False)


def print_summary(console: Console, results: dict[str, Any]) -> None:
    """Print the table of the run beside the paper's numbers."""
    published = results["published"]
    table = Table(title=f"Reconstruction of {results['data']['title']}", title_justify="left")
    table.add_column("response")
    table.add_column("constraint")
    for name in ("MSE", "SSIM", "V-score %", "converged %", "evaluations", "local Lipschitz"):
        table.add_column(name, justify="right")
    for response, entries in groups(results).items():
        if published is not None:
            paper = published["rows"][response]
            table.add_row(RESPONSES[response], "paper", *_paper(paper), "", "", "", style="dim")
        for entry in entries:
            table.add_row(RESPONSES[response], entry.label, *_measured(entry))
        table.add_section()
    console.print(table)


def _paper(row: dict[str, float]) -> tuple[str, str, str]:
    return f"{row['mse']:.4g}", f"{row['ssim']:.3f}", f"{row['v_score']:.1f}"


def _measured(entry: Group) -> tuple[str, ...]:
    return (entry.mse, entry.ssim, entry.v_score, entry.converged, entry.evaluations, entry.local_lipschitz)
