"""From an image and its mask to what the network is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from ...data.preparation import IMAGENET_MEAN, IMAGENET_STD, to_tensor

__all__ = ["CROP", "Changes", "augment", "image_tensor", "mask_tensor", "standardize"]

BILINEAR = Image.Resampling.BILINEAR

CROP = 30 / 352
"""At most this share of a side is cropped away: 30 pixels of the base network's 352."""

ROTATION, ROTATION_PROBABILITY = 15.0, 0.2

JITTER = ((0.5, 1.5), (0.5, 1.5), (0.0, 2.0), (0.0, 3.0))
"""Ranges of the factors of brightness, contrast, color and sharpness."""

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray."""


@dataclass(frozen=True)
class Changes:
    """What is changed of an image and its mask.

    Args:
        flip: whether left and right are exchanged.
        window: left, top, width and height of what is left, as shares of the whole.
        angle: by which it is turned, in degrees.
        jitter: factors of brightness, contrast, color and sharpness; 1 leaves them as they are.
    """

    flip: bool = False
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    angle: float = 0.0
    jitter: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    @classmethod
    def draw(cls, random: np.random.Generator) -> Changes:
        """Draw the base network's changes.

        A flip (probability 1/2), a window of at least 322/352 of each side, a rotation by up to 15° (probability 0.2),
        and jitter of brightness, contrast, color and sharpness.
        """
        flip = bool(random.random() < 0.5)
        width, height = 1 - random.uniform(0, CROP), 1 - random.uniform(0, CROP)
        window = (random.uniform(0, 1 - width), random.uniform(0, 1 - height), width, height)
        turned = random.random() < ROTATION_PROBABILITY
        angle = random.uniform(-ROTATION, ROTATION) if turned else 0.0
        first, second, third, fourth = (random.uniform(low, high) for low, high in JITTER)
        return cls(flip, window, angle, (first, second, third, fourth))


def image_tensor(image: Image.Image, size: int) -> Float[Tensor, "3 size size"]:
    """Scale an RGB image to a square and standardize it by ImageNet's mean and deviation."""
    return standardize(to_tensor(image.resize((size, size), BILINEAR)).float() / 255)


def mask_tensor(mask: Bool[np.ndarray, "height width"], size: int) -> Float[Tensor, "1 size size"]:
    """Scale a mask to a square; pixels on the border get values between 0 and 1."""
    scaled = mask_image(mask).resize((size, size), BILINEAR)
    return torch.from_numpy(np.array(scaled, dtype=np.float32))[None] / 255


def mask_image(mask: Bool[np.ndarray, "height width"]) -> Image.Image:
    """Return a mask as an image of 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def augment(
    image: UInt8[Tensor, "batch 3 rows columns"],
    mask: UInt8[Tensor, "batch 1 rows columns"],
    aspect: Sequence[float],
    changes: Sequence[Changes],
    size: int,
) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch 1 size size"]]:
    """Change a batch of images and its masks alike, on the device they are on, and standardize the images.

    Args:
        image: 0–255.
        mask: 0–255.
        aspect: width by height of every image before it was scaled to a square.
        changes: one for every image.
        size: side of the squares returned.
    """
    theta = torch.tensor([_place(change, ratio) for change, ratio in zip(changes, aspect, strict=True)])
    grid = F.affine_grid(theta.to(image.device), [len(changes), 3, size, size], align_corners=False)
    both = torch.cat((image, mask), 1).contiguous().to(grid.dtype)
    both = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    factors = torch.tensor([change.jitter for change in changes], dtype=grid.dtype, device=image.device)
    return standardize(_jitter(both[:, :3].contiguous(), factors) / 255), (both[:, 3:] / 255).clamp(
        max=1
    )  # sums of weights may exceed 1


def standardize(pixels: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Standardize pixels in [0, 1] by ImageNet's mean and deviation."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _place(change: Changes, aspect: float) -> list[list[float]]:
    """Return the affine map from the result to the source, both in [-1, 1]: flip, then window, then rotation."""
    left, top, width, height = change.window
    angle = math.radians(change.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    # The rotation is of the picture as it was, whose sides the square has made equal.
    ratio = aspect * width / height
    turned = [[cos, -sin / ratio], [sin * ratio, cos]]
    middle = (2 * left + width - 1, 2 * top + height - 1)
    rows = [[width * turned[0][0], width * turned[0][1], middle[0]]]
    rows.append([height * turned[1][0], height * turned[1][1], middle[1]])
    if change.flip:
        rows[0] = [-value for value in rows[0]]
    return rows


def _jitter(
    image: Float[Tensor, "batch 3 height width"], factors: Float[Tensor, "batch 4"]
) -> Float[Tensor, "batch 3 height width"]:
    """Recolor images of 0–255 as Pillow's enhancers do."""
    brightness, contrast, color, sharpness = factors[:, :, None, None, None].unbind(1)
    image = (image * brightness).clamp(0, 255)
    mean = _gray(image).mean((1, 2, 3), keepdim=True)
    image = (mean + contrast * (image - mean)).clamp(0, 255)
    gray = _gray(image)
    image = (gray + color * (image - gray)).clamp(0, 255)
    # The mean of nine pixels with the middle counted five times; the border stays.
    across = image[..., :-2] + image[..., 1:-1] + image[..., 2:]
    nine = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    smooth = image.clone()
    smooth[..., 1:-1, 1:-1] = (nine + 4 * image[..., 1:-1, 1:-1]) / 13
    return (smooth + sharpness * (image - smooth)).clamp(0, 255)


def _gray(image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    return (image * image.new_tensor(GRAY)[:, None, None]).sum(1, keepdim=True)
