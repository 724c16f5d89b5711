"""The ledger of a solve: what each sample of the whole batch ended with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.batched import all_on_cpu, choose, sample_norm
from invertible_attention.solvers.problem import Count, Progress
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
    rounded = torch.add(norm, distance, alpha=torch.finfo(dtype).eps / 2)
    return (rounded / scale).nan_to_num(nan=torch.inf, posinf=torch.inf)


@dataclass
class _Ended:
    """What samples ended with: fields of :class:`Solution`, and the norm of the residual."""

    value: Float[Tensor, "samples features"]
    norm: Float[Tensor, " samples"]
    residual: Float[Tensor, " samples"]
    converged: Bool[Tensor, " samples"]
    evaluations: Int[Tensor, " samples"]
    iterations: Int[Tensor, " samples"]


class Record:
    """Collects the results of samples as they finish, and assembles the solution.

    Args:
        z: right-hand sides as given.
        flat: the same, flattened and in the working dtype.
        z_norm: their norms.
        contraction: certified Lipschitz constant below 1, or ``None``.
    """

    def __init__(
        self,
        z: Float[Tensor, "batch *event"],
        flat: Float[Tensor, "batch features"],
        z_norm: Float[Tensor, " batch"],
        contraction: float | None,
    ) -> None:
        self._z, self._flat, self._z_norm, self._contraction = z, flat, z_norm, contraction
        self._ended: _Ended | None = None
        self._trace: list[tuple[Tensor, Count, Tensor]] = []

    def trace(
        self,
        samples: Int[Tensor, " active"],
        evaluations: Count,
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
        evaluations: Count,
        iterations: Count,
    ) -> None:
        """Note what ``samples`` ended with: the newest iterate where it is a solution, else the best."""
        value, norm = progress.x, progress.norm
        if not all_on_cpu(converged):
            z, scale = self._flat[samples], 1 + self._z_norm[samples]
            distance = sample_norm(progress.best_x - z)
            best = relative_residual(progress.best_norm, distance, scale, z.dtype)
            value = choose(converged, value, progress.best_x)
            # Of the newest iterate it is known, and computed again in a smaller batch it would be rounded differently.
            known = converged | (norm == progress.best_norm) & norm.isfinite()
            norm = torch.where(converged, norm, progress.best_norm)
            residual = torch.where(known, residual, best)
        counts = (
            count if isinstance(count, Tensor) else torch.full_like(samples, count)
            for count in (evaluations, iterations)
        )
        ended = _Ended(value, norm, residual, converged, *counts)
        if len(samples) == len(self._flat):
            self._ended = ended
            return
        self._ended = self._ended or self._unsolved()
        for field in fields(ended):
            getattr(self._ended, field.name)[samples] = getattr(ended, field.name)

    def _unsolved(self) -> _Ended:
        """Return what samples keep that never become active, because their z is not finite."""
        missing = torch.full_like(self._z_norm, torch.nan)
        never = torch.zeros_like(missing, dtype=torch.int64)
        return _Ended(
            torch.full_like(self._flat, torch.nan),
            missing,
            missing.clone(),
            never.bool(),
            never,
            never.clone(),
        )

    def solution(self) -> Solution:
        """Return the solution of the whole batch."""
        ended = self._ended or self._unsolved()
        value = ended.value.to(self._z.dtype)
        return Solution(
            value=value.reshape(self._z.shape),
            converged=ended.converged,
            iterations=ended.iterations,
            evaluations=ended.evaluations,
            residual=ended.residual,
            error_bound=self._error_bound(ended, value),
            trace=self._assemble_trace(ended.evaluations),
        )

    def _error_bound(self, ended: _Ended, value: Tensor) -> Float[Tensor, " batch"]:
        if self._contraction is None:
            return torch.full_like(ended.norm, torch.inf)
        rounding = _ROUNDING_ALLOWANCE * torch.finfo(self._flat.dtype).eps
        size = sample_norm(ended.value) + self._z_norm
        bound = torch.add(ended.norm, size, alpha=rounding) / (1 - self._contraction)
        if value.dtype != ended.value.dtype:
            bound = bound + sample_norm(ended.value - value.to(ended.value.dtype))
        return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _assemble_trace(self, spent: Int[Tensor, " batch"]) -> Float[Tensor, "evaluations batch"]:
        if not any(isinstance(evaluations, Tensor) for _, evaluations, _ in self._trace):
            # Each residual is one evaluation after the one before it.
            if all(len(samples) == len(spent) for samples, _, _ in self._trace) and self._trace:
                return torch.stack([residual for _, _, residual in self._trace])
            trace = self._z_norm.new_full((len(self._trace), len(spent)), torch.nan)
            for row, (samples, _, residual) in zip(trace, self._trace, strict=True):
                row[samples if len(samples) < len(spent) else slice(None)] = residual
            return trace
        most = int(spent.max())
        trace = self._z_norm.new_full((most, len(spent)), torch.nan)
        samples = torch.cat([samples for samples, _, _ in self._trace])
        evaluations = torch.cat([torch.zeros_like(samples) + count for samples, count, _ in self._trace])
        residual = torch.cat([residual for _, _, residual in self._trace])
        rows = torch.arange(most, device=trace.device)[:, None]
        # Where each row was last noted, at or before it.
        noted = torch.zeros_like(trace, dtype=torch.int64)
        noted[evaluations - 1, samples] = evaluations - 1
        trace[evaluations - 1, samples] = residual
        return trace.gather(0, noted.cummax(0).values).masked_fill(rows >= spent, torch.nan)
