"""What a run shows while it works: how far it is, and what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["RunProgress"]


class RunProgress:
    """Two bars: the networks of the run, and what the current one is doing.

    Args:
        cells: how many networks there are.
        console: where to draw.
        unit: what they are called.
    """

    def __init__(self, cells: int, console: Console, unit: str = "networks"):
        self.console = console
        self._cells = cells
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._all = self._progress.add_task(unit, total=cells, note="")
        self._current = self._progress.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._current, visible=False)
        if kind is None:
            # A run of one network has nothing to count before it ends.
            self._progress.update(self._all, completed=self._cells)
        self._progress.stop()

    def stage(self, description: str, total: int | None) -> Callable[..., None]:
        """Begin a stage of the current network; return what to call as ``advance(done, loss)``."""
        self._progress.reset(self._current, total=total, description=description, note="", visible=True)
        begun = False

        def advance(done: int, loss: float | None = None) -> None:
            nonlocal begun
            if not begun:
                # What an earlier attempt did took no time in this one, and must not count in the estimate.
                self._progress.reset(self._current, total=total, completed=max(0, done - 1))
                begun = True
            note = "" if loss is None else f"loss {loss:.4f}"
            self._progress.update(self._current, completed=done, note=note)

        return advance

    def finish_cell(self, line: str | None) -> None:
        """Count a network as done and leave a line about it, if there is one."""
        self._progress.update(self._all, advance=1)
        if line is not None:
            self.say(line)

    def say(self, line: str) -> None:
        """Leave a line above the bars."""
        self._progress.console.print(line, highlight=False, soft_wrap=True)
