"""The pictures of the page: images pixel for pixel, errors in colors, curves."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from ..data import quantize
from ..report import COLORS, Figure, plot_style, render_png
from .attention_map import attention_row, token_of
from .computation import Outcome, Side
from .words import NAMES, attention_words

__all__ = ["draw_attention", "draw_constants", "draw_pictures", "draw_residuals", "draw_scale", "preview"]

SCALE = (-8.0, 3.0)
"""Decimal logarithms of the errors at the ends of the colors."""
COLORMAP = "viridis"
SHOWN = 320
"""Least side, in pixels, of the picture that can be clicked on."""

SOLVERS = {
    "picard": "fixed point (the paper's Algorithm 1)",
    "anderson": "Anderson",
    "newton-krylov": "Newton–Krylov",
}


def preview(pixels: UInt8[Tensor, "1 3 size size"]) -> Image.Image:
    """Return the picture as the network sees it, magnified by a whole number."""
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    factor = magnification(image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def magnification(size: int) -> int:
    """Return by how much :func:`preview` magnifies a picture of so many pixels across."""
    return max(1, -(-SHOWN // size))


def draw_pictures(outcome: Outcome) -> dict[str, list[Figure]]:
    """Return, for each network, its latent, its reconstruction and the error of that; the picture comes first."""
    original = Figure(
        "original", "the picture", "The picture as both networks see it.", _png(_image(outcome.x))
    )
    return {"picture": [original]} | {
        side.constraint: _pictures_of(side) for side in (outcome.chosen, outcome.other)
    }


def _pictures_of(side: Side) -> list[Figure]:
    name = NAMES[side.constraint]
    finite = side.error[side.error.isfinite()]
    largest = float(finite.max()) if len(finite) == side.error.numel() else math.inf
    described = f"at most {largest:.1e}" if math.isfinite(largest) else "not finite in places"
    return [
        Figure(
            f"latent-{side.constraint}",
            "latent",
            f"The latent of the {name} network.",
            _png(_stretched(side.latent)),
        ),
        Figure(
            f"reconstruction-{side.constraint}",
            "reconstruction",
            f"What the inverse of the {name} network returned"
            + (": the picture, as far as one can see." if side.recovered else ": not the picture."),
            _png(_image(side.reconstruction)),
        ),
        Figure(
            f"error-{side.constraint}",
            "error",
            f"Absolute error of each pixel of the {name} network's reconstruction on the scale 0–255: {described}.",
            _png(_colored(side.error)),
        ),
    ]


def _image(x: Tensor) -> np.ndarray:
    return quantize(x)[0].permute(1, 2, 0).numpy()


def _stretched(x: Tensor) -> np.ndarray:
    x = x.nan_to_num(0.0, 0.0, 0.0)
    low, high = x.amin(), x.amax()
    return _image((x - low) / (high - low).clamp_min(1e-12) * (1 - 1e-6) - 0.5)


def _colored(error: Float[Tensor, "size size"]) -> np.ndarray:
    """Return errors in colors on a logarithmic scale; what is not finite has the color of the largest."""
    import matplotlib as mpl

    low, high = SCALE
    places = (error.clamp(10**low, 10**high).log10() - low) / (high - low)
    return (mpl.colormaps[COLORMAP](places.numpy())[..., :3] * 255).round().astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def draw_scale() -> Figure:
    """Draw which color means which error."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        canvas = Canvas(figsize=(4.6, 0.75))
        axes = canvas.subplots()
        norm = LogNorm(10 ** SCALE[0], 10 ** SCALE[1])
        canvas.colorbar(ScalarMappable(norm, COLORMAP), cax=axes, orientation="horizontal")
        axes.set_xlabel("absolute error of a pixel, 0–255")
        png = render_png(canvas)
    low, high = SCALE
    description = f"Colors from dark blue, an error of 1e{low:.0f}, to yellow, an error of 1e{high:.0f}."
    return Figure("scale", "Colors of both error maps.", description, png)


def draw_residuals(outcome: Outcome) -> Figure:
    """Draw how the relative residual falls with the evaluations every solver spends, for both networks."""
    from matplotlib.figure import Figure as Canvas

    sides = (outcome.chosen, outcome.other)
    with plot_style():
        canvas = Canvas(figsize=(6.4, 3.1))
        panels = canvas.subplots(1, 2, sharex=True, sharey=True)
        for axes, side in zip(panels, sides, strict=True):
            for color, (solver, name) in zip(COLORS, SOLVERS.items(), strict=False):
                curve = [math.inf if value is None else max(value, 1e-300) for value in side.curves[solver]]
                shown = np.minimum(curve, 1e12)
                axes.plot(range(1, len(shown) + 1), shown, color=color, label=name)
            axes.set_title(NAMES[side.constraint], fontsize=9)
            axes.set_yscale("log")
            axes.set_ylim(1e-8, 1e2)
            axes.set_xlabel("evaluations of the branch")
        panels[0].set_ylabel("relative residual")
        handles, names = panels[0].get_legend_handles_labels()
        canvas.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
        png = render_png(canvas)
    spent = "; ".join(f"{NAMES[side.constraint]}: {_spent(side)}" for side in sides)
    return Figure(
        "residuals",
        "How far the equation x + g(x) = z is from solved after every evaluation of g, by solver.",
        f"Falling curves on a logarithmic axis, one panel per network. Smallest residual reached: {spent}.",
        png,
    )


