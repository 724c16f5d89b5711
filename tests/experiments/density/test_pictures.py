from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from invertible_attention import ConvergenceError, Solution
from invertible_attention.experiments.density.pictures import (
    draw_samples,
    interpolate,
    round_trip_error,
    slerp,
    tile,
)
from invertible_attention.flows import Dequantize, DiagonalGaussian, Flatten, Flow, Logit, Sequential


class Fails(Flatten):
    """Fails to invert samples whose first number is negative."""

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        good = z[:, 0] >= 0
        if not good.all():
            residual = torch.where(good, 0.0, 1.0)
            count = torch.ones_like(good, dtype=torch.int64)
            raise ConvergenceError(Solution(z, good, count, count, residual, residual))
        return super()._inverse(z, mask)


def flow(last: Flatten) -> Flow:
    return Flow(Sequential(Dequantize(17), Logit(0.05), last), DiagonalGaussian(4))


def test_non_invertible_latents_are_skipped() -> None:
    samples = draw_samples(flow(Fails((1, 2, 2))), 100, seed=0, batch_size=32)
    assert samples.dtype == torch.uint8
    assert samples.shape[1:] == (1, 2, 2)
    assert 30 < len(samples) < 70
    everything = draw_samples(flow(Flatten((1, 2, 2))), 100, seed=0, batch_size=32)
    assert len(everything) == 100
    # pixel 8 has latents on both sides of zero
    clear = [images[images[:, 0, 0, 0] != 8] for images in (samples, everything)]
    assert torch.equal(clear[0], clear[1][clear[1][:, 0, 0, 0] > 8])
    assert len(draw_samples(flow(Flatten((1, 2, 2))), 3, seed=0)) == 3


def test_no_samples_give_an_empty_result() -> None:
    class Never(Fails):
        def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
            return super()._inverse(-z.abs() - 1, mask)

    assert len(draw_samples(flow(Never((1, 2, 2))), 5, seed=0)) == 0


class Coarse(Flatten):
    """Amplifies rounding on the way back: of a number near 1 only steps of 2⁻²³ are left."""

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return 1 + super()._forward(x, mask) * 2**-20

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return super()._inverse((z - 1) * 2**20, mask)


def test_amplified_rounding_is_measured() -> None:
    images = torch.randint(0, 17, (32, 1, 2, 2), dtype=torch.uint8)
    base = DiagonalGaussian(4)
    plain, coarse = (Flow(Sequential(Dequantize(17), kind((1, 2, 2))), base) for kind in (Flatten, Coarse))
    assert round_trip_error(plain, images) == 0.0
    error = round_trip_error(coarse, images)
    assert error is not None
    assert 0.1 < error <= 17 * 2**-4


def test_failed_round_trip_has_no_error() -> None:
    images = torch.randint(0, 17, (32, 1, 2, 2), dtype=torch.uint8)
    assert round_trip_error(flow(Fails((1, 2, 2))), images) is None


def test_interpolations_start_and_end_at_the_images() -> None:
    images = torch.randint(0, 17, (6, 1, 2, 2), dtype=torch.uint8)
    walks = interpolate(flow(Flatten((1, 2, 2))), images[:3], images[3:], steps=5)
    assert [len(walk) for walk in walks] == [5, 5, 5]
    for walk, first, last in zip(walks, images[:3], images[3:], strict=True):
        assert torch.equal(walk[0], first)
        assert torch.equal(walk[-1], last)


@given(seed=st.integers(0, 999), dim=st.integers(2, 6), steps=st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_norms_are_interpolated_along_a_great_circle(seed: int, dim: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, dim, dtype=torch.float64, generator=generator)
    points = slerp(start, end, steps)
    torch.testing.assert_close(points[0], start)
    torch.testing.assert_close(points[-1], end)
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    torch.testing.assert_close(points.norm(dim=1), (1 - share) * start.norm() + share * end.norm())


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_pixels_enlarged(channels: int) -> None:
    images = torch.randint(0, 17, (5, channels, 4, 3), dtype=torch.uint8)
    picture = np.asarray(Image.open(io.BytesIO(tile(images, 2, levels=17, scale=2))))
    assert picture.shape == (3 * 5 * 2, 2 * 4 * 2, 3)
    first = torch.from_numpy(picture.copy())[:8:2, :6:2].permute(2, 0, 1)
    expected = (images[0].float() * 255 / 16).round().to(torch.uint8)
    assert torch.equal(first, expected.expand(3, -1, -1))
    assert (picture[-10:, 8:] == 255).all()
