"""From an image and its mask to what the network is trained on."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageEnhance
from torch import Tensor

from ...data.preparation import to_tensor

__all__ = ["MEAN", "STD", "augment", "image_tensor", "mask_tensor"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels."""

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC

CROP = 30 / 352
"""At most this share of a side is cropped away: 30 pixels of the base network's 352."""

ROTATION, ROTATION_PROBABILITY = 15.0, 0.2

JITTER = (
    (ImageEnhance.Brightness, 0.5, 1.5),
    (ImageEnhance.Contrast, 0.5, 1.5),
    (ImageEnhance.Color, 0.0, 2.0),
    (ImageEnhance.Sharpness, 0.0, 3.0),
)
"""What is jittered, and the range of its factor."""


def image_tensor(image: Image.Image, size: int) -> Float[Tensor, "3 size size"]:
    """Scale an RGB image to a square and standardise it by ImageNet's mean and deviation."""
    pixels = to_tensor(image.resize((size, size), BILINEAR)).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def mask_tensor(mask: Bool[np.ndarray, "height width"], size: int) -> Float[Tensor, "1 size size"]:
    """Scale a mask to a square; pixels on the border get values between 0 and 1."""
    scaled = mask_image(mask).resize((size, size), BILINEAR)
    return torch.from_numpy(np.array(scaled, dtype=np.float32))[None] / 255


def mask_image(mask: Bool[np.ndarray, "height width"]) -> Image.Image:
    """Return a mask as an image of 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def augment(
    image: Image.Image, mask: Bool[np.ndarray, "height width"], random: np.random.Generator
) -> tuple[Image.Image, Bool[np.ndarray, "height width"]]:
    """Flip, crop, rotate and recolour at random, the mask as the image.

    The base network's augmentation: a horizontal flip (probability 1/2), a random crop that leaves at least
    322/352 of each side, a rotation by up to 15° (probability 0.2), jitter of brightness, contrast, colour
    and sharpness.

    Args:
        image: in RGB.
        mask: of its size.
        random: all chance comes from it.
    """
    target = mask_image(mask)
    if random.random() < 0.5:
        image, target = _flip(image), _flip(target)
    box = _crop_box(image.size, random)
    image, target = image.crop(box), target.crop(box)
    if random.random() < ROTATION_PROBABILITY:
        angle = random.uniform(-ROTATION, ROTATION)
        image, target = image.rotate(angle, BICUBIC), target.rotate(angle)
    for enhance, low, high in JITTER:
        image = enhance(image).enhance(random.uniform(low, high))
    return image, np.asarray(target) > 127


def _flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _crop_box(size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return a window of random size and place, as (left, top, right, bottom)."""
    starts, ends = [], []
    for side in size:
        length = side - int(random.integers(int(side * CROP) + 1))
        start = int(random.integers(side - length + 1))
        starts.append(start)
        ends.append(start + length)
    return starts[0], starts[1], ends[0], ends[1]
