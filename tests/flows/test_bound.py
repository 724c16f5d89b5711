from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from invertible_attention import InvertibleAttention
from invertible_attention.flows import ActNorm, Residual, Sequential, Split, i_resnet

HOOKS = {
    "forward": (nn.Module.register_forward_hook, register_module_forward_hook),
    "pre-forward": (nn.Module.register_forward_pre_hook, register_module_forward_pre_hook),
}


@pytest.fixture
def flow(float64):
    flow = i_resnet((3, 8, 8), levels=4, blocks=(2, 1), hidden_channels=6, attention=InvertibleAttention)
    flow.initialize(torch.randint(0, 4, (2, 3, 8, 8)))
    return flow.transform


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_are_called_with_the_block_itself(flow, kind, everywhere):
    x = torch.randint(0, 4, (2, 3, 8, 8))
    blocks = [m for m in flow.modules() if isinstance(m, Residual | ActNorm)]
    assert len(blocks) == 7
    on_module, on_all = HOOKS[kind]
    seen = []

    def hook(module, *args):
        seen.append(module)
        module.calls = getattr(module, "calls", 0) + 1

    torch.manual_seed(1)
    expected = flow(x)
    handles = [on_all(hook)] if everywhere else [on_module(m, hook) for m in flow.modules()]
    try:
        torch.manual_seed(1)
        z = flow(x)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(z, expected)
    for block in blocks:
        assert sum(module is block for module in seen) == block.calls == 1


def test_hooks_of_a_block_inside_another_container():
    chain = Sequential(Split((4,), Residual(nn.Linear(2, 2))))
    block = next(m for m in chain.modules() if isinstance(m, Residual))
    seen = []
    block.register_forward_hook(lambda module, args, output: seen.append(module))
    chain(torch.randn(3, 4))
    assert seen == [block]
