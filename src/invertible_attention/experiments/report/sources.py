"""Where numbers come from: commit, seeds, machine and versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Source", "describe"]


@dataclass(frozen=True)
class Source:
    """Under which conditions the numbers of a result folder were measured.

    Args:
        name: what the folder is called on the page.
        title: what was run, in a few words.
        commits: of the source tree, one or several; none where it was not recorded.
        seeds: of everything random.
        machine: processor, threads and accelerator.
        time: in ISO 8601, empty where it was not recorded.
        system: memory and operating system.
        versions: of the software, in words.
    """

    name: str
    title: str
    commits: tuple[str, ...]
    seeds: tuple[int, ...]
    machine: str
    time: str = ""
    system: str = ""
    versions: str = ""

    @classmethod
    def of_runs(
        cls, name: str, title: str, runs: Iterable[dict[str, Any]], *, seeds: Iterable[int] = ()
    ) -> Source:
        """Return the source described by the metadata of runs (see :func:`~..metadata.run_metadata`).

        Args:
            name: of the folder.
            title: what was run.
            runs: metadata, at least one; machines that differ are all named.
            seeds: of the runs; repetitions count once.
        """
        runs = list(runs)
        commits = dict.fromkeys(run["commit"] for run in runs if run["commit"])
        machines = dict.fromkeys(_machine(run["machine"]) for run in runs)
        systems = dict.fromkeys(_system(run["machine"]) for run in runs)
        versions = dict.fromkeys(_versions(run["versions"]) for run in runs)
        return cls(
            name,
            title,
            tuple(commits),
            tuple(sorted(set(seeds))),
            "; ".join(machines),
            max(run["time"] for run in runs),
            "; ".join(systems),
            "; ".join(versions),
        )

    @property
    def commit(self) -> str:
        """The commits in words; ``+`` marks a tree with changes that were not committed."""
        return ", ".join(self.commits) or "not recorded"

    @property
    def seed(self) -> str:
        """The seeds in words.

        Example:
            >>> Source("a", "", (), (0, 1, 2, 5), "").seed, Source("a", "", (), (), "").seed
            ('0–2, 5', 'not recorded')
        """
        runs: list[list[int]] = []
        for value in self.seeds:
            if runs and value == runs[-1][-1] + 1:
                runs[-1].append(value)
            else:
                runs.append([value])
        words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
        return ", ".join(words) or "not recorded"

    @property
    def conditions(self) -> str:
        """Commits, seeds, machine and day.

        Example:
            >>> Source("a", "", ("abc", "def+"), (0,), "a machine", "2026-01-02T03:04:05").conditions
            'commits abc and def with uncommitted changes, seed 0, a machine, 2026-01-02'
        """
        day = f", {self.time[:10]}" if self.time else ""
        words = [one.replace("+", " with uncommitted changes") for one in self.commits] or ["not recorded"]
        commits = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        plural = "s" if len(self.commits) > 1 else ""
        return f"commit{plural} {commits}, seed{'s' if len(self.seeds) > 1 else ''} {self.seed}, {self.machine}{day}"


def describe(sources: Sequence[Source]) -> list[str]:
    """Return one line for all folders that share their conditions.

    Example:
        >>> describe([Source(name, "", ("abc",), (0,), "a machine") for name in ("x", "y")])
        ['x, y: commit abc, seed 0, a machine']
    """
    names: dict[str, list[str]] = {}
    for source in sources:
        names.setdefault(source.conditions, []).append(source.name)
    return [f"{', '.join(members)}: {conditions}" for conditions, members in names.items()]


def _machine(machine: dict[str, Any]) -> str:
    threads = machine["threads"]
    words = f"{machine['processor']}, {threads} thread{'s' if threads != 1 else ''}"
    return f"{words}, {machine['accelerator']}" if machine["accelerator"] else words


def _system(machine: dict[str, Any]) -> str:
    return f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, device {machine['device']}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
