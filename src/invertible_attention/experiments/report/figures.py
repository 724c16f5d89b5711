"""Figures as PNG: one look for all experiments, drawn without a display."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["COLORS", "Figure", "image_grid", "plot_style", "render_png", "save_figures"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The palette of Okabe and Ito (2008), told apart by colour-blind readers too."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Figure:
    """A finished figure.

    Args:
        name: file name without suffix.
        caption: what it shows and how it was made.
        description: what a reader who cannot see it should know.
        png: the picture.
    """

    name: str
    caption: str
    description: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw with the experiments' look, leaving matplotlib's settings as they were."""
    import matplotlib as mpl
    from cycler import cycler

    style: Any = STYLE | {"axes.prop_cycle": cycler(color=COLORS)}
    with mpl.rc_context(style):
        yield


def render_png(canvas: Canvas) -> bytes:
    """Return a matplotlib figure as PNG, without the date, so that equal figures are equal files."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def image_grid(
    rows: Sequence[tuple[str, np.ndarray]], *, gap_before: Sequence[int] = (), scale: float = 0.8
) -> bytes:
    """Draw images in labelled rows, pixel for pixel.

    Args:
        rows: a label and its images, ``(columns, height, width, 3)``, 0–255.
        gap_before: rows set apart from the one above.
        scale: width of an image in inches.
    """
    from matplotlib.figure import Figure as Canvas

    columns = max(len(images) for _, images in rows)
    height, width = rows[0][1].shape[1:3]
    gaps = dict.fromkeys(gap_before, 0.12)
    cell, tall, left = scale, scale * height / width, 1.75
    total = sum(tall + 0.03 + gaps.get(i, 0.0) for i in range(len(rows)))
    canvas = Canvas(figsize=(left + columns * (cell + 0.03), total))
    canvas.set_layout_engine("none")
    top = total
    for index, (label, images) in enumerate(rows):
        top -= tall + 0.03 + gaps.get(index, 0.0)
        for column, image in enumerate(images):
            x = left + column * (cell + 0.03)
            axes = canvas.add_axes(
                (x / canvas.get_figwidth(), top / total, cell / canvas.get_figwidth(), tall / total)
            )
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
        canvas.text(
            (left - 0.1) / canvas.get_figwidth(), (top + tall / 2) / total, label, ha="right", va="center"
        )
    return render_png(canvas)


def save_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """Write every figure into ``folder`` as ``name.png``."""
    paths = [folder / f"{figure.name}.png" for figure in figures]
    for path, figure in zip(paths, figures, strict=True):
        write_bytes(path, figure.png)
    return paths
