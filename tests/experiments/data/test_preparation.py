from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from invertible_attention.experiments.data import dequantize, quantize, to_pixels, to_tensor
from invertible_attention.experiments.data.preparation import center_crop, cover, random_crop, to_celeba

sides = st.integers(8, 90)


def gradient(height: int, width: int) -> Image.Image:
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8))


@settings(deadline=None, max_examples=30)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_crops_have_the_requested_size(h: int, w: int, height: int, width: int, seed: int) -> None:
    image = gradient(h, w)
    assert cover(image, (height, width)).size == (width, height)
    assert random_crop(image, (height, width), np.random.default_rng(seed)).size == (width, height)


def test_center_crop_is_centered() -> None:
    crop = to_tensor(center_crop(gradient(100, 60), (20, 10)))
    assert (crop[0, 0, 0].item(), crop[0, -1, 0].item()) == (40, 59)
    assert (crop[1, 0, 0].item(), crop[1, 0, -1].item()) == (25, 34)
    with pytest.raises(ValueError, match="200×10 out of 100×60"):
        center_crop(gradient(100, 60), (200, 10))


def test_image_of_the_right_size_is_unchanged() -> None:
    image = gradient(32, 32)
    assert torch.equal(to_tensor(cover(image, (32, 32))), to_tensor(image))
    celeba = gradient(218, 178)
    assert torch.equal(to_tensor(to_celeba(celeba, (218, 178))), to_tensor(celeba))


def test_celeba_at_32_is_the_resized_center_square() -> None:
    image = gradient(218, 178)
    expected = image.crop((0, 20, 178, 198)).resize((32, 32), Image.Resampling.BILINEAR)
    assert torch.equal(to_tensor(to_celeba(image, (32, 32))), to_tensor(expected))


def test_dequantization_of_known_values() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8)
    assert dequantize(pixels).tolist() == [0.5 / 256 - 0.5, 128.5 / 256 - 0.5, 255.5 / 256 - 0.5]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
@example(612999)  # draws noise so near to one that float32 rounds the sum to the next pixel
def test_dequantization_fills_the_bins_and_quantization_inverts_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=generator)
    x = dequantize(pixels, generator=generator)
    assert x.min() >= -0.5
    assert x.max() < 0.5
    assert torch.equal(quantize(x), pixels)


def test_error_scale() -> None:
    assert to_pixels(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [0.0, 127.5, 255.0]


def test_quantize_handles_nonfinite_and_out_of_range_values() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0, -3.0])
    assert quantize(x).tolist() == [0, 255, 0, 255, 0]
