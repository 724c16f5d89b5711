from __future__ import annotations

import inspect

import pytest
import torch

from invertible_attention.attention.layer import InvertibleAttention
from invertible_attention.flows import (
    InvertibleResNet,
    LipschitzConvBranch,
    LipschitzLinearBranch,
    Split,
    Squeeze,
    i_resnet,
    residual_flow,
)


def kinds(flow):
    return [type(module) for module in flow.modules()]


def convolutional(flow):
    return [module for module in flow.modules() if isinstance(module, LipschitzConvBranch)]


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_i_resnet_is_the_published_configuration():
    published = defaults(i_resnet)
    assert published["shape"] == (3, 32, 32)
    assert (published["blocks"], published["hidden_channels"]) == ((16, 16, 16), 512)
    assert (published["coefficient"], published["levels"]) == (0.9, 256)

    flow = i_resnet(blocks=(2, 1, 1))
    net = flow.transform[1]
    first, second, *others = branches = convolutional(net)
    assert [branch.layers[0].in_channels for branch in branches] == [12, 12, 24, 48]
    assert [tuple(layer.weight.shape) for layer in first.layers] == [
        (512, 12, 3, 3),
        (512, 512, 1, 1),
        (12, 512, 3, 3),
    ]
    assert [branch.preactivation for branch in branches] == [False, True, True, True]
    assert kinds(net).count(Squeeze) == 3
    assert kinds(net).count(Split) == 2
    assert net.latent_dim == flow.base.dim == 3072
    # with 16 blocks per scale 25 million, of which the attention of the paper is 397
    size = sum(16 * sum(p.numel() for p in branch.parameters()) for branch in (second, *others))
    assert size == pytest.approx(25e6, rel=0.02)


def test_residual_flow_is_the_published_configuration():
    published = defaults(residual_flow)
    assert published["shape"] == (3, 32, 32)
    assert (published["blocks"], published["hidden_channels"]) == ((16, 16, 16), 512)
    assert (published["coefficient"], published["levels"], published["alpha"]) == (0.98, 256, 0.05)
    assert (published["linear_blocks"], published["linear_hidden"]) == (4, 128)

    net = residual_flow(blocks=(1, 1, 1), hidden_channels=16).transform[2]
    assert [branch.layers[0].in_channels for branch in convolutional(net)] == [3, 12, 48]
    linear = [module for module in net.modules() if isinstance(module, LipschitzLinearBranch)]
    assert [[layer.out_features for layer in branch.layers] for branch in linear] == [[128, 128, 3072]] * 4
    assert kinds(net).count(Squeeze) == 2
    assert kinds(net).count(Split) == 0


@pytest.mark.parametrize(
    ("places", "positions"),
    [
        (((0, -1),), [(4, 2)]),
        (((0, 0), (1, -1)), [(4, 1), (8, 3)]),
        (((1, 0), (0, 1)), [(4, 2), (8, 3)]),
        ((), []),
    ],
)
def test_attention_is_placed_as_requested(places, positions):
    net = InvertibleResNet(
        (1, 8, 8), blocks=(2, 1), hidden_channels=4, attention=InvertibleAttention, attention_after=places
    )
    found, blocks = [], 0
    for module in net.modules():
        blocks += isinstance(module, LipschitzConvBranch)
        if isinstance(module, InvertibleAttention):
            found.append((module.branch.channels, blocks))
    assert found == positions


@pytest.mark.parametrize("shape", [(2, 8), (1, 8, 4), (1, 4, 8, 4)])
def test_one_to_three_spatial_axes(shape):
    net = InvertibleResNet(shape, blocks=(1, 1), hidden_channels=4)
    x = torch.rand(8, *shape)
    z = net(x)
    assert z.shape == (8, net.latent_dim)
    torch.testing.assert_close(net.inverse(z), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (3, 6, 6), "blocks": (1, 1)}, r"cannot halve the spatial axes of \(6, 3, 3\)"),
        ({"shape": (3,)}, r"got \(3,\)"),
        ({"shape": (1, 8, 8), "blocks": ()}, r"got \(\)"),
        ({"shape": (1, 8, 8), "blocks": (1, -1)}, r"got \(1, -1\)"),
        (
            {
                "shape": (1, 8, 8),
                "blocks": (1,),
                "attention": InvertibleAttention,
                "attention_after": [(0, 1)],
            },
            r"names block \(0, 1\)",
        ),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        InvertibleResNet(**{"hidden_channels": 4, **arguments})
