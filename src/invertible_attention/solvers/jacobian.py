"""Products of the branch's Jacobian with vectors, without forming it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention.solvers.problem import Problem, sample_norm

__all__ = ["JacobianProduct"]


class JacobianProduct:
    r"""The map :math:`v \mapsto J v` with :math:`J = \partial g/\partial x` at given points.

    Forward-mode differentiation where the branch supports it, else two reverse passes, else a difference
    quotient, which any branch supports: fused attention kernels often have neither of the first two. A branch
    with a method ``jvp(x, v, *args)`` is asked directly. Each product is counted as one evaluation.

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
        methods = [self._forward_mode, self._two_reverse_passes, self._difference]
        self._methods = [self._own] if hasattr(problem.branch, "jvp") else methods

    def __call__(
        self, vectors: Float[Tensor, "rows features"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows features"]:
        """Return ``J v`` for the points named by ``rows``."""
        while len(self._methods) > 1:
            try:
                return self._methods[0](vectors, rows)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # The branch holds an operation without this kind of derivative: never try it again here.
                self._methods = self._methods[1:]
        return self._methods[0](vectors, rows)

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

    def _two_reverse_passes(self, vectors: Tensor, rows: Tensor) -> Tensor:
        # The vector–Jacobian product is linear in its vector, and its own transpose is the product we want.
        with torch.enable_grad():
            x = self._points[rows].detach().requires_grad_()
            output = self._problem.evaluate(x, rows)
            if not output.requires_grad:
                return torch.zeros_like(vectors)
            dual = torch.zeros_like(output).requires_grad_()
            (transposed,) = torch.autograd.grad(output, x, dual, create_graph=True, materialize_grads=True)
            if not transposed.requires_grad:
                return torch.zeros_like(vectors)
            (product,) = torch.autograd.grad(transposed, dual, vectors, materialize_grads=True)
        return product

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
