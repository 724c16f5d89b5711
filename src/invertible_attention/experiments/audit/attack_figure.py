"""The figure of a search: how close layers come to their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..report import COLORS, Figure, plot_style, render_png
from .attack_results import RANGE_NAMES
from .tables import RATIO_FIGURE

__all__ = ["draw_attack"]


def draw_attack(results: dict[str, Any]) -> Figure:
    """Draw how ratios are distributed before ascent, and the largest ones after it."""
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        canvas = Canvas(figsize=(10.5, 3.9))
        left, right = canvas.subplots(1, 2, width_ratios=(1, 1.25))
        _distribution(left, results)
        _tightest(right, results)
        png = render_png(canvas)
    return RATIO_FIGURE.of(png)


def _distribution(axes: Any, results: dict[str, Any]) -> None:
    counts = np.array(results["histogram"]["counts"], dtype=float)
    edges = np.array(results["histogram"]["edges"])
    above = counts[::-1].cumsum()[::-1] / max(1.0, counts.sum())
    axes.semilogy(edges[1:], np.maximum(above[1:], 0) * 100, marker="o", ms=3, color=COLORS[0])
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("ratio to the bound")
    axes.set_ylabel("layers with a larger ratio (%)")
    axes.set_title("as drawn", fontsize=9)


def _tightest(axes: Any, results: dict[str, Any]) -> None:
    places = np.arange(len(RANGE_NAMES))
    responses = results["tightest_by"]["response"]
    width = 0.8 / max(1, len(responses))
    for index, (response, ratios) in enumerate(responses.items()):
        offset = (index - (len(responses) - 1) / 2) * width
        axes.bar(
            places + offset, ratios, width=0.9 * width, color=COLORS[index % len(COLORS)], label=response
        )
    axes.axhline(1, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xticks(places, RANGE_NAMES)
    axes.set_xlabel("range of the scores, log M")
    axes.set_ylabel("largest ratio to the bound")
    axes.set_title("after gradient ascent", fontsize=9)
    axes.set_ylim(0, 1.3)
    if responses:
        axes.legend(ncols=2, fontsize=7, loc="upper right")
