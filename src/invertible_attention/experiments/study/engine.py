"""The engine of every experiment with more than one network: each cell computed once, stored, and reported on."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, remove_unfinished, write_json, write_text
from ..ranks import is_first_process
from ..report import Figure, save_figures
from ..report.summary import print_run, run_markdown, write_run_page
from .folder import CELLS, CHECKPOINT, CONFIGURATION, INTERRUPTED, LOCK, OutputFolder, differences
from .progress import RunProgress
from .workers import Workers

__all__ = ["RESULT", "Cell", "Report", "Study", "keep"]

RESULT = "result.json"
"""A cell's result; its presence says that the cell is done."""

DATA = "data.json"
ERROR = "error.txt"

RunCell = Callable[[Any, Path, RunProgress], dict[str, Any] | None]
"""What computes a cell. It is given what the cell is, its folder, and what shows progress, and returns the result as
JSON values; ``None`` in every process but the first of those that train together."""

ONE_AT_A_TIME = threading.Lock()
"""Cells seed torch's generator, which the threads of a process share."""


@dataclass(frozen=True)
class Cell:
    """One part of a study, computed and stored by itself.

    Args:
        name: of its folder.
        settings: what decides its result, as JSON values.
        what: what the function that computes it is given.
        title: what it is called on the terminal.
        data: fingerprint of the data it is computed from, where it has any.
    """

    name: str
    settings: dict[str, Any]
    what: Any
    title: str
    data: str | None = None


@dataclass(frozen=True)
class Report:
    """What a study writes and shows of its finished cells.

    Args:
        collect: returns the content of the results file, given the results by the cells' names.
        draw: returns the figures of that content.
        shown: names of the tables that the terminal gets.
        line: returns what the terminal gets of one result; ``None`` for nothing.
        results, figures, page, markdown: names of the results file, of the figures' folder, of the page, and of the
            same in Markdown, if at all.
    """

    collect: Callable[[dict[str, dict[str, Any]]], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Sequence[Figure]]
    shown: Sequence[str]
    line: Callable[[dict[str, Any]], str] | None = None
    results: str = "results.json"
    figures: str = "figures"
    page: str = "report.html"
    markdown: str | None = None

    def write(self, folder: Path, content: dict[str, Any]) -> None:
        """Write the results file, the figures and the page, each whole or not at all."""
        write_json(folder / self.results, content)
        save_figures(folder / self.figures, self.draw(content))
        write_run_page(folder / self.page, content)
        if self.markdown is not None:
            write_text(folder / self.markdown, run_markdown(content, folder))

    def show(self, console: Console, folder: Path, content: dict[str, Any]) -> None:
        """Print tables and findings, and where the page is."""
        print_run(console, content, folder, self.shown)
        console.print(f"Report: {folder / self.page}", highlight=False, soft_wrap=True)


