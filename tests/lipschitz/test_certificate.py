"""The certificate's formula matches the proved one in 50 digits for every argument."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.lipschitz.certificate import (
    ScoreBounds,
    attention_log_bound,
    combine_heads,
    log_rounding_allowance,
)

EPS = torch.finfo(torch.float64).eps
positive = st.floats(1e-6, 1e6)


def by_definition(
    normalization, causal, query_slope, key_slope, log_range, value_norm, bias_norm, radius, r, t
):
    """The logarithm of the bound as the module's documentation states it, without its rounding allowance."""
    M, root = mpmath.exp(log_range), mpmath.exp(mpmath.mpf(log_range) / 2)
    ell_q, ell_k, c, rho = map(mpmath.mpf, (query_slope, key_slope, value_norm, radius))
    mu = c * rho + mpmath.mpf(bias_norm)
    r, t = mpmath.mpf(r), mpmath.mpf(t)
    if normalization == "column":
        bound = mpmath.sqrt(t) * root * c + mu * (r * M * ell_q + mpmath.sqrt(r) * root * ell_k)
    elif normalization == "row" and causal:
        bound = 2 * M ** mpmath.mpf("0.75") * (c + 2 * c * rho * ell_k) + c * rho * ell_q
    elif normalization == "row":
        bound = mpmath.sqrt(t) * root * c + c * rho * (ell_q + mpmath.sqrt(t) * root * ell_k)
    else:
        bound = M * (c + mu * (ell_q + ell_k))
    return mpmath.log(bound)


@pytest.mark.parametrize("tensors", [True, False])
@pytest.mark.parametrize(
    "kind", [("column", False), ("row", False), ("row", True), ("all", False), ("all", True)]
)
@settings(deadline=None, max_examples=25)
@given(
    slopes=st.tuples(positive, positive),
    log_range=st.floats(0, 2000),
    norms=st.tuples(positive, st.floats(0, 1e6), positive),
    row_mass=st.floats(1, 100),
    spread=st.floats(0.01, 100),
)
def test_bound_is_the_proved_one_up_to_its_allowance(
    kind, slopes, log_range, norms, row_mass, spread, tensors
):
    normalization, causal = kind
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (*slopes, log_range, *norms)]
    query_slope, key_slope, log_range_, value_norm, bias_norm, radius = numbers
    found = attention_log_bound(
        ScoreBounds(query_slope, key_slope, log_range_),
        value_norm,
        bias_norm,
        radius[0],
        normalization,
        row_mass=torch.tensor([[row_mass]], dtype=torch.float64) if tensors else row_mass,
        spread=torch.tensor([[spread]], dtype=torch.float64) if tensors else spread,
        causal=causal,
    )
    assert found.shape == ((1, 1) if tensors and not causal and normalization != "all" else (1,))
    with mpmath.workdps(50):

        def exact(log_range: float) -> mpmath.mpf:
            return by_definition(normalization, causal, *slopes, log_range, *norms, row_mass, spread)

        # The range may be rounded by many units in the last place: the bound is that of a larger range.
        margin = 8 * EPS * (1 + abs(float(exact(log_range))))
        assert found.item() >= float(exact(log_range * (1 + 32 * EPS))) - margin
        assert found.item() <= float(exact(log_range * (1 + 128 * EPS))) + margin


@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_every_head_has_its_own_bound(normalization):
    torch.manual_seed(0)
    slopes, ranges, norms, biases = torch.rand(4, 3, dtype=torch.float64)
    radius = torch.tensor(1.7, dtype=torch.float64)
    row_mass = torch.tensor([[1.0], [2.5]], dtype=torch.float64)
    together = attention_log_bound(
        ScoreBounds(slopes, slopes.flip(0), ranges), norms, biases, radius, normalization, row_mass=row_mass
    ).expand(2, 3)
    for sample in range(2):
        for head in range(3):
            one = [t[head : head + 1] for t in (slopes, slopes.flip(0), ranges, norms, biases)]
            alone = attention_log_bound(
                ScoreBounds(*one[:3]), *one[3:], radius, normalization, row_mass=float(row_mass[sample])
            )
            torch.testing.assert_close(together[sample, head], alone[0])


def test_by_default_keys_are_as_many_as_queries_and_there_is_no_prior():
    one = torch.ones(1, dtype=torch.float64)
    for normalization in ("column", "row"):
        arguments = ScoreBounds(one, one, one), one, one, one[0], normalization
        assert torch.equal(
            attention_log_bound(*arguments), attention_log_bound(*arguments, row_mass=1.0, spread=1.0)
        )


@pytest.mark.parametrize("normalization", ["column", "row", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_of_zeros_has_a_logarithm_and_a_gradient(normalization, dtype):
    zero = torch.zeros(1, dtype=dtype, requires_grad=True)
    bound = attention_log_bound(ScoreBounds(zero, zero, zero), zero, zero, zero[0], normalization)
    assert bound.item() == pytest.approx(math.log(torch.finfo(dtype).tiny), rel=1e-5)
    (gradient,) = torch.autograd.grad(bound.sum(), zero)
    assert gradient.isfinite().all()


def test_causal_column_normalization_has_no_bound():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="normalization='column' and causal=True"):
        attention_log_bound(ScoreBounds(one, one, one), one, one, one[0], "column", causal=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=5))
def test_head_bounds_combine_as_root_of_sum_of_squares(logs):
    found = combine_heads(torch.tensor([logs, logs], dtype=torch.float64))
    assert found.shape == (2,)
    with mpmath.workdps(50):
        expected = mpmath.log(mpmath.sqrt(mpmath.fsum(mpmath.exp(2 * mpmath.mpf(log)) for log in logs)))
    assert found[0].item() == pytest.approx(float(expected), rel=1e-13, abs=1e-13)
    assert found[1] == found[0]
    assert combine_heads(torch.tensor(logs, dtype=torch.float64)) == found[0]


def test_the_allowance_for_rounding_is_a_few_hundred_units():
    for dtype, documented in ((torch.float32, 3e-5), (torch.float64, 6e-14)):
        allowance = log_rounding_allowance(dtype)
        assert allowance == pytest.approx(documented, rel=0.06)
        assert math.expm1(allowance) == pytest.approx(256 * torch.finfo(dtype).eps, rel=1e-6)
