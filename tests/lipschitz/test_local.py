"""Estimates never cross the true value and converge to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.lipschitz import local_lipschitz_estimate, smallest_stretch_estimate
from invertible_attention.lipschitz.local import krylov_extremes

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def linear(matrices: torch.Tensor):
    return lambda x: torch.einsum("bij,bj->bi", matrices, x)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**31), st.sampled_from([0.0, 1e-3, 1.0]))
def test_estimates_bracket_the_truth(size, steps, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, size, size, dtype=torch.float64, generator=generator)
    matrices = 2 * torch.eye(size).double() + spread * noise
    singular = torch.linalg.svdvals(matrices)
    x = torch.zeros(3, size, dtype=torch.float64)
    largest = local_lipschitz_estimate(linear(matrices), x, steps=steps, generator=generator)
    smallest, direction = smallest_stretch_estimate(linear(matrices), x, steps=steps, generator=generator)
    assert (largest <= singular[:, 0] * (1 + 1e-9)).all()
    assert (smallest >= singular[:, -1] * (1 - 1e-6) - 1e-7).all()
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(3).double())
    attained = linear(matrices)(direction).norm(dim=1)
    torch.testing.assert_close(attained, smallest, rtol=1e-5, atol=1e-6)
    if steps >= size:
        torch.testing.assert_close(largest, singular[:, 0])
        torch.testing.assert_close(smallest, singular[:, -1], rtol=1e-4, atol=1e-6)


def test_samples_are_independent():
    matrices = torch.stack([k * torch.eye(4) for k in (1.0, 5.0)]).double()
    matrices[1, 0, 0] = 7
    estimate = local_lipschitz_estimate(linear(matrices), torch.zeros(2, 4).double())
    torch.testing.assert_close(estimate, torch.tensor([1.0, 7.0]).double())


def test_twenty_steps_come_close_in_high_dimension():
    scale = torch.linspace(0.1, 0.9, 3000).double()
    x = torch.randn(2, 3000, dtype=torch.float64)
    estimate = local_lipschitz_estimate(lambda x: scale * x.sin(), 0 * x)
    assert ((estimate > 0.89) & (estimate <= 0.9)).all()


def test_nonfinite_sample_does_not_affect_others():
    x = torch.tensor([[0.0, 0.0], [torch.nan, 0.0]])
    estimate = local_lipschitz_estimate(torch.sin, x)
    assert estimate[0] == pytest.approx(1)
    assert estimate[1].isnan()


def test_zero_map():
    assert (local_lipschitz_estimate(lambda x: 0 * x, torch.ones(2, 3)) == 0).all()


def test_generator_makes_it_reproducible():
    W = torch.randn(1, 30, 30).double()
    x = torch.zeros(1, 30, dtype=torch.float64)
    first, second = (
        local_lipschitz_estimate(linear(W), x, steps=3, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_ritz_values_of_an_exhausted_space_are_not_spurious():
    extremes = krylov_extremes(lambda v: 3 * v, torch.randn(2, 5, dtype=torch.float64), 5)
    torch.testing.assert_close(extremes.smallest, torch.full((2,), 3.0).double())
    torch.testing.assert_close(extremes.largest, torch.full((2,), 3.0).double())
