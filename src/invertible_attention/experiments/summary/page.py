"""The page: every section of every result, and what is not among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ExperimentError
from ..report import render_page
from . import audit, benchmark, camouflage, conditional, costs, density, logdet, reconstruction
from .content import Section, describe
from .recognition import Result

__all__ = ["build_page", "build_sections"]

TEMPLATES = Path(__file__).parent / "templates"

BUILDERS: dict[tuple[str, ...], Callable[[Sequence[Result]], list[Section]]] = {
    ("reconstruct",): reconstruction.sections,
    ("density", "density-study"): density.sections,
    ("conditional",): conditional.sections,
    ("logdet",): logdet.sections,
    ("camouflage",): camouflage.sections,
    ("camouflage-measure", "compiled"): costs.sections,
    ("benchmark",): benchmark.sections,
    ("audit", "attack"): audit.sections,
}
"""What writes the sections of which kinds, in the order of the page."""

TABLES = {
    "Table 2: reconstruction at 32×32": "Table 2",
    "Table 3: density of CIFAR-10": "Table 3",
    "Table 4: camouflaged object detection": "Table 4",
    "Table 5: reconstruction at 218×178": "Table 5",
}
"""The paper's tables of measurements, and how sections about them begin."""


def build_sections(results: Sequence[Result]) -> list[Section]:
    """Return the sections of all results.

    Raises:
        ExperimentError: naming a result whose file lacks what its kind has.
    """
    found = []
    for kinds, builder in BUILDERS.items():
        chosen = [result for result in results if result.kind in kinds]
        if not chosen:
            continue
        try:
            found += builder(chosen)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise _incomplete(builder, chosen, error) from error
    return found


def build_page(results: Sequence[Result], left_out: Sequence[str] = ()) -> str:
    """Return the page as HTML.

    Args:
        results: what is shown.
        left_out: names of folders that are not, because of their kind.
    """
    sections = build_sections(results)
    sources = {
        source.name: source
        for section in sections
        for part in (*section.tables, *section.pictures)
        for source in part.sources
    }
    missing = [
        title for title, start in TABLES.items() if not any(s.title.startswith(start) for s in sections)
    ]
    return render_page(
        "summary.html",
        TEMPLATES,
        sections=sections,
        sources=list(sources.values()),
        missing=missing,
        left_out=left_out,
        describe=describe,
    )


def _incomplete(
    builder: Callable[[Sequence[Result]], list[Section]], chosen: Sequence[Result], error: Exception
) -> ExperimentError:
    """Say which of several results it was: the first that cannot be shown alone."""
    for result in chosen:
        try:
            builder([result])
        except (KeyError, TypeError, IndexError, AttributeError) as own:
            what = f"lacks {own}" if isinstance(own, KeyError) else str(own)
            return ExperimentError(f"{result.path} is not a whole result ({what}): run its command again")
    return ExperimentError(f"these results do not go together: {error}")
