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

__all__ = ["COLORS", "Figure", "FigureKind", "image_grid", "plot_style", "render_png", "save_figures"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The palette of Okabe and Ito (2008), distinguished by color-blind readers too."""

DPI = 160
GAP = 5
"""Pixels between the images of a grid."""

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
    "savefig.dpi": DPI,
}


@dataclass(frozen=True)
class Figure:
    """A finished figure.

    Args:
        name: file name without suffix.
        caption: what it shows and how it was made.
        description: what a reader who cannot see it should know.
        png: the picture.
        repeats: which of the paper's figures it repeats, such as ``"Figures 3 and 4"``.
    """

    name: str
    caption: str
    description: str
    png: bytes
    repeats: str = ""

    @property
    def data_uri(self) -> str:
        """The picture as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class FigureKind:
    """What a figure shows, whatever run it is drawn from.

    Args:
        name: file name without suffix; with ``*`` for several.
        caption: see :class:`Figure`.
        description: see :class:`Figure`.
        repeats: see :class:`Figure`.
        pixelated: whether to keep the pixels of small images sharp.
        tiles: whether it has no letters and is shown as large as it was made.
    """

    name: str
    caption: str
    description: str
    repeats: str = ""
    pixelated: bool = False
    tiles: bool = False

    def of(self, png: bytes, *, name: str | None = None, about: str = "") -> Figure:
        """Return the figure with its picture; ``about`` begins the description."""
        return Figure(name or self.name, self.caption, about + self.description, png, self.repeats)


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw with the experiments' look, leaving matplotlib's settings as they were."""
    import matplotlib as mpl
    from cycler import cycler

    style: Any = STYLE | {"axes.prop_cycle": cycler(color=COLORS)}
    with mpl.rc_context(style):
        yield


def render_png(canvas: Canvas, *, fit: bool = True) -> bytes:
    """Return a matplotlib figure as PNG, without the date, so that equal figures are equal files.

    Args:
        canvas: the figure.
        fit: make it as large as what is drawn, so that no long label or legend is cut; otherwise it keeps its
            size, to the pixel.
    """
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight" if fit else None)
    return buffer.getvalue()


def image_grid(
    rows: Sequence[tuple[str, np.ndarray]], *, gap_before: Sequence[int] = (), width: float = 0.8
) -> bytes:
    """Draw images in labeled rows, pixel for pixel.

    Args:
        rows: a label and its images, ``(columns, height, width, 3)``, 0–255.
        gap_before: rows set apart from the one above.
        width: of an image, in inches.
    """
    from matplotlib.figure import Figure as Canvas

    magnified = max(1, round(width * DPI / rows[0][1].shape[2]))
    strips, middles, top = [], [], 0
    for index, (_, images) in enumerate(rows):
        gap = GAP * (4 if index in gap_before else 1) if index else 0
        strip = _strip(images, magnified)
        strips.append(np.pad(strip, ((gap, 0), (0, 0), (0, 0)), constant_values=255))
        middles.append(top + gap + strip.shape[0] / 2)
        top += gap + strip.shape[0]
    picture = np.concatenate(strips)
    height, across = picture.shape[:2]
    margin = 1.75 * DPI
    canvas = Canvas(figsize=((across + margin) / DPI, height / DPI), dpi=DPI)
    canvas.set_layout_engine("none")
    axes = canvas.add_axes((margin / (across + margin), 0, across / (across + margin), 1))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for (label, _), middle in zip(rows, middles, strict=True):
        x = (margin - 0.1 * DPI) / (across + margin)
        canvas.text(x, 1 - middle / height, label, ha="right", va="center")
    return render_png(canvas, fit=False)


def _strip(images: np.ndarray, magnified: int) -> np.ndarray:
    large = images.repeat(magnified, axis=1).repeat(magnified, axis=2)
    parts = [np.pad(image, ((0, 0), (GAP, 0), (0, 0)), constant_values=255) for image in large]
    return np.concatenate(parts, axis=1)[:, GAP:]


def save_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """Write every figure into ``folder`` as ``name.png``."""
    paths = [folder / f"{figure.name}.png" for figure in figures]
    for path, figure in zip(paths, figures, strict=True):
        write_bytes(path, figure.png)
    return paths
