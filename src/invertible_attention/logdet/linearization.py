"""The branch and its vector–Jacobian product at a point, from one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active

__all__ = ["Linearization", "full_precision", "promote"]


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Switch autocast off for the device of ``x``: a series of half-precision products loses the sum."""
    with torch.autocast(x.device.type, enabled=False):
        yield


def promote(x: Tensor, args: Sequence[Tensor | None]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Raise half-precision input to ``float32`` inside autocast.

    Outside autocast the input keeps its precision, because the branch's own weights have it too.

    Raises:
        ValueError: If ``x`` is not of a floating point type, or has no batch axis.
    """
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"expected a batch of a floating point type, got shape {tuple(x.shape)}, {x.dtype}")
    if not torch.is_autocast_enabled(x.device.type):
        return x, tuple(args)
    halves = (torch.float16, torch.bfloat16)
    raised = tuple(t.float() if isinstance(t, Tensor) and t.dtype in halves else t for t in args)
    return (x.float() if x.dtype in halves else x), raised


class Linearization:
    r"""A branch evaluated once at a point, ready for products with its Jacobian :math:`J`.

    Args:
        branch: The residual branch.
        x: The point.
        args: Further arguments, held fixed: :math:`J` is the partial derivative in ``x`` even where an
            argument was computed from ``x``.
        attached: Whether value and products belong to the autograd graph of ``x``. If not, they are
            constants for the caller.

    Raises:
        ValueError: If the branch changes the shape.

    Attributes:
        value: ``g(x)``.
    """

    def __init__(
        self, branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None], *, attached: bool
    ) -> None:
        self._functional = functional_transforms_active()
        if self._functional:
            # requires_grad_ is not allowed under torch.func; its own vjp composes with it.
            self.value, self._pullback, *_ = torch.func.vjp(lambda point: _evaluate(branch, point, args), x)
            return
        with torch.enable_grad():
            # An alias, so that a path from x through an argument does not count as part of the Jacobian.
            self.point = x.view_as(x) if attached and x.requires_grad else x.detach().requires_grad_()
            self.value = _evaluate(branch, self.point, args)

    def vjp(self, cotangent: Tensor, *, differentiable: bool = False) -> Tensor:
        """Return ``cotangentᵀ J``, differentiable in turn if asked for."""
        if self._functional:
            (product,) = self._pullback(cotangent)
            return product if differentiable else product.detach()
        if not self.value.requires_grad:
            return torch.zeros_like(self.point)
        (product,) = torch.autograd.grad(
            self.value,
            self.point,
            cotangent,
            retain_graph=True,
            create_graph=differentiable,
            allow_unused=True,
        )
        return torch.zeros_like(self.point) if product is None else product


def _evaluate(branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None]) -> Tensor:
    value = branch(x, *args)
    if value.shape != x.shape:
        raise ValueError(f"the branch maps shape {tuple(x.shape)} to {tuple(value.shape)}; they must agree")
    return value
