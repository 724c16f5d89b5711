"""Expansions of φ against φ, and the error that the one inexact one states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invertible_attention.attention.functional.expansion import EXPANSIONS, Expansion, expansion
from invertible_attention.attention.functional.phi import PHI


def evaluate(terms: Expansion, score: Tensor) -> Tensor:
    below = sum(c * torch.exp(k * score.clamp(max=0)) for k, c in enumerate(terms.below, 1))
    above = (
        terms.intercept
        + score
        + sum(c * torch.exp(-k * score.clamp(min=0)) for k, c in enumerate(terms.above, 1))
    )
    return terms.offset + torch.where(score <= 0, below, above)


@pytest.mark.parametrize("name", list(EXPANSIONS))
def test_expansion_is_the_function(name: str):
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


def test_single_precision_needs_fewer_terms():
    single = expansion("softplus", torch.float32)
    assert len(single.below) < len(EXPANSIONS["softplus"].below)
    score = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    torch.testing.assert_close(evaluate(single, score), PHI["softplus"].weight(score), rtol=1e-10, atol=0)
