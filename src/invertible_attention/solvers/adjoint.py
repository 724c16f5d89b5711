"""The adjoint system ``(I + J)ᵀ u = v`` at a fixed point, as a branch that a solver can work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention._mapped import outside_vmap
from invertible_attention._precision import working_dtype
from invertible_attention.solvers.base import Solver
from invertible_attention.solvers.batched import sample_norm
from invertible_attention.solvers.preconditioner import Preconditioner, gather
from invertible_attention.solvers.problem import Branch
from invertible_attention.solvers.solution import ConvergenceError

__all__ = ["VectorJacobian", "solve_adjoint"]


def solve_adjoint(
    branch: Branch,
    point: Float[Tensor, "batch *event"],
    args: Sequence[Tensor | None],
    right: Float[Tensor, "batch *event"],
    solver: Solver,
) -> Float[Tensor, "batch *event"]:
    r"""Return :math:`(I + J)^{-\top} v` per sample, NaN where the point or :math:`v` is not finite.

    Args:
        branch: the callable ``g(x, *args)`` whose Jacobian is :math:`J`.
        point: where.
        args: further arguments of the branch.
        right: :math:`v`.
        solver: solves the system, sample by sample.

    Raises:
        ConvergenceError: a sample was not solved.
    """
    return outside_vmap(
        lambda point, right, *args: _solve(branch, point, args, right, solver), point, right, *args
    )


def _solve(
    branch: Branch, point: Tensor, args: Sequence[Tensor | None], right: Tensor, solver: Solver
) -> Tensor:
    point = point.detach().to(working_dtype(point.dtype))
    flat = right.to(point.dtype).flatten(1)
    norm = sample_norm(flat)
    known = torch.isfinite(point.flatten(1)).all(dim=1) & torch.isfinite(norm)
    # Solved for a right-hand side of norm 1, so that the tolerance is relative however small gradients are.
    scale = torch.where(known & (norm > 0), norm, 1.0).to(point.dtype)[:, None]
    unit = torch.where(known[:, None], flat / scale, torch.nan).reshape(point.shape)
    samples = torch.arange(point.shape[0], device=point.device)
    system = VectorJacobian(branch, point, args)
    bound = branch.bind() if isinstance(branch, _Bindable) else branch
    if Preconditioner.known(bound):
        system = _Preconditioned(system, Preconditioner(bound, point, args))
    solution = solver.solve(system, unit, (samples,))
    if not bool((solution.converged | ~known).all()):
        raise ConvergenceError(solution, "the adjoint system of the implicit gradient")
    return (solution.value.flatten(1) * scale).reshape(point.shape)


class VectorJacobian:
    """The linear branch ``u ↦ Jᵀu`` at a fixed point, for whichever samples are asked for.

    The graph of one evaluation is used again until a sample leaves the batch.

    Args:
        branch: the callable ``g(x, *args)``.
        point: where to differentiate it.
        args: its further arguments.
    """

    def __init__(
        self, branch: Branch, point: Float[Tensor, "batch *event"], args: Sequence[Tensor | None]
    ) -> None:
        self._branch, self._point = branch, point
        self._args = [arg if arg is None else arg.detach() for arg in args]
        self._samples: Tensor | None = None
        self._pullback: Callable[[Tensor], Tensor] = torch.zeros_like

    def __call__(self, u: Float[Tensor, "active *event"], samples: Int[Tensor, " active"]) -> Tensor:
        """Return ``Jᵀu``."""
        if self._samples is None or not torch.equal(samples, self._samples):
            args = gather(self._args, samples)
            self._pullback = _pullback(lambda x: self._branch(x, *args), self._point[samples])
            self._samples = samples
        return self._pullback(u)

    def jvp(self, u: Tensor, tangent: Tensor, samples: Int[Tensor, " active"]) -> Tensor:
        """Return the Jacobian product of this linear map, which does not depend on ``u``."""
        return self(tangent, samples)


@runtime_checkable
class _Bindable(Protocol):
    """A module that computes what does not depend on its input once, for many evaluations."""

    def bind(self) -> Branch:
        """Return the branch around it."""
        ...


class _Preconditioned:
    """The linear branch with the preconditioner, at its point, of the branch it is the derivative of."""

    def __init__(self, system: VectorJacobian, about: Preconditioner) -> None:
        self._about = about
        self._system, self.jvp = system, system.jvp

    def __call__(self, u: Tensor, samples: Tensor) -> Tensor:
        """Return ``Jᵀu``."""
        return self._system(u, samples)

    def precondition(self, v: Tensor, samples: Tensor) -> Tensor:
        """Return about ``(I + J)⁻ᵀ v``."""
        return self._about(v, samples, transposed=True)

    first_guess = precondition


def _pullback(branch: Callable[[Tensor], Tensor], point: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``u ↦ Jᵀu`` at ``point``."""
    try:
        leaf = point.requires_grad_()
    except RuntimeError:
        # Inside a transform of torch.func, which knows only its own way. Elsewhere the plain way is better: it
        # takes any autograd function.
        pull = torch.func.vjp(branch, point)[1]
        return lambda u: pull(u)[0]
    with torch.enable_grad():
        output = branch(leaf)
    if not output.requires_grad:
        return torch.zeros_like
    return lambda u: torch.autograd.grad(output, leaf, u, retain_graph=True, materialize_grads=True)[0]
