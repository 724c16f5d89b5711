"""Pictures inverted at their own size: for each a PNG of what came back, and its errors."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from ...flows import Sequential
from ..data import dequantize, quantize, to_pixels, to_tensor
from ..files import finite, write_bytes
from ..metrics import SSIM_WINDOW, mean_squared_error, structural_similarity
from .network import block_of

__all__ = ["recover"]


@torch.no_grad()
def recover(
    network: Sequential,
    pictures: Iterable[tuple[str, Image.Image]],
    folder: Path,
    *,
    device: torch.device,
    report: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Map pictures forward and back one after another, each at its own size, and write what came back as PNG.

    An odd height or width is padded by one row or column, which is cut off again. Pixels enter without noise, so that
    an error below half a gray level gives the same pixels.

    Args:
        network: trained, in evaluation mode, on ``device``.
        pictures: names and images in RGB.
        folder: for the PNGs.
        device: where.
        report: called with the number of pictures done.

    Returns:
        For every picture its name, size, errors on 0–255 and how the solver did, as JSON values; without structural
        similarity where the picture is smaller than its window.
    """
    squeeze, block = network[0], block_of(network)
    rows: list[dict[str, Any]] = []
    for name, image in pictures:
        pixels = to_tensor(image)[None]
        x = dequantize(pixels).to(device)
        height, width = x.shape[2:]
        start = time.perf_counter()
        z = network(nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate"))
        solution = block.solve_inverse(z)
        recovered = squeeze.inverse(solution.value)[..., :height, :width]
        seconds = time.perf_counter() - start
        inverse, original = to_pixels(recovered), to_pixels(x)
        seen = min(height, width) >= SSIM_WINDOW
        back = quantize(recovered).cpu()
        file = _unused(Path(name), {row["file"] for row in rows})
        write_bytes(folder / file, _png(back[0]))
        rows.append(
            {
                "picture": Path(name).name,
                "file": file,
                "size": [height, width],
                "mse": finite(mean_squared_error(inverse, original)[0]),
                "ssim": finite(structural_similarity(inverse, original)[0]) if seen else None,
                "error_max": finite((inverse - original).abs().max()),
                "equal_share": (back == pixels).all(1).double().mean().item(),
                "converged": bool(solution.converged[0]),
                "evaluations": int(solution.evaluations[0]),
                "seconds": seconds,
            }
        )
        if report is not None:
            report(len(rows))
    return rows


def _unused(name: Path, taken: set[str]) -> str:
    """Return a name for the PNG: that of the picture, with its suffix or a number where others have the same."""
    numbered = (f"{name.name}-{number}.png" for number in range(2, len(taken) + 3))
    return next(file for file in (f"{name.stem}.png", f"{name.name}.png", *numbered) if file not in taken)


def _png(pixels: UInt8[Tensor, "3 height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