class Study:
    """Cells in one folder, each computed once by whichever process claims it first.

    Entering a study claims its folder for these settings; what must be in it before the cells run is written there
    then. After that several processes may work on one folder, on one machine or on several. Finished cells are kept,
    an interrupted one continues from what it left in its folder, one that fails is reported and does not stop the
    others. Cells can be added to a study later, in the same settings.

    Args:
        output: folder of the study.
        settings: what all cells share, as JSON values.
        growing: names of settings that only say which cells there are: lists, and numbers of things.
        owned: names of files and folders that ``overwrite`` deletes.
        resume: continue the study that the folder holds.
        overwrite: delete an earlier study first.
        workers: where cells are computed.
        console: where progress and tables are shown; the terminal by default.
        unit: what cells are called.
        today: returns stored settings, perhaps of an earlier version, as this version writes them.

    Raises:
        ExperimentError: when entering a folder that cannot be written, or holds something else.
    """

    def __init__(
        self,
        output: Path,
        settings: dict[str, Any],
        *,
        growing: Sequence[str] = (),
        owned: Sequence[str] = (),
        resume: bool = False,
        overwrite: bool = False,
        workers: Workers | None = None,
        console: Console | None = None,
        unit: str = "networks",
        today: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ):
        self.output = output
        self.workers = workers or Workers()
        self.console = (console or Console()) if is_first_process() else Console(quiet=True)
        self.unit = unit
        self._folder = OutputFolder(
            output,
            json.loads(json.dumps(settings)),
            resume=resume,
            overwrite=overwrite,
            owned=(CELLS, *owned),
            growing=growing,
            shared=True,
            today=today,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What all cells share; once the folder is claimed, with what it had more of."""
        return self._folder.configuration

    def __enter__(self) -> Study:
        if is_first_process():
            self._folder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if is_first_process():
            self._folder.__exit__(kind, value, trace)

    def run(
        self, cells: Iterable[Cell], run_cell: RunCell, report: Report, *, again: bool = False
    ) -> dict[str, Any] | None:
        """Compute the cells that are not done, and report on all that the folder holds.

        Args:
            cells: which.
            run_cell: computes one; it is pickled where there are several workers.
            report: what is written.
            again: compute those that are done, too.

        Returns:
            The content of the results file; ``None`` in every process but the first of those that train together.

        Raises:
            ExperimentError: when a cell was begun with other settings or data, or, once everything else is done and
                reported, naming the cells that failed.
            KeyboardInterrupt: with what to do as its message, once what is done is reported.
        """
        chosen = list(cells)
        for cell in chosen:
            _check(self.output / CELLS / cell.name, cell)
        with RunProgress(len(chosen), self.console, self.unit) as progress:
            try:
                failed = self._compute(chosen, run_cell, report, again, progress)
            except KeyboardInterrupt as stop:
                self._write(report)
                raise KeyboardInterrupt(INTERRUPTED) from stop
            progress.stage("writing the report", None)
            results = self._write(report)
        if results is not None:
            report.show(self.console, self.output, results)
        if failed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise ExperimentError(
                f"{len(failed)} of {len(chosen)} {self.unit} failed ({reasons}): fix that and continue with --resume"
            )
        return results

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the results that the folder holds, by the names of their cells."""
        found = sorted((self.output / CELLS).glob(f"*/{RESULT}"))
        return {path.parent.name: read_json(path) for path in found}

    def begun(self) -> set[str]:
        """Return the cells that are not done, whether this process began them or another one works on them."""
        return {path.name for path in (self.output / CELLS).glob("*/")} - self.finished().keys()

    def _compute(
        self,
        cells: Sequence[Cell],
        run_cell: RunCell,
        report: Report,
        again: bool,
        progress: RunProgress,
    ) -> dict[str, str]:
        """Compute what is not done; return why cells failed."""
        titles = {cell.name: cell.title for cell in cells}
        folders = {cell.name: self.output / CELLS / cell.name for cell in cells}

        def show(name: str, state: str = "") -> None:
            result = folders[name] / RESULT
            if not state and report.line and result.is_file():
                state = report.line(read_json(result))
            progress.finish_cell(f"{titles[name]}: {state}" if state else None)

        pending = [cell for cell in cells if again or not (folders[cell.name] / RESULT).is_file()]
        for cell in cells:
            if cell not in pending:
                show(cell.name)
        failed = {}
        shown = progress if self.workers.local else None
        given = ((Path.cwd(), cell, folders[cell.name], run_cell, again, shown) for cell in pending)
        for name, state, failure in self.workers.map(compute_cell, given):
            show(name, state)
            if failure:
                failed[titles[name]] = failure
        return failed

    def _write(self, report: Report) -> dict[str, Any] | None:
        """Write what is known: one process at a time, so that the last has everything."""
        if not is_first_process():
            return None
        with FileLock(self.output / LOCK):
            if not (finished := self.finished()):
                return None
            results = report.collect(finished)
            report.write(self.output, results)
        return results


def compute_cell(
    place: Path, cell: Cell, folder: Path, run_cell: RunCell, again: bool, progress: RunProgress | None
) -> tuple[str, str, str]:
    """Compute a cell unless it is done or claimed; return its name, what became of it, and why it failed.

    Paths are relative to ``place``.
    """
    first = is_first_process()
    claim = FileLock(folder / LOCK, timeout=0)
    with ONE_AT_A_TIME, chdir(place):
        try:
            if first:
                folder.mkdir(parents=True, exist_ok=True)
                claim.acquire()
        except Timeout:
            return cell.name, "another process works on it", ""
        try:
            if again or not (folder / RESULT).is_file():
                _compute(cell, folder, run_cell, first, progress)
        except Exception as error:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise  # The others that train with this process would wait for it.
            reason = str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
            write_text(folder / ERROR, traceback.format_exc())
            return cell.name, f"failed ({reason})", reason
        finally:
            claim.release()
    return cell.name, "", ""


def _compute(cell: Cell, folder: Path, run_cell: RunCell, first: bool, progress: RunProgress | None) -> None:
    if first:
        remove_unfinished(folder)
        _begin(cell, folder)
    result = run_cell(cell.what, folder, progress or RunProgress(1, Console(quiet=True)))
    if result is not None:
        write_json(folder / RESULT, result)
        for name in (CHECKPOINT, ERROR):
            (folder / name).unlink(missing_ok=True)


def _begin(cell: Cell, folder: Path) -> None:
    write_json(folder / CONFIGURATION, cell.settings)
    if cell.data is not None:
        write_json(folder / DATA, {"fingerprint": cell.data})


def keep(output: Path, cell: Cell, result: dict[str, Any]) -> None:
    """Count a cell as done whose result was kept elsewhere, unless the study in ``output`` has begun it."""
    folder = output / CELLS / cell.name
    if not folder.exists():
        _begin(cell, folder)
        write_json(folder / RESULT, result)


def _check(folder: Path, cell: Cell) -> None:
    """Raise where a cell was begun with other settings or other data; earlier versions stored less of them."""
    result = read_json(folder / RESULT) if (folder / RESULT).is_file() else {}
    stored = folder / CONFIGURATION
    known = (
        read_json(stored)
        if stored.is_file()
        else cell.settings | {name: value for name, value in result.items() if name in cell.settings}
    )
    if changes := differences(known, cell.settings):
        raise ExperimentError(
            f"{folder} holds a run of another configuration ({'; '.join(changes)}): "
            "choose another --output, or --overwrite it"
        )
    stored = folder / DATA
    data = read_json(stored)["fingerprint"] if stored.is_file() else result.get("images", cell.data)
    if data != cell.data:
        raise ExperimentError(
            f"{folder} was made from other images: the data have changed since, choose another --output"
        )
