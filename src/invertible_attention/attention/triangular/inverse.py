"""The inverse of a block that is invertible by order: iteration that ends after one evaluation per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._precision import working_dtype
from invertible_attention.attention.triangular.blockwise import Blockwise
from invertible_attention.attention.triangular.order import Layout
from invertible_attention.attention.triangular.transformer import CausalTransformer
from invertible_attention.solvers.base import Solver, default_tolerance
from invertible_attention.solvers.batched import sample_norm, wide_dtype
from invertible_attention.solvers.record import relative_residual
from invertible_attention.solvers.solution import Solution

if TYPE_CHECKING:
    from invertible_attention.attention.triangular.branch import TriangularBranch

__all__ = ["solve"]

Image = Float[Tensor, "batch channels *spatial"]
Args = tuple[Tensor | None, ...]

_BATCH_FOR_SEQUENTIAL = 16


@torch.no_grad()
def solve(branch: TriangularBranch, z: Image, args: Args, solver: Solver) -> Solution:
    """Solve ``x + g(x) = z`` for each sample, without gradients.

    Args:
        branch: The branch.
        z: Right-hand sides.
        args: Context and mask.
        solver: Says how; any but :class:`Blockwise` means all tokens at once.
    """
    given = z
    z = z.detach().to(working_dtype(z.dtype))
    finite = torch.isfinite(z.flatten(1)).all(1).nonzero().flatten()
    result = _Result.of(z)
    if finite.numel():
        with torch.autocast(z.device.type, enabled=False):
            kept = tuple(arg if arg is None else arg[finite] for arg in args)
            problem = _Problem(branch, z[finite], kept, solver)
            block = problem.block()
            part = _in_blocks(problem, block) if block < problem.tokens else _all_at_once(problem)
            result.put(finite, part)
    return result.solution(given)


@dataclass
class _Result:
    """What is known of each sample; of those that are not finite, nothing."""

    value: Tensor
    residual: Float[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    trace: Float[Tensor, "evaluations batch"]
    converged: Bool[Tensor, " batch"]

    @classmethod
    def of(cls, z: Tensor) -> _Result:
        count = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        unknown = torch.full((len(z),), torch.nan, dtype=wide_dtype(z.device), device=z.device)
        return cls(torch.full_like(z, torch.nan), unknown, count, unknown[None][:0], count.bool())

    def put(self, samples: Tensor, part: _Result) -> None:
        self.value[samples], self.residual[samples] = part.value, part.residual
        self.evaluations[samples], self.converged[samples] = part.evaluations, part.converged
        self.trace = self.residual.new_full((len(part.trace), len(self.residual)), torch.nan)
        self.trace[:, samples] = part.trace

    def solution(self, z: Tensor) -> Solution:
        return Solution(
            value=self.value.to(z.dtype),
            converged=self.converged,
            iterations=(self.evaluations - 1).clamp_min(0),
            evaluations=self.evaluations,
            residual=self.residual,
            error_bound=torch.full_like(self.residual, torch.inf),
            trace=self.trace,
        )


class _Problem:
    """The equation, and how far it is to be solved."""

    def __init__(self, branch: TriangularBranch, z: Image, args: Args, solver: Solver) -> None:
        self.branch, self.z, self.args, self.solver = branch, z, args, solver
        self.tokens = z.shape[2:].numel()
        self.tolerance = default_tolerance(z.dtype) if solver.tolerance is None else solver.tolerance
        self.scale = 1 + sample_norm(z.flatten(1))
        mask = args[1] if len(args) > 1 else None
        self.layout = Layout.of(branch.order, z, mask)

    @property
    def limit(self) -> int:
        """Most evaluations: with one per token everything is exact."""
        given = self.solver.max_evaluations
        return self.tokens if given is None else min(given, self.tokens)

    def block(self) -> int:
        """Return how many tokens are solved for at once."""
        if not isinstance(self.solver, Blockwise) or self.solver.max_evaluations is not None:
            return self.tokens
        module, block = self.branch.module, self.solver.block
        keeps = isinstance(module, CausalTransformer) and module.can_keep
        if block is None:
            return self.tokens if not keeps else choose_block(len(self.z), self.tokens, self.z.device)
        if not keeps and block < self.tokens:
            raise ValueError(
                f"block={block} needs a CausalTransformer, and no padded context tokens: only its keys and values "
                "can be cached"
            )
        return min(block, self.tokens)

    def relative(self, residual: Tensor, x: Tensor, z: Tensor, samples: Tensor) -> Float[Tensor, " active"]:
        norm = sample_norm(residual.flatten(1)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        distance = sample_norm((x - z).flatten(1))
        return relative_residual(norm, distance, self.scale[samples], z.dtype)


def choose_block(batch: int, tokens: int, device: torch.device) -> int:
    """Return the block size that is fastest, measured by ``benchmarks/triangular.py``.

    One token at a time costs as many steps as there are tokens, each hardly more for a large batch than for a small;
    all at once costs a fraction of the steps, each on all tokens. Only a CPU was measured: elsewhere all at once.
    """
    return 1 if device.type == "cpu" and batch >= _BATCH_FOR_SEQUENTIAL else tokens


def _all_at_once(problem: _Problem) -> _Result:
    """Iterate on all tokens; the first after the first evaluation is exact, the second after the second …"""
    z, branch = problem.z, problem.branch
    result = _Result.of(z)
    active = torch.arange(len(z), device=z.device)
    rank = torch.argsort(problem.layout.index, -1).view(-1, 1, *z.shape[2:])
    best = torch.full_like(result.residual, torch.inf)
    x, traces = z.clone(), []
    for evaluation in range(1, problem.limit + 1):
        args = tuple(arg if arg is None else arg[active] for arg in problem.args)
        shift, log_scale = branch.coefficients(x, *args)
        here, right = rank if len(rank) == 1 else rank[active], z[active]
        following, residual = _step(x, shift, log_scale, right)
        if evaluation == problem.tokens:
            # Whatever the last token is, nothing depends on it: the coefficients stand.
            last = here == problem.tokens - 1
            x = torch.where(last, following, x)
            residual = torch.where(last, _step(x, shift, log_scale, right)[1], residual)
        relative = problem.relative(residual, x, right, active)
        traces.append(torch.full_like(best, torch.nan).index_put((active,), relative))
        better = (relative < best[active]) | (evaluation == 1)
        improved = active[better]
        best[improved] = relative[better]
        result.value[improved] = x[better]
        result.evaluations[active] = evaluation
        solved = relative <= problem.tolerance
        result.converged[active[solved]] = True
        x = torch.where(here >= evaluation - 1, following, x)
        going = ~solved if problem.tolerance > 0 else torch.ones_like(solved)
        active, x = active[going], x[going]
        if active.numel() == 0:
            break
    result.residual, result.trace = best, torch.stack(traces)
    return result


def _in_blocks(problem: _Problem, block: int) -> _Result:
    """Solve blocks one after another, with the keys and values of those before."""
    z, branch, layout = problem.z, problem.branch, problem.layout
    module = branch.module
    assert isinstance(module, CausalTransformer)
    context = problem.args[0] if problem.args else None
    right = layout.arrange(z)
    valid = None if layout.valid is None else layout.valid[..., None]
    cache = module.begin(layout, context, right)
    starts = range(0, problem.tokens, block)
    tolerance = problem.tolerance * problem.scale / len(starts) ** 0.5
    result = _Result.of(z)
    squares, parts = torch.zeros_like(problem.scale), []
    previous = torch.zeros_like(right[:, :1])
    for first in starts:
        part = right[:, first : first + block]
        x, count = part, part.shape[1]
        rank = torch.arange(count, device=z.device)[:, None]
        done, norm = torch.zeros_like(result.converged), torch.zeros_like(squares)
        for evaluation in range(1, count + 1):
            before = torch.cat([previous, x[:, :-1]], 1)
            output = module.extend(cache, before, layout, first, context)
            if valid is not None:
                output = output.masked_fill(~valid[:, first : first + block], 0.0)
            shift, log_scale = branch.split(output.mT, x.mT)
            shift, log_scale = shift.mT, None if log_scale is None else log_scale.mT
            following, residual = _step(x, shift, log_scale, part)
            if evaluation == count:
                last = (rank == count - 1) & ~done[:, None, None]
                x = torch.where(last, following, x)
                residual = torch.where(rank == count - 1, _step(x, shift, log_scale, part)[1], residual)
            norm = sample_norm(residual.flatten(1)).nan_to_num(nan=torch.inf, posinf=torch.inf)
            result.evaluations += (~done).long()
            done = done | (norm <= tolerance)
            if evaluation == count or bool(done.all()):
                break
            x = torch.where((rank >= evaluation - 1) & ~done[:, None, None], following, x)
        module.keep(cache)
        squares = squares + norm.square()
        parts.append(x)
        previous = x[:, -1:]
    sequence = torch.cat(parts, 1)
    value = layout.restore(sequence)
    if valid is not None:
        value = torch.where(layout.restore(valid.to(z.dtype).expand_as(sequence)) > 0, value, z)
    distance = sample_norm((value - z).flatten(1))
    result.value = value
    result.residual = relative_residual(squares.sqrt(), distance, problem.scale, z.dtype)
    result.converged = result.residual <= problem.tolerance
    result.trace = result.residual[None].expand(int(result.evaluations.max()), -1).clone()
    return result


def _step(x: Tensor, shift: Tensor, log_scale: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next iterate, and the residual at the present one."""
    if log_scale is None:
        return z - shift, (x - z) + shift
    return (z - shift) * torch.exp(-log_scale), (x - z) + (torch.expm1(log_scale) * x + shift)
