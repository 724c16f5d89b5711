"""The gradient of a solution, by the implicit function theorem: no iteration is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from invertible_attention.solvers.base import Solver
from invertible_attention.solvers.batched import sample_norm, working_dtype
from invertible_attention.solvers.problem import Branch
from invertible_attention.solvers.solution import ConvergenceError

__all__ = ["implicit_gradient"]


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

    Args:
        branch: the callable ``g(x, *args)``, with parameters attached to the graph if they need gradients.
        value: the solution, as a solver returned it.
        z: the right-hand side, attached to the graph if it needs a gradient.
        args: further tensors of the branch, likewise.
        solver: solves the adjoint system.

    Returns:
        A tensor equal to ``value``. Calling backward on it may raise :class:`ConvergenceError`, where the adjoint
        system of a sample was not solved, and ``RuntimeError`` where second derivatives are asked for.

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
    if not torch.is_grad_enabled():
        return value
    dtype = working_dtype(z.dtype)
    point = value.detach().to(dtype)
    with torch.autocast(z.device.type, enabled=False):
        # Equal to value up to the residual; its derivative at a fixed x is what u is multiplied with.
        attached = z.to(dtype) - branch(point, *args)
    if not attached.requires_grad:
        return value
    return _ImplicitFunction.apply(attached, value.detach(), branch, tuple(args), solver)


class _ImplicitFunction(torch.autograd.Function):
    """The identity on ``value``, whose backward solves the adjoint system before the gradient goes on."""

    @staticmethod
    def forward(
        ctx: Any,
        attached: Tensor,
        value: Tensor,
        branch: Branch,
        args: tuple[Tensor | None, ...],
        solver: Solver,
    ) -> Tensor:
        ctx.save_for_backward(attached, value, *args)
        ctx.branch, ctx.solver = branch, solver
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        attached, value, *args = ctx.saved_tensors
        gradient = upstream[0]
        with torch.no_grad():
            u = _solve_adjoint(ctx.branch, value, args, gradient, ctx.solver)
        if torch.is_grad_enabled():
            u = _FirstOrderOnly.apply(u, attached, gradient)
        return u, None, None, None, None


class _FirstOrderOnly(torch.autograd.Function):
    """The identity on ``u``, which refuses to be differentiated again.

    It takes everything ``u`` depends on as an input: autograd prunes the paths that do not lead to the tensors
    it was asked about, and would otherwise leave the missing terms out in silence.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, u: Tensor, attached: Tensor, gradient: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "the implicit gradient of an inverse can be differentiated once: second derivatives are not "
            "implemented. Differentiate the forward map instead, or unroll a fixed number of iterations."
        )


def _solve_adjoint(
    branch: Branch,
    value: Float[Tensor, "batch *event"],
    args: Sequence[Tensor | None],
    gradient: Float[Tensor, "batch *event"],
    solver: Solver,
) -> Float[Tensor, "batch *event"]:
    """Return ``(I + J)⁻ᵀ v`` per sample."""
    dtype = working_dtype(value.dtype)
    point, flat = value.to(dtype), gradient.to(dtype).flatten(1)
    # The system is linear: solved for v of norm 1, the tolerance is relative however small gradients are.
    norm = sample_norm(flat)
    usable = (norm > 0) & torch.isfinite(norm)
    scale = torch.where(usable, norm, 1.0).to(dtype)[:, None]
    known = torch.isfinite(point.flatten(1)).all(dim=1) & torch.isfinite(norm)
    right = torch.where(known[:, None], flat / scale, torch.nan).reshape(point.shape)
    samples = torch.arange(point.shape[0], device=point.device)
    adjoint = _Adjoint(branch, point, args)
    solution = solver.solve(adjoint, right, (samples,))
    if not bool((solution.converged | ~known).all()):
        raise ConvergenceError(solution, "the adjoint system of the implicit gradient")
    return (solution.value.flatten(1) * scale).reshape(point.shape)


class _Adjoint:
    """The linear branch ``u ↦ Jᵀu``, at a fixed point, for whichever samples are asked for.

    The graph of one evaluation is kept and used again until a sample leaves the batch.
    """

    def __init__(
        self, branch: Branch, point: Float[Tensor, "batch *event"], args: Sequence[Tensor | None]
    ) -> None:
        self._branch, self._point, self._args = branch, point, args
        self._samples: Tensor | None = None
        self._leaf = self._output = point

    def __call__(self, u: Float[Tensor, "active *event"], samples: Int[Tensor, " active"]) -> Tensor:
        """Return ``Jᵀu``."""
        if self._samples is None or not torch.equal(samples, self._samples):
            self._build(samples)
        if not self._output.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(self._output, self._leaf, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(u) if product is None else product

    def jvp(self, u: Tensor, tangent: Tensor, samples: Int[Tensor, " active"]) -> Tensor:
        """Return the Jacobian product of this linear map, which does not depend on ``u``."""
        return self(tangent, samples)

    def _build(self, samples: Int[Tensor, " active"]) -> None:
        args = [arg if arg is None else arg.detach()[samples] for arg in self._args]
        with torch.enable_grad():
            self._leaf = self._point[samples].requires_grad_()
            self._output = self._branch(self._leaf, *args)
        self._samples = samples
