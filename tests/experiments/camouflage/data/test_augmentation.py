from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from invertible_attention.experiments.camouflage.data.augmentation import (
    MEAN,
    STD,
    augment,
    image_tensor,
    mask_tensor,
)


def _sample(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 3] = True
    pixels = np.where(mask[..., None], (200, 200, 200), (40, 40, 40)).astype(np.uint8)
    return Image.fromarray(pixels), mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(60, 200), st.integers(60, 200))
def test_mask_moves_with_the_image(seed, height, width) -> None:
    image, mask = augment(*_sample(height, width), np.random.default_rng(seed))
    assert image.size == mask.shape[::-1]
    bright = np.asarray(image.convert("L")).astype(int)
    # Contrast and brightness keep the order of the two greys; only the soft borders of a rotation differ,
    # and the black corners it leaves.
    inside, outside = np.median(bright[mask]), np.median(bright[~mask])
    assert inside > outside
    assert ((bright > (inside + outside) / 2) == mask).mean() > 0.95


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_crop_keeps_most_of_every_side(seed) -> None:
    image, _ = augment(*_sample(352, 352), np.random.default_rng(seed))
    assert all(322 <= side <= 352 for side in image.size)


def test_same_chance_gives_the_same_image() -> None:
    first, second = (augment(*_sample(80, 70), np.random.default_rng(3)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert np.array_equal(first[1], second[1])


def test_image_is_standardised_by_imagenet() -> None:
    tensor = image_tensor(Image.new("RGB", (10, 20), (255, 0, 51)), 8)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert tensor.shape == (3, 8, 8)
    assert torch.allclose(tensor, expected[:, None, None].expand(3, 8, 8))


def test_mask_keeps_its_area_when_scaled() -> None:
    _, mask = _sample(64, 96)
    tensor = mask_tensor(mask, 32)
    assert tensor.shape == (1, 32, 32)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    assert abs(tensor.mean().item() - mask.mean()) < 0.01
