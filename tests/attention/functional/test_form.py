"""Each φ against its definition in high precision, also where it overflows in floating point."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.attention.functional.form import PHI, PositivePhi, log_phi

SCORES = [-1e4, -745.0, -100.0, -40.0, -10.0001, -9.9999, -1.0, -1e-9, 0.0, 1e-9, 1.0, 20.0, 39.9, 40.1, 1e4]
POSITIVE = [name for name, phi in PHI.items() if phi.positive]


def log_weight(name: str, score: float) -> float:
    """Logarithm of φ with 60 digits, in one line per φ."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        t = Decimal(score)
        if name == "exp":
            return float(t)
        if name == "elu_plus_one":
            return float(t if t <= 0 else (1 + t).ln())
        if t < -700:
            return float(t)  # minus e^t / 2, which is negligible
        # log(1 + x) loses the digits of x by addition, some 300 for the smallest x here.
        context.prec = 360
        return float((1 + t.exp()).ln().ln())


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("score", SCORES)
def test_log_phi_is_exact(name: str, score: float):
    found = log_phi(torch.tensor(score, dtype=torch.float64), name).item()
    assert found == pytest.approx(log_weight(name, score), rel=4e-16, abs=4e-16)


@pytest.mark.parametrize("name", POSITIVE)
@given(score=st.floats(-50, 50))
@settings(deadline=None, max_examples=20)
def test_slopes_are_derivatives(name: str, score: float):
    phi = PHI[name]
    assert isinstance(phi, PositivePhi)
    t = torch.tensor(score, dtype=torch.float64, requires_grad=True)
    (log_slope,) = torch.autograd.grad(phi.log(t), t)
    (slope,) = torch.autograd.grad(phi.weight(t), t)
    torch.testing.assert_close(phi.log_slope(t.detach()), log_slope, rtol=1e-14, atol=0)
    torch.testing.assert_close(phi.slope(t.detach()), slope, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", list(PHI))
@given(score=st.floats(-30, 30))
@settings(deadline=None, max_examples=20)
def test_phi_derivative_matches_autograd(name: str, score: float):
    t = torch.tensor(score, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(PHI[name].weight(t), t)
    torch.testing.assert_close(PHI[name].slope(t.detach()), slope, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", POSITIVE)
@given(score=st.floats(-1e4, 1e4))
@settings(deadline=None, max_examples=20)
def test_log_phi_is_1_lipschitz(name: str, score: float):
    phi = PHI[name]
    assert isinstance(phi, PositivePhi)
    slope = phi.log_slope(torch.tensor(score, dtype=torch.float64)).item()
    assert 0 < slope <= 1


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("score", [-200.0, -10.5, -3.0, 2.0, 50.0])
def test_second_derivative_of_logarithm(name: str, score: float):
    t = torch.tensor(score, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(log_phi(t, name), t, create_graph=True)
    if not first.requires_grad:
        assert name == "exp"
        return
    (second,) = torch.autograd.grad(first, t)
    if name == "softplus":
        s, p = 1 / (1 + math.exp(-score)), math.log1p(math.exp(score))
        expected = (s * (1 - s) * p - s * s) / p**2 if score > -30 else -math.exp(score) / 2
    else:
        expected = {"exp": 0.0, "elu_plus_one": 0.0 if score <= 0 else -1 / (1 + score) ** 2}[name]
    assert second.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_slope_is_continuous_at_zero():
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_phi(t, "elu_plus_one"), t)
    assert slope.item() == 1.0


@pytest.mark.parametrize("name", ["elu", "identity", "relu"])
def test_log_phi_refuses_signed_functions(name: str):
    with pytest.raises(ValueError, match=repr(name)):
        log_phi(torch.zeros(1), name)
