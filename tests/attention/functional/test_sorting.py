"""Parts of sorted attention: expansions of φ against φ, decayed running sums against their matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.attention.functional.form import PHI
from invertible_attention.attention.functional.sorting import EXPANSIONS, Expansion, decayed_sum, expansion


def evaluate(terms: Expansion, score: Tensor) -> Tensor:
    below = sum(c * torch.exp(k * score.clamp(max=0)) for k, c in enumerate(terms.below, 1))
    above = (
        terms.intercept
        + score
        + sum(c * torch.exp(-k * score.clamp(min=0)) for k, c in enumerate(terms.above, 1))
    )
    return terms.offset + torch.where(score <= 0, below, above)


@pytest.mark.parametrize("name", list(EXPANSIONS))
def test_expansion_matches_the_function(name: str):
    score = torch.cat((torch.linspace(-8, 8, 4001), torch.tensor([-300.0, -30.0, 30.0, 300.0]))).double()
    torch.testing.assert_close(
        evaluate(EXPANSIONS[name], score), PHI[name].weight(score), rtol=2e-15, atol=1e-15
    )


@pytest.mark.parametrize("name", list(EXPANSIONS))
def test_first_derivative(name: str):
    score = torch.linspace(-8, 8, 4000, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(evaluate(EXPANSIONS[name], score).sum(), score)
    torch.testing.assert_close(slope, PHI[name].slope(score.detach()), rtol=5e-15, atol=5e-15)


def test_second_derivative_of_softplus():
    score = torch.linspace(-8, 8, 4000, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(evaluate(EXPANSIONS["softplus"], score).sum(), score, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), score)
    exact = (torch.sigmoid(score) * torch.sigmoid(-score)).detach()
    torch.testing.assert_close(curvature, exact, rtol=0, atol=2e-12)


def test_float32_expansion_has_fewer_terms():
    single = expansion("softplus", torch.float32)
    assert len(single.below) < len(EXPANSIONS["softplus"].below)
    score = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    torch.testing.assert_close(evaluate(single, score), PHI["softplus"].weight(score), rtol=1e-10, atol=0)


def matrix(position: Tensor, reverse: bool) -> Tensor:
    decay = torch.exp(-(position[..., :, None] - position[..., None, :]).abs())
    return decay.triu() if reverse else decay.tril()


@given(
    n=st.integers(1, 400),
    scale=st.floats(1e-3, 1e3),
    reverse=st.booleans(),
    descending=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_decayed_sum_matches_matrix(n: int, scale: float, reverse: bool, descending: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    position = (
        torch.randn(2, n, generator=generator, dtype=torch.float64).mul(scale).sort(-1, descending).values
    )
    expected = matrix(position, reverse) @ x
    torch.testing.assert_close(decayed_sum(x, position, reverse=reverse), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [5, 40])
def test_derivatives_of_decayed_sum(n: int, reverse: bool):
    x = torch.randn(2, n, 2, dtype=torch.float64, requires_grad=True)
    position = torch.randn(2, n, dtype=torch.float64).sort(-1).values
    arguments = (lambda x: decayed_sum(x, position, reverse=reverse).square(), (x,))
    assert torch.autograd.gradcheck(*arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(*arguments)


def test_decayed_sum_neither_overflows_nor_loses_terms():
    position = torch.tensor([-1e5, 0.0, 0.0, 1e5], dtype=torch.float64)
    x = torch.tensor([[1e300], [1.0], [2.0], [3.0]], dtype=torch.float64)
    assert decayed_sum(x, position).flatten().tolist() == [1e300, 1.0, 3.0, 3.0]


def test_nan_stays_in_its_sample():
    x = torch.ones(2, 40, 1)
    position = torch.arange(40.0).expand(2, 40).clone()
    position[1, 3] = torch.nan
    found = decayed_sum(x, position)
    torch.testing.assert_close(found[0], decayed_sum(x[:1], position[:1])[0])
    assert found[0].isfinite().all()
