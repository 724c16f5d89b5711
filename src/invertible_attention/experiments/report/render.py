"""Tables on a terminal, in HTML and in Markdown: the same cells in each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from .page import render_piece
from .section import Section
from .sources import describe
from .table import Row, Table

__all__ = ["print_sections", "section_markdown", "to_html", "to_markdown", "to_terminal"]

STYLES = {"paper": "dim", "certified": "bold"}
PADDING = 2


def to_html(table: Table) -> str:
    """Return a table as HTML: every heading has its scope, so that it can be read aloud."""
    return render_piece("table", table)


def to_markdown(table: Table) -> str:
    """Return a table in Markdown; titles of groups are separate lines."""

    def line(cells: Sequence[str]) -> str:
        texts = (cell.replace("|", "\\|") for cell in cells)
        return (
            "| " + " | ".join(f"**{t}**" if i in table.ours and t else t for i, t in enumerate(texts)) + " |"
        )

    rule = f"| --- |{' ---: |' * (len(table.columns) - 1)}"
    lines = [line(table.columns), rule]
    for group in table.groups:
        if group.title:
            lines.append(line([f"**{group.title}**", *("" for _ in table.columns[1:])]))
        lines += [line(row.cells) for row in group.rows]
    return "\n".join(lines)


def to_terminal(table: Table, width: int) -> list[Grid]:
    """Return a table for a terminal; as several, with the labels repeated, where its columns do not fit.

    Args:
        table: what to show.
        width: characters in a line.
    """
    rows: list[Row | str] = []
    for group in table.groups:
        rows += [group.title] if group.title else []
        rows += group.rows
    widths = [
        max(cell_len(text) for text in (title, *(row.cells[i] for row in rows if isinstance(row, Row))))
        for i, title in enumerate(table.columns)
    ]
    titles = max((cell_len(group.title) for group in table.groups), default=0)
    widest = max(titles, widths[0] + (PADDING if titles else 0))
    labels = min(widest, max(width // 2, width - max(widths[1:], default=0) - 2 * PADDING))
    grids = []
    for columns in _fitting(widths[1:], width - labels - 2 * PADDING):
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        grid.add_column(table.columns[0], max_width=labels, overflow="fold")
        for i in columns:
            grid.add_column(table.columns[i], justify="right", overflow="fold")
        for row in rows:
            if isinstance(row, str):
                grid.add_row(Text(row, "bold"))
            else:
                indent = " " * PADDING if titles else ""
                cells = (Text(row.cells[i]) for i in columns)
                grid.add_row(Text(indent + row.cells[0]), *cells, style=STYLES.get(row.kind))
        grids.append(grid)
    return grids


def _fitting(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the indices of columns that fit next to each other, at least one at a time."""
    chosen: list[int] = []
    taken = 0
    for i, own in enumerate(widths, 1):
        if chosen and taken + own + PADDING > width:
            yield chosen
            chosen, taken = [], 0
        chosen.append(i)
        taken += own + PADDING
    yield chosen


def print_sections(
    console: Console, sections: Sequence[Section], names: Collection[str] | None = None
) -> None:
    """Print what sections say, and their tables.

    Args:
        console: where.
        sections: which.
        names: of the tables; all by default.
    """
    for section in sections:
        console.print(section.title, style="bold", highlight=False)
        for table in section.tables:
            if names is None or table.name in names:
                console.print(table.caption, style="dim", highlight=False, markup=False)
                for grid in to_terminal(table, console.width):
                    console.print(grid, highlight=False)
        for sentence in section.lead:
            console.print(sentence, highlight=False, markup=False)


def section_markdown(section: Section, names: Collection[str] | None = None) -> str:
    """Return a section in Markdown: its tables, how to read them, and where their numbers come from.

    Args:
        section: which.
        names: of the tables; all by default. With names, what the section says is left to the page around them.
    """
    tables = [table for table in section.tables if names is None or table.name in names]
    if not tables:
        return ""
    parts = [f"**{section.title}**"]
    if names is None:
        parts += section.lead
    for table in tables:
        sources = " ".join(f"{line}." for line in describe(table.sources))
        parts += [to_markdown(table), f"*{table.caption}* {sources}".strip()]
    if names is None:
        parts += [*section.findings, *section.notes]
    return "\n\n".join(parts)
