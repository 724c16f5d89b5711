"""Tables: defined by their columns and records once, rendered in every form from the same cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .formatting import format_value
from .sources import Source

__all__ = ["Column", "Line", "Row", "RowGroup", "Table", "settings_table", "sources_table", "tabulate"]


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
        name: what the documentation asks for it by, among the tables of its kind.
        caption: what it shows.
        columns: titles, the first of the lines' names.
        groups: of lines.
        sources: where the numbers come from; none for published ones only.
        ours: columns that hold numbers of the certified layer, where rows hold more than that.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    sources: tuple[Source, ...] = ()
    ours: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for group in self.groups:
            for row in group.rows:
                if len(row.cells) != len(self.columns):
                    raise ValueError(
                        f"{len(self.columns)} columns, got a row of {len(row.cells)}: {row.cells}"
                    )


@dataclass(frozen=True)
class Column:
    """A column: its title, and how a record becomes text.

    Args:
        title: heading.
        cell: of what was measured.
        paper: of a published record; empty cells without one.
        ours: whether its numbers are those of the certified layer, in a table whose rows hold more than that.
    """

    title: str
    cell: Callable[[Any], str]
    paper: Callable[[Any], str] | None = None
    ours: bool = False


Line = tuple[str, Any, str]
"""A line before it is text: its label, its record, and its kind (see :class:`Row`)."""


def tabulate(
    name: str,
    caption: str,
    columns: Sequence[Column],
    groups: Mapping[str, Sequence[Line]],
    sources: Sequence[Source] = (),
    *,
    label: str = "",
) -> Table:
    """Return the table of some records.

    Args:
        name: see :class:`Table`.
        caption: what it shows.
        columns: of the numbers.
        groups: lines by the title they are under; titles without lines are skipped.
        sources: where the numbers come from.
        label: heading of the lines' labels.

    Example:
        >>> column = Column("half", lambda record: f"{record / 2:g}")
        >>> tabulate("t", "", [column], {"": [("three", 3, "")]}).groups[0].rows
        (Row(cells=('three', '1.5'), kind=''),)
    """

    def text(column: Column, record: Any, kind: str) -> str:
        if kind == "paper":
            return "" if column.paper is None else column.paper(record)
        return column.cell(record)

    made = tuple(
        RowGroup(
            title,
            tuple(
                Row((line, *(text(c, record, kind) for c in columns)), kind) for line, record, kind in lines
            ),
        )
        for title, lines in groups.items()
        if lines
    )
    ours = tuple(i for i, column in enumerate(columns, 1) if column.ours)
    return Table(name, caption, (label, *(column.title for column in columns)), made, tuple(sources), ours)


def settings_table(settings: Mapping[str, Mapping[str, Any]], sources: Sequence[Source] = ()) -> Table:
    """Return the table of all settings of some folders, a column for each.

    Args:
        settings: by folder, as in its file; settings within settings are named with a dot.
        sources: the folders' sources.

    Example:
        >>> settings_table({"a": {"seed": 0, "budget": {"steps": 20}}}).groups[0].rows
        (Row(cells=('seed', '0'), kind=''), Row(cells=('budget.steps', '20'), kind=''))
    """
    flat = {name: dict(_flat(values)) for name, values in settings.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = tuple(
        Row((key, *(format_value(values[key]) if key in values else "" for values in flat.values())))
        for key in keys
    )
    return Table("settings", "Settings.", ("", *flat), (RowGroup("", rows),), tuple(sources))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def sources_table(sources: Iterable[Source]) -> Table:
    """Return the table of the conditions of every folder."""
    columns = ("folder", "what", "commit", "seeds", "machine", "system", "versions", "time")
    rows = tuple(
        Row((s.name, s.title, s.commit, s.seed, s.machine, s.system, s.versions, s.time or "not recorded"))
        for s in sources
    )
    caption = "A + after a commit marks a source tree with changes that were not committed."
    return Table("sources", caption, columns, (RowGroup("", rows),))
