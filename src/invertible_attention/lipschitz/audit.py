"""Audit of a module: does its inverse do what it promises?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention._initialize import initializing
from invertible_attention._mode import evaluation_mode
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.jacobian import norm, per_sample
from invertible_attention.lipschitz.local import local_lipschitz_estimate, smallest_stretch_estimate
from invertible_attention.lipschitz.preimage import SecondPreimage, find_second_preimage
from invertible_attention.lipschitz.report import AuditReport
from invertible_attention.solvers.base import Solver, default_tolerance

__all__ = ["AuditReport", "audit"]

Batch = Float[Tensor, "batch *event"]


def audit(
    module: nn.Module,
    x: Batch,
    *,
    context: Tensor | None = None,
    tolerance: float | None = None,
    steps: int = 20,
    search: bool | None = None,
    budget: int = 400,
    seed: int = 0,
) -> AuditReport:
    """Measure whether a module is invertible at some inputs, and whether it keeps its promises.

    Per sample: the round trip through ``forward`` and ``inverse``; whether the inverse's answer solves the
    equation, and what the module says of it; the local Lipschitz constant of the residual branch against its
    certificate; the smallest stretch; and a search for a second input with the same output. A map without a
    guarantee can have one, then no solver recovers the input, and the report says so.

    Works on any module with ``forward(x)`` and ``inverse(z)``, each returning a tensor or a tuple that starts
    with one. More is measured where it has ``solve_inverse(z)`` returning a
    :class:`~invertible_attention.Solution`, or ``lipschitz_bound()``; of a composition of bijections, every
    block that has one is measured. The module is audited in evaluation mode and left as it was, but for one thing:
    what is in training mode and not initialized sets itself from ``x``, as it would from its first batch.

    Args:
        module: The module. Samples must not depend on each other.
        x: Inputs.
        context: Passed on as the keyword ``context``, if given.
        tolerance: Relative error up to which an input counts as recovered; default ``√eps`` of the precision, or what
            follows from the tolerance of the module's own solver where that is larger.
        steps: Krylov steps of the estimates.
        search: Whether to look for second preimages; by default only where neither a certificate nor the order of
            tokens (:class:`~invertible_attention.Triangular`) excludes them.
        budget: Products with the Jacobian and its transpose that the search may spend on the batch.
        seed: Seed of the random directions.

    Returns:
        The report.

    Raises:
        ValueError: If ``x`` is not a non-empty floating point batch, or the module lacks an inverse.
        RuntimeError: If the module is in evaluation mode and not initialized.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2
        ...
        ...     def inverse(self, z):
        ...         return z * 2
        >>> report = audit(Halve(), torch.ones(2, 3))
        >>> report.passed, report.recovered
        (True, [0, 1])
    """
    if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"expected a non-empty floating point batch (B, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not callable(getattr(module, "inverse", None)):
        raise ValueError(f"{type(module).__name__} has no inverse to audit")
    given = {} if context is None else {"context": context}
    function = _Function(module, x.dtype, given)
    generator = torch.Generator().manual_seed(seed)
    strict = tolerance is not None
    if tolerance is None:
        tolerance = math.sqrt(torch.finfo(x.dtype).eps)
    first_batch = initializing(module) if module.training else nullcontext()
    with evaluation_mode(module), torch.no_grad():
        with first_batch:
            blocks, z = _trace(function, x.detach())
        variation = norm(function(function.working(x.detach())) - z) / (1 + norm(z))
        inversion = _invert(module, z.to(x.dtype), given, x)
        x, answer = function.working(x.detach()), function.working(inversion.value)
        estimate, exceeds, certificate, promise = _measure(blocks, len(x), steps, generator)
        stretch, direction = smallest_stretch_estimate(function, x, steps=steps, generator=generator)
        by_order = _invertible_by_order(blocks)
        search = certificate >= 1 and not by_order if search is None else search
        search = search and not bool((variation > tolerance).any())
        if search:
            preimage = _search(function, x, answer, direction, budget, generator)
        else:
            preimage = SecondPreimage(
                x, torch.full_like(stretch, torch.nan), torch.full_like(stretch, torch.nan)
            )
        error, residual = answer - x, function(answer) - z
    tiny = torch.finfo(x.dtype).tiny
    # How much further from the input than from the output an answer may be.
    reach = 1 / (1 - certificate if certificate < 1 else stretch.clamp_min(tiny))
    kept, exceeded = torch.full_like(promise, tolerance), torch.zeros_like(promise, dtype=torch.bool)
    if inversion.error_bound is not None:
        # The output that was inverted is rounded already.
        rounding = 8 * torch.finfo(function.dtype).eps * (norm(x) + norm(z)) * reach
        exceeded = norm(error) > 1.001 * inversion.error_bound.to(rounding) + rounding
    if not strict:
        # An answer as good as promised is one, but not one that is off by a tenth.
        off = (1 + norm(z)) * promise * reach / norm(x).clamp_min(tiny)
        kept = torch.where(promise > tolerance, off.clamp(tolerance, max(tolerance, 0.1)), kept)
    report = AuditReport(
        module=type(module).__name__,
        event_shape=tuple(x.shape[1:]),
        dtype=str(function.dtype).removeprefix("torch."),
        tolerance=tolerance,
        certificate=certificate,
        absolute_error=error.abs().flatten(1).amax(1),
        relative_error=norm(error) / norm(x).clamp_min(tiny),
        tolerated_error=kept,
        residual=norm(residual) / (1 + norm(z)),
        tolerated_residual=promise.clamp_min(tolerance),
        variation=variation,
        converged=inversion.converged,
        evaluations=inversion.evaluations,
        error_bound=inversion.error_bound,
        exceeds_error_bound=exceeded,
        inverse_errors=inversion.errors,
        lipschitz_estimate=estimate,
        exceeds_certificate=exceeds,
        smallest_stretch=stretch,
        second_preimage_distance=preimage.distance,
        second_preimage_residual=preimage.residual,
        second_preimage=preimage.point,
        searched=search,
        by_order=by_order,
    )
    return report.cpu()


class _Function:
    """The module's map, taking and returning ``float32`` or better whatever precision the module has."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, given: dict[str, Tensor]) -> None:
        self.module, self.dtype, self.given = module, dtype, given

    def working(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(self.dtype, torch.float32))

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        given = {k: v if index is None else v[index] for k, v in self.given.items()}
        return self.working(_first(self.module(x.to(self.dtype), **given)))

    def branch(self, x: Tensor) -> Tensor:
        """Return ``f(x) − x``."""
        return self(x) - x


