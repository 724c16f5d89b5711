"""Adversarial search for an input and weights at which a layer exceeds its Lipschitz bound."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Attack", "attack_layer", "jacobian_norm"]


@dataclass(frozen=True)
class Attack:
    """What the search found.

    Attributes:
        worst_ratio: Largest (true local Lipschitz constant) / (bound) met; above 1 the bound is wrong.
        constant: The local Lipschitz constant there.
        bound: The bound there.
        x: The input there, ``(1, ...)``.
        state: The weights there.
    """

    worst_ratio: float
    constant: float
    bound: float
    x: Tensor
    state: dict[str, Tensor]


def jacobian_norm(layer: nn.Module, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Exact spectral norm of the branch's Jacobian at every sample, from the dense matrix."""
    size = x[0].numel()
    # One sample per row: a batch costs less than mapping over rows.
    unit = torch.eye(size, dtype=x.dtype, device=x.device).repeat(len(x), 1).reshape(-1, *x.shape[1:])
    with torch.enable_grad():
        rows = x.repeat_interleave(size, 0)
        rows = rows if rows.requires_grad else rows.requires_grad_()
        # The second term for a branch that does not depend on its input.
        output = layer.branch(rows) + 0.0 * rows  # pyright: ignore[reportCallIssue]
        (jacobian,) = torch.autograd.grad(output, rows, unit, create_graph=True)
    return torch.linalg.matrix_norm(jacobian.reshape(-1, size, size), ord=2)


def attack_layer(
    layer: nn.Module, x: Float[Tensor, "batch *event"], *, steps: int = 100, lr: float = 0.05
) -> Attack:
    """Ascend the ratio of the true Lipschitz constant to the bound, over the inputs and all the weights.

    Args:
        layer: With a ``branch`` and a ``lipschitz_bound()``; it is left as it is.
        x: Starting points, float64 to distinguish an excess from rounding.
        steps: Steps of Adam.
        lr: Its learning rate, on the logarithm of the ratio.
    """
    layer = copy.deepcopy(layer)
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x, *layer.parameters()], lr=lr)
    found: Attack | None = None
    for _ in range(steps + 1):
        constants = jacobian_norm(layer, x)
        bound = layer.lipschitz_bound()  # pyright: ignore[reportCallIssue]
        index = int(constants.detach().argmax())
        constant, limit = float(constants[index].detach()), float(bound.detach())
        ratio = constant / limit if constant > 0 else 0.0
        if found is None or ratio > found.worst_ratio:
            state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
            sample = x.detach()[index : index + 1].clone()
            found = Attack(ratio, constant, limit, sample, state)
        optimizer.zero_grad()
        loss = bound.log() - constants.clamp_min(1e-300).log().mean()
        loss.backward()
        optimizer.step()
    assert found is not None
    return found
