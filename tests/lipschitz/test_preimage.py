"""Every reported second preimage is one, and none is reported where none exists."""

from __future__ import annotations

import math

import pytest
import torch

from invertible_attention.lipschitz import find_second_preimage

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def starts(x: torch.Tensor) -> list[torch.Tensor]:
    return [x + size * torch.randn_like(x) for size in (0.5, 1.0, 2.0, 4.0)]


def test_mirror_image_of_a_square_is_found():
    x = torch.tensor([[1.5, 0.3], [2.0, -1.0]], dtype=torch.float64)
    found = find_second_preimage(lambda y, index: y**2, x, starts(x), tolerance=1e-10)
    assert found.found.all()
    torch.testing.assert_close(found.point.abs(), x.abs(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.distance, (found.point - x).norm(dim=1))
    assert (found.residual <= 1e-10).all()


def test_start_at_the_input_is_perturbed():
    x = torch.tensor([[1.5, 0.3]], dtype=torch.float64)
    found = find_second_preimage(lambda y, index: y**2, x, [x], tolerance=1e-8)
    assert not found.found.any() or found.distance > 0.01


def test_nothing_is_found_for_an_injective_map():
    x = torch.randn(3, 4, dtype=torch.float64)
    found = find_second_preimage(lambda y, index: y**3 + y, x, starts(x), tolerance=1e-8)
    assert not found.found.any()
    assert torch.equal(found.point, x)
    assert found.residual.isnan().all()


def test_shape_may_change():
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)

    def function(y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.stack([y.sum(1), y.prod(1)], 1)  # symmetric: (1, 2) has the same sum and product

    found = find_second_preimage(function, x, starts(x), tolerance=1e-10)
    torch.testing.assert_close(found.point, torch.tensor([[1.0, 2.0]], dtype=torch.float64))


def test_finished_samples_leave_and_the_index_tracks_the_rest():
    seen = []
    x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    power = torch.tensor([[2.0], [1.0]], dtype=torch.float64)

    def function(y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        seen.append(index.tolist())
        return y * y.abs() ** (power[index] - 1) if len(index) < 2 else torch.cat([y[:1] ** 2, y[1:]])

    answers = [torch.full_like(x, -1.0), torch.full_like(x, 3.0)]
    found = find_second_preimage(function, x, answers, tolerance=1e-10)
    assert found.found.tolist() == [True, False]
    assert seen[-1] == [1]


def test_non_finite_sample_is_skipped():
    x = torch.tensor([[math.nan], [2.0]], dtype=torch.float64)
    found = find_second_preimage(lambda y, index: y**2, x, starts(torch.ones_like(x)), tolerance=1e-8)
    assert found.found.tolist() == [False, True]


def test_evaluation_budget_is_respected():
    spent = []
    x = torch.randn(2, 50, dtype=torch.float64)

    def function(y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        spent.append(None)
        return y + 0.99 * y.sin()

    for budget in (20, 200):
        spent.clear()
        find_second_preimage(function, x, starts(x) * 5, tolerance=1e-12, budget=budget)
        # one evaluation per conjugate gradient step; outer steps and starts take a few more
        assert len(spent) < 4 * budget + 100
