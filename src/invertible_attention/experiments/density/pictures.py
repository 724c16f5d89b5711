"""Samples of a density, and walks between images through its latent space, as PNG."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ...flows import Dequantize, Flow, Sequential
from ...solvers import ConvergenceError

__all__ = ["draw_samples", "interpolate", "round_trip_error", "slerp", "tile"]


@torch.no_grad()
def draw_samples(
    model: Flow, count: int, *, seed: int, temperature: float = 1.0, batch_size: int = 64
) -> UInt8[Tensor, "samples channels height width"]:
    """Draw samples; those whose inverse does not converge are skipped.

    Args:
        model: a density.
        count: how many are drawn.
        seed: of the latents.
        temperature: factor on the base's spread.
        batch_size: samples at once.

    Returns:
        The samples that converged, at most ``count``.
    """
    model.eval()
    kept: list[Tensor] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, count, batch_size):
            n = min(batch_size, count - start)
            kept += _invert(model, model.base.sample(n, temperature=temperature))
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.uint8)


def _invert(model: Flow, latents: Tensor) -> list[Tensor]:
    """Return the images of the latents that can be inverted, in their order."""
    while len(latents):
        try:
            images = model.transform.inverse(latents)
        except ConvergenceError as error:
            latents = latents[error.solution.converged]
            continue
        return list(images[images.isfinite().flatten(1).all(1)].to(torch.uint8).cpu())
    return []


@torch.no_grad()
def interpolate(
    model: Flow, first: UInt8[Tensor, "pairs *event"], second: UInt8[Tensor, "pairs *event"], *, steps: int
) -> list[list[UInt8[Tensor, "channels height width"]]]:
    """Walk from each image of ``first`` to its partner in ``second`` through the latent space.

    Args:
        model: a density that begins with its dequantization.
        first: where the walks begin.
        second: where they end.
        steps: images per walk, ends included.

    Returns:
        One row of images per pair; a row is shorter where an inverse does not converge.
    """
    model.eval()
    starts, ends = (_continuous(model)[1](_middles(model, images)) for images in (first, second))
    rows = []
    for start, end in zip(starts, ends, strict=True):
        rows.append(_invert(model, slerp(start, end, steps)))
    return rows


@torch.no_grad()
def round_trip_error(model: Flow, images: UInt8[Tensor, "images *event"]) -> float | None:
    """Return by how many levels images differ at most from what comes back from their latents.

    No residual says how far the inverse amplifies rounding, and of layers that are invertible by order no bound does.

    Args:
        model: a density that begins with its dequantization.
        images: samples, or any others.

    Returns:
        The largest error, or ``None`` where an image does not come back at all.
    """
    model.eval()
    dequantize, rest = _continuous(model)
    pixels = _middles(model, images)
    try:
        error = ((rest.inverse(rest(pixels)) - pixels).abs().max() * dequantize.levels).item()
    except ConvergenceError:
        return None
    return error if math.isfinite(error) else None


def _continuous(model: Flow) -> tuple[Dequantize, Sequential]:
    dequantize, *rest = model.transform  # pyright: ignore[reportGeneralTypeIssues]
    assert isinstance(dequantize, Dequantize)
    return dequantize, Sequential(*rest)


def _middles(model: Flow, images: UInt8[Tensor, "images *event"]) -> Float[Tensor, "images *event"]:
    """The middle of a pixel's interval instead of noise, so that what comes back is the image itself."""
    device = next(model.parameters()).device
    return (images.to(device).float() + 0.5) / _continuous(model)[0].levels


def slerp(start: Float[Tensor, " dim"], end: Float[Tensor, " dim"], steps: int) -> Float[Tensor, "steps dim"]:
    """Return points on the great circle from ``start`` to ``end``, their lengths interpolated too.

    On a straight line the middle would be shorter than any sample of a high-dimensional Gaussian.
    """
    lengths = torch.stack([start.norm(), end.norm()])
    one, two = start / lengths[0], end / lengths[1]
    angle = torch.acos((one @ two).clamp(-1 + 1e-6, 1 - 1e-6))
    t = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None]
    direction = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * two) / torch.sin(angle)
    return direction * ((1 - t) * lengths[0] + t * lengths[1])


def tile(
    images: UInt8[Tensor, "images channels height width"],
    columns: int,
    *,
    levels: int,
    scale: int | None = None,
) -> bytes:
    """Return images in a grid as PNG, enlarged pixel for pixel.

    Args:
        images: gray or RGB.
        columns: images per row.
        levels: values of a pixel; they are stretched to 0–255.
        scale: size of a pixel, ``None`` for images of about 64.
    """
    count, channels, height, width = images.shape
    scale = max(1, round(64 / max(height, width))) if scale is None else scale
    rows = math.ceil(count / columns)
    canvas = np.full((rows, columns, height + 1, width + 1, 3), 255, dtype=np.uint8)
    pixels = (images.float() * (255 / (levels - 1))).round().to(torch.uint8)
    shown = pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3 if channels == 1 else channels).numpy()
    for index, image in enumerate(shown):
        canvas[index // columns, index % columns, :height, :width] = image
    picture = canvas.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), columns * (width + 1), 3)
    enlarged = np.kron(picture, np.ones((scale, scale, 1), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, format="PNG")
    return buffer.getvalue()
