"""A doubly stochastic prior shapes attention by position and leaves the certificate as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import invertible_attention as ia
from invertible_attention.experiments.audit.attack import attack_layer

GRIDS = {1: (7,), 2: (3, 4), 3: (2, 3, 2)}


@settings(deadline=None, max_examples=40)
@given(
    axes=st.sampled_from((1, 2, 3)),
    heads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 5),
)
def test_rows_and_columns_sum_to_one(axes, heads, seed, scale):
    torch.manual_seed(seed)
    prior = ia.TorusPrior(axes, heads).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    pi = prior(GRIDS[axes]).exp()
    ones = torch.ones(heads, pi.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(pi.sum(-1), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(pi.sum(-2), ones, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sharp_kernels_sum_to_one_in_low_precision_too(dtype):
    prior = ia.TorusPrior(1, 1)
    with torch.no_grad():
        prior.log_concentration.fill_(9.0)
        prior.offset.fill_(2.5 * torch.pi * 2 / 7)  # between two positions, where the kernel is steepest
    pi = prior.to(dtype)((7,)).double().exp()
    ones = torch.ones(1, 7, dtype=torch.float64)
    torch.testing.assert_close(pi.sum(-1), ones, rtol=1e-6, atol=0)
    torch.testing.assert_close(pi.sum(-2), ones, rtol=1e-6, atol=0)


def test_the_kernel_depends_on_the_difference_of_positions_and_wraps_around():
    prior = ia.TorusPrior(2, 1, width=0.5, reference=4).double()
    with torch.no_grad():
        prior.offset.copy_(torch.tensor([[torch.pi / 2, 0.0]]))  # one row of a grid of four
    pi = prior((4, 4)).exp().reshape(4, 4, 4, 4)
    for row in range(4):
        for column in range(4):
            # Position i attends to the j with i - j = (1, 0).
            source = pi[row, column].flatten().argmax().item()
            assert divmod(source, 4) == ((row - 1) % 4, column)
    torch.testing.assert_close(pi.roll((1, 1, 1, 1), (0, 1, 2, 3)), pi)


@pytest.mark.slow
@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_the_bound_survives_gradient_ascent_on_the_prior_too(response, normalization):
    torch.manual_seed(5)
    layer = ia.InvertibleAttention(
        4,
        response,
        ia.Certified(0.9, radius=1.0),
        normalization,
        heads=2,
        bias=True,
        position_prior=ia.TorusPrior(1, 2, width=0.3, reference=5),
    ).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "prior" not in name:
                parameter.copy_(torch.randn_like(parameter))
    attack = attack_layer(layer, torch.randn(3, 4, 5, dtype=torch.float64), steps=60)
    assert 0.3 < attack.worst_ratio <= 1 + 1e-12


def test_inverse_and_learning():
    layer = ia.InvertibleAttention(
        4, "embedded_gaussian", heads=2, position_prior=ia.TorusPrior(2, 2)
    ).double()
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    z = layer(x)
    assert (layer.inverse(z) - x).abs().max() < 1e-10
    z.square().sum().backward()
    for name, parameter in layer.branch.position_prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="0"):
        ia.TorusPrior(0)
    with pytest.raises(ValueError, match=r"-1"):
        ia.TorusPrior(2, width=-1)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        ia.TorusPrior(2)((7,))