@dataclass(frozen=True)
class _Block:
    """A residual block as it was met in the forward pass."""

    function: _Function
    x: Tensor
    bound: float
    tolerance: float

    @property
    def by_order(self) -> bool:
        """Whether the block needs no bound, because its Jacobian is triangular."""
        branch = getattr(self.function.module, "branch", None)
        return bool(getattr(branch, "invertible_by_order", False))


@dataclass
class _Inversion:
    """What the module's inverse returned, and what it said about it."""

    value: Tensor
    converged: Tensor | None = None
    evaluations: Tensor | None = None
    error_bound: Tensor | None = None
    errors: dict[int, str] = field(default_factory=dict)


def _trace(function: _Function, x: Tensor) -> tuple[list[_Block], Tensor]:
    """Return the residual blocks with the inputs they see, and the module's output."""
    module, blocks = function.module, []

    def record(bound: float, block: nn.Module, args: tuple[Tensor], given: dict[str, Any]) -> None:
        (x,) = args
        part = _Function(block, x.dtype, {k: v for k, v in given.items() if v is not None})
        blocks.append(_Block(part, part.working(x), bound, _promise(block, x.dtype)))

    # first of all, so that whatever sets itself from its first batch has done so before it is asked
    z = function(x)
    inner = [] if _certificate(module) < torch.inf else list(_residual_blocks(module))
    if inner:
        # Asked for first: a block that is hooked has no certificate.
        records = [partial(record, _certificate(block)) for block in inner]
        handles = [
            block.register_forward_pre_hook(hook, with_kwargs=True)
            for block, hook in zip(inner, records, strict=True)
        ]
        try:
            function(x)
        finally:
            for handle in handles:
                handle.remove()
    elif z.shape == x.shape:
        blocks.append(_Block(function, function.working(x), _certificate(module), _promise(module, x.dtype)))
    return blocks, z


