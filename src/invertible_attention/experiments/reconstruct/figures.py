"""The figures of the reconstruction report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from ..data import quantize
from ..metrics import V_SCORE_LIMIT
from ..published import RESPONSES
from ..report import COLORS, Figure, FigureKind, image_grid, plot_style, render_png
from .configuration import Cell
from .results import Group, groups, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURES", "draw_figures", "draw_measured"]

SOLVERS = {
    "picard": "fixed point (Algorithm 1)",
    "anderson": "Anderson",
    "newton-krylov": "Newton–Krylov",
}
ALL_FAILED = 1e12
"""Where curves that are not finite are drawn: above everything."""

LATENTS = FigureKind(
    "latents",
    "After the paper's Figures 3 and 4: test images, their latents z = f(x) and their reconstructions f⁻¹(z) under the "
    "certificate. Latents are unsqueezed and stretched to the full range, each on its own.",
    "Rows of small images: originals, then for each response the latents and the reconstructions.",
    repeats="Figures 3 and 4",
    pixelated=True,
)
RECONSTRUCTIONS = FigureKind(
    "reconstructions",
    "The same test images reconstructed by every network, as 8-bit images; what is not finite is black.",
    "Rows of small images: originals, then for each response one row of reconstructions per constraint.",
    pixelated=True,
)
RESIDUALS = FigureKind(
    "residuals",
    "How the relative residual ‖x + g(x) − z‖ / (1 + ‖z‖) falls with the evaluations of g each solver spends, on the "
    "studied test images of the first repeat: median (solid, a dot where it ends) and largest (dotted).",
    "Curves of residual against evaluations, a panel per response and constraint, a curve per solver.",
)
ITERATIONS = FigureKind(
    "iterations",
    "Mean squared error after every step of the paper's Algorithm 1, on the studied test images of the first repeat: "
    "median (solid) and largest (dotted). Dashed: the V-score's limit of 10.",
    "Curves of reconstruction error against fixed-point steps, one panel per constraint.",
)
HISTOGRAM = FigureKind(
    "histogram",
    "Errors of the single images, all repeats together, on the scale 0–255. Dashed: the V-score's limit of 10. Errors "
    "outside the axis count at its ends; reconstructions that are not finite are not drawn but count in the "
    "percentages.",
    "Histograms of the per-image error on a logarithmic axis, one panel per constraint.",
)
FIGURES = (LATENTS, RECONSTRUCTIONS, RESIDUALS, ITERATIONS, HISTOGRAM)
"""The figures of a run, in the order of its page."""


def draw_figures(output: Path, results: dict[str, Any]) -> list[Figure]:
    """Draw every figure of a run from its results and the stored images."""
    by_response = groups(results)
    full_size = max(results["data"]["size"]) > 64
    with plot_style():
        pictures = (
            _latents(output, by_response, full_size=full_size),
            _reconstructions(output, by_response, full_size=full_size),
        )
    return [figure for figure in pictures if figure is not None] + draw_measured(results)


def draw_measured(results: dict[str, Any]) -> list[Figure]:
    """Draw the figures that need the results alone."""
    by_response = groups(results)
    names = labels(results)
    with plot_style():
        return [draw(by_response, names) for draw in (_residuals, _iterations, _histogram)]


def _stored(output: Path, group: Group) -> dict[str, Tensor]:
    return load_file(output / "cells" / Cell.of(group.cells[0]).folder / "images.safetensors")


def _pictures(x: Float[Tensor, "shown 3 height width"], shown: int) -> np.ndarray:
    return quantize(x[:shown]).permute(0, 2, 3, 1).numpy()


def _stretched(x: Float[Tensor, "shown 3 height width"], shown: int) -> np.ndarray:
    x = x[:shown].nan_to_num(0.0, 0.0, 0.0)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return _pictures((x - low) / (high - low).clamp_min(1e-12) * (1 - 1e-6) - 0.5, shown)


def _latents(output: Path, by_response: dict[str, list[Group]], *, full_size: bool) -> Figure | None:
    shown = 4 if full_size else 8
    rows: list[tuple[str, np.ndarray]] = []
    gaps = []
    for response, entries in by_response.items():
        group = next((entry for entry in entries if entry.constraint == "certified"), None)
        if group is None:
            continue
        stored = _stored(output, group)
        if not rows:
            rows.append(("original", _pictures(stored["original"], shown)))
        gaps.append(len(rows))
        rows.append((f"{RESPONSES[response]}\nlatent", _stretched(stored["latent"], shown)))
        rows.append(("reconstruction", _pictures(stored["reconstruction"], shown)))
    if not rows:
        return None
    return LATENTS.of(image_grid(rows, gap_before=gaps, width=1.3 if full_size else 0.8))


def _reconstructions(output: Path, by_response: dict[str, list[Group]], *, full_size: bool) -> Figure:
    shown = 4 if full_size else 8
    rows: list[tuple[str, np.ndarray]] = []
    gaps = []
    for response, entries in by_response.items():
        stored = {entry.label: _stored(output, entry) for entry in entries}
        if not rows:
            rows.append(("original", _pictures(next(iter(stored.values()))["original"], shown)))
        gaps.append(len(rows))
        for place, (label, tensors) in enumerate(stored.items()):
            name = f"{RESPONSES[response]}\n{label}" if place == 0 else label
            rows.append((name, _pictures(tensors["reconstruction"], shown)))
    return RECONSTRUCTIONS.of(image_grid(rows, gap_before=gaps, width=1.3 if full_size else 0.8))


def _panels(
    columns: int, rows: int = 1, *, width: float = 2.5, height: float = 2.3
) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(max(4.5, width * columns + 0.6), height * rows + 0.6))
    axes = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    return canvas, axes


def _curve(values: list[float | None]) -> np.ndarray:
    return np.array([ALL_FAILED if value is None else max(value, 1e-300) for value in values])


def _residuals(by_response: dict[str, list[Group]], kinds: list[str]) -> Figure:
    canvas, axes = _panels(len(by_response), len(kinds))
    for column, (response, entries) in enumerate(by_response.items()):
        for row, label in enumerate(kinds):
            panel: Axes = axes[row, column]
            for group in (entry for entry in entries if entry.label == label):
                curves = group.cells[0]["study"]["solvers"]
                for color, (solver, name) in zip(COLORS, SOLVERS.items(), strict=False):
                    median, largest = (_curve(curves[solver][part]) for part in ("median", "largest"))
                    spent = np.arange(1, len(median) + 1)
                    # The dot shows a curve of a single evaluation, too.
                    dot = {"marker": "o", "markersize": 3, "markevery": [-1]}
                    panel.plot(spent, median, color=color, label=name, **dot)
                    panel.plot(spent, largest, color=color, linewidth=0.8, linestyle=":")
            panel.set_yscale("log")
            panel.set_ylim(1e-7, 1e2)
            if row == 0:
                panel.set_title(RESPONSES[response], fontsize=9)
            if column == 0:
                panel.set_ylabel(f"{label}\nrelative residual")
            if row == len(kinds) - 1:
                panel.set_xlabel("evaluations of g")
    handles, names = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=3)
    return RESIDUALS.of(render_png(canvas))


def _iterations(by_response: dict[str, list[Group]], kinds: list[str]) -> Figure:
    canvas, axes = _panels(len(kinds), width=2.9, height=2.8)
    for column, label in enumerate(kinds):
        panel: Axes = axes[0, column]
        for color, (response, entries) in zip(COLORS, by_response.items(), strict=False):
            for group in (entry for entry in entries if entry.label == label):
                curves = group.cells[0]["study"]["picard_mse"]
                median, largest = (_curve(curves[name]) for name in ("median", "largest"))
                steps = np.arange(1, len(median) + 1)
                panel.plot(steps, median, color=color, label=RESPONSES[response])
                panel.plot(steps, largest, color=color, linewidth=0.8, linestyle=":")
        panel.axhline(V_SCORE_LIMIT, color="#888888", linewidth=0.8, linestyle="--")
        panel.set_yscale("log")
        panel.set_ylim(1e-11, 1e6)
        panel.set_title(label, fontsize=9)
        panel.set_xlabel("fixed-point steps")
    axes[0, 0].set_ylabel("mean squared error (0–255)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=4 if len(kinds) > 1 else 2)
    return ITERATIONS.of(render_png(canvas))


def _histogram(by_response: dict[str, list[Group]], kinds: list[str]) -> Figure:
    canvas, axes = _panels(len(kinds), width=2.9, height=2.6)
    for column, label in enumerate(kinds):
        panel: Axes = axes[0, column]
        for color, (response, entries) in zip(COLORS, by_response.items(), strict=False):
            for group in (entry for entry in entries if entry.label == label):
                histograms = [cell["reconstruction"]["histogram"] for cell in group.cells]
                counts = np.sum([h["counts"] for h in histograms], axis=0)
                total = counts.sum() + sum(h["non_finite"] for h in histograms)
                edges = 10.0 ** np.array(histograms[0]["log10_edges"])
                panel.stairs(
                    100 * counts / total, edges, color=color, label=RESPONSES[response], linewidth=1.4
                )
        panel.axvline(V_SCORE_LIMIT, color="#888888", linewidth=0.8, linestyle="--")
        panel.set_xscale("log")
        panel.set_title(label, fontsize=9)
        panel.set_xlabel("mean squared error of an image")
    axes[0, 0].set_ylabel("test images (%)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=4 if len(kinds) > 1 else 2)
    return HISTOGRAM.of(render_png(canvas))
