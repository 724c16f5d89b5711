"""The paper's inverse: repeat ``x ← z - g(x)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention.solvers.base import Solver, Step
from invertible_attention.solvers.problem import Problem, Progress

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint(Solver):
    r"""Picard iteration, Algorithm 1 of the paper:

    .. math::
        x_0 = z, \qquad x_{k+1} = z - g(x_k).

    For a branch with Lipschitz constant :math:`c < 1` the residual shrinks at least by :math:`c` in each
    evaluation (Banach). :class:`~invertible_attention.solvers.Anderson` needs far fewer evaluations.

    Args:
        max_evaluations: most evaluations per sample, 100 in the paper. ``None``: as many as a certificate
            says suffice.
        tolerance: relative residual at which a sample is solved; see
            :class:`~invertible_attention.solvers.Solver`. ``0`` runs all evaluations, as the paper does.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> solution = FixedPoint().solve(lambda x: 0.5 * x, torch.tensor([[3.0]], dtype=torch.float64))
        >>> round(solution.value.item(), 10), solution.evaluations.item()
        (2.0, 40)
    """

    max_evaluations: int | None = 100

    def start(self, problem: Problem) -> None:
        """Return nothing: the method remembers nothing."""

    def first_guess(self, problem: Problem) -> None:
        """Start at :math:`z`, as the algorithm does."""

    def step(
        self, problem: Problem, state: None, progress: Progress, budget: Callable[[], Int[Tensor, " active"]]
    ) -> Step:
        """Return ``x - (x + g(x) - z)``; from an iterate that is not finite there is no way back."""
        x: Float[Tensor, "active features"] = progress.x - progress.residual
        return Step(x, state, stuck=None if progress.newest_is_best else progress.norm.isinf())
