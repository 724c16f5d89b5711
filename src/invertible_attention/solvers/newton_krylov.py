"""Newton's method with GMRES, for branches that are not contractions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.base import Solver, check_count, check_number
from invertible_attention.solvers.batched import sample_norm, wide_dtype
from invertible_attention.solvers.driver import Step
from invertible_attention.solvers.gmres import gmres
from invertible_attention.solvers.jacobian import JacobianProduct
from invertible_attention.solvers.problem import Problem, Progress, select

__all__ = ["NewtonKrylov"]

_SUFFICIENT_DECREASE = 1e-4
_SMALLEST_STEP = 1e-4


@dataclass(frozen=True)
class _State:
    """Where the line search of each active sample stands.

    Args:
        x: the last accepted iterate.
        norm: the residual norm there; infinite before the first.
        direction: the Newton direction from it.
        length: the step along the direction that the newest iterate tried.
        forcing: the relative residual to which the linear system for the direction was solved.
    """

    x: Float[Tensor, "active features"]
    norm: Float[Tensor, " active"]
    direction: Float[Tensor, "active features"]
    length: Float[Tensor, " active"]
    forcing: Float[Tensor, " active"]


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    r"""Inexact Newton iteration, with a backtracking line search on the residual norm:

    .. math::
        (I + J(x_k))\, d_k \approx -r_k, \qquad x_{k+1} = x_k + \lambda_k d_k,

    where GMRES solves for :math:`d_k` from Jacobian–vector products alone. It needs no contraction: it is
    for relaxed layers, on which Picard and Anderson iterations may diverge. The residual never grows from one
    accepted iterate to the next; where it has a local minimum that is not a solution, the sample stops and is
    reported as failed.

    The linear systems are solved to the forcing terms of Eisenstat and Walker (their choice 2), so that early
    directions are cheap and the last steps converge superlinearly.

    Args:
        max_evaluations: most evaluations per sample, where a Jacobian–vector product counts as one.
        tolerance: relative residual at which a sample is solved; see
            :class:`~invertible_attention.solvers.Solver`.
        krylov_dimension: most products for one direction. Each keeps a vector of the size of the iterate.
        forcing: relative residual of the first linear system, and the upper limit of the others.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Eisenstat and Walker, *Choosing the forcing terms in an inexact Newton method*, SIAM J. Sci. Comput. 17,
        1996. Knoll and Keyes, *Jacobian-free Newton–Krylov methods*, J. Comput. Phys. 193, 2004.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
        >>> branch = lambda x: 3 * x + x.sin()  # Picard diverges: the Lipschitz constant is 4
        >>> x = NewtonKrylov().solve(branch, z).check().value
        >>> bool((x + branch(x) - z).norm() < 1e-11)
        True
    """

    max_evaluations: int | None = 300
    krylov_dimension: int = field(default=40, kw_only=True)
    forcing: float = field(default=0.3, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_evaluations", self.max_evaluations)
        check_count("krylov_dimension", self.krylov_dimension)
        check_number("forcing", self.forcing, high=0.9)

    def start(self, problem: Problem) -> _State:
        """Return the state before the first iterate is accepted."""
        z = problem.z
        infinite = torch.full((z.shape[0],), torch.inf, dtype=wide_dtype(z.device), device=z.device)
        forcing = torch.full_like(infinite, self.forcing)
        return _State(z, infinite, torch.zeros_like(z), torch.ones_like(infinite), forcing)

    def step(
        self,
        problem: Problem,
        state: _State,
        progress: Progress,
        budget: Callable[[], Int[Tensor, " active"]],
    ) -> Step:
        """Return the full Newton step from an accepted iterate, a shorter one along the same direction otherwise."""
        # A direction from GMRES promises the decrease (1 - forcing) per unit of length, to first order.
        promised = _SUFFICIENT_DECREASE * state.length * (1 - state.forcing)
        accepted = progress.norm <= (1 - promised) * state.norm
        rejected = ~accepted
        length = torch.where(rejected, state.length * _backtrack(state, progress.norm), state.length)
        stuck = rejected & (length < _SMALLEST_STEP)
        state = replace(state, length=length)
        left = budget()
        evaluations = torch.zeros_like(left)
        samples = accepted.nonzero().flatten()
        if samples.numel() > 0:
            state, evaluations, lost = self._new_directions(problem, state, progress, left, samples)
            stuck[samples] |= lost
        x = state.x + state.length.to(state.x.dtype)[:, None] * state.direction
        return Step(x, state, evaluations=evaluations, iterations=accepted.to(torch.int64), stuck=stuck)

    def _new_directions(
        self,
        problem: Problem,
        state: _State,
        progress: Progress,
        budget: Int[Tensor, " active"],
        samples: Int[Tensor, " accepted"],
    ) -> tuple[_State, Int[Tensor, " active"], Bool[Tensor, " accepted"]]:
        """Solve the linear systems of ``samples``, whose newest iterates were accepted."""
        here, before = select(progress, samples), select(state, samples)
        part = problem.select(samples)
        forcing = self._forcing(part, here.norm, before)
        product = JacobianProduct(part, here.x, here.residual - (here.x - part.z))
        # One evaluation is kept for the iterate the direction leads to.
        limit = (budget[samples] - 1).clamp(max=min(self.krylov_dimension, part.z.shape[1]))

        # Of a fixed map, whose multiples add up to the direction.
        about = part.preconditioner(here.x, fixed=True)

        def preconditioned(vectors: Tensor, rows: Tensor) -> Tensor:
            vectors = about(vectors, rows)
            return vectors + product(vectors, rows)

        # Preconditioned from the right: the residual that GMRES reports is that of the system itself.
        linear = gmres(
            preconditioned,
            -here.residual,
            tolerance=forcing,
            limit=limit,
        )
        # Without any decrease there is no direction: the system is singular, or the budget is spent.
        lost = ~(linear.residual < 1)
        state = replace(
            state,
            x=_put(state.x, samples, here.x),
            norm=_put(state.norm, samples, here.norm),
            direction=_put(state.direction, samples, about(linear.x)),
            length=_put(state.length, samples, torch.ones_like(here.norm)),
            forcing=_put(state.forcing, samples, linear.residual),
        )
        return state, torch.zeros_like(budget).index_put((samples,), linear.products), lost

    def _forcing(
        self, problem: Problem, norm: Float[Tensor, " accepted"], before: _State
    ) -> Float[Tensor, " accepted"]:
        """Return the relative residuals to solve the next linear systems to."""
        forcing = 0.9 * (norm / before.norm) ** 2
        # Choice 2 with its safeguard: no sudden drop while the steps are still far from quadratic.
        floor = 0.9 * before.forcing**2
        forcing = torch.where(floor > 0.1, torch.maximum(forcing, floor), forcing)
        forcing = torch.where(before.norm.isinf(), self.forcing, forcing)
        # Solving beyond what the tolerance asks for would be wasted.
        enough = 0.5 * problem.tolerance * (1 + sample_norm(problem.z)) / norm
        return torch.maximum(forcing, enough).clamp(max=self.forcing)


def _put(whole: Tensor, samples: Int[Tensor, " accepted"], part: Tensor) -> Tensor:
    """Return ``whole`` with the entries of ``samples`` replaced."""
    return whole.index_copy(0, samples, part)


def _backtrack(state: _State, norm: Float[Tensor, " active"]) -> Float[Tensor, " active"]:
    """Return the factor by which to shorten a rejected step: the minimum of a quadratic in the squared norm."""
    slope = (1 - state.forcing) * state.length
    factor = slope / ((norm / state.norm) ** 2 - 1 + 2 * slope)
    return factor.nan_to_num(nan=0.1).clamp(0.1, 0.5)
