"""The report of a run: figures as PNG, and one HTML page that holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..published import RESPONSES
from ..report import save_figures, write_page
from .figures import draw_figures
from .findings import headline, released_findings
from .results import Group, groups, kinds

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: Path, results: dict[str, Any]) -> Path:
    """Write ``figures/*.png`` and ``report.html`` for the run in ``output``; return the page's path."""
    figures = draw_figures(output, results)
    save_figures(output / "figures", list(figures.values()))
    path = output / "report.html"
    by_response = groups(results)
    labels = kinds(results)
    write_page(
        path,
        "reconstruct.html",
        TEMPLATES,
        results=results,
        settings=results["configuration"],
        published=results["published"],
        responses=RESPONSES,
        kinds=labels,
        rows=[_row(response, entries, labels) for response, entries in by_response.items()],
        all_groups=[group for entries in by_response.values() for group in entries],
        headline=headline(results),
        findings=released_findings(results),
        figures=figures,
        standing_in=_standing_in(results),
    )
    return path


def _row(response: str, entries: list[Group], labels: list[str]) -> dict[str, Any]:
    by_kind = {group.label: group for group in entries}
    return {
        "response": response,
        "title": RESPONSES[response],
        "groups": [by_kind.get(label) for label in labels],
    }


def _standing_in(results: dict[str, Any]) -> bool:
    # Images that only have CelebA's format are compared with its numbers, which has to be said.
    return results["published"] is not None and results["configuration"]["title"] is not None
