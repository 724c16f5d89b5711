"""A closer look at a trained block on a few images: solvers, local Lipschitz constants, weights."""

from __future__ import annotations

from typing import Any, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...flows import Residual, Sequential
from ...lipschitz.bind import bind
from ...lipschitz.local import local_lipschitz_estimate
from ..data import to_pixels
from ..files import finite
from ..metrics import mean_squared_error
from .batches import evaluation_input
from .configuration import Configuration, SolverName
from .network import block_of, make_solver
from .released import ReleasedBranch

__all__ = ["picard_errors", "signed_weights", "solver_curves", "study"]

CURVE_EVALUATIONS = 100


@torch.no_grad()
def study(
    network: Sequential,
    images: UInt8[Tensor, "images 3 height width"],
    configuration: Configuration,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return everything this module measures on the first test images, as JSON values.

    Images are looked at one after another where the whole would not fit in memory.
    """
    x = evaluation_input(images, seed=seed)[: configuration.studied_images].to(device)
    squeeze, block = network[0], block_of(network)
    tokens = squeeze(x)
    bound = finite(block.lipschitz_bound())
    start = torch.Generator().manual_seed(seed)
    local = local_lipschitz_estimate(bind(block.branch), tokens, generator=start)
    curves = solver_curves(block, block(tokens), tolerance=configuration.tolerance)
    errors = picard_errors(network, x)
    report = {
        "images": len(x),
        "lipschitz_bound": bound,
        "local_lipschitz": _spread(local),
        "solvers": curves,
        "picard_mse": errors,
    }
    if isinstance(block.branch, ReleasedBranch):
        report["weights"] = signed_weights(block.branch, tokens)
    return report


def solver_curves(block: Residual, z: Float[Tensor, "batch ..."], *, tolerance: float) -> dict[str, Any]:
    """Return how each solver's relative residual falls with the evaluations it has spent.

    Median and largest over the samples, after every evaluation, until all have reached the tolerance.
    """
    curves, bound = {}, block.lipschitz_bound()
    branch = bind(block.branch)
    for name in get_args(SolverName):
        solver = make_solver(name, tolerance, CURVE_EVALUATIONS)
        trace = solver.solve(branch, z, lipschitz=bound).trace
        assert trace is not None
        trace = _carried_on(trace.double())
        curves[name] = {
            "median": [finite(value) for value in trace.median(1).values],
            "largest": [finite(value) for value in trace.amax(1)],
        }
    return curves


def picard_errors(
    network: Sequential, x: Float[Tensor, "batch 3 height width"]
) -> dict[str, list[float | None]]:
    """Return the error, on 0–255, of every iterate of the paper's Algorithm 1: median and largest."""
    tokens, branch = network[0](x), bind(block_of(network).branch)
    z = tokens + branch(tokens)
    iterate = z
    errors = []
    for _ in range(CURVE_EVALUATIONS):
        iterate = z - branch(iterate)
        errors.append(mean_squared_error(to_pixels(iterate), to_pixels(tokens)))
    table = torch.stack(errors).nan_to_num(nan=torch.inf)
    return {
        "median": [finite(value) for value in table.median(1).values],
        "largest": [finite(value) for value in table.amax(1)],
    }


def signed_weights(branch: ReleasedBranch, x: Float[Tensor, "batch channels *spatial"]) -> dict[str, Any]:
    """Measure what makes the released weights dangerous: negative ones, and sums close to zero.

    Returns:
        ``negative_share`` of all weights; ``mixed_share`` of the sums that have weights of both signs;
        ``cancellation_largest`` and ``cancellation_median``, :math:`\\sum_i |w_{ij}| / |\\sum_i w_{ij}|`,
        which is 1 where all weights have one sign: by so much normalized weights exceed a convex combination;
        ``denominator_smallest``, the least :math:`|\\sum_i w_{ij}|`, divided by the number of tokens.
    """
    negative, mixed, cancellation, denominators = [], [], [], []
    for sample in x.flatten(2).mT.split(1):
        weights, sums = branch.signed_weights(sample)
        below = weights < 0
        negative.append(below.double().mean())
        mixed.append((below.any(1) & ~below.all(1)).double().mean())
        cancellation.append((weights.abs().sum(1) / sums.abs()).flatten())
        denominators.append(sums.abs().flatten() / weights.shape[1])
    ratio = torch.cat(cancellation).double()
    return {
        "negative_share": torch.stack(negative).mean().item(),
        "mixed_share": torch.stack(mixed).mean().item(),
        "cancellation_median": finite(ratio.median()),
        "cancellation_largest": finite(ratio.max()),
        "denominator_smallest": finite(torch.cat(denominators).min()),
    }


def _carried_on(trace: Float[Tensor, "evaluations batch"]) -> Float[Tensor, "evaluations batch"]:
    """Return residuals with those of finished samples, NaN in a trace, carried on to the end."""
    carried = [trace[0].nan_to_num(nan=torch.inf)]
    for row in trace[1:]:
        carried.append(torch.where(row.isnan(), carried[-1], row))
    return torch.stack(carried)


def _spread(values: Float[Tensor, " batch"]) -> dict[str, float | None]:
    return {
        "median": finite(values.nan_to_num(nan=torch.inf).median()),
        "largest": finite(values.max()),
        "above_one_share": (values > 1).double().mean().item(),
    }
