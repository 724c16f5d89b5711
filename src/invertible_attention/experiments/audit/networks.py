"""Searching whole invertible residual networks: every block inside them against what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...attention import Certified, InvertibleAttention
from ...attention.branch import AttentionBranch
from ...flows import ActNorm, InvertibleResNet
from ...lipschitz.adversarial import adversarial_lipschitz
from .attack import jacobian_norm
from .blocks import Block, exact_branch, trace_blocks
from .configurations import DTYPES
from .search import ALLOWANCE

__all__ = ["Network", "draw_network", "search_network"]

SHAPES = ((1, 4, 4), (2, 4, 4), (3, 4, 4), (2, 8), (1, 2, 2, 2))
RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


@dataclass(frozen=True)
class Network:
    """What was found in a network.

    Args:
        network: its number.
        description: what it is.
        blocks: number of residual blocks, those of attention among them.
        ratio: largest local Lipschitz constant of a block divided by that block's bound.
        block: which block that was.
        violations: blocks above ``1 + ALLOWANCE``, with the ratio.
    """

    network: int
    description: dict[str, Any]
    blocks: int
    ratio: float
    block: str
    violations: list[tuple[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return vars(self) | {"violations": [list(item) for item in self.violations]}


def draw_network(
    seed: int, network: int
) -> tuple[InvertibleResNet, Float[Tensor, "batch *event"], dict[str, Any]]:
    """Return a network with weights of every scale, inputs, and what to call it."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + network) * 2 + 1)

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def choose(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    shape, response = choose(SHAPES), choose(RESPONSES)
    description = {
        "shape": list(shape),
        "blocks": choose(((1,), (2,), (1, 1) if len(shape) == 3 else (1,))),
        "hidden_channels": choose((2, 5)),
        "coefficient": choose((0.5, 0.9, 0.99)),
        "activation": choose(("elu", "lipswish")),
        "linear_blocks": choose((0, 1)),
        "linear_hidden": 7,
        "response": response,
        "normalization": choose(("column", "row", "all")),
        "dtype": choose(tuple(DTYPES)),
    }
    settings = {
        name: value
        for name, value in description.items()
        if name not in ("shape", "response", "normalization", "dtype")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network)
        net = InvertibleResNet(
            shape,
            **settings,
            attention=lambda channels: InvertibleAttention(
                channels,
                response,
                constraint=Certified(description["coefficient"]),
                normalization=description["normalization"],
                bias=True,
            ),
        ).double()
    x = 10 ** number(-6, 6) * torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        net(x)  # normalization and radii are set from the first batch
        for part in net.modules():
            for name, parameter in part.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                if isinstance(part, ActNorm) or name == "log_radius":
                    parameter.add_(0.5 * noise)
                elif name.endswith("bias"):
                    # Small where the activations are to be near their steepest, large where they are not.
                    parameter.copy_(10 ** number(-6, 1) * noise)
                else:
                    # Constrained weights of any large scale are the same map; small ones leave the budget unused.
                    scale = 1.0 if number(0, 1) < 0.6 else 10 ** number(-6, 6)
                    parameter.copy_(scale * _maybe_rank_one(noise, generator))
        for part in net.modules():
            if isinstance(part, AttentionBranch) and part.radius is not None:
                normalization: Any = part.normalization
                part.response.rescale(part.radius, normalization, 10 ** number(-2, 1))
    return net.eval(), x, description | {"blocks": list(description["blocks"])}


def search_network(seed: int, network: int, *, steps: int = 40) -> Network:
    """Draw a network and search each of its blocks.

    The local Lipschitz constant is computed exactly, from the whole Jacobian, at what the block is given inside
    the network and at what gradient ascent makes of it: ascent in the input, and in the weights too where they
    are in float64 (in lower precision a step of ascent is mostly lost in rounding).

    Args:
        seed: of the search.
        network: number of the network; the same seed and number give the same network.
        steps: steps of each ascent.
    """
    net, x, description = draw_network(seed, network)
    dtype = DTYPES[description["dtype"]]
    net = net.to(dtype)
    blocks = trace_blocks(net, lambda: net(x.to(dtype)))
    ratios = {block.name: _worst_ratio(block, steps, dtype) for block in blocks}
    worst = max(ratios, key=lambda name: ratios[name])
    violations = [(name, ratio) for name, ratio in ratios.items() if not ratio <= 1 + ALLOWANCE]
    return Network(network, description, len(blocks), ratios[worst], worst, violations)


def _worst_ratio(block: Block, steps: int, dtype: torch.dtype) -> float:
    """Return the largest ratio of the block's exact constant to its bound that is met."""
    branch: Any = exact_branch(block.module)
    x = block.x.double()
    limit = float(block.module.lipschitz_bound().detach())
    ratios = [_ratio(branch, x, limit)]
    for weights in (False, True) if dtype == torch.float64 else (False,):
        found = adversarial_lipschitz(
            branch,
            x,
            steps=steps,
            lr=0.1,
            parameters=list(branch.parameters()) if weights else None,
            bound=branch.lipschitz_bound if weights else lambda: torch.tensor(limit),
            generator=torch.Generator().manual_seed(0),
        )
        if not weights:
            ratios.append(_ratio(branch, found.x, limit))
        elif math.isfinite(found.ratio):
            ratios.append(found.ratio)
    return max(ratios)


def _ratio(branch: Any, x: Tensor, limit: float) -> float:
    constant = float(jacobian_norm(_Holder(branch), x).detach().max())  # pyright: ignore[reportArgumentType]
    return 0.0 if constant == 0 else constant / limit


class _Holder:
    """What :func:`jacobian_norm` asks of a layer."""

    def __init__(self, branch: Any) -> None:
        self.branch = branch


def _maybe_rank_one(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Return the weight, or half of the time one of rank one: its norm is bounded without any slack."""
    if noise.ndim < 2 or float(torch.rand((), generator=generator)) < 0.5:
        return noise
    flat = noise.flatten(1)
    return (flat[:, :1] * flat[:1]).reshape(noise.shape)
