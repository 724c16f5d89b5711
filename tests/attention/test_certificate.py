"""The bound is never exceeded: gradient ascent on the true Lipschitz constant, over inputs and weights."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import invertible_attention as ia
from invertible_attention.experiments.audit.attack import attack_layer

RESPONSES = {
    "gaussian": "gaussian",
    "embedded_gaussian": "embedded_gaussian",
    "dot_product": "dot_product",
    "dot_product_softplus": partial(ia.DotProduct, phi="softplus"),
    "concatenation": "concatenation",
    "concatenation_softplus": partial(ia.Concatenation, phi="softplus"),
}
NORMALIZATIONS = ("column", "row", "all")
# Rounding of the Jacobian and its norm in float64; the bound has an allowance of its own (64 times this).
ROUNDING = 1e-12


def make(response, normalization, heads, bias, channels=4, coefficient=0.9, radius=1.0, scale=1.0):
    layer = ia.InvertibleAttention(
        channels,
        response=RESPONSES[response],
        constraint=ia.Certified(coefficient, radius=radius),
        normalization=normalization,
        heads=heads,
        bias=bias,
    ).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_ascent_on_input_and_weights_stays_below_the_bound(response, normalization):
    worst = 0.0
    for heads, bias in itertools.product((1, 2), (False, True)):
        torch.manual_seed(17 * heads + bias)
        layer = make(response, normalization, heads, bias)
        tokens = 1 if heads == 2 and bias else 4
        x = torch.randn(3, 4, tokens, dtype=torch.float64)
        worst = max(worst, attack_layer(layer, x, steps=60).worst_ratio)
    # A search far below the bound would prove nothing.
    assert 0.95 < worst <= 1 + ROUNDING


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    response=st.sampled_from(sorted(RESPONSES)),
    normalization=st.sampled_from(NORMALIZATIONS),
    heads=st.sampled_from((1, 2, 4)),
    bias=st.booleans(),
    tokens=st.integers(1, 9),
    coefficient=st.floats(0.01, 0.999),
    log_radius=st.floats(-3, 3),
    log_scale=st.floats(-2, 1),
    log_input=st.floats(-4, 4),
    seed=st.integers(0, 2**31),
)
def test_no_random_configuration_exceeds_the_bound(
    response, normalization, heads, bias, tokens, coefficient, log_radius, log_scale, log_input, seed
):
    torch.manual_seed(seed)
    layer = make(
        response, normalization, heads, bias, 4, coefficient, math.exp(log_radius), math.exp(log_scale)
    )
    x = math.exp(log_input) * torch.randn(2, 4, tokens, dtype=torch.float64)
    bound = layer.lipschitz_bound().item()
    assert 0 <= bound <= coefficient * (1 + 1e-14)
    assert attack_layer(layer, x, steps=3).worst_ratio <= 1 + ROUNDING


@settings(deadline=None, max_examples=40)
@given(
    response=st.sampled_from(sorted(RESPONSES)),
    normalization=st.sampled_from(NORMALIZATIONS),
    heads=st.sampled_from((1, 2)),
    bias=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    log_scale=st.floats(-3, 1),
    seed=st.integers(0, 2**31),
)
def test_in_low_precision_the_bound_is_that_of_the_rounded_weights(
    response, normalization, heads, bias, dtype, log_scale, seed
):
    torch.manual_seed(seed)
    layer = make(response, normalization, heads, bias, scale=math.exp(log_scale)).to(dtype)
    low = layer.branch.scale.log_bound.double()
    exact = layer.double().branch.scale.log_bound
    # Never below, or the certificate would not hold; and above by no more than it allows for rounding.
    assert exact - 1e-12 <= low <= exact + 1e-3 * (1 + exact.abs())


def test_the_bound_holds_where_the_embeddings_nearly_cancel():
    """The product of both embeddings is then far smaller than its rounding error."""
    layer = make("embedded_gaussian", "row", 1, False)
    with torch.no_grad():
        query = 300 * torch.randn_like(layer.branch.response.query_weight)
        key = torch.randn_like(query)
        key -= query * (query * key).sum() / query.square().sum()
        layer.branch.response.query_weight.copy_(query)
        layer.branch.response.key_weight.copy_(1e3 * (key + 1e-9 * query))
    response = layer.float().branch.response
    low = response.score_bounds(torch.ones(()), "row").query_slope.double()
    exact = response.double().score_bounds(torch.ones(()).double(), "row").query_slope
    assert (low >= exact).all()


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_distances_between_outputs_respect_the_bound(response, normalization):
    torch.manual_seed(3)
    layer = make(response, normalization, 2, True)
    bound = layer.lipschitz_bound()
    x = 3 * torch.randn(64, 4, 5, dtype=torch.float64)
    y = x + torch.logspace(-6, 1, 64, dtype=torch.float64)[:, None, None] * torch.randn_like(x)
    stretched = (layer.branch(x) - layer.branch(y)).flatten(1).norm(dim=1)
    assert (stretched <= bound * (x - y).flatten(1).norm(dim=1) * (1 + ROUNDING)).all()


@pytest.mark.parametrize("response", RESPONSES)
def test_the_bound_is_differentiable_in_every_weight_it_depends_on(response):
    layer = make(response, "column", 2, True, scale=0.1, coefficient=0.999)
    bound = layer.lipschitz_bound()
    assert bound < 0.999  # otherwise it is the constant c, with no gradient
    bound.backward()
    # Neither additive terms of the output nor those that cancel in the normalization matter.
    free = {"branch.out_bias"} | (
        {"branch.response.query_bias"} if response == "embedded_gaussian" else set()
    )
    for name, parameter in layer.named_parameters():
        if name not in free:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e6])
def test_extreme_weights_give_a_finite_layer_and_gradient(response, normalization, scale):
    torch.manual_seed(0)
    layer = make(response, normalization, 1, True, scale=scale).float()
    x = torch.randn(2, 4, 6)
    out = layer(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    assert layer.lipschitz_bound().item() <= 0.9 * (1 + 1e-6)


def test_initial_score_range_is_about_one():
    x = 5 * torch.randn(8, 12, 4, 4)
    for response in ("gaussian", "embedded_gaussian", "dot_product"):
        layer = ia.InvertibleAttention(12, response=response)
        layer(x)
        branch = layer.branch
        assert 1 < branch.radius / x.norm(dim=1).max() < 1.01
        assert torch.isclose(
            branch.response.score_bounds(branch.radius, "column").log_range, torch.ones(1), rtol=1e-3
        ).all()
