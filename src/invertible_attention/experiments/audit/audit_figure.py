"""The figure of an audit: local Lipschitz constants against the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report import COLORS, Figure, plot_style, render_png
from .tables import LIPSCHITZ_FIGURE

__all__ = ["draw_audit"]


def draw_audit(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw, for every block, the local Lipschitz constants at its inputs and what is certified."""
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        canvas = Canvas(figsize=(8.5, 1.1 + 0.26 * len(rows)))
        axes = canvas.subplots()
        for place, row in enumerate(rows):
            local = row["lipschitz_estimates"]
            axes.plot(local, [place] * len(local), "o", ms=4, alpha=0.6, color=COLORS[0])
            if row["certificate"] is not None:
                axes.plot([row["certificate"]], [place], "|", ms=11, mew=2, color=COLORS[1])
        axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(rows)), [f"{row['network']} {row['block']}" for row in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        largest = max((value for row in rows for value in row["lipschitz_estimates"]), default=1.0)
        if largest > 3:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, max(1.08, 1.05 * largest))
        axes.set_xlabel("Lipschitz constant of the residual branch")
        axes.plot([], [], "o", ms=4, color=COLORS[0], label="local, at an input")
        axes.plot([], [], "|", ms=11, mew=2, color=COLORS[1], label="certified")
        canvas.legend(loc="outside upper center", ncols=2)
        png = render_png(canvas)
    return LIPSCHITZ_FIGURE.of(png)
