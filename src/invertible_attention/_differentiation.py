"""Whether derivatives are needed, and refusing those that would be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order_only", "functional_transforms_active", "is_differentiated", "without_derivatives"]


def functional_transforms_active() -> bool:
    """Whether a ``torch.func`` transform such as ``grad`` or ``vmap`` is active."""
    return torch._C._are_functorch_transforms_active()


def is_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether any of the tensors is being differentiated, in reverse or in forward mode."""
    return any(
        (torch.is_grad_enabled() and tensor.requires_grad) or _has_tangent(tensor)
        for tensor in tensors
        if tensor is not None
    )


def _has_tangent(tensor: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def first_order_only(tensor: Tensor, message: str) -> Tensor:
    """Return a tensor whose first derivatives are right and whose second would not be: they raise RuntimeError."""
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
        gradient = upstream[0]
        if torch.is_grad_enabled():
            gradient = without_derivatives(gradient, ctx.message, *ctx.saved_tensors)
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return without_derivatives(tangents[0], ctx.message, *ctx.saved_tensors)


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
