"""The branch and its vector–Jacobian product at a point, from one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from invertible_attention._differentiation import functional_transforms_active, has_tangent
from invertible_attention._precision import raised

__all__ = ["Linearization", "full_precision", "promote", "unhooked"]


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Switch autocast off for the device of ``x``: a series of half-precision products loses the sum."""
    with torch.autocast(x.device.type, enabled=False):
        yield


@contextmanager
def unhooked() -> Iterator[None]:
    """Keep what a graph saves as it is: hooks would have it computed again, or moved, for every product."""
    if functional_transforms_active() or not _hooks_are_set():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


def _hooks_are_set() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore[reportAttributeAccessIssue]


def promote(
    branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None]
) -> tuple[Callable[..., Tensor], Tensor, tuple[Tensor | None, ...]]:
    """Raise whatever is in half precision to ``float32``: the weights of a module, the point, the arguments.

    Raises:
        ValueError: If ``x`` is not of a floating point type, or is no batch of arrays.
    """
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"expected a batch (B, ...) of a floating point type, got shape {tuple(x.shape)}, {x.dtype}"
        )
    args = tuple(None if arg is None else raised(arg) for arg in args)
    if isinstance(branch, nn.Module):
        state = dict((*branch.named_parameters(), *branch.named_buffers()))
        halves = {name: raised(tensor) for name, tensor in state.items() if raised(tensor) is not tensor}
        if halves:
            return partial(_with_state, branch, halves), raised(x), args
    return branch, raised(x), args


def _with_state(module: nn.Module, state: dict[str, Tensor], x: Tensor, *args: Tensor | None) -> Tensor:
    return torch.func.functional_call(module, state, (x, *args))


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
        NotImplementedError: If the point or a captured tensor is a dual tensor of ``torch.autograd.forward_ad``.
        ValueError: If the branch changes the shape.

    Attributes:
        value: ``g(x)``.
        point: ``x``, as far as ``value`` is differentiable in it.
    """

    def __init__(
        self, branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None], *, attached: bool
    ) -> None:
        self._functional = functional_transforms_active()
        self.point = x
        if self._functional:
            # requires_grad_ is not allowed under torch.func; its own vjp composes with it.
            self.value, self._pullback, *_ = torch.func.vjp(lambda point: _evaluate(branch, point, args), x)
            return
        with torch.enable_grad(), nullcontext() if attached else unhooked():
            # An alias, so that a path from x through an argument does not count as part of the Jacobian.
            self.point = x.view_as(x) if attached and x.requires_grad else x.detach().requires_grad_()
            self.value = _evaluate(branch, self.point, args)
        if has_tangent(x) or has_tangent(self.value):
            # Products are taken in reverse mode, which does not see them.
            raise NotImplementedError(
                "log-determinants have no derivative in torch.autograd.forward_ad: use torch.func.jvp or jacfwd"
            )

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
    return value.to(x.dtype)
