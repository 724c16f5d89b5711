"""What a reconstruction run shows on the terminal: progress while it works, a table when it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich import box
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
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
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
        self._progress.console.print(line, highlight=False, soft_wrap=True)


def print_summary(console: Console, results: dict[str, Any]) -> None:
    """Print the table of the run beside the paper's numbers."""
    published = results["published"]
    table = Table(
        title=f"Reconstruction of {results['data']['title']}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("", no_wrap=True)
    for name in ("MSE", "SSIM", "V %", "solved %", "evals", "local L"):
        table.add_column(name, justify="right", no_wrap=True)
    for response, entries in groups(results).items():
        table.add_row(f"[bold]{RESPONSES[response]}")
        if published is not None:
            paper = published["rows"][response]
            table.add_row(
                f"  paper, {published['table']}",
                _short(paper["mse"]),
                f"{paper['ssim']:.3f}",
                f"{paper['v_score']:.1f}",
                style="dim",
            )
        for entry in entries:
            table.add_row(f"  {entry.label}", *_measured(entry))
    console.print(table)


def _measured(entry: Group) -> tuple[str, ...]:
    return (
        _short(entry.mean("reconstruction", "mse")),
        f"{entry.mean('reconstruction', 'ssim'):.3f}",
        f"{entry.mean('reconstruction', 'v_score'):.1f}",
        f"{100 * (entry.mean('inverse', 'converged_share') or 0):.1f}",
        f"{entry.mean('inverse', 'evaluations_mean'):.1f}",
        _short(entry.largest("study", "local_lipschitz", "largest")),
    )


def _short(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"
