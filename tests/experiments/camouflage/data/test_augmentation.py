from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from invertible_attention.experiments.camouflage.data.augmentation import (
    CROP,
    Changes,
    augment,
    image_tensor,
    mask_tensor,
    standardize,
)
from invertible_attention.experiments.data.preparation import IMAGENET_MEAN, IMAGENET_STD, to_tensor

NOTHING = Changes()


def _mask(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 3] = True
    return mask


def _pixels(image: torch.Tensor) -> torch.Tensor:
    """Undo the standardization."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (image * std + mean)


def _changed(pixels: torch.Tensor, change: Changes, size: int | None = None, aspect: float = 1.0):
    """Return the image and the mask that augmentation makes of RGB, the first channel as the mask."""
    image, mask = augment(pixels[None], pixels[None, :1], [aspect], [change], size or pixels.shape[-1])
    return _pixels(image)[0], 255 * mask[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.5, 2))
def test_mask_moves_with_the_image(seed, aspect) -> None:
    mask = torch.from_numpy(_mask(90, 90).astype(np.uint8))[None]
    change = Changes.draw(np.random.default_rng(seed))
    image = (40 + 160 * mask).expand(3, -1, -1)
    moved, target = augment(image[None], 255 * mask[None], [aspect], [change], 80)
    bright, inside = _pixels(moved)[0].mean(0), target[0, 0] > 0.5
    # Contrast and brightness keep the order of the two grays; only soft borders and black corners differ.
    middle = (bright[inside].median() + bright[~inside].median()) / 2
    assert bright[inside].median() > bright[~inside].median()
    assert ((bright > middle) == inside).float().mean() > 0.95


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_drawn_parameters_are_in_range(seed) -> None:
    change = Changes.draw(np.random.default_rng(seed))
    left, top, width, height = change.window
    assert min(width, height) >= 1 - CROP
    assert 0 <= left <= 1 - width
    assert 0 <= top <= 1 - height
    assert abs(change.angle) <= 15
    assert change == Changes.draw(np.random.default_rng(seed))


def test_identity_augmentation_leaves_images_unchanged() -> None:
    pixels = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    image, mask = _changed(pixels, NOTHING)
    torch.testing.assert_close(image, pixels.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(mask, pixels[:1].float(), atol=1e-3, rtol=0)


def test_flips_and_crops_match_slicing() -> None:
    pixels = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    image, _ = _changed(pixels, Changes(flip=True))
    torch.testing.assert_close(image, pixels.flip(-1).float(), atol=1e-2, rtol=0)
    image, _ = _changed(pixels, Changes(window=(0.1, 0.3, 0.5, 0.5)), size=10)
    torch.testing.assert_close(image, pixels[:, 6:16, 2:12].float(), atol=1e-2, rtol=0)
    image, _ = _changed(pixels, Changes(flip=True, window=(0.1, 0.3, 0.5, 0.5)), size=10)
    torch.testing.assert_close(image, pixels.flip(-1)[:, 6:16, 2:12].float(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_rotation_matches_rotating_before_resizing_to_a_square(aspect) -> None:
    height, width = 120, round(120 * aspect)
    y, x = np.mgrid[:height, :width]
    smooth = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 13)).astype(np.uint8)
    picture = Image.fromarray(smooth).convert("RGB")
    expected = to_tensor(picture.rotate(15, Image.Resampling.BICUBIC).resize((96, 96), 2)).float()
    square = to_tensor(picture.resize((96, 96), Image.Resampling.BILINEAR))
    errors = [
        (_changed(square, Changes(angle=angle), aspect=aspect)[0] - expected)[:, 30:66, 30:66].abs().mean()
        for angle in (15, -15)
    ]
    assert min(errors) < 4 < max(errors)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.4, 3.0])
def test_jitter_matches_pillow(place, factor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)
    expected = to_tensor(kinds[place](Image.fromarray(pixels)).enhance(factor)).float()
    factors = [1.0, 1.0, 1.0, 1.0]
    factors[place] = factor
    image, _ = _changed(to_tensor(Image.fromarray(pixels)), Changes(jitter=tuple(factors)))
    assert (image - expected).abs().max() < 1 + 2 * max(factor, 1)  # Pillow rounds in between


def test_images_are_normalized_with_imagenet_statistics() -> None:
    tensor = image_tensor(Image.new("RGB", (10, 20), (255, 0, 51)), 8)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert tensor.shape == (3, 8, 8)
    assert torch.allclose(tensor, expected[:, None, None].expand(3, 8, 8))
    assert torch.allclose(standardize(torch.tensor([1.0, 0.0, 0.2])[:, None, None])[:, 0, 0], expected)


def test_resizing_preserves_the_mask_area() -> None:
    mask = _mask(64, 96)
    tensor = mask_tensor(mask, 32)
    assert tensor.shape == (1, 32, 32)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    assert abs(tensor.mean().item() - mask.mean()) < 0.01
