"""Blocks of whole networks: traced, evaluated exactly, and checked against their bounds."""

from __future__ import annotations

import pytest
import torch

from invertible_attention.experiments.audit.blocks import exact_branch, trace_blocks
from invertible_attention.experiments.audit.networks import draw_network, search_network
from invertible_attention.flows import InvertibleResNet
from invertible_attention.flows.branches import LipschitzBranch


def test_blocks_are_attacked_on_the_inputs_they_receive():
    net, x, description = draw_network(0, 3)
    blocks = trace_blocks(net, lambda: net(x))
    count = sum(description["blocks"]) + description["linear_blocks"]
    assert len(blocks) == count + len(range(1))  # and the attention after the first scale
    seen = x
    for part in net:
        own = [block for block in blocks if block.module is part]
        if own:
            # There the constraints of all blocks are evaluated together, which rounds differently.
            torch.testing.assert_close(own[0].x, seen)
        seen = part(seen)
    assert not any(part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_branch_has_the_weights_of_its_precision(dtype):
    torch.manual_seed(0)
    net = InvertibleResNet((2, 4), blocks=(1,), hidden_channels=3, linear_blocks=1)
    x = torch.randn(2, 2, 4)
    net(x)
    net.to(dtype)
    for block in trace_blocks(net, lambda: net(x.to(dtype))):
        exact = exact_branch(block.module)(block.x.double())
        rounded = block.module.branch(block.x).double()
        tolerance = 50 * torch.finfo(dtype).eps
        torch.testing.assert_close(exact, rounded, rtol=tolerance, atol=tolerance)
        assert exact.dtype == torch.float64


@pytest.mark.parametrize("network", [0, 1, 5])
def test_no_block_exceeds_its_bound(network):
    found = search_network(0, network, steps=3)
    assert found.violations == []
    assert 0 <= found.ratio <= 1 + 1e-12
    assert found == search_network(0, network, steps=3)


@pytest.mark.slow
def test_gradient_ascent_on_the_weights_approaches_the_bound():
    network = next(n for n in range(20) if draw_network(0, n)[2]["dtype"] == "float64")
    assert search_network(0, network).ratio > 0.8


def test_wrong_bound_is_detected(monkeypatch):
    network = next(n for n in range(20) if draw_network(0, n)[2]["dtype"] == "float64")
    monkeypatch.setattr(
        LipschitzBranch,
        "lipschitz_bound",
        lambda self: torch.tensor(0.1 * self.coefficient ** len(self.layers)),
    )
    found = search_network(0, network, steps=8)
    assert found.violations
    assert found.ratio > 1
