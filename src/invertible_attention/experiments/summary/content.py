"""What the page is made of: sections of tables and pictures, each with where its numbers come from."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..report import Figure
from ..report.figures import DPI

__all__ = ["Picture", "Row", "RowGroup", "Section", "Source", "Table", "anchor", "describe"]


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
    """

    name: str
    title: str
    commits: tuple[str, ...]
    seeds: tuple[int, ...]
    machine: str
    time: str = ""

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
        time = max(run["time"] for run in runs)
        return cls(name, title, tuple(commits), tuple(sorted(set(seeds))), "; ".join(machines), time)

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
        """Commit, seeds, machine and day."""
        day = f", {self.time[:10]}" if self.time else ""
        return f"commit {self.commit}, seed {self.seed}, {self.machine}{day}"


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


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        cells: the first names the line.
        kind: ``"paper"`` for published numbers, ``"certified"`` for ours, anything else for the others.
    """

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class RowGroup:
    """Lines that belong together, under a title; an empty title is not shown."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: what it shows.
        columns: titles, the first of the lines' names.
        groups: of lines.
        sources: where the numbers come from; none for published ones only.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        for group in self.groups:
            for row in group.rows:
                if len(row.cells) != len(self.columns):
                    raise ValueError(
                        f"{len(self.columns)} columns, got a row of {len(row.cells)}: {row.cells}"
                    )


@dataclass(frozen=True)
class Picture:
    """A figure and where it comes from.

    Args:
        figure: what is shown.
        sources: where its numbers come from.
        pixelated: whether to keep the pixels of small images sharp.
        scale: CSS pixels (1/96 inch) per pixel; by default letters are as large as in the other figures.
    """

    figure: Figure
    sources: tuple[Source, ...]
    pixelated: bool = False
    scale: float = 96 / DPI

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels."""
        (pixels,) = struct.unpack(">I", self.figure.png[16:20])
        return round(pixels * self.scale)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: heading.
        lead: paragraphs that say what was found.
        tables: first.
        pictures: after them.
        findings: paragraphs that explain, after the pictures.
        notes: small print.
    """

    title: str
    lead: Sequence[str] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)
    findings: Sequence[str] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """What links to the section point at."""
        return anchor(self.title)


def anchor(title: str) -> str:
    """Return a title as an address within the page.

    Example:
        >>> anchor("Table 2, CIFAR-10: reconstruction")
        'table-2-cifar-10-reconstruction'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in title.lower())
    return "-".join(words.split())
