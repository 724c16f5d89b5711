from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.logdet import Exact, PowerSeries


def truncated(full, terms):
    power, total = torch.eye(full.shape[0], dtype=full.dtype), torch.zeros((), dtype=full.dtype)
    for k in range(1, terms + 1):
        power = power @ full
        total = total - (-1) ** k * power.trace() / k
    return total


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_mean_is_the_truncated_series_and_its_bias_is_visible(block, jacobian, assert_mean, distribution):
    branch, sample = block
    torch.manual_seed(0)
    full = jacobian(branch, sample).detach()
    x = sample.repeat(20_000, *[1] * (sample.ndim - 1))
    with torch.no_grad():
        _, draws = PowerSeries(terms=1, distribution=distribution)(branch, x)
    assert_mean(draws, truncated(full, 1), precision=0.05)
    truth = torch.linalg.slogdet(torch.eye(full.shape[0], dtype=full.dtype) + full).logabsdet
    error = draws.std() / len(draws) ** 0.5
    assert (draws.mean() - truth).abs() > 6 * error
    bound = PowerSeries(terms=1, control_variate=False).truncation_bound(
        full.shape[0], torch.linalg.matrix_norm(full, ord=2)
    )
    assert (truncated(full, 1) - truth).abs() <= bound


@given(
    seed=st.integers(0, 2**16),
    dim=st.integers(1, 6),
    terms=st.integers(1, 6),
    lipschitz=st.floats(0.05, 0.95),
)
@settings(max_examples=60, deadline=None)
def test_truncation_bound_holds_and_is_attained(seed, dim, terms, lipschitz):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    matrix = lipschitz * matrix / torch.linalg.matrix_norm(matrix, ord=2)
    bound = PowerSeries(terms=terms, control_variate=False).truncation_bound(dim, lipschitz)
    assert PowerSeries(terms=terms).truncation_bound(dim, lipschitz) == 2 * bound

    def bias(matrix):
        truth = torch.linalg.slogdet(torch.eye(dim, dtype=torch.float64) + matrix).logabsdet
        return (truncated(matrix, terms) - truth).abs().item()

    assert bias(matrix) <= bound * (1 + 1e-9)
    # for -c I all remaining terms have the same sign; the slack of the bound is 1/k ≤ 1/(K + 1)
    assert bias(-lipschitz * torch.eye(dim, dtype=torch.float64)) >= bound * (1 - lipschitz)


@pytest.mark.parametrize("memory_saving", [True, False])
def test_neumann_gradient_is_that_of_the_truncated_series(block, jacobian, assert_mean, memory_saving):
    branch, sample = block
    torch.manual_seed(1)
    weight = next(branch.parameters())
    (truth,) = torch.autograd.grad(truncated(jacobian(branch, sample), 2), weight)
    estimator = PowerSeries(terms=2, gradient="neumann", memory_saving=memory_saving)
    x = sample.repeat(200, *[1] * (sample.ndim - 1))
    draws = torch.stack([torch.autograd.grad(estimator(branch, x)[1].mean(), weight)[0] for _ in range(100)])
    assert_mean(draws, truth, precision=0.05)


def test_autograd_gradient_differentiates_the_value(block):
    branch, sample = block
    x = sample.clone().requires_grad_()

    def logdet(x):
        return PowerSeries(terms=3, probes=2, generator=torch.Generator().manual_seed(3))(branch, x)[1]

    torch.autograd.gradcheck(logdet, (x,))
    torch.autograd.gradgradcheck(logdet, (x,))


def test_exact_with_enough_terms_and_orthogonal_probes():
    # for a multiple of the identity a Rademacher probe gives the trace without error
    x = torch.zeros(2, 5, dtype=torch.float64)
    _, logdet = PowerSeries(terms=60, distribution="rademacher")(lambda x: 0.5 * x, x)
    torch.testing.assert_close(logdet, Exact()(lambda x: 0.5 * x, x)[1])


def test_truncation_bound_accepts_a_tensor_constant():
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    bound = PowerSeries(terms=3, control_variate=False).truncation_bound(10, c)
    assert isinstance(bound, float)
    assert bound == pytest.approx(10 * 0.5**4 / (4 * 0.5))


def test_no_bound_without_a_contraction():
    assert PowerSeries().truncation_bound(10, 1.0) == math.inf
    assert PowerSeries().truncation_bound(10, torch.tensor(math.inf)) == math.inf


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"terms": 0}, "terms must be at least 1, got 0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"distribution": "cauchy"}, "got 'cauchy'"),
        ({"gradient": "none"}, "got 'none'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        PowerSeries(**arguments)
