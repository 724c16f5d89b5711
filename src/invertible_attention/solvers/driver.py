"""The loop all solvers share: evaluate, let finished samples go, step, until no sample is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._precision import working_dtype
from invertible_attention.solvers.batched import all_on_cpu, sample_norm
from invertible_attention.solvers.problem import Branch, Count, Problem, Progress, select, update
from invertible_attention.solvers.record import Record, relative_residual
from invertible_attention.solvers.solution import Solution

__all__ = ["Method", "Step", "drive"]

_STALLED_EVALUATIONS = 10


@dataclass(frozen=True)
class Step:
    """What a solver proposes next, per active sample.

    Args:
        x: where to evaluate next.
        state: the solver's state after the step: a dataclass of tensors with one entry per sample, or ``None``.
        evaluations: branch evaluations (Jacobian products) spent inside the step; ``None`` for none.
        iterations: what the step adds to the count of iterations; ``None`` for 1.
        stuck: samples for which the solver has nothing left to try; ``None`` for none.
    """

    x: Float[Tensor, "active features"]
    state: Any
    evaluations: Int[Tensor, " active"] | None = None
    iterations: Int[Tensor, " active"] | None = None
    stuck: Bool[Tensor, " active"] | None = None


@runtime_checkable
class Method(Protocol):
    """What the loop needs of a solver; :class:`~invertible_attention.solvers.Solver` says what each does."""

    def start(self, problem: Problem) -> Any:
        """Return the state before the first evaluation."""
        ...

    def step(
        self, problem: Problem, state: Any, progress: Progress, budget: Callable[[], Int[Tensor, " active"]]
    ) -> Step:
        """Return the next iterate."""
        ...

    def first_guess(self, problem: Problem) -> Float[Tensor, "active features"] | None:
        """Return the first iterate; ``None`` for :math:`z`."""
        ...

    def evaluation_limit(
        self, residual: Float[Tensor, " active"], problem: Problem
    ) -> Int[Tensor, " active"]:
        """Return the most evaluations per sample."""
        ...

    def least_evaluation_limit(self) -> int:
        """Return what no such limit is below."""
        ...


@dataclass(frozen=True)
class _Status:
    """Counts of the active samples, and which of them are done.

    Counts that are the same for all samples are integers.

    Args:
        evaluations: spent so far.
        iterations: steps so far.
        scale: ``1 + ‖z‖``, what residuals are relative to.
        first: relative residual at the first guess.
        residual: relative residual at the newest iterate.
        solved: samples whose newest iterate is a solution.
        done: samples to let go, solved or not.
    """

    evaluations: Count
    iterations: Count
    scale: Float[Tensor, " active"]
    first: Float[Tensor, " active"]
    residual: Float[Tensor, " active"]
    solved: Bool[Tensor, " active"]
    done: Bool[Tensor, " active"]


@dataclass
class _Run:
    """The active samples of one solve, and everything known about them."""

    solver: Method
    record: Record
    active: Int[Tensor, " active"]
    problem: Problem
    progress: Progress
    status: _Status
    state: Any
    rounds: int = 0

    def evaluate(self, x: Float[Tensor, "active features"]) -> None:
        """Evaluate the branch at ``x`` and judge every sample by its residual."""
        problem, status = self.problem, self.status
        residual, distance = problem.residual(x)
        self.progress = progress = self.progress.advance(x, residual)
        residual = relative_residual(progress.norm, distance, status.scale, x.dtype)
        self.rounds += 1
        solved = residual <= problem.tolerance
        done = solved if problem.tolerance > 0 else torch.zeros_like(solved)
        if not progress.newest_is_best:
            done = done | progress.best_norm.isinf()
        if problem.tolerance > 0 and self.rounds > _STALLED_EVALUATIONS:
            done = done | self._rounding_dominates()
        self.status = replace(
            status,
            evaluations=status.evaluations + 1,
            first=residual if self.rounds == 1 else status.first,
            residual=residual,
            solved=solved,
            done=done,
        )
        if self._may_be_spent():
            self.status = replace(self.status, done=done | (self._budget() <= 0))
        self.record.trace(self.active, self.status.evaluations, residual)

    def judge_guess(self) -> Float[Tensor, "active features"]:
        """Return where the samples are after another start at ``z`` of those whose guess is no use."""
        poor = ~(self.status.residual <= 1)
        if self._may_be_spent():
            poor &= self._budget() > 0
        index = poor.nonzero().flatten()
        if index.numel() > 0:
            part = replace(
                self,
                active=self.active[index],
                problem=self.problem.select(index),
                progress=select(self.progress, index),
                status=select(self.status, index),
            )
            part.evaluate(part.problem.z.clone())
            self.rounds = part.rounds
            self.progress = update(self.progress, index, part.progress)
            self.status = update(self.status, index, part.status)
        return self.progress.x

    def _budget(self) -> Int[Tensor, " active"]:
        """Return how many evaluations each sample has left."""
        return self.solver.evaluation_limit(self.status.first, self.problem) - self.status.evaluations

    def _may_be_spent(self) -> bool:
        """Return whether a sample may have none left, without asking every time what the limit of each is."""
        evaluations = self.status.evaluations
        return isinstance(evaluations, Tensor) or evaluations >= self.solver.least_evaluation_limit()

    def _rounding_dominates(self) -> Bool[Tensor, " active"]:
        """Return for which samples more evaluations would only draw other roundings of the same point."""
        progress, scale = self.progress, self.status.scale
        distance = sample_norm(progress.best_x - self.problem.z)
        floor = 4 * torch.finfo(progress.best_x.dtype).eps * (distance + 2 * scale)
        return (progress.best_norm <= floor) & (progress.stalled >= _STALLED_EVALUATIONS)

    def step(self) -> Tensor:
        """Let the solver propose the next iterate, and return it for the samples that are not stuck."""
        status = self.status
        step = self.solver.step(self.problem, self.state, self.progress, self._budget)
        self.state = step.state
        self.status = replace(
            status,
            evaluations=status.evaluations + (0 if step.evaluations is None else step.evaluations),
            iterations=status.iterations + (1 if step.iterations is None else step.iterations),
            done=status.done if step.stuck is None else step.stuck,
        )
        # Only a solver that has samples that are stuck says so: what was done before the step has left.
        return step.x if step.stuck is None else self.release(step.x)

    def release(self, x: Float[Tensor, "active features"]) -> Float[Tensor, "kept features"]:
        """Let the samples that are done leave the batch, and return what is left of ``x``."""
        done = self.status.done.nonzero()
        if done.numel() == 0:
            return x
        if done.numel() == self.active.numel():
            self._finish(self.active, self.progress, self.status)
            self.active = self.active[:0]
            return x[:0]
        done = done.flatten()
        self._finish(self.active[done], select(self.progress, done), select(self.status, done))
        keep = (~self.status.done).nonzero().flatten()
        self.active, self.problem = self.active[keep], self.problem.select(keep)
        self.progress, self.status = select(self.progress, keep), select(self.status, keep)
        self.state = None if self.state is None else select(self.state, keep)
        return x[keep]

    def _finish(self, samples: Int[Tensor, " done"], progress: Progress, status: _Status) -> None:
        self.record.finish(
            samples,
            progress,
            converged=status.solved,
            residual=status.residual,
            evaluations=status.evaluations,
            iterations=status.iterations,
        )


def drive(
    solver: Method,
    branch: Branch,
    z: Float[Tensor, "batch *event"],
    args: tuple[Tensor | None, ...],
    tolerance: float,
    contraction: float | None,
) -> Solution:
    """Run ``solver`` on every sample of ``z`` until each is solved or has failed.

    Samples that are not finite are never evaluated: they could not be solved, and a branch that mixes
    entries of a batch in one kernel call is spared them.
    """
    flat = z.reshape(z.shape[0], math.prod(z.shape[1:])).to(working_dtype(z.dtype))
    problem = Problem(branch, flat, args, tuple(z.shape[1:]), contraction, tolerance)
    norm = sample_norm(flat)
    record = Record(z, flat, norm, contraction)
    finite = norm < torch.inf
    # Norms of finite samples can overflow.
    finite = finite if all_on_cpu(finite) else torch.isfinite(flat).all(dim=1)
    active = finite.nonzero().flatten()
    if len(active) < len(flat):
        problem, norm = problem.select(active), norm[active]
    scale = 1 + norm
    status = _Status(0, 0, scale, first=scale, residual=scale, solved=finite, done=finite)
    run = _Run(solver, record, active, problem, Progress.start(problem.z), status, solver.start(problem))
    guess = solver.first_guess(problem)
    x = problem.z.clone() if guess is None else guess
    while run.active.numel() > 0:
        run.evaluate(x)
        if guess is not None:
            guess, x = None, run.judge_guess()
        x = run.release(x)
        if run.active.numel() > 0:
            x = run.step()
    return record.solution()
