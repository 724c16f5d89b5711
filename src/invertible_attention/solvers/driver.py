"""The loop all solvers share: evaluate, let finished samples go, step, until no sample is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._precision import working_dtype
from invertible_attention.solvers.batched import choose, sample_norm
from invertible_attention.solvers.problem import Branch, Problem, Progress, select
from invertible_attention.solvers.record import Record, relative_residual
from invertible_attention.solvers.solution import Solution

__all__ = ["Method", "Step", "drive"]

_STALLED_EVALUATIONS = 10


@dataclass(frozen=True)
class Step:
    """What a solver proposes next, per active sample.

    Args:
        x: where to evaluate next.
        state: the solver's state after the step: a dataclass of tensors with one entry per sample.
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

    def step(self, problem: Problem, state: Any, progress: Progress, budget: Int[Tensor, " active"]) -> Step:
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


@dataclass(frozen=True)
class _Status:
    """Counts of the active samples, and which of them are done.

    Args:
        evaluations: spent so far.
        iterations: steps so far.
        limit: most evaluations.
        scale: ``1 + ‖z‖``, what residuals are relative to.
        residual: relative residual at the newest iterate.
        solved: samples whose newest iterate is a solution.
        done: samples to let go, solved or not.
    """

    evaluations: Int[Tensor, " active"]
    iterations: Int[Tensor, " active"]
    limit: Int[Tensor, " active"]
    scale: Float[Tensor, " active"]
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
        evaluations = status.evaluations + 1
        limit = status.limit if self.rounds else self.solver.evaluation_limit(residual, problem)
        self.rounds += 1
        solved = residual <= problem.tolerance
        done = (evaluations >= limit) | progress.best_norm.isinf()
        if problem.tolerance > 0:
            done |= solved
            if self.rounds > _STALLED_EVALUATIONS:
                done |= self._rounding_dominates()
        self.status = replace(
            status,
            evaluations=evaluations,
            limit=limit,
            residual=residual,
            solved=solved,
            done=done,
        )
        self.record.trace(self.active, evaluations, residual)

    def judge_guess(self, x: Float[Tensor, "active features"]) -> Float[Tensor, "active features"]:
        """Return where the samples are after another start at ``z`` for those whose guess is no use."""
        poor = ~(self.status.residual <= 1) & (self.status.evaluations < self.status.limit)
        if not bool(poor.any()):
            return x
        x = choose(poor, self.problem.z, x)
        self.evaluate(x)
        return x

    def _rounding_dominates(self) -> Bool[Tensor, " active"]:
        """Return for which samples more evaluations would only draw other roundings of the same point."""
        progress, scale = self.progress, self.status.scale
        distance = sample_norm(progress.best_x - self.problem.z)
        floor = 4 * torch.finfo(progress.best_x.dtype).eps * (distance + 2 * scale)
        return (progress.best_norm <= floor) & (progress.stalled >= _STALLED_EVALUATIONS)

    def step(self) -> Tensor:
        """Let the solver propose the next iterate, and return it for the samples that are not stuck."""
        status = self.status
        step = self.solver.step(self.problem, self.state, self.progress, status.limit - status.evaluations)
        self.state = step.state
        self.record.even &= step.evaluations is None
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
        done = self.status.done.nonzero().flatten()
        if done.numel() == 0:
            return x
        if done.numel() == self.active.numel():
            self._finish(self.active, self.progress, self.status)
            self.active = self.active[:0]
            return x[:0]
        self._finish(self.active[done], select(self.progress, done), select(self.status, done))
        keep = (~self.status.done).nonzero().flatten()
        self.active, self.problem = self.active[keep], self.problem.select(keep)
        self.progress, self.status = select(self.progress, keep), select(self.status, keep)
        self.state = select(self.state, keep)
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
    active = torch.isfinite(flat).all(dim=1).nonzero().flatten()
    if len(active) < len(flat):
        problem, norm = problem.select(active), norm[active]
    scale = 1 + norm
    zero, none = torch.zeros_like(active), torch.zeros_like(active, dtype=torch.bool)
    status = _Status(zero, zero, zero, scale, residual=scale, solved=none, done=none)
    run = _Run(solver, record, active, problem, Progress.start(problem.z), status, solver.start(problem))
    guess = solver.first_guess(problem)
    x = problem.z.clone() if guess is None else guess
    while run.active.numel() > 0:
        run.evaluate(x)
        if guess is not None:
            guess, x = None, run.judge_guess(x)
        x = run.release(x)
        if run.active.numel() > 0:
            x = run.step()
    return record.solution()
