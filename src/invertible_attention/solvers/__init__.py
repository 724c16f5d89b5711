"""Interim: whole-batch Picard only; the solver modules replace this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Anderson", "ConvergenceError", "FixedPoint", "NewtonKrylov", "Solution", "Solver", "implicit_gradient"]


@dataclass(frozen=True)
class Solution:
    value: Tensor
    converged: Tensor
    iterations: Tensor
    evaluations: Tensor
    residual: Tensor
    error_bound: Tensor
    trace: Tensor | None = None


class ConvergenceError(RuntimeError):
    def __init__(self, solution: Solution) -> None:
        failed = (~solution.converged).nonzero().flatten().tolist()
        super().__init__(f"samples {failed} did not converge")
        self.solution = solution


@dataclass(frozen=True)
class Solver:
    max_evaluations: int = 1000
    tolerance: float | None = None

    def solve(self, branch: Any, z: Tensor, args: tuple = (), *, lipschitz: Any = None) -> Solution:
        with torch.no_grad():
            tolerance = {torch.float64: 1e-12}.get(z.dtype, 1e-6) if self.tolerance is None else self.tolerance
            z0, z = z, z.to(torch.promote_types(z.dtype, torch.float32))
            x, trace = z, []
            for n in range(1, self.max_evaluations + 1):
                step = z - branch(x, *args)
                absolute = (step - x).flatten(1).norm(dim=1)
                residual = absolute / (1 + z.flatten(1).norm(dim=1))
                trace.append(residual)
                if n == self.max_evaluations or bool((~(residual > tolerance)).all()):
                    break
                x = step
            count = torch.full(residual.shape, n)
            c = torch.inf if lipschitz is None else torch.as_tensor(lipschitz)
            bound = torch.where(torch.as_tensor(c) < 1, absolute / (1 - c), torch.inf)
            return Solution(
                x.to(z0.dtype), residual <= tolerance, count, count, residual, bound, torch.stack(trace)
            )


class Anderson(Solver): ...


class FixedPoint(Solver): ...


class NewtonKrylov(Solver): ...


def implicit_gradient(branch: Any, value: Tensor, z: Tensor, args: tuple = (), *, solver: Solver) -> Tensor:
    return value
