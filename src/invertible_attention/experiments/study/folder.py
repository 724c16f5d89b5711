"""The folder that a run or a study writes to: one configuration, and who may write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ExperimentError
from ..files import read_json, remove_unfinished, write_json

__all__ = ["CELLS", "CHECKPOINT", "CONFIGURATION", "LOCK", "OutputFolder", "differences", "rename_cells"]

CELLS = "cells"
CONFIGURATION = "configuration.json"
LOCK = ".lock"
CHECKPOINT = "training.ckpt"
"""The file that interrupted training continues from."""
INTERRUPTED = "interrupted: the same command with --resume continues it"
PATIENCE = 60.0
"""Seconds to wait for a process that claims a shared folder, or reports on it."""


class OutputFolder:
    """A folder reserved for one run.

    Entering makes the folder, takes its lock (released by the system if the process dies), and compares the
    configuration it was made with: a folder that holds anything is used again only with ``resume`` and the
    same configuration.

    Args:
        path: the folder.
        configuration: what determines the results, as JSON values.
        resume: whether to continue what the folder holds.
        overwrite: whether to start again in a folder that holds a run; of its entries those in ``owned`` are
            deleted.
        owned: names of the files and folders a run writes.
        growing: names of settings that may differ, lists and numbers of things: the folder gets all of both.
        shared: whether several processes work in the folder, each on the cells that it has claimed.
        today: returns a stored configuration, perhaps of an earlier version, as this version writes it.

    Raises:
        KeyboardInterrupt: when leaving because of one, with what to do as its message.
        ExperimentError: when entering a folder that cannot be written, is in use, or holds another run.
    """

    def __init__(
        self,
        path: Path,
        configuration: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        owned: Sequence[str] = (),
        growing: Sequence[str] = (),
        shared: bool = False,
        today: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ):
        self.path = path
        self.configuration = configuration
        self.resume = resume
        self.overwrite = overwrite
        self.owned = (*owned, CONFIGURATION)
        self.growing = growing
        self.shared = shared
        self.today = today
        self._lock = FileLock(path / LOCK, timeout=PATIENCE if shared else 0)
        self._new = False

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._claim()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, Timeout):
                raise ExperimentError(
                    f"{self.path} is in use by another run: choose another --output"
                ) from None
            if isinstance(error, OSError):
                raise ExperimentError(
                    f"cannot write to {self.path} ({error.strerror or error}): choose another --output"
                ) from error
            raise
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._new and self._held() == [CONFIGURATION]:
            # Nothing was done: arguments that were mistaken must not be in the way of the next ones.
            (self.path / CONFIGURATION).unlink()
            kind = None
        self._lock.release()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            raise KeyboardInterrupt(INTERRUPTED) from value

    def _held(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))

    def _claim(self) -> None:
        held = self._held()
        stored = self.path / CONFIGURATION
        if self.overwrite and stored.is_file():
            self._clear()
            held = []
        self._new = not held
        if self._new:
            write_json(stored, self.configuration)
        elif not stored.is_file():
            raise ExperimentError(f"{self.path} holds other files ({held[0]}): choose an empty --output")
        else:
            self._compare(read_json(stored))
        # What a cell's folder holds belongs to the process that has claimed the cell.
        remove_unfinished(self.path, leave=CELLS if self.shared else None)

    def _compare(self, stored: dict[str, Any]) -> None:
        """Refuse another configuration; add what this one has more of."""
        known = self.today(stored)
        both = {
            name: _together(known[name], self.configuration[name]) for name in self.growing if name in known
        }
        if changes := differences(known | both, self.configuration | both):
            raise ExperimentError(
                f"{self.path} holds a run of another configuration ({'; '.join(changes)}): "
                "choose another --output, or --overwrite it"
            )
        if not self.resume:
            raise ExperimentError(
                f"{self.path} already holds this run: --resume continues it, --overwrite starts again"
            )
        if known | both != stored:
            write_json(self.path / CONFIGURATION, known | both)
        self.configuration |= both

    def _clear(self) -> None:
        for lock in self.path.glob(f"{CELLS}/*/{LOCK}"):
            with FileLock(lock, timeout=0):
                pass
        for name in self.owned:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one phrase for every setting that differs, those inside of a setting by themselves.

    A setting that an earlier version did not know was off.

    Example:
        >>> differences({"seed": 0, "base": {"steps": 5, "size": 8}}, {"seed": 1, "base": {"steps": 9, "size": 8}})
        ['seed was 0, now 1', 'steps was 5, now 9']
        >>> differences({"seed": 0}, {"seed": 0, "own_size": False})
        []
    """
    phrases = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            phrases += differences(before, now)
        elif before != now and (name in old or now):
            phrases.append(f"{name} was {before}, now {now}")
    return phrases


def rename_cells(output: Path, name: Callable[[str], str]) -> None:
    """Rename the cells of an earlier version.

    Args:
        output: folder of the study.
        name: returns today's name for the name of a cell.

    Raises:
        ExperimentError: when a process of that version works on one of them.
    """
    for folder in sorted((output / CELLS).glob("*/")):
        if (new := name(folder.name)) != folder.name:
            try:
                with FileLock(folder / LOCK, timeout=0):
                    pass
            except Timeout:
                raise ExperimentError(
                    f"{folder} is in use by an earlier version: wait until it ends"
                ) from None
            folder.rename(folder.with_name(new))


def _together(known: Any, given: Any) -> Any:
    """Return what there is of one setting in two configurations.

    Example:
        >>> _together(["none", "gaussian"], ["none", "row"]), _together(3, 2)
        (['none', 'gaussian', 'row'], 3)
    """
    return list(dict.fromkeys([*known, *given])) if isinstance(known, list) else max(known, given)
