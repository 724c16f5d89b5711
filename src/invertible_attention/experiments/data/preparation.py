"""From photographs of any size to tensors of one size, and to the numbers a flow takes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "center_crop",
    "cover",
    "dequantize",
    "quantize",
    "random_crop",
    "to_celeba",
    "to_pixels",
    "to_tensor",
]

CELEBA_SIZE = (218, 178)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, in [0, 1]."""


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale ``image`` so that it just covers ``size = (height, width)``, then crop its center.

    Example:
        >>> cover(Image.new("RGB", (640, 427)), (32, 32)).size
        (32, 32)
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    return center_crop(image, size)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut ``size = (height, width)`` out of the middle of ``image``."""
    height, width = size
    if image.height < height or image.width < width:
        raise ValueError(f"cannot crop {height}×{width} out of {image.height}×{image.width}")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_crop(image: Image.Image, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Cut a random window of the shape of ``size`` out of ``image`` and scale it to ``size``.

    The window is between one and eight times ``size`` (less where ``image`` is smaller), small and large
    ones alike on a logarithmic scale, so that details and whole objects both appear; an image too small for
    ``size`` is enlarged.
    """
    height, width = size
    largest = min(image.height / height, image.width / width)
    scale = largest if largest <= 1 else min(8.0, largest) ** random.uniform()
    window = (min(image.height, round(height * scale)), min(image.width, round(width * scale)))
    top = int(random.integers(image.height - window[0] + 1))
    left = int(random.integers(image.width - window[1] + 1))
    box = (left, top, left + window[1], top + window[0])
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def to_celeba(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring an image of CelebA's 218×178 to ``size`` by the paper's protocol.

    Full size stays as it is; anything else is the central 178×178 square, scaled.
    """
    image = cover(image, CELEBA_SIZE)
    return image if size == CELEBA_SIZE else cover(center_crop(image, (178, 178)), size)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Return the pixels of an RGB image, 0–255."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def dequantize(
    pixels: UInt8[Tensor, "*batch"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch"]:
    r"""Return what the network sees of pixels ``p``: :math:`(p + u)/256 - 1/2`, ``u`` uniform on [0, 1).

    Args:
        pixels: 0–255.
        generator: source of ``u``, on the CPU; ``None`` leaves the noise out (``u = 1/2``, its mean).
    """
    noise = torch.rand(pixels.shape, generator=generator) if generator is not None else torch.tensor(0.5)
    # Nearer to one than float32 resolves at 255, pixel and noise would round to the next pixel.
    noise = noise.clamp(max=1 - 2**-16)
    return (pixels + noise.to(pixels.device)) / 256 - 0.5


def to_pixels(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return ``255 (x + 1/2)``: the network's numbers on the scale 0–255, neither rounded nor clamped.

    The scale on which the authors' code writes its images.
    """
    return 255 * (x + 0.5)


def quantize(x: Float[Tensor, "*batch"]) -> UInt8[Tensor, "*batch"]:
    """Return the pixels that ``x`` is a dequantization of; what is not finite becomes black."""
    return torch.floor(256 * (x.nan_to_num(-1.0) + 0.5)).clamp(0, 255).to(torch.uint8)
