"""Numerical limits: determinism, subnormal and huge numbers, depth in bfloat16, a thousand round trips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import invertible_attention as ia

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
NORMALIZATIONS = ("column", "row", "all")


def make(response: str = "concatenation", normalization: str = "column", **arguments: object):
    return ia.InvertibleAttention(8, response, normalization=normalization, **arguments)


def relative(error: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return error.double().flatten(1).norm(dim=1) / x.double().flatten(1).norm(dim=1)


# Determinism


def everything(seed: int) -> list[torch.Tensor]:
    """Build, train a step, transform, invert and sample; return every number that came out."""
    torch.manual_seed(seed)
    flow = ia.flows.i_resnet(
        (1, 4, 4), levels=16, blocks=(1,), hidden_channels=4, attention=lambda n: ia.InvertibleAttention(n)
    )
    x = torch.randint(0, 16, (4, 1, 4, 4))
    loss = -flow.log_prob(x).mean()
    loss.backward()
    gradients = [p.grad.clone() for p in flow.parameters() if p.grad is not None]
    net = flow.eval().transform[1]
    y = torch.randn(4, 1, 4, 4)
    with torch.no_grad():
        return [loss.detach(), *gradients, net(y), net.inverse(net(y)), flow.sample(3)]


def test_equal_seeds_are_bitwise_reproducible():
    first, second = everything(3), everything(3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], everything(4)[0])


@pytest.mark.parametrize("response", RESPONSES)
def test_sample_result_is_independent_of_its_batch(response):
    """Up to the rounding of kernels that choose their order of summation by the size of the batch."""
    layer = make(response).double()
    x = torch.randn(5, 8, 6, dtype=torch.float64)
    z = layer(x)
    for index in range(5):
        torch.testing.assert_close(layer(x[index : index + 1]), z[index : index + 1], rtol=1e-13, atol=1e-14)
        alone = layer.inverse(z[index : index + 1])
        torch.testing.assert_close(alone, x[index : index + 1], rtol=1e-9, atol=1e-10)


# Scales


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("exponent", [-44, -38, -20, 20, 30])
def test_inputs_from_subnormal_to_huge(response, normalization, exponent):
    """The radius of the ball is set from the first batch, so every scale is a scale like any other."""
    layer = make(response, normalization)
    x = 10.0**exponent * torch.randn(3, 8, 6, dtype=torch.float64).clamp(-3, 3)
    x = x.float()
    assert x.abs().max() > 0
    z = layer(x)
    assert z.isfinite().all()
    solution = layer.solve_inverse(z)
    assert solution.converged.all()
    error = (solution.value.double() - x.double()).flatten(1).norm(dim=1)
    # Subnormal numbers lie on a grid: rounding to it is absolute, and no relative bound can contain it.
    grid = 2.0**-149 * math.sqrt(x[0].numel()) * 4 / (1 - 0.9)
    assert (error <= solution.error_bound.double() + grid).all()


@pytest.mark.parametrize("response", RESPONSES)
def test_tokens_of_many_scales_in_one_sample(response):
    layer = make(response).double()
    scales = 10.0 ** torch.linspace(-30, 30, 7, dtype=torch.float64)
    x = torch.randn(2, 8, 7, dtype=torch.float64) * scales
    z = layer(x)
    solution = layer.solve_inverse(z)
    assert solution.converged.all()
    error = (solution.value - x).flatten(1).norm(dim=1)
    assert (error <= solution.error_bound).all()


@pytest.mark.parametrize("response", RESPONSES)
def test_zero_input(response):
    layer = make(response, bias=True).double()
    layer(torch.randn(2, 8, 5, dtype=torch.float64))
    x = torch.zeros(2, 8, 5, dtype=torch.float64, requires_grad=True)
    z, logdet = layer.forward_and_logdet(x)
    (z.sum() + logdet.sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close(layer.inverse(z.detach()), x.detach(), rtol=0, atol=1e-10)


# Depth and repetition


@pytest.mark.slow
def test_thousand_round_trips_stay_within_their_error_bounds():
    """The error of each round trip is within its bound, and errors add instead of multiplying."""
    layer = make("gaussian", constraint=ia.Certified(0.3))
    start = x = torch.randn(1, 8, 3)
    allowed, steps = 0.0, []
    with torch.no_grad():
        for _ in range(1000):
            solution = layer.solve_inverse(layer(x))
            steps.append(float((solution.value.double() - x.double()).norm()))
            allowed += float(solution.error_bound)
            x = solution.value
            assert float((x.double() - start.double()).norm()) <= allowed
    assert max(steps[500:]) <= 2 * max(steps[:500]) + 1e-7
    assert allowed < 0.02 * float(start.norm())


def test_fully_solved_round_trips_do_not_drift():
    layer = make("gaussian", constraint=ia.Certified(0.3), solver=ia.FixedPoint(30, tolerance=0.0)).double()
    start = x = torch.randn(1, 8, 3, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(200):
            x = layer.solve_inverse(layer(x)).value
    assert float(relative(x - start, start)) < 20 * torch.finfo(torch.float64).eps


def deep(blocks: int) -> ia.flows.Sequential:
    return ia.flows.Sequential(
        *(
            make(RESPONSES[index % 4], NORMALIZATIONS[index % 3], constraint=ia.Certified(0.5))
            for index in range(blocks)
        )
    )


def test_fifty_blocks_in_bfloat16_drift_only_by_rounding():
    """Every block rounds its output once: fifty blocks are off by fifty roundings at most, not by a power of them."""
    torch.manual_seed(0)
    net, x = deep(50), torch.randn(4, 8, 6)
    with torch.no_grad():
        net(x)
        exact = net.double()(x.double())
        net.bfloat16()
        low = net(x.bfloat16())
    assert low.dtype == torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps
    drift = float(relative(low.double() - exact, exact).max())
    # Weights are rounded too, by half a unit each, and earlier blocks propagate their errors.
    assert unit / 4 < drift < 50 * unit


def test_fifty_blocks_in_float32_invert():
    torch.manual_seed(0)
    net, x = deep(50), torch.randn(4, 8, 6)
    with torch.no_grad():
        back = net.inverse(net(x))
    assert float(relative(back - x, x).max()) < 1e-4


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 6), response=st.sampled_from(RESPONSES))
def test_bfloat16_round_trip_is_within_the_error_bounds(seed, blocks, response):
    torch.manual_seed(seed)
    layer = make(response, constraint=ia.Certified(0.9)).bfloat16()
    x = torch.randn(3, 8, 5).bfloat16()
    with torch.no_grad():
        z = layer(x)
        solution = layer.solve_inverse(z)
    assert solution.converged.all()
    # z itself was rounded: the inverse may be off by that, divided by one minus the certificate.
    unit = torch.finfo(torch.bfloat16).eps
    reach = solution.error_bound + unit * z.double().flatten(1).norm(dim=1) / (1 - 0.9)
    error = (solution.value.double() - x.double()).flatten(1).norm(dim=1)
    assert (error <= reach).all()


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_match_finite_differences(response, normalization):
    layer = ia.InvertibleAttention(
        2,
        response,
        normalization=normalization,
        bias=True,
        logdet=ia.Exact(),
        solver=ia.Anderson(tolerance=1e-14),
    ).double()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    layer.initialize(2 * x)
    x.requires_grad_()
    assert torch.autograd.gradcheck(layer.forward_and_logdet, (x,))
    assert torch.autograd.gradcheck(layer.inverse, (x,))