def _residual_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost bijections inside a bijection that bound their own branch."""
    if isinstance(module, Bijection) and not hasattr(module, "lipschitz_bound"):
        for child in module.children():
            yield from _blocks_below(child)


def _blocks_below(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, Bijection) and hasattr(module, "lipschitz_bound"):
        yield module
    elif isinstance(module, (Bijection, nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        for child in module.children():
            yield from _blocks_below(child)


def _certificate(module: nn.Module) -> float:
    if not callable(getattr(module, "lipschitz_bound", None)):
        return torch.inf
    bounded: Any = module
    return float(bounded.lipschitz_bound())


def _promise(module: nn.Module, dtype: torch.dtype) -> float:
    """Return the relative residual up to which a module calls a sample solved; zero where it does not say."""
    solver = getattr(module, "solver", None)
    if not isinstance(solver, Solver):
        return 0.0
    return default_tolerance(dtype) if solver.tolerance is None else solver.tolerance


def _measure(
    blocks: list[_Block], size: int, steps: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor, float, Tensor]:
    """Return the largest local Lipschitz constant, where a block exceeds its bound, the largest bound, and a promise.

    What is promised of a chain is what its blocks promise, each carried on by those after it.
    """
    estimate, exceeds = None, torch.zeros(size, dtype=torch.bool)
    promise = torch.zeros(size, dtype=torch.float64)
    for block in blocks:
        local = local_lipschitz_estimate(block.function.branch, block.x, steps=steps, generator=generator)
        # f(x) − x is known to the precision of f(x) only
        margin = torch.finfo(block.function.dtype).eps ** 0.5 * (1 + block.bound)
        exceeds = exceeds.to(local.device) | (local > block.bound + margin)
        local = local.double()
        promise = promise.to(local.device) * (1 + local) + block.tolerance
        estimate = local if estimate is None else torch.maximum(estimate, local)
    bound = max((block.bound for block in blocks if not block.by_order), default=torch.inf)
    return estimate, exceeds, bound, promise.clamp_max(0.1)


def _invertible_by_order(blocks: list[_Block]) -> bool:
    """Whether some blocks are, and the others are contractions."""
    return any(block.by_order for block in blocks) and all(
        block.by_order or block.bound < 1 for block in blocks
    )


def _invert(module: nn.Module, z: Tensor, given: dict[str, Tensor], x: Tensor) -> _Inversion:
    solve = getattr(module, "solve_inverse", None)
    if callable(solve):
        solution: Any = solve(z, **given)
        inversion = _Inversion(
            solution.value, solution.converged, solution.evaluations, getattr(solution, "error_bound", None)
        )
    else:
        inversion = _invert_whole_or_each(module, z, given, x)
    if inversion.value.shape != x.shape:
        raise ValueError(
            f"the inverse of {type(module).__name__} returned shape {tuple(inversion.value.shape)} "
            f"for inputs of shape {tuple(x.shape)}"
        )
    return inversion


def _invert_whole_or_each(module: nn.Module, z: Tensor, given: dict[str, Tensor], x: Tensor) -> _Inversion:
    """Invert the batch, or where that raises, sample by sample, to see which of them it was."""
    inverse: Any = module.inverse
    try:
        return _Inversion(_first(inverse(z, **given)))
    except (RuntimeError, ArithmeticError):
        inversion = _Inversion(torch.full_like(x, torch.nan))
    for i in range(len(z)):
        try:
            one = {k: v[i : i + 1] for k, v in given.items()}
            inversion.value[i] = _first(inverse(z[i : i + 1], **one))[0]
        except (RuntimeError, ArithmeticError) as error:
            inversion.errors[i] = f"{type(error).__name__}: {error}"
    return inversion


def _search(
    function: _Function,
    x: Tensor,
    answer: Tensor,
    direction: Tensor,
    budget: int,
    generator: torch.Generator,
) -> SecondPreimage:
    tolerance = max(1e-8, torch.finfo(function.dtype).eps ** (2 / 3))
    starts = _starts(function, x, answer, direction, generator)
    separation = max(0.01, 30 * tolerance)
    return find_second_preimage(
        function, x, starts, tolerance=tolerance, separation=separation, budget=budget
    )


def _starts(
    function: _Function, x: Tensor, answer: Tensor, direction: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield where to look: what the inverse found, where iteration leads, along the fold, at random."""
    yield answer
    z = function(x)
    if z.shape == x.shape:
        y = z
        for _ in range(50):
            y = z - function.branch(y)
        yield y
    scale = per_sample(1 + norm(x), x)
    for distance in (0.02, -0.02, 0.1, -0.1, 0.5, -0.5):
        yield x + distance * scale * direction
    for distance in (0.1, 0.5):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        yield x + distance * scale * noise / per_sample(norm(noise), x)


def _first(output: Any) -> Tensor:
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, Tensor):
        raise ValueError(f"expected a tensor or a tuple that starts with one, got {type(value).__name__}")
    return value
