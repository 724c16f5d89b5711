"""The report of a study: its table, its differences drawn, its learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..published import TABLE_3
from ..report import COLORS, Figure, plot_style, render_png, save_figures, write_page
from .comparison import BRACKETS, guarantee, is_likelihood, spread
from .report import TEMPLATES, draw_curve

__all__ = ["write_study_report"]


def write_study_report(output: Path, study: dict[str, Any]) -> Path:
    """Write ``figures/*.png`` and ``study.html``; return the page's path."""
    figures = {"curve": draw_curve(study["cells"])}
    if any(_drawn(row) for row in study["rows"]):
        figures = {"differences": _differences(study), **figures}
    save_figures(output / "figures", list(figures.values()))
    path = output / "study.html"
    write_page(
        path,
        "study.html",
        TEMPLATES,
        study=study,
        settings=study["base"],
        figures=figures,
        guarantee=guarantee,
        is_likelihood=is_likelihood,
        brackets=None if all(map(is_likelihood, study["rows"])) else BRACKETS,
        spread=spread,
        published=TABLE_3 if study["base"]["dataset"] == "cifar10" else None,
    )
    return path


def _drawn(row: dict[str, Any]) -> bool:
    return is_likelihood(row) and row["difference"]["mean"] is not None


def _differences(study: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure as Canvas

    rows = [row for row in study["rows"] if _drawn(row)]
    with plot_style():
        longest = max(len(row["variant"]) for row in rows)
        canvas = Canvas(figsize=(5 + 0.07 * longest, 0.9 + 0.34 * len(rows)))
        axes = canvas.subplots()
        for index, row in enumerate(rows):
            difference = row["difference"]
            values = [value for value in difference["values"] if value is not None]
            axes.scatter(values, [index] * len(values), s=12, color=COLORS[5], zorder=3)
            axes.errorbar(
                difference["mean"],
                index,
                xerr=difference["standard_error"],
                fmt="o",
                color=COLORS[0],
                capsize=3,
                zorder=4,
            )
        axes.axvline(0, color="#888888", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"bits/dim minus that of {study['rows'][0]['variant']} with the same seed")
        png = render_png(canvas)
    return Figure(
        "differences",
        "Difference in test bits per dimension, paired by seed: every seed, their mean and its standard "
        "error. Left of the line is better.",
        "Points with error bars, one row per variant.",
        png,
    )
