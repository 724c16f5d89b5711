"""The picture of all reconstructions: errors of every data set, published, rerun and ours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from ..published import RESPONSES
from ..report import COLORS, Figure, FigureKind, plot_style, render_png
from .results import Group

__all__ = ["draw_errors"]

ERRORS = FigureKind(
    "errors",
    "Mean squared error of reconstructed test images, published and measured. Rings: weights normalized by row "
    "instead of by column. Dashed: the V-score's limit of 10. Errors that are not finite are drawn at the right edge, "
    "and none at all at the left.",
    "Points on a logarithmic axis, a panel per data set and a row per response; the numbers are in the tables that "
    "follow.",
)

BEST, WORST = 1e-12, 1e12
"""Between which errors are drawn: further to the left where they are smaller, and at the right edge if not finite."""

Panels = dict[str, tuple[dict[str, Any] | None, dict[str, list[tuple[str, Group]]]]]

MARKERS = {"paper": "D", "released": "x", "relaxed": "s", "certified": "o"}
OFFSETS = {"paper": -0.27, "released": -0.09, "relaxed": 0.09, "certified": 0.27}
"""Apart from each other, so that none hides another."""


def draw_errors(panels: Panels) -> Figure:
    """Draw the mean squared errors of all data sets: published, rerun, relaxed and certified.

    Args:
        panels: by title, the published table and the groups of every response with their labels.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    shown = [
        value
        for published, entries in panels.values()
        for response in RESPONSES
        for _, _, value in _points(published, entries.get(response, ()), response)
    ]
    least = min((value for value in shown if 0 < value < BEST), default=BEST)
    with plot_style():
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        canvas = Canvas(figsize=(max(5.0, 3.1 * columns + 1.0), 2.5 * rows + 0.7))
        grid = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (title, (published, entries)) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(textwrap.fill(title, 36), fontsize=9)
            axes.set_xscale("log")
            axes.axvline(10, color="#888888", linewidth=0.8, linestyle="--")
            for place, response in enumerate(RESPONSES):
                points = _points(published, entries.get(response, ()), response)
                for kind, normalization, value in points:
                    _mark(axes, max(value, least / 3), place, kind, hollow=normalization == "row")
            axes.set_yticks(range(len(RESPONSES)), list(RESPONSES.values()))
            axes.set_ylim(len(RESPONSES) - 0.5, -0.5)
            axes.set_xlim(least / 3, 3 * WORST)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("mean squared error (0–255)")
        kinds = dict.fromkeys(_kinds(panels))
        handles = [
            Line2D([], [], color=_color(kind), marker=MARKERS[kind], linestyle="none", label=_legend(kind))
            for kind in kinds
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        png = render_png(canvas)
    return ERRORS.of(png)


def _points(
    published: dict[str, Any] | None, members: Iterable[tuple[str, Group]], response: str
) -> list[tuple[str, str, float]]:
    points = []
    if published is not None:
        points.append(("paper", "", published["rows"][response]["mse"]))
    for _, group in members:
        mean = group.mean("reconstruction", "mse")
        points.append((group.constraint, group.normalization, WORST if mean is None else min(mean, WORST)))
    return points


def _mark(axes: Any, value: float, place: int, kind: str, *, hollow: bool) -> None:
    color = _color(kind)
    ring = hollow and kind == "certified"
    axes.plot(
        value,
        place + OFFSETS[kind],
        MARKERS[kind],
        color=color,
        markerfacecolor="none" if ring else color,
        markersize=8 if ring else 5,
    )


def _kinds(panels: Panels) -> list[str]:
    found = {"paper"} if any(published for published, _ in panels.values()) else set()
    found |= {
        group.constraint
        for _, entries in panels.values()
        for members in entries.values()
        for _, group in members
    }
    return [kind for kind in MARKERS if kind in found]


def _color(kind: str) -> str:
    return {"paper": "#777777", "released": COLORS[1], "relaxed": COLORS[4], "certified": COLORS[0]}[kind]


def _legend(kind: str) -> str:
    return {"paper": "published", "released": "authors’ code"}.get(kind, kind)
