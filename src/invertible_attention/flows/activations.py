"""Nonlinearities whose Lipschitz constant is 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invertible_attention.lipschitz.module_bound import register_lipschitz_bound

__all__ = ["LipSwish", "is_pushed", "make_activation", "push"]


class LipSwish(nn.Module):
    r"""Swish divided by its Lipschitz constant, :math:`x\, \sigma(\beta x) / 1.1`, :math:`\beta > 0` learned.

    Its second derivative does not vanish where its first is near 1, which keeps the gradient of the
    log-determinant alive.

    References:
        Chen et al. 2019, Residual Flows, Section 3.3; :math:`\sup_t |d\,(t \sigma(t))/dt| \approx 1.0998`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise."""
        steep = x * F.softplus(self.raw_beta)
        if torch.is_grad_enabled():
            return x * torch.sigmoid(steep) / 1.1
        # Nothing is kept for a gradient: one buffer serves all operators.
        return steep.sigmoid_().mul_(x).div_(1.1)


register_lipschitz_bound(LipSwish, 1.0)  # for every slope

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"elu": nn.ELU, "lipswish": LipSwish}


def make_activation(name: str) -> nn.Module:
    """Return a new activation.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()


def is_pushed(activation: nn.Module) -> bool:
    """Return whether :func:`push` knows the activation."""
    return type(activation) in _ACTIVATIONS.values() and not getattr(activation, "inplace", False)


def push(activation: nn.Module, x: Tensor, tangents: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the activation of ``x``, and its derivative there times the tangents.

    Without tangents any module will do; with them one that :func:`is_pushed` says, and an ``x`` with a gradient.
    """
    if tangents and isinstance(activation, nn.ELU):
        value, *pushed = _EluAndProducts.apply(activation.alpha, x, *tangents)
        return value, pushed
    value = activation(x)
    # A diagonal Jacobian is its own transpose.
    return value, [torch.autograd.grad(value, x, v, create_graph=True)[0] for v in tangents]


class _EluAndProducts(torch.autograd.Function):
    """ELU and products with its derivative, in fewer operators than by the graph of a graph."""

    @staticmethod
    def forward(alpha: float, x: Tensor, *tangents: Tensor) -> tuple[Tensor, ...]:
        return F.elu(x, alpha), *(_times_slope(v, x, alpha) for v in tangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.alpha = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *tangents = ctx.saved_tensors
        total, *others = upstream
        positive = x > 0
        for v, gradient in zip(tangents, others, strict=True):
            # Below zero the second derivative is the first.
            total = torch.addcmul(total, v.masked_fill(positive, 0.0), gradient)
        wanted = zip(ctx.needs_input_grad[1:], (total, *others), strict=True)
        return None, *(_times_slope(t, x, ctx.alpha) if want else None for want, t in wanted)


def _times_slope(v: Tensor, x: Tensor, alpha: float) -> Tensor:
    return torch.ops.aten.elu_backward(v, alpha, 1.0, 1.0, False, x)
