from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from invertible_attention.experiments.camouflage.network.layers import (
    ChannelAttentionBlock,
    DilatedSum,
    resize,
)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_dilated_sum_matches_its_convolutions(height, width, seed) -> None:
    torch.manual_seed(seed)
    layer = DilatedSum(3, 2, (3, 6, 12, 18)).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    expected = sum(
        nn.functional.conv2d(x, b.weight, b.bias, padding=b.dilation, dilation=b.dilation)
        for b in layer.branches
    )
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-14)
    parameters = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_dilated_sum_starts_small() -> None:
    weights = torch.cat([b.weight.flatten() for b in DilatedSum(64, 32, (3, 6, 12, 18)).branches])
    assert abs(weights.std().item() - 0.01) < 1e-4
    assert abs(weights.mean().item()) < 1e-4


def test_channel_attention_scales_the_body_per_channel(float64) -> None:
    layer = ChannelAttentionBlock(32)
    x = torch.randn(2, 32, 5, 4)
    y = layer.body(x)
    weights = (layer(x) - x) / y
    assert torch.allclose(weights, weights[..., :1, :1].expand_as(weights))
    assert ((weights > 0) & (weights < 1)).all()


def test_channel_attention_refuses_too_few_channels() -> None:
    with pytest.raises(ValueError, match="at least 16, got 8"):
        ChannelAttentionBlock(8)


def test_resize_aligns_corners() -> None:
    x = torch.randn(1, 1, 3, 4)
    y = resize(x, (7, 9))
    assert torch.allclose(y[..., ::6, ::8], x[..., ::2, ::3], atol=1e-6)
    assert resize(x, (3, 4)) is x
