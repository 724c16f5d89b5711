"""What a solver is: a frozen description of a method, and the two functions that define it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention._mapped import outside_vmap
from invertible_attention._precision import working_dtype
from invertible_attention.solvers.driver import Step, drive
from invertible_attention.solvers.problem import Branch, Problem, Progress
from invertible_attention.solvers.solution import Solution

__all__ = ["Solver", "Step"]

_DEFAULT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
_UNCERTIFIED_EVALUATIONS = 100
_MOST_EVALUATIONS = 100_000


@dataclass(frozen=True)
class Solver(ABC):
    r"""Solves :math:`x + g(x) = z` for each sample of a batch on its own.

    A solver is a frozen description of a method: it holds no state between calls, and one object may serve
    many layers. Every sample starts at :math:`x = z`, or where the branch guesses its solution, as certified attention
    does, unless that is no use. It is tested before each step so that no evaluation is wasted, and leaves the batch
    when it is done; the branch then sees the remaining samples only. Arithmetic is that of :math:`z`'s dtype,
    ``float32`` for half precisions, and autocast is switched off.

    Implementers provide :meth:`start` and :meth:`step`, which see the active samples only.

    Args:
        max_evaluations: most evaluations of the branch per sample. ``None``: 100 without a certificate; with
            one, as many as the theory of the method says suffice, at least 100 and at most 100,000.
        tolerance: relative residual at which a sample is solved; ``None``: 1e-6 in ``float32``, 1e-12 in
            ``float64``. With 0 no sample stops early, and only a residual of exactly 0 counts as converged.

    Raises:
        ValueError: ``max_evaluations`` is not a positive integer, or ``tolerance`` not a finite number ≥ 0.
    """

    max_evaluations: int | None = None
    tolerance: float | None = None

    evaluations_per_contraction: ClassVar[int] = 1
    """Most evaluations the method takes to shrink the residual by the factor ``c`` of a contraction."""

    def __post_init__(self) -> None:
        if self.max_evaluations is not None:
            check_count("max_evaluations", self.max_evaluations)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance)

    @abstractmethod
    def start(self, problem: Problem) -> Any:
        """Return the state before the first evaluation: a dataclass of tensors, one entry per sample, or ``None``.

        That evaluation need not be at :math:`z`: see :meth:`first_guess`. Neither this nor another method may write to
        the tensors of ``problem`` or ``progress``, some of which are the caller's.
        """

    @abstractmethod
    def step(
        self, problem: Problem, state: Any, progress: Progress, budget: Callable[[], Int[Tensor, " active"]]
    ) -> Step:
        """Return the next iterate.

        Args:
            problem: the equation of the active samples.
            state: the state :meth:`start` or the last step returned.
            progress: the newest and the best iterate.
            budget: returns the evaluations left per sample, at least 1: the one at the returned iterate.
        """

    def first_guess(self, problem: Problem) -> Float[Tensor, "active features"] | None:
        """Return the first iterate: what the branch knows of the solution; ``None`` for :math:`z`."""
        return problem.first_guess()

    def solve(
        self,
        branch: Branch,
        z: Float[Tensor, "batch *event"],
        args: Sequence[Tensor | None] = (),
        *,
        lipschitz: float | Tensor | None = None,
    ) -> Solution:
        r"""Solve ``x + branch(x, *args) = z``, without gradients.

        Args:
            branch: callable ``g(x, *args)`` that treats samples independently.
            z: right-hand sides.
            args: further tensors of the branch, one entry per sample along the first axis, or ``None``.
            lipschitz: an upper bound of the Euclidean Lipschitz constant of the branch. Below 1 it is a
                certificate: the solution exists, is unique, and ``error_bound`` is finite.

        Returns:
            The solution with its status per sample. Failure of some is reported there, not raised.

        Raises:
            ValueError: ``z`` or an argument is not a batch of floating-point samples, ``lipschitz`` is
                negative or not a scalar, or the branch changes the shape of its input.

        Example:
            >>> import torch
            >>> from invertible_attention.solvers import Anderson
            >>> z = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
            >>> solution = Anderson().solve(lambda x: x.sin() / 2, z, lipschitz=0.5)
            >>> x = solution.value
            >>> bool(solution.converged.all()), bool(((x + x.sin() / 2 - z).abs() < 1e-11).all())
            (True, True)
        """
        _check_batch(z, args)
        tolerance = default_tolerance(z.dtype) if self.tolerance is None else self.tolerance
        contraction = _contraction(lipschitz)

        def solve(z: Tensor, *args: Tensor | None) -> Solution:
            return drive(self, branch, z.detach(), args, tolerance, contraction)

        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return outside_vmap(solve, z, *args) if functional_transforms_active() else solve(z, *args)

    def evaluation_limit(
        self, residual: Float[Tensor, " active"], problem: Problem
    ) -> Int[Tensor, " active"]:
        """Return the most evaluations per sample, given the relative residual at the first guess."""
        if self.max_evaluations is not None:
            limit = torch.full_like(residual, self.max_evaluations)
        elif problem.contraction is None or problem.contraction == 0 or problem.tolerance == 0:
            limit = torch.full_like(residual, _UNCERTIFIED_EVALUATIONS)
        else:
            factors = (residual / problem.tolerance).log() / -math.log(problem.contraction)
            needed = 2 + self.evaluations_per_contraction * factors.ceil()
            limit = needed.nan_to_num(nan=0.0).clamp(_UNCERTIFIED_EVALUATIONS, _MOST_EVALUATIONS)
        return limit.to(torch.int64)

    def least_evaluation_limit(self) -> int:
        """Return what no limit is below, whatever the residual: up to there none needs to be known."""
        if type(self).evaluation_limit is not Solver.evaluation_limit:
            return 1
        return _UNCERTIFIED_EVALUATIONS if self.max_evaluations is None else self.max_evaluations


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative residual at which a sample given in a dtype is solved."""
    return _DEFAULT_TOLERANCE[working_dtype(dtype)]


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_number(name: str, value: object, low: float = 0.0, high: float = math.inf) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number in ``[low, high]``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high
        or math.isinf(value)
    ):
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} must be a finite number of at least {low:g}{upper}, got {value!r}")


def _check_batch(z: Tensor, args: Sequence[Tensor | None]) -> None:
    if not z.is_floating_point():
        raise ValueError(f"z must be a floating-point tensor, got dtype {z.dtype}")
    if z.dim() == 0:
        raise ValueError("z must be a batch with the samples along its first axis, got a scalar")
    for index, arg in enumerate(args):
        if arg is not None and (arg.dim() == 0 or arg.shape[0] != z.shape[0]):
            raise ValueError(
                f"args[{index}] must have one entry for each of the {z.shape[0]} samples along its first axis, "
                f"got shape {tuple(arg.shape)}"
            )


def _contraction(lipschitz: float | Tensor | None) -> float | None:
    """Return the Lipschitz constant as a number if it certifies a contraction, else ``None``."""
    if lipschitz is None:
        return None
    rounding = 0.0
    if isinstance(lipschitz, Tensor):
        if lipschitz.numel() != 1:
            raise ValueError(f"lipschitz must be a scalar, got shape {tuple(lipschitz.shape)}")
        # A bound computed in float32 may have been rounded below the constant it bounds.
        rounding = 4 * torch.finfo(lipschitz.dtype).eps if lipschitz.is_floating_point() else 0.0
        lipschitz = lipschitz.detach().item()
    if math.isnan(lipschitz) or lipschitz < 0:
        raise ValueError(f"lipschitz must be at least 0, got {lipschitz}")
    constant = lipschitz * (1 + rounding)
    return constant if constant < 1 else None
