"""Anderson acceleration, safeguarded so that a contraction is always solved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.base import Solver, check_count, check_number
from invertible_attention.solvers.batched import all_on_cpu, choose, inner_products, sample_norm
from invertible_attention.solvers.driver import Step
from invertible_attention.solvers.problem import Count, Problem, Progress

__all__ = ["Anderson"]

_SHRINK = 0.999
_GROWTH = 1e3
# A preconditioned step that shrinks the residual by this needs no help from differences, which were taken elsewhere.
_FAST = 0.7
_MOST_TRUST = 3


@dataclass(frozen=True)
class _State:
    """What Anderson remembers of each active sample.

    As long as all samples fare alike, what is counted of them are numbers; tensors once they do not.

    Args:
        residuals: the newest residual, then differences of successive ones. Each difference is divided by its norm: the
            least-squares problem is then well scaled however far the residuals have fallen. Those that are not in use
            are zero.
        iterates: differences of the iterates of these residuals, divided by the same norms.
        written: how many of the places for differences were written to.
        cursor: where the next difference goes.
        x: the iterate that the next difference is taken from.
        residual: the residual there.
        best: the smallest residual norm before the newest evaluation.
        extrapolated: whether the newest iterate came from the least-squares problem or the preconditioner.
        trust: how many fallbacks the preconditioner may still lead to before it is given up: one at first, one more for
            each step that helped.
        unimproved: evaluations since the residual last shrank enough, or since the last fallback.
        picard_steps: Picard steps taken from the present best iterate.
    """

    residuals: Float[Tensor, "active places features"]
    iterates: Float[Tensor, "active memory features"]
    written: int
    cursor: int
    x: Float[Tensor, "active features"]
    residual: Float[Tensor, "active features"]
    best: Float[Tensor, " active"]
    extrapolated: Bool[Tensor, " active"] | bool
    trust: Count
    unimproved: Count
    picard_steps: Count

    @property
    def alike(self) -> bool:
        """Whether all samples have fared alike."""
        return isinstance(self.extrapolated, bool)

    @property
    def trusting(self) -> bool:
        """Whether the preconditioner may be trusted with a sample."""
        return isinstance(self.trust, Tensor) or self.trust > 0

    def apart(self) -> _State:
        """Return the state with a count for each sample."""

        def each(value: Count, dtype: torch.dtype = torch.int64) -> Tensor:
            return value if isinstance(value, Tensor) else torch.full_like(self.best, value, dtype=dtype)

        return replace(
            self,
            extrapolated=each(self.extrapolated, torch.bool),
            trust=each(self.trust),
            unimproved=each(self.unimproved),
            picard_steps=each(self.picard_steps),
        )


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

    def start(self, problem: Problem) -> None:
        """Return nothing: there is nothing to remember before the first evaluation."""

    def step(
        self,
        problem: Problem,
        state: _State | None,
        progress: Progress,
        budget: Callable[[], Int[Tensor, " active"]],
    ) -> Step:
        """Return the accelerated iterate, or the Picard step from the best one where acceleration fails."""
        if state is None:
            return self._first_step(problem, progress)
        state = self._remember(state, progress)
        state, fallback = self._judge(state, progress, problem)
        gamma, in_use = self._coefficients(state, progress, problem)
        x, residual = progress.x, progress.residual
        if gamma is not None:
            x = _subtract(x, gamma, state.iterates[:, : state.written])
            residual = _subtract(residual, gamma, state.residuals[:, 1 : state.written + 1])
        x, state = _correct(x, residual, state, progress, problem)
        state = replace(state, x=progress.x, residual=progress.residual, best=progress.best_norm)
        if state.alike:
            return Step(x, replace(state, extrapolated=True))
        extrapolated = (in_use > 0) | (state.trust > 0)
        # Asking a CPU costs less than doing it for no sample; another device would have to be waited for.
        if fallback is not None and (fallback.device.type != "cpu" or bool(fallback.any())):
            x, state = _fall_back(x, state, progress, fallback[:, None])
            extrapolated &= ~fallback
        picard_steps = state.picard_steps + ~extrapolated
        return Step(x, replace(state, extrapolated=extrapolated, picard_steps=picard_steps))

    def _first_step(self, problem: Problem, progress: Progress) -> Step:
        """Return the step from the first iterate, where there are no differences yet."""
        residual = progress.residual
        batch, features = residual.shape
        state = _State(
            # Memory that is not written to costs nothing, and many solves end before there is a difference.
            residuals=residual.new_empty(batch, 1 + self.memory, features),
            iterates=residual.new_empty(batch, self.memory, features),
            written=0,
            cursor=0,
            x=progress.x,
            residual=residual,
            best=progress.best_norm,
            extrapolated=problem.has_preconditioner,
            trust=int(problem.has_preconditioner),
            unimproved=0,
            picard_steps=int(not problem.has_preconditioner),
        )
        x, state = _correct(progress.x, residual, state, progress, problem)
        if not state.alike:
            state = replace(state, extrapolated=state.trust > 0, picard_steps=1 - state.trust)
        return Step(x, state)

    def _remember(self, state: _State, progress: Progress) -> _State:
        """Write the newest residual, and the newest difference in place of the oldest."""
        difference = progress.residual - state.residual
        norm = sample_norm(difference)
        usable = (norm > 0) & (norm < torch.inf)
        absent = None if all_on_cpu(usable) else ~usable[:, None]
        scale = norm[:, None] if absent is None else norm[:, None].masked_fill(absent, 1.0)
        scale = scale.to(difference.dtype)
        # The history is large: it is the one thing that is updated in place.
        state.residuals[:, 0] = progress.residual
        place = state.cursor
        written = max(state.written, place + 1)
        for history, newest in (
            (state.residuals[:, place + 1], difference),
            (state.iterates[:, place], progress.x - state.x),
        ):
            scaled = newest / scale
            history.copy_(scaled if absent is None else scaled.masked_fill_(absent, 0.0))
        state = replace(state, written=written, cursor=(place + 1) % self.memory)
        return state if absent is None else state.apart()

    def _judge(
        self, state: _State, progress: Progress, problem: Problem
    ) -> tuple[_State, Bool[Tensor, " active"] | None]:
        """Return which samples must fall back on a Picard step, ``None`` if none has to; count what they did."""
        contraction = problem.contraction
        shrink, patience = (_SHRINK, self.memory + 1) if contraction is None else (math.sqrt(contraction), 1)
        if state.alike:
            if all_on_cpu(progress.norm < (shrink * state.best if state.extrapolated else state.best)):
                trust = (
                    min(state.trust + 1, _MOST_TRUST)
                    if state.extrapolated and state.trusting
                    else state.trust
                )
                return replace(state, unimproved=0, picard_steps=0, trust=trust), None
            state = state.apart()
        enough = torch.where(cast(Tensor, state.extrapolated), shrink * state.best, state.best)
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

    def _coefficients(
        self, state: _State, progress: Progress, problem: Problem
    ) -> tuple[Float[Tensor, "active 1 written"] | None, Count]:
        """Return what to subtract of each difference, ``None`` for nothing, and how many of them are in use."""
        written = state.written
        fast = None
        if problem.has_preconditioner:
            fast = progress.norm <= _FAST * state.best
            # Nor does the second step: the one difference there is spans the kinks that the first step crossed.
            if state.alike and state.trusting and (written < 2 or all_on_cpu(fast)):
                return None, written
        products = inner_products(state.residuals[:, : written + 1])
        gram, right = products[:, 1:, 1:], products[:, 1:, :1]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        in_use = written
        if not state.alike:
            # A place that is not in use is apart from the others.
            unused = diagonal == 0
            in_use = written - unused.sum(1)
            diagonal += unused
        diagonal += self.regularization
        gamma, _ = torch.linalg.solve_ex(gram, right)
        # With regularization=0 the system can be singular: then the sample takes a plain Picard step.
        gamma = gamma.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(progress.x.dtype).mT
        if fast is not None:
            gamma = gamma * ~((state.trust > 0) & (fast | (in_use < 2)))[:, None, None]
        return gamma, in_use


def _subtract(
    x: Float[Tensor, "active features"],
    gamma: Float[Tensor, "active 1 written"],
    differences: Float[Tensor, "active written features"],
) -> Float[Tensor, "active features"]:
    """Return ``x`` without a combination of differences."""
    return torch.baddbmm(x[:, None], gamma, differences, alpha=-1)[:, 0]


def _correct(
    x: Float[Tensor, "active features"],
    residual: Float[Tensor, "active features"],
    state: _State,
    progress: Progress,
    problem: Problem,
) -> tuple[Float[Tensor, "active features"], _State]:
    """Subtract the residual from ``x``, preconditioned where that is trusted."""
    if not (problem.has_preconditioner and state.trusting):
        return x - residual, state
    preconditioned = problem.preconditioner(progress.x)(residual)
    # There is none where it gives back what it was given: what is left is plain acceleration.
    known = (preconditioned != residual).any(dim=1)
    if state.alike and all_on_cpu(known):
        return x - preconditioned, state
    state = state.apart()
    x = x - choose(cast(Tensor, state.trust) > 0, preconditioned, residual)
    return x, replace(state, trust=state.trust * known)


def _fall_back(
    x: Float[Tensor, "active features"], state: _State, progress: Progress, samples: Bool[Tensor, "active 1"]
) -> tuple[Float[Tensor, "active features"], _State]:
    """Let samples take a Picard step from their best iterate instead, and forget their differences."""
    # The first from an iterate is a full one; when the sample comes back to it, half as long.
    damping = torch.exp2(-cast(Tensor, state.picard_steps).to(x.dtype))[:, None]
    x = torch.where(samples, progress.best_x - damping * progress.best_residual, x)
    for history in (state.residuals[:, 1 : state.written + 1], state.iterates[:, : state.written]):
        history.masked_fill_(samples[:, None], 0.0)
    return x, replace(
        state,
        x=torch.where(samples, progress.best_x, state.x),
        residual=torch.where(samples, progress.best_residual, state.residual),
    )
