"""The report of a run: figures as PNG, and one HTML page that holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..published import TABLE_4
from ..report import save_figures, write_page
from .data import DetectionData
from .figures import draw_figures
from .findings import audit_findings, claim_findings, headline
from .metrics import CONVENTIONS, MEASURES
from .models import MODELS, STUDY
from .results import TABLE_MEASURES, datasets, rows

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: Path, results: dict[str, Any], maps: dict[Any, Path], data: DetectionData) -> Path:
    """Write ``figures/*.png`` and ``report.html``; return the page's path.

    Args:
        output: the run's folder.
        results: content of results.json.
        maps: where each network's maps are.
        data: for the images and masks of the examples.
    """
    figures = draw_figures(results, maps, data)
    save_figures(output / "figures", list(figures.values()))
    path = output / "report.html"
    tested, found = datasets(results), rows(results)
    write_page(
        path,
        "camouflage.html",
        TEMPLATES,
        results=results,
        settings=results["configuration"],
        data=data.describe(),
        headline=headline(results),
        claims=claim_findings(results),
        audits=audit_findings(results),
        measures=MEASURES,
        conventions=CONVENTIONS,
        table=_table(results),
        tested=tested,
        rows=found,
        audit_rows=[
            (row, level, values)
            for row in found
            if row.scored
            for level, values in row.scored[0]["audit"].items()
        ],
        figures=figures,
        examples=[figure for name, figure in figures.items() if name.startswith("examples")],
        like_the_paper=_like_the_paper(results["configuration"]),
    )
    return path


def _table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of Table 4, published beside measured: of a single network, its own; else every row."""
    by_name = {row.name: row for row in rows(results)}
    columns = datasets(results)
    single = len(results["cells"]) == 1
    names = [
        name
        for name in (*STUDY, *MODELS)
        if name in by_name or (not single and MODELS[name].title in TABLE_4)
    ]
    lines = []
    for name in dict.fromkeys(names):
        title, row = MODELS[name].title, by_name.get(name)
        cells = []
        for dataset in columns:
            paper = TABLE_4.get(title, {}).get(dataset)
            published = None if paper is None else [getattr(paper, key) for key in TABLE_MEASURES.values()]
            measured = None
            if row is not None and row.values(dataset, "mae"):
                measured = [row.text(dataset, measure) for measure in TABLE_MEASURES]
            cells.append({"dataset": dataset, "published": published, "measured": measured})
        seeds = 0 if row is None else len(row.scored)
        lines.append(
            {
                "title": title,
                "seeds": seeds,
                "diverged": 0 if row is None else row.diverged,
                "ours": MODELS[name].constraint == "certified",
                "cells": cells,
            }
        )
    return lines


def _like_the_paper(settings: dict[str, Any]) -> bool:
    wanted = {"backbone": "resnet50", "size": 352, "batch_size": 6, "epochs": 30, "learning_rate": 2.5e-5}
    return all(settings.get(name) == value for name, value in wanted.items())
