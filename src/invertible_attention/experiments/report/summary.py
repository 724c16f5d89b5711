"""The page over results, of one run or of all: every section of every kind, and what is not among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ExperimentError
from ..files import write_text
from .kinds import Definition, Result, definitions, result_of
from .page import render_page
from .render import print_sections, section_markdown
from .section import Section
from .table import sources_table

__all__ = ["build_page", "build_sections", "print_run", "run_markdown", "write_run_page"]

TITLE = "Invertible attention: results next to the paper’s"

TABLES = {
    "Table 2: reconstruction at 32×32": "Table 2",
    "Table 3: density of CIFAR-10": "Table 3",
    "Table 4: camouflaged object detection": "Table 4",
    "Table 5: reconstruction at 218×178": "Table 5",
}
"""The paper's tables of measurements, and how sections about them begin."""

FIGURES = ("Figures 3 and 4", "Figure 5", "Figure 6", "Figures 7 and 8")
"""The paper's figures of results, as figures that repeat them say."""

BROKEN = (KeyError, TypeError, IndexError, AttributeError)
"""What a file raises that lacks something of its kind."""


def build_sections(results: Sequence[Result]) -> list[Section]:
    """Return the sections of all results, in the order of a page.

    Raises:
        ExperimentError: naming a result whose file lacks what its kind has.
    """
    found = []
    for definition in definitions():
        chosen = [result for result in results if result.kind in definition.kinds]
        if not chosen:
            continue
        try:
            found += definition.sections(chosen)
        except BROKEN as error:
            raise _incomplete(definition, chosen, error) from error
    return found


def build_page(
    results: Sequence[Result],
    unknown: Sequence[str] = (),
    *,
    title: str = TITLE,
    command: str = "report",
    complete: bool = True,
) -> str:
    """Return the page as HTML.

    Args:
        results: what is shown.
        unknown: files that are not, because of their kind.
        title: of the page.
        command: what wrote it.
        complete: whether to list the paper's tables and figures that are not among the results.
    """
    sections = build_sections(results)
    pictures = {section.title: section.pictures() for section in sections}
    shown = [part for section in sections for part in (*section.tables, *pictures[section.title])]
    sources = {source.name: source for part in shown for source in part.sources}
    repeated = {picture.repeats for found in pictures.values() for picture in found}
    missing = [name for name, start in TABLES.items() if not any(s.title.startswith(start) for s in sections)]
    missing += [name for name in FIGURES if name not in repeated]
    return render_page(
        "results.html",
        title=title,
        command=command,
        sections=sections,
        pictures=pictures,
        sources=sources_table(sources.values()),
        missing=missing if complete else [],
        unknown=unknown,
    )


def write_run_page(path: Path, content: dict[str, Any]) -> Path:
    """Write the page of one run, and return its path.

    Args:
        path: the page; figures are taken from its folder.
        content: of the results file.
    """
    result = result_of(content, path.parent)
    command = result.kind.command.removeprefix("invertible-attention ")
    title = f"Invertible attention: {result.kind.title}"
    write_text(path, build_page([result], title=title, command=command, complete=False))
    return path


def print_run(console: Console, content: dict[str, Any], folder: Path, names: Collection[str]) -> None:
    """Print some tables of one run, and its main findings."""
    print_sections(console, build_sections([result_of(content, folder)]), names)


def run_markdown(content: dict[str, Any], folder: Path) -> str:
    """Return everything about one run, but its figures, in Markdown."""
    return "\n\n".join(map(section_markdown, build_sections([result_of(content, folder)]))) + "\n"


def _incomplete(definition: Definition, chosen: Sequence[Result], error: Exception) -> ExperimentError:
    """Say which of several results it was: the first that cannot be shown alone."""
    for result in chosen:
        try:
            definition.sections([result])
        except BROKEN as own:
            what = f"lacks {own}" if isinstance(own, KeyError) else str(own)
            return ExperimentError(f"{result.path} is not a whole result ({what}): run its command again")
    return ExperimentError(f"these results do not go together: {error}")
