"""Whether derivatives are needed, and refusing those that would be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

__all__ = [
    "derivatives_wanted",
    "first_order_only",
    "functional_transforms_active",
    "has_tangent",
    "is_differentiated",
    "without_derivatives",
]


def functional_transforms_active() -> bool:
    """Whether a ``torch.func`` transform such as ``grad`` or ``vmap`` is active."""
    return torch._C._are_functorch_transforms_active()


def derivatives_wanted() -> bool:
    """Whether what is computed now may be differentiated: ``torch.no_grad`` does not stop ``torch.func.jvp``."""
    if torch.is_grad_enabled():
        return True
    levels = get_interpreter_stack() or ()
    return any(level.key() == TransformType.Jvp for level in levels)


def is_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether any of the tensors is being differentiated, in reverse or in forward mode."""
    return any(
        (torch.is_grad_enabled() and tensor.requires_grad) or has_tangent(tensor)
        for tensor in tensors
        if tensor is not None
    )


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent of forward mode."""
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def first_order_only(tensor: Tensor, message: str) -> Tensor:
    """Return a tensor that may be differentiated once, in reverse or forward mode; a second time raises RuntimeError.

    The derivative is linear in what it is multiplied with, and can be differentiated by that.
    """
    return _FirstOrderOnly.apply(tensor, message)


def without_derivatives(tensor: Tensor, message: str, *behind: Tensor) -> Tensor:
    """Return a tensor that raises RuntimeError where it is differentiated.

    Args:
        tensor: The tensor.
        message: What the error says.
        *behind: Everything it depends on: autograd prunes the paths that do not lead to the tensors it was asked about,
            and would otherwise leave the missing terms out in silence.
    """
    return _WithoutDerivatives.apply(tensor, message, *behind)


class _FirstOrderOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, message: str) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensor, ctx.message = inputs
        ctx.save_for_backward(tensor)
        ctx.save_for_forward(tensor)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _once(upstream[0], ctx) if torch.is_grad_enabled() else upstream[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _once(tangents[0], ctx)


def _once(derivative: Tensor, ctx: Any) -> Tensor:
    """Add a zero that stands for how the derivative depends on the point, and refuses to be differentiated."""
    return derivative + without_derivatives(torch.zeros_like(derivative), ctx.message, *ctx.saved_tensors)


class _WithoutDerivatives(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, message: str, *behind: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError(ctx.message)
