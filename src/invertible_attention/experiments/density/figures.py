"""The figures of density experiments: learning curves, differences between variants, and stored pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..report import COLORS, Figure, FigureKind, plot_style, render_png
from .comparison import is_likelihood

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PICTURES", "STUDY_FIGURES", "draw_curve", "draw_differences", "leave_out_diverged"]

DASHES = ("-", "--", ":", "-.")
LONG = 40
"""Names of more characters than this do not fit side by side in a legend."""

SPAN = 10
"""Where one run has more than so many times the steps of another, their axis is logarithmic."""

PICTURES = (
    FigureKind(
        "samples",
        "Samples of the averaged weights.",
        "A grid of generated images.",
        repeats="Figure 5",
        tiles=True,
    ),
    FigureKind(
        "interpolation",
        "From one test image to another along great circles of the latent space.",
        "Rows of images, each changing gradually from its first to its last.",
        tiles=True,
    ),
)
CURVE = FigureKind(
    "curve",
    "Bits per dimension of test images, averaged weights, one draw of the noise. The weights of the last step are "
    "those evaluated, whatever this curve does.",
    "Lines falling with the number of steps, and with time.",
)
DIFFERENCES = FigureKind(
    "differences",
    "Difference in test bits per dimension, paired by seed: every seed, their mean and its standard error. Left of the "
    "line is better.",
    "Points with error bars, one row per variant.",
)
STUDY_FIGURES = (DIFFERENCES,)


def draw_curve(runs: list[dict[str, Any]]) -> Figure:
    """Draw test bits per dimension against steps and against CPU time, one line per run."""
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        # Of a study the variants, which tell settings apart that a network's name does not have.
        called = [run.get("variant", run["name"]) for run in runs]
        names = list(dict.fromkeys(called))
        across = 2 if max(map(len, names)) <= LONG else 1
        canvas = Canvas(figsize=(8, 2.8 + 0.22 * math.ceil(len(names) / across)))
        left, right = canvas.subplots(1, 2, sharey=True)
        for index, (run, name) in enumerate(zip(runs, called, strict=True)):
            # More runs than colors: the next ones are dashed, then dotted.
            cycle, place = divmod(names.index(name), len(COLORS))
            style: dict[str, Any] = {"color": COLORS[place], "linestyle": DASHES[cycle % len(DASHES)]}
            points = [point for point in run["curve"] if point["test"] is not None]
            values = [point["test"] for point in points]
            label = name if index == called.index(name) else None
            left.plot([point["step"] for point in points], values, **style, label=label)
            right.plot([point["processor_seconds"] / 60 for point in points], values, **style)
        leave_out_diverged(left, runs)
        steps = [run["training"]["steps"] for run in runs]
        if max(steps) > SPAN * min(steps):
            left.set_xscale("log")
        _label(left, "steps", "test bits/dim")
        _label(right, "CPU minutes of training", None)
        if len(names) > 1:
            canvas.legend(loc="outside lower center", ncols=across)
        png = render_png(canvas)
    return CURVE.of(png)


def leave_out_diverged(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Let lines that leave for values no likelihood has, or far above an untrained one, leave the picture too."""
    scores = [run.get("untrained", {}).get("bits_per_dim") for run in runs]
    untrained = [value for value in scores if value is not None]
    values = [point["test"] for run in runs for point in run["curve"] if point["test"] is not None]
    ceiling = 1.1 * min(untrained, default=math.inf)
    # Of integers, whatever the model, no mean can be below zero.
    inside = [value for value in values if 0 <= value <= ceiling]
    if inside and len(inside) < len(values):
        margin = 0.04 * (max(inside) - min(inside)) or 0.1
        axes.set_ylim(min(inside) - margin, max(inside) + margin)


def _label(axes: Axes, x: str, y: str | None) -> None:
    axes.set_xlabel(x)
    if y is not None:
        axes.set_ylabel(y)


def _drawn(row: dict[str, Any]) -> bool:
    return is_likelihood(row) and row["difference"]["mean"] is not None


def draw_differences(study: dict[str, Any]) -> Figure | None:
    """Draw the differences from the first variant; ``None`` where there are none to draw."""
    from matplotlib.figure import Figure as Canvas

    rows = [row for row in study["rows"] if _drawn(row)]
    if not rows:
        return None
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
    return DIFFERENCES.of(png)
