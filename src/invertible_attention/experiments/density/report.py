"""The report of a run: its figure, learning curve and pictures on one page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..published import TABLE_3
from ..report import COLORS, Figure, plot_style, render_png, save_figures, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curve", "leave_out_diverged", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
DASHES = ("-", "--", ":", "-.")
LONG = 40
"""Names of more characters than this do not fit side by side in a legend."""


def write_report(output: Path, results: dict[str, Any]) -> Path:
    """Write ``figures/*.png`` and ``report.html`` for the run in ``output``; return the page's path."""
    figures = {"curve": draw_curve([results])}
    save_figures(output / "figures", list(figures.values()))
    for name, caption in (
        ("samples", "Samples of the averaged weights."),
        ("interpolation", "From one test image to another along great circles of the latent space."),
    ):
        if (output / f"{name}.png").is_file():
            png = (output / f"{name}.png").read_bytes()
            figures[name] = Figure(name, caption, f"A grid of images: {caption}", png)
    path = output / "report.html"
    write_page(
        path,
        "density.html",
        TEMPLATES,
        results=results,
        settings=results["configuration"],
        figures=figures,
        published=TABLE_3 if results["configuration"]["dataset"] == "cifar10" else None,
    )
    return path


def draw_curve(runs: list[dict[str, Any]]) -> Figure:
    """Draw test bits per dimension against steps and against processor time, one line per run."""
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        canvas = Canvas(figsize=(8, 3.2))
        left, right = canvas.subplots(1, 2, sharey=True)
        names = list(dict.fromkeys(run["name"] for run in runs))
        for run in runs:
            # More runs than colors: the next ones are dashed, then dotted.
            turn, place = divmod(names.index(run["name"]), len(COLORS))
            style: dict[str, Any] = {"color": COLORS[place], "linestyle": DASHES[turn % len(DASHES)]}
            points = [point for point in run["curve"] if point["test"] is not None]
            values = [point["test"] for point in points]
            label = run["name"] if run is next(r for r in runs if r["name"] == run["name"]) else None
            left.plot([point["step"] for point in points], values, **style, label=label)
            right.plot([point["processor_seconds"] / 60 for point in points], values, **style)
        leave_out_diverged(left, runs)
        _label(left, "steps", "test bits/dim")
        _label(right, "processor minutes of training", None)
        if len(names) > 1:
            canvas.legend(loc="outside lower center", ncols=2 if max(map(len, names)) <= LONG else 1)
        png = render_png(canvas)
    return Figure(
        "curve",
        "Bits per dimension of test images, averaged weights, one draw of the noise. The weights of the last step "
        "are those evaluated, whatever this curve does.",
        "Lines falling with the number of steps, and with time.",
        png,
    )


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
