"""The figures of the camouflage report: curves as Figure 6, pictures as Figure 7, losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.source import open_image
from ..errors import ExperimentError
from ..report import COLORS, Figure, FigureKind, image_grid, plot_style, render_png
from .audit import spread
from .data import Collection, DetectionData
from .data.augmentation import mask_image
from .data.masks import read_mask
from .metrics import THRESHOLDS
from .models import MODELS
from .results import Row, datasets, rows

__all__ = ["FIGURES", "draw_figures", "square"]

RESPONSE_COLORS = {
    None: "#000000",
    "concatenation": COLORS[0],
    "dot_product": COLORS[1],
    "gaussian": COLORS[2],
    "embedded_gaussian": COLORS[3],
}
CONSTRAINT_STYLES = {None: "-", "ordinary": "-", "relaxed": "--", "certified": ":"}
CURVES = {"f_curve": "F-measure", "e_curve": "E-measure"}
SHOWN = 8
SIDE = 128

CURVE = FigureKind(
    "curves",
    "As the paper's Figure 6: F- and E-measure over all thresholds of the 8-bit maps, means over images and seeds.",
    "Curves of the F-measure and the E-measure against the threshold, one line per model.",
    repeats="Figure 6",
)
EXAMPLES = FigureKind(
    "examples-*",
    "As the paper's Figures 7 and 8: images at even distances by name, their masks, and the maps of every model's "
    "first seed.",
    "Rows of small pictures: images, masks, then one row of predicted maps per model.",
    repeats="Figures 7 and 8",
)
LOSSES = FigureKind(
    "losses",
    "Training loss of every model's first seed, means over equal stretches of steps.",
    "Falling curves of the training loss, one per model.",
)
FIGURES = (CURVE, EXAMPLES, LOSSES)
"""The figures of a run, in the order of its page."""


def draw_figures(results: dict[str, Any], maps: dict[Any, Path], data: DetectionData) -> list[Figure]:
    """Draw every figure.

    Args:
        results: content of results.json.
        maps: where each network's maps are.
        data: for the images and masks.
    """
    found = [row for row in rows(results) if row.scored]
    if not found:
        return []
    with plot_style():
        examples = [_examples(found, maps, collection) for collection in data.test]
        return [_curves(found, datasets(results)), *examples, _losses(found)]


def _style(row: Row) -> dict[str, Any]:
    model = MODELS[row.name]
    return {
        "color": RESPONSE_COLORS[model.response],
        "linestyle": CONSTRAINT_STYLES[model.constraint],
        "label": row.title,
    }


def _curves(found: list[Row], tested: list[str]) -> Figure:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(2.9 * len(tested) + 1.7, 4.6))
    axes = canvas.subplots(2, len(tested), squeeze=False, sharex=True)
    for column, dataset in enumerate(tested):
        for panel, (name, label) in zip(axes[:, column], CURVES.items(), strict=True):
            for row in found:
                curve = row.curve(dataset, name)
                if curve is not None:
                    panel.plot(THRESHOLDS, curve, **_style(row))
            panel.set_ylabel(label if column == 0 else "")
        axes[0, column].set_title(dataset)
        axes[1, column].set_xlabel("threshold")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right center")
    return CURVE.of(render_png(canvas))


def _losses(found: list[Row]) -> Figure:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    canvas = Canvas(figsize=(6.4, 2.9))
    axes = canvas.subplots()
    for row in found:
        cell = row.scored[0]
        losses = cell["training"]["losses"]
        steps = np.linspace(0, cell["training"]["steps"], len(losses) + 1)[1:]
        style = _style(row)
        axes.plot(steps, losses, linewidth=1.0, **style)
    axes.set(xlabel="step", ylabel="binary cross-entropy", yscale="log")
    # Losses often stay within one power of ten, where the usual labels are "6 × 10⁻¹".
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    canvas.legend(loc="outside right center")
    return LOSSES.of(render_png(canvas))


def _examples(found: list[Row], maps: dict[Any, Path], collection: Collection) -> Figure:
    chosen = spread(collection.pairs, SHOWN)
    lines = [
        ("image", np.stack([square(open_image(pair.image)) for pair in chosen])),
        ("mask", np.stack([square(mask_image(read_mask(pair.mask))) for pair in chosen if pair.mask])),
    ]
    for row in found:
        seed = row.scored[0]["seed"]
        folder = next(
            (path for cell, path in maps.items() if (cell.model, cell.seed) == (row.name, seed)), None
        )
        if folder is None:
            continue
        files = [folder / collection.name / f"{pair.name}.png" for pair in chosen]
        try:
            pictures = [square(open_image(file)) for file in files]
        except ExperimentError:
            # Maps may be deleted to save space; scores stay.
            continue
        lines.append((row.title, np.stack(pictures)))
    png = image_grid(lines, gap_before=(2,), width=0.9)
    return EXAMPLES.of(png, name=f"examples-{collection.name}")


def square(image: Image.Image) -> np.ndarray:
    """Scale an image into a square of white."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(square)
