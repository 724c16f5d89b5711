"""The gradient of a solution, by the implicit function theorem: no iteration is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import without_derivatives
from invertible_attention._precision import working_dtype
from invertible_attention.solvers.adjoint import solve_adjoint
from invertible_attention.solvers.base import Solver
from invertible_attention.solvers.problem import Branch

__all__ = ["implicit_gradient"]

_ONCE = (
    "the implicit gradient of an inverse can be differentiated once: second derivatives are not implemented. "
    "Differentiate the forward map instead, or unroll a fixed number of iterations."
)


def implicit_gradient(
    branch: Branch,
    value: Float[Tensor, "batch *event"],
    z: Float[Tensor, "batch *event"],
    args: Sequence[Tensor | None] = (),
    *,
    solver: Solver,
) -> Float[Tensor, "batch *event"]:
    r"""Return ``value`` with its gradient with respect to ``z``, ``args`` and the branch's parameters.

    Where :math:`x + g_\theta(x) = z`, the implicit function theorem gives, with :math:`J = \partial g/\partial x`
    and the upstream gradient :math:`v`,

    .. math::
        u = (I + J)^{-\top} v, \qquad
        \frac{\partial L}{\partial z} = u, \qquad
        \frac{\partial L}{\partial \theta} = -u^\top \frac{\partial g}{\partial \theta}.

    The system for :math:`u` is solved in the backward pass, per sample and by the same solver; its evaluations
    are vector–Jacobian products. Memory is that of one evaluation of the branch, however many the
    solution took. A sample whose upstream gradient or value is not finite gets a gradient of NaN.

    Reverse mode only, and once: forward mode and second derivatives raise. :func:`torch.func.grad`, ``vjp``, ``jacrev``
    and ``vmap`` work; the gradient of an ensemble, whose weights are mapped over, raises.

    Args:
        branch: the callable ``g(x, *args)``, with parameters attached to the graph if they need gradients.
        value: the solution, as a solver returned it.
        z: the right-hand side, attached to the graph if it needs a gradient.
        args: further tensors of the branch, likewise.
        solver: solves the adjoint system.

    Returns:
        A tensor equal to ``value``. Calling backward on it may raise :class:`ConvergenceError`, where the adjoint
        system of a sample was not solved, and ``RuntimeError`` where second derivatives are asked for.

    Raises:
        RuntimeError: ``z``, ``args`` or the parameters carry tangents of forward mode.

    Example:
        >>> import torch
        >>> from invertible_attention.solvers import Anderson
        >>> weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> z = torch.tensor([[3.0]], dtype=torch.float64)
        >>> branch = lambda x: weight * x
        >>> x = implicit_gradient(branch, Anderson().solve(branch, z).value, z, solver=Anderson())
        >>> x.sum().backward()  # x = z / (1 + w), so dx/dw = -z / (1 + w)²
        >>> round(weight.grad.item(), 9)
        -1.333333333
    """
    dtype = working_dtype(z.dtype)
    point = value.detach()
    with torch.autocast(z.device.type, enabled=False):
        # Equal to value up to the residual; its derivative at a fixed x is what u is multiplied with.
        attached = z.to(dtype) - branch(point.to(dtype), *args)
    return _ImplicitFunction.apply(attached, point, branch, tuple(args), solver)


class _ImplicitFunction(torch.autograd.Function):
    """The identity on ``value``, with the derivative of the solution with respect to ``attached``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        attached: Tensor, value: Tensor, branch: Branch, args: tuple[Tensor | None, ...], solver: Solver
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        attached, value, ctx.branch, args, ctx.solver = inputs
        ctx.save_for_backward(attached, value, *args)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        attached, value, *args = ctx.saved_tensors
        with torch.no_grad():
            u = solve_adjoint(ctx.branch, value, args, upstream[0], ctx.solver)
        if torch.is_grad_enabled():
            u = without_derivatives(u, _ONCE, attached, upstream[0])
        return u, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError(
            "the implicit gradient of an inverse has no forward mode: use reverse mode (backward, torch.func.vjp), "
            "or differentiate the forward map."
        )
