"""The ledger of a solve: what each sample of the whole batch ended with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.batched import choose, sample_norm
from invertible_attention.solvers.problem import Progress
from invertible_attention.solvers.solution import Solution

__all__ = ["Record", "relative_residual"]

_ROUNDING_ALLOWANCE = 4


def relative_residual(
    norm: Float[Tensor, " batch"],
    distance: Float[Tensor, " batch"],
    scale: Float[Tensor, " batch"],
    dtype: torch.dtype,
) -> Float[Tensor, " batch"]:
    """Return the residual that :class:`Solution` reports.

    Args:
        norm: ``‖x + g(x) - z‖``.
        distance: ``‖x - z‖``, which is ``‖g(x)‖`` at a solution.
        scale: ``1 + ‖z‖``.
        dtype: the dtype ``g(x)`` was computed in.
    """
    rounding = torch.finfo(dtype).eps / 2 * distance
    return ((norm + rounding) / scale).nan_to_num(nan=torch.inf, posinf=torch.inf)


class Record:
    """Collects the results of samples as they finish, and assembles the solution.

    Args:
        z: right-hand sides as given.
        flat: the same, flattened and in the working dtype.
        contraction: certified Lipschitz constant below 1, or ``None``.
    """

    def __init__(
        self,
        z: Float[Tensor, "batch *event"],
        flat: Float[Tensor, "batch features"],
        contraction: float | None,
    ) -> None:
        self._z, self._flat, self._contraction = z, flat, contraction
        # Samples that never become active (their z is not finite) keep these.
        self._value = torch.full_like(flat, torch.nan)
        self._z_norm = sample_norm(flat)
        self._norm = torch.full_like(self._z_norm, torch.nan)
        self._residual = self._norm.clone()
        self._converged = torch.zeros(z.shape[0], dtype=torch.bool, device=z.device)
        self._evaluations = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        self._iterations = torch.zeros_like(self._evaluations)
        self._trace: list[tuple[Tensor, Tensor, Tensor]] = []

    def trace(
        self,
        samples: Int[Tensor, " active"],
        evaluations: Int[Tensor, " active"],
        residual: Float[Tensor, " active"],
    ) -> None:
        """Note the residual of ``samples`` after so many evaluations each."""
        self._trace.append((samples, evaluations, residual))

    def finish(
        self,
        samples: Int[Tensor, " done"],
        progress: Progress,
        *,
        converged: Bool[Tensor, " done"],
        residual: Float[Tensor, " done"],
        evaluations: Int[Tensor, " done"],
        iterations: Int[Tensor, " done"],
    ) -> None:
        """Note what ``samples`` ended with: the newest iterate where it is a solution, else the best."""
        z, scale = self._flat[samples], 1 + self._z_norm[samples]
        distance = sample_norm(progress.best_x - z)
        best = relative_residual(progress.best_norm, distance, scale, z.dtype)
        self._value[samples] = choose(converged, progress.x, progress.best_x)
        self._norm[samples] = torch.where(converged, progress.norm, progress.best_norm)
        self._residual[samples] = torch.where(converged, residual, best)
        self._converged[samples] = converged
        self._evaluations[samples] = evaluations
        self._iterations[samples] = iterations

    def solution(self) -> Solution:
        """Return the solution of the whole batch."""
        value = self._value.to(self._z.dtype)
        return Solution(
            value=value.reshape(self._z.shape),
            converged=self._converged,
            iterations=self._iterations,
            evaluations=self._evaluations,
            residual=self._residual,
            error_bound=self._error_bound(value),
            trace=self._assemble_trace(),
        )

    def _error_bound(self, value: Tensor) -> Float[Tensor, " batch"]:
        if self._contraction is None:
            return torch.full_like(self._norm, torch.inf)
        rounding = _ROUNDING_ALLOWANCE * torch.finfo(self._flat.dtype).eps
        rounding = rounding * (sample_norm(self._value) + self._z_norm)
        casting = sample_norm(self._value - value.to(self._value.dtype))
        bound = (self._norm + rounding) / (1 - self._contraction) + casting
        return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _assemble_trace(self) -> Float[Tensor, "evaluations batch"]:
        most = int(self._evaluations.max()) if self._evaluations.numel() else 0
        trace = self._norm.new_full((most, self._norm.shape[0]), torch.nan)
        if not self._trace:
            return trace
        samples, evaluations, residual = map(torch.cat, zip(*self._trace, strict=True))
        rows = torch.arange(most, device=trace.device)[:, None]
        # Where each row was last noted, at or before it.
        noted = torch.zeros_like(trace, dtype=torch.int64)
        noted[evaluations - 1, samples] = evaluations - 1
        trace[evaluations - 1, samples] = residual
        return trace.gather(0, noted.cummax(0).values).masked_fill(rows >= self._evaluations, torch.nan)