def _spent(side: Side) -> str:
    words = []
    for solver, name in SOLVERS.items():
        known = [value for value in side.curves[solver] if value is not None]
        words.append(f"{name} {min(known):.0e} in {len(side.curves[solver])}" if known else f"{name} none")
    return ", ".join(words)


def draw_constants(outcome: Outcome) -> Figure:
    """Draw the measured local Lipschitz constants of both networks next to what is certified."""
    from matplotlib.figure import Figure as Canvas

    sides = (outcome.chosen, outcome.other)
    with plot_style():
        canvas = Canvas(figsize=(6.4, 1.7))
        axes = canvas.subplots()
        for place, side in enumerate(sides):
            axes.plot(min(side.local_lipschitz, 1e6), place, "o", color=COLORS[0], ms=7)
            if math.isfinite(side.certificate):
                axes.plot(side.certificate, place, "|", color=COLORS[1], ms=22, mew=3)
        axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(sides)), [NAMES[side.constraint] for side in sides])
        axes.set_ylim(len(sides) - 0.5, -0.5)
        largest = max(side.local_lipschitz for side in sides)
        if largest > 3:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, max(1.1, 1.1 * largest))
        axes.set_xlabel("Lipschitz constant of the branch")
        axes.plot([], [], "o", color=COLORS[0], label="measured at this picture")
        axes.plot([], [], "|", color=COLORS[1], ms=12, mew=3, label="certified for every picture")
        canvas.legend(loc="outside upper center", ncols=2, fontsize=8)
        png = render_png(canvas)
    numbers = "; ".join(
        f"{NAMES[side.constraint]}: measured {side.local_lipschitz:.3g}, "
        + (f"certified {side.certificate:.3g}" if math.isfinite(side.certificate) else "nothing certified")
        for side in sides
    )
    return Figure(
        "constants",
        "Left of the dashed line the branch is a contraction: the inverse exists and the iteration converges. The "
        "measured constant is a lower estimate at this one picture.",
        f"Points and bars on one axis. {numbers}.",
        png,
    )


def draw_attention(outcome: Outcome, row: int, column: int) -> tuple[Image.Image, Figure]:
    """Draw where a pixel attends in the chosen network.

    Returns:
        The picture with the pixel's block marked, and the map.
    """
    from matplotlib.figure import Figure as Canvas

    shares = attention_row(outcome.chosen.network, outcome.x, row, column).double()
    size = outcome.options.size
    block = token_of(row, column, (size, size))
    with plot_style():
        canvas = Canvas(figsize=(4.4, 3.5))
        axes = canvas.subplots()
        signed = bool((shares < 0).any())
        options: dict[str, Any] = {"cmap": COLORMAP}
        if signed:
            limit = float(shares.abs().max())
            options = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
        drawn = axes.imshow(shares.numpy(), interpolation="nearest", extent=(0, size, size, 0), **options)
        axes.add_patch(_frame(block))
        axes.grid(visible=False)
        axes.set_xlabel("column of the pixel")
        axes.set_ylabel("row of the pixel")
        scale = canvas.colorbar(drawn, ax=axes, label="weight, times an even share")
        # Certified weights can be almost even; their differences are then in the last digits.
        scale.ax.ticklabel_format(useOffset=False, style="plain")
        png = render_png(canvas)
    words = attention_words(shares, block)
    return marked(outcome, block), Figure("attention", words, f"A map of the picture in colors. {words}", png)


def _frame(block: tuple[int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((2 * block[1], 2 * block[0]), 2, 2, fill=False, edgecolor="#d55e00", linewidth=1.8)


def marked(outcome: Outcome, block: tuple[int, int]) -> Image.Image:
    """Return the preview with a block of pixels framed."""
    image = preview(outcome.pixels)
    factor = magnification(outcome.options.size)
    top, left = 2 * block[0] * factor, 2 * block[1] * factor
    corners = (left - 2, top - 2, left + 2 * factor + 1, top + 2 * factor + 1)
    brush = ImageDraw.Draw(image)
    brush.rectangle(corners, outline="#000000", width=4)
    brush.rectangle(
        tuple(c + d for c, d in zip(corners, (1, 1, -1, -1), strict=True)), outline="#ffb000", width=2
    )
    return image
