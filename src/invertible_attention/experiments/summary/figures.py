"""The pictures of the page: one drawn from all reconstructions, the others as the runs left them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..published import RESPONSES
from ..reconstruct.results import Group
from ..report import COLORS, Figure, plot_style, render_png
from .content import Picture, Source
from .recognition import Result

__all__ = ["draw_errors", "stored_pictures"]

STORED = {
    "reconstruct": {
        "latents": (
            "Test images, their latents and their reconstructions under the certificate, as the paper's "
            "Figures 3 and 4.",
            "Rows of small images: originals, then for each response the latents and the reconstructions.",
        ),
        "reconstructions": (
            "The same test images reconstructed by every network, as 8-bit images; what is not finite is black.",
            "Rows of small images: originals, then one row of reconstructions per response and constraint.",
        ),
        "residuals": (
            "How the relative residual falls with the evaluations each solver spends: median (solid) and largest "
            "(dotted) over the studied images of the first repeat.",
            "Curves of residual against evaluations, a panel per response and constraint, a curve per solver.",
        ),
        "iterations": (
            "Mean squared error after every step of the paper's Algorithm 1: median (solid) and largest (dotted). "
            "Dashed: the V-score's limit of 10.",
            "Curves of reconstruction error against fixed-point steps, one panel per constraint.",
        ),
        "histogram": (
            "Errors of the single images, all repeats together. Dashed: the V-score's limit of 10.",
            "Histograms of the error of an image on a logarithmic axis, one panel per constraint.",
        ),
    },
    "density": {
        "samples": ("Samples of the averaged weights.", "A grid of generated images."),
        "interpolation": (
            "From one test image to another along great circles of the latent space.",
            "Rows of images, each changing gradually from its first to its last.",
        ),
    },
    "density-study": {
        "differences": (
            "Difference in test bits per dimension, paired by seed: every seed, their mean and its standard error. "
            "Left of the line is better.",
            "Points with error bars, one row per variant.",
        ),
    },
    "camouflage": {
        "curves": (
            "F- and E-measure over all thresholds of the maps, as the paper's Figure 6.",
            "Curves of the two measures against the threshold, one line per attention.",
        ),
        "examples-*": (
            "Images, their masks, and the maps of every network, as the paper's Figure 7.",
            "Rows of small pictures: images, masks, then one row of predicted maps per attention.",
        ),
        "losses": ("Training loss of every attention's first seed.", "Falling curves of the training loss."),
    },
    "audit": {
        "lipschitz": (
            "Local Lipschitz constants of every residual branch, from below, and the certified constant where there "
            "is one. Left of the dashed line the branch is a contraction.",
            "One row per block: points for the inputs, a bar for the certificate.",
        ),
    },
    "attack": {
        "attack": (
            "Local Lipschitz constant divided by the bound: layers as drawn, and the closest ones after gradient "
            "ascent in input and weights.",
            "A falling curve of the share of layers with a larger ratio, and bars of the largest ratios.",
        ),
    },
}
"""Figures by kind of result and file name: caption, and what a reader who cannot see them should know."""

PIXELATED = {"latents", "reconstructions"}
TILES = {"samples", "interpolation"}
"""Pictures without letters, shown as large as they were made."""

WORST = 1e12
"""Where errors that are not finite are drawn."""


def stored_pictures(result: Result, source: Source) -> list[Picture]:
    """Return the figures in a result's folder, in the order of :data:`STORED`."""
    pictures = []
    for pattern, (caption, description) in STORED.get(result.kind, {}).items():
        for path in _files(result.folder, pattern):
            figure = Figure(path.stem, caption, f"{result.name}: {description}", path.read_bytes())
            scale = 1.0 if path.stem in TILES else Picture.scale
            pictures.append(Picture(figure, (source,), path.stem in PIXELATED | TILES, scale))
    return pictures


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return a figure's files: a run keeps them in ``figures``, published results beside the numbers."""
    return sorted((folder / "figures").glob(f"{pattern}.png")) or sorted(folder.glob(f"{pattern}.png"))


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
                    _mark(axes, value, place, kind, hollow=normalization == "row")
            axes.set_yticks(range(len(RESPONSES)), list(RESPONSES.values()))
            axes.set_ylim(len(RESPONSES) - 0.5, -0.5)
            axes.set_xlim(1e-12, 3 * WORST)
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
    return Figure(
        "errors",
        "Mean squared error of reconstructed test images, published and measured. Rings: weights normalised "
        "by row instead of by column. Dashed: the V-score's limit of 10. Errors that are not finite are drawn at the "
        "right edge.",
        "Points on a logarithmic axis, a panel per data set and a row per response; the numbers are in the tables "
        "that follow.",
        png,
    )


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
    return {"paper": "published", "released": "authors' code, rerun"}.get(kind, kind)
