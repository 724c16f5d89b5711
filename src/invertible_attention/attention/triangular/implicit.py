r"""Derivatives of the inverse, of first and second order, without differentiating any iteration.

With the solution :math:`x^\star` a constant and :math:`A = \partial f / \partial x` there, the expression

.. math:: x_{k+1} = x_k + A^{-1} (z - f(x_k)), \qquad x_0 = x^\star

has the value :math:`x^\star` and, after k steps, the derivatives of :math:`f^{-1}(z)` up to order k in everything
:math:`f` depends on (Newton's method at its fixed point, the Jacobian frozen). The products with :math:`A^{-1}` and
its transpose are triangular systems, solved by iterations that end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._precision import working_dtype
from invertible_attention.solvers.batched import sample_norm
from invertible_attention.solvers.solution import Solution

if TYPE_CHECKING:
    from invertible_attention.attention.triangular.branch import TriangularBranch

__all__ = ["attach_gradient"]

Image = Float[Tensor, "batch channels *spatial"]
Linear = Callable[[Tensor], Tensor]

_ORDERS = 2
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def attach_gradient(
    branch: TriangularBranch, solution: Solution, z: Image, args: tuple[Tensor | None, ...]
) -> Solution:
    """Return a solution whose value depends on ``z``, the arguments and the branch's parameters.

    Args:
        branch: The branch.
        solution: What was found.
        z: Right-hand sides.
        args: Context and mask.
    """
    with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
        dtype = working_dtype(z.dtype)
        right, x = z.to(dtype), solution.value.detach().to(dtype)
        jacobian = _Jacobian(branch, x, args)
        for _ in range(_ORDERS):
            residual = (right - x) - branch(x, *args)
            x = x + _Solved.apply(residual, jacobian, False)
        return replace(solution, value=x.to(z.dtype))


class _Jacobian:
    """The Jacobian of the block at a point, as products with vectors, and the inverses of them.

    It is evaluated here and now, with the parameters of this moment: backward may run when others are in place.
    """

    def __init__(self, branch: TriangularBranch, point: Image, args: tuple[Tensor | None, ...]) -> None:
        args = tuple(arg if arg is None else arg.detach() for arg in args)
        self._tokens = point.shape[2:].numel()
        self._known = torch.isfinite(point.flatten(1)).all(1)
        point = point.nan_to_num()
        with torch.no_grad():
            log_scale = branch.coefficients(point, *args)[1]
        self._diagonal = None if log_scale is None else log_scale.detach().exp()

        def function(x: Tensor) -> Tensor:
            return x + branch(x, *args)

        self.transposed = _pullback(function, point)
        self.straight = _transpose(self.transposed, point)

    def solve(self, right: Tensor, transposed: bool) -> Tensor:
        """Return the solution of ``A y = right`` or of its transposed; NaN where the point is not finite."""
        product = self.transposed if transposed else self.straight
        right = right.detach()
        known = self._known & torch.isfinite(right.flatten(1)).all(1)
        shape = (-1, *[1] * (right.ndim - 1))
        right = torch.where(known.view(shape), right, 0.0)
        norm = sample_norm(right.flatten(1))
        if not bool((norm > 0).any()):
            return torch.where(known.view(shape), right, torch.nan)
        tolerance = _TOLERANCE[right.dtype] * norm
        y = self._over_diagonal(right)
        for evaluation in range(1, self._tokens + 2):
            residual = right - product(y)
            size = sample_norm(residual.flatten(1))
            if bool((size <= tolerance).all()) or evaluation > self._tokens:
                break
            y = y + self._over_diagonal(residual)
        return torch.where(known.view(shape), y, torch.nan)

    def _over_diagonal(self, residual: Tensor) -> Tensor:
        return residual if self._diagonal is None else residual / self._diagonal


class _Product(torch.autograd.Function):
    """The solution of the system, linear in its right-hand side."""

    @staticmethod
    def forward(right: Tensor, jacobian: _Jacobian, transposed: bool) -> Tensor:
        return jacobian.solve(right, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.jacobian, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _Product.apply(upstream[0], ctx.jacobian, not ctx.transposed), None, None  # pyright: ignore[reportReturnType]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Product.apply(tangent, ctx.jacobian, ctx.transposed)  # pyright: ignore[reportReturnType]


class _Solved(_Product):
    """Zero, which is what the residual is up to rounding, with the derivative of the solved system."""

    @staticmethod
    def forward(residual: Tensor, jacobian: _Jacobian, transposed: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.zeros_like(residual)


def _pullback(function: Linear, point: Tensor) -> Linear:
    """Return ``u ↦ Aᵀu`` at a point."""
    try:
        leaf = point.detach().requires_grad_()
    except RuntimeError:  # inside a transform of torch.func
        pull = torch.func.vjp(function, point.detach())[1]
        return lambda u: pull(u)[0]
    with torch.enable_grad():
        output = function(leaf)

    def pull_back(u: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, u, retain_graph=True, create_graph=u.requires_grad)[0]

    return pull_back


def _transpose(linear: Linear, like: Tensor) -> Linear:
    """Return the transpose of a linear map, which is the derivative of ``⟨linear(u), y⟩`` by ``u``."""

    def product(y: Tensor) -> Tensor:
        with torch.enable_grad():
            u = torch.zeros_like(like).requires_grad_()
            return torch.autograd.grad(linear(u), u, y)[0]

    return product
