"""Anderson acceleration, safeguarded so that a contraction is always solved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.base import Solver, check_count, check_number
from invertible_attention.solvers.batched import choose, inner_products, sample_norm, wide_dtype
from invertible_attention.solvers.driver import Step
from invertible_attention.solvers.problem import Problem, Progress

__all__ = ["Anderson"]

_SHRINK = 0.999
_GROWTH = 1e3
# A preconditioned step that shrinks the residual by this needs no help from differences, which were taken elsewhere.
_FAST = 0.7
_MOST_TRUST = 3


@dataclass(frozen=True)
class _State:
    """What Anderson remembers of each active sample.

    Args:
        x_differences: differences of successive iterates, each divided by the norm of its residual difference.
        residual_differences: differences of successive residuals, scaled to norm 1: the least-squares problem
            is then well scaled however far the residuals have fallen.
        used: how many of the places for differences were written to, the same for all samples.
        gram: inner products of the residual differences, regularized; those in use are apart from the others.
        valid: which of the differences are in use.
        cursor: where the next difference goes, the same for all samples.
        started: whether there was a first step.
        x: the iterate the next difference is taken from.
        residual: the residual there.
        best: the smallest residual norm before the newest evaluation.
        extrapolated: whether the newest iterate came from the least-squares problem or the preconditioner.
        trust: how many fallbacks the preconditioner may still lead to before it is given up: one at first, one more for
            each step that helped.
        unimproved: evaluations since the residual last shrank enough, or since the last fallback.
        picard_steps: Picard steps taken from the present best iterate.
    """

    x_differences: Float[Tensor, "active memory features"]
    residual_differences: Float[Tensor, "active memory features"]
    used: int
    gram: Float[Tensor, "active memory memory"]
    valid: Bool[Tensor, "active memory"]
    cursor: int
    started: bool
    x: Float[Tensor, "active features"]
    residual: Float[Tensor, "active features"]
    best: Float[Tensor, " active"]
    extrapolated: Bool[Tensor, " active"]
    trust: Int[Tensor, " active"]
    unimproved: Int[Tensor, " active"]
    picard_steps: Int[Tensor, " active"]


@dataclass(frozen=True)
class Anderson(Solver):
    r"""Type-II Anderson acceleration of the Picard iteration, the default solver.

    With residuals :math:`r_k = x_k + g(x_k) - z` and the last :math:`m` differences of iterates and residuals
    as columns of :math:`\Delta X, \Delta R`,

    .. math::
        \gamma = \arg\min_\gamma \|r_k - \Delta R\,\gamma\|^2 + \lambda\|\gamma\|^2, \qquad
        x_{k+1} = x_k - \Delta X\,\gamma - P\,(r_k - \Delta R\,\gamma),

    where :math:`P` is the branch's preconditioner if it has one, else the identity, and
    with the columns of :math:`\Delta R` scaled to norm 1, so that :math:`\lambda` is relative. The regularized
    system is never singular: constant branches, fewer dimensions than differences and repeated iterates
    are ordinary cases.

    **Safeguard.** When the accelerated iterates of a sample do not shrink its residual, the sample forgets its
    differences and takes a Picard step from its best iterate. The preconditioner is given up for a sample at the first
    such fallback, or after as many more, up to three, as its steps helped.

    - With a certificate :math:`c < 1` an accelerated iterate is kept only if it shrinks the smallest residual so
      far by :math:`\sqrt c`; otherwise the Picard step, which shrinks it by :math:`c`, comes next. Any :math:`n`
      evaluations therefore shrink it at least by :math:`c^{(n-1)/2}`, and the tolerance is reached within
      :math:`2 + 2\lceil\log(\text{tol}/\text{res}_0)/\log c\rceil` evaluations, in practice far fewer.
    - Without one the residual may rise for a few evaluations, which branches that are not contractions need. On a
      contraction the Picard step still comes at least every :math:`m + 2` evaluations, so it is solved too.
    - Where even the Picard step fails the branch is no contraction, and nothing is promised: acceleration continues,
      and starts again from the best iterate with half the step when the residual has grown a thousandfold.

    Args:
        max_evaluations: most evaluations per sample; see :class:`~invertible_attention.solvers.Solver`.
        tolerance: relative residual at which a sample is solved; see the same.
        memory: number :math:`m` of differences kept, each the size of two iterates.
        regularization: :math:`\lambda`, relative to the squared norm of a column.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Walker and Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 49, 2011.

    Example:
        >>> import torch
        >>> z = torch.linspace(-3, 3, 8, dtype=torch.float64).reshape(2, 4)
        >>> solution = Anderson().solve(lambda x: 0.9 * x.roll(1, 1).tanh(), z, lipschitz=0.9)
        >>> x = solution.value
        >>> bool((x + 0.9 * x.roll(1, 1).tanh() - z).norm() < 1e-11), bool((solution.evaluations < 25).all())
        (True, True)
    """

    memory: int = field(default=5, kw_only=True)
    regularization: float = field(default=1e-10, kw_only=True)

    evaluations_per_contraction: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("memory", self.memory)
        check_number("regularization", self.regularization)

    def start(self, problem: Problem) -> _State:
        """Return an empty history."""
        z = problem.z
        batch, features = z.shape
        wide = {"dtype": wide_dtype(z.device), "device": z.device}
        count = torch.zeros(batch, dtype=torch.int64, device=z.device)
        return _State(
            # Memory that is not written to costs nothing, and many solves end before there is a difference.
            x_differences=z.new_empty(batch, self.memory, features),
            residual_differences=z.new_empty(batch, self.memory, features),
            used=0,
            gram=torch.eye(self.memory, **wide).repeat(batch, 1, 1),
            valid=torch.zeros(batch, self.memory, dtype=torch.bool, device=z.device),
            cursor=0,
            started=False,
            x=z,
            residual=z,
            best=torch.full((batch,), torch.inf, **wide),
            extrapolated=count.bool(),
            trust=torch.full_like(count, int(problem.has_preconditioner)),
            unimproved=count,
            picard_steps=count,
        )

    def step(
        self, problem: Problem, state: _State, progress: Progress, budget: Int[Tensor, " active"]
    ) -> Step:
        """Return the accelerated iterate, or the Picard step from the best one where acceleration fails."""
        if not state.started:
            return self._first_step(problem, state, progress)
        state, products = self._remember(state, progress)
        state, fallback = self._judge(state, progress, problem)
        used = state.used
        gamma, _ = torch.linalg.solve_ex(state.gram[:, :used, :used], products)
        # With regularization=0 the system can be singular: then the sample takes a plain Picard step.
        gamma = torch.nan_to_num(gamma, nan=0.0, posinf=0.0, neginf=0.0).to(problem.z.dtype)[:, None]
        if problem.has_preconditioner:
            # Nor does the second step: the one difference there is spans the kinks that the first step crossed.
            fast = (progress.norm <= _FAST * state.best) | (state.valid.sum(1) < 2)
            slow = ~((state.trust > 0) & fast)
            gamma = gamma * slow[:, None, None]
        explained = torch.bmm(gamma, state.residual_differences[:, :used])[:, 0]
        x = progress.x - progress.residual
        x -= torch.bmm(gamma, state.x_differences[:, :used])[:, 0] - explained
        if problem.has_preconditioner:
            remainder = progress.residual - explained
            preconditioned = problem.preconditioner(progress.x)(remainder)
            x = choose(state.trust > 0, x + (remainder - preconditioned), x)
            state = replace(state, trust=state.trust * (preconditioned != remainder).any(dim=1))
        state = replace(state, x=progress.x, residual=progress.residual)
        # Asking a CPU costs less than doing it for no sample; another device would have to be waited for.
        if fallback.device.type != "cpu" or bool(fallback.any()):
            x, state = _fall_back(x, state, progress, fallback[:, None])
        extrapolated = (state.valid.any(dim=1) | (state.trust > 0)) & ~fallback
        state = replace(
            state,
            best=progress.best_norm,
            extrapolated=extrapolated,
            picard_steps=state.picard_steps + ~extrapolated,
        )
        return Step(x, state)

    def _first_step(self, problem: Problem, state: _State, progress: Progress) -> Step:
        """Return the step from the first iterate, where there are no differences yet."""
        residual = progress.residual
        step = problem.preconditioner(progress.x)(residual)
        trust = state.trust
        if problem.has_preconditioner:
            # There is none where it gives back what it was given: what is left is plain acceleration.
            trust = trust * (step != residual).any(dim=1)
        state = replace(
            state,
            started=True,
            x=progress.x,
            residual=residual,
            best=progress.best_norm,
            trust=trust,
            extrapolated=trust > 0,
            picard_steps=1 - trust,
        )
        return Step(progress.x - step, state)

    def _judge(
        self, state: _State, progress: Progress, problem: Problem
    ) -> tuple[_State, Bool[Tensor, " active"]]:
        """Return which samples must fall back on a Picard step, having counted what they did."""
        contraction = problem.contraction
        shrink, patience = (_SHRINK, self.memory + 1) if contraction is None else (math.sqrt(contraction), 1)
        enough = torch.where(state.extrapolated, shrink * state.best, state.best)
        improved = progress.norm < enough
        unimproved = torch.where(improved, 0, state.unimproved + 1)
        picard_steps = torch.where(improved, 0, state.picard_steps)
        fallback = state.extrapolated & (unimproved >= patience) & (picard_steps == 0)
        fallback |= (progress.norm > _GROWTH * progress.best_norm) | (progress.norm == math.inf)
        unimproved = torch.where(fallback, 0, unimproved)
        state = replace(state, unimproved=unimproved, picard_steps=picard_steps)
        if not problem.has_preconditioner:
            return state, fallback
        helped = improved & state.extrapolated & (state.trust > 0)
        trust = (state.trust + helped).clamp(max=_MOST_TRUST)
        trust = torch.where(fallback, (trust - 1).clamp(min=0), trust)
        return replace(state, trust=trust), fallback

    def _remember(self, state: _State, progress: Progress) -> tuple[_State, Float[Tensor, "active used"]]:
        """Add the newest difference, in place of the oldest; return the products of all with the newest residual."""
        difference = progress.residual - state.residual
        norm = sample_norm(difference)
        usable = (norm > 0) & (norm < math.inf) & (state.best < math.inf)
        absent = ~usable[:, None]
        scale = norm[:, None].masked_fill(absent, 1.0).to(difference.dtype)
        newest = (difference / scale).masked_fill_(absent, 0.0)
        cursor = state.cursor
        used = max(state.used, cursor + 1)
        # The history is large: it is the one thing that is updated in place.
        state.x_differences[:, cursor] = ((progress.x - state.x) / scale).masked_fill_(absent, 0.0)
        state.residual_differences[:, cursor] = newest
        state.valid[:, cursor] = usable
        products = inner_products(
            state.residual_differences[:, :used], torch.stack([newest, progress.residual], dim=1)
        )
        products *= state.valid[:, :used, None]
        column = products[:, :, 0]
        column[:, cursor] += self.regularization
        state.gram[:, cursor, :used] = state.gram[:, :used, cursor] = column
        return replace(state, used=used, cursor=(cursor + 1) % self.memory), products[:, :, 1]


def _fall_back(
    x: Float[Tensor, "active features"], state: _State, progress: Progress, samples: Bool[Tensor, "active 1"]
) -> tuple[Float[Tensor, "active features"], _State]:
    """Let samples take a Picard step from their best iterate instead, and forget their differences."""
    # The first from an iterate is a full one; when the sample comes back to it, half as long.
    damping = torch.exp2(-state.picard_steps.to(x.dtype))[:, None]
    x = torch.where(samples, progress.best_x - damping * progress.best_residual, x)
    return x, replace(
        state,
        x=torch.where(samples, progress.best_x, state.x),
        residual=torch.where(samples, progress.best_residual, state.residual),
        valid=state.valid & ~samples,
    )
