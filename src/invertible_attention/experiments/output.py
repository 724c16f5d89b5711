"""The folder a run writes to: one run at a time, one configuration."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .errors import ExperimentError
from .files import read_json, remove_unfinished, write_json

__all__ = ["OutputFolder"]

CONFIGURATION = "configuration.json"
LOCK = ".lock"
INTERRUPTED = "interrupted: the same command with --resume continues it"


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
    ):
        self.path = path
        self.configuration = configuration
        self.resume = resume
        self.overwrite = overwrite
        self.owned = (*owned, CONFIGURATION)
        self._lock = FileLock(path / LOCK, timeout=0)
        self._new = False

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise ExperimentError(f"{self.path} is in use by another run: choose another --output") from None
        except OSError as error:
            reason = error.strerror or error
            raise ExperimentError(
                f"cannot write to {self.path} ({reason}): choose another --output"
            ) from error
        try:
            self._claim()
        except BaseException:
            self._lock.release()
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
        elif changes := differences(read_json(stored), self.configuration):
            raise ExperimentError(
                f"{self.path} holds a run of another configuration ({'; '.join(changes)}): "
                "choose another --output, or --overwrite it"
            )
        elif not self.resume:
            raise ExperimentError(
                f"{self.path} already holds this run: --resume continues it, --overwrite starts again"
            )
        remove_unfinished(self.path)

    def _clear(self) -> None:
        for name in self.owned:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one phrase for every setting that differs, those inside of a setting by themselves.

    Example:
        >>> differences({"seed": 0, "base": {"steps": 5, "size": 8}}, {"seed": 1, "base": {"steps": 9, "size": 8}})
        ['seed was 0, now 1', 'steps was 5, now 9']
    """
    phrases = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            phrases += differences(before, now)
        elif before != now:
            phrases.append(f"{name} was {before}, now {now}")
    return phrases
