"""Products of the branch's Jacobian with vectors, without forming it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention.solvers.batched import sample_norm
from invertible_attention.solvers.problem import Problem

__all__ = ["JacobianProduct"]


class JacobianProduct:
    r"""The map :math:`v \mapsto J v` with :math:`J = \partial g/\partial x` at given points.

    Forward-mode differentiation where the branch supports it, else a difference quotient, which any branch
    supports: fused attention kernels often have no forward mode. A branch with a method ``jvp(x, v, *args)`` is
    asked directly. Each product is counted as one evaluation.

    Two reverse passes would give the same product, but not safely: autograd silently drops the part of a branch that
    can be differentiated only once.

    Args:
        problem: whose branch to differentiate.
        points: where.
        values: the branch there, for the difference quotient.
    """

    def __init__(
        self,
        problem: Problem,
        points: Float[Tensor, "points features"],
        values: Float[Tensor, "points features"],
    ) -> None:
        self._problem, self._points, self._values = problem, points, values
        self._product = self._own if hasattr(problem.branch, "jvp") else self._forward_mode

    def __call__(
        self, vectors: Float[Tensor, "rows features"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows features"]:
        """Return ``J v`` for the points named by ``rows``."""
        if self._product == self._forward_mode:
            try:
                return self._forward_mode(vectors, rows)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Some operation of the branch has no forward mode: never try it again at these points.
                self._product = self._difference
        return self._product(vectors, rows)

    def _own(self, vectors: Tensor, rows: Tensor) -> Tensor:
        problem = self._problem
        shape = (rows.shape[0], *problem.event_shape)
        args = [arg if arg is None else arg[rows] for arg in problem.args]
        product = problem.branch.jvp(self._points[rows].reshape(shape), vectors.reshape(shape), *args)  # pyright: ignore[reportFunctionMemberAccess]
        return product.reshape(vectors.shape)

    def _forward_mode(self, vectors: Tensor, rows: Tensor) -> Tensor:
        def g(x: Tensor) -> Tensor:
            return self._problem.evaluate(x, rows)

        return torch.func.jvp(g, (self._points[rows],), (vectors,))[1]

    def _difference(self, vectors: Tensor, rows: Tensor) -> Tensor:
        points, values = self._points[rows], self._values[rows]
        length = sample_norm(vectors)
        # The step that balances truncation against rounding in a forward difference.
        step = (
            torch.finfo(points.dtype).eps ** 0.5
            * (1 + sample_norm(points))
            / torch.where(length > 0, length, 1.0)
        )
        step = step.to(points.dtype)[:, None]
        return (self._problem.evaluate(points + step * vectors, rows) - values) / step
