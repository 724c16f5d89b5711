"""Inverting a trained network on the test images, and measuring what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...flows import Sequential
from ..data import to_pixels
from ..files import finite
from ..metrics import V_SCORE_LIMIT, ReconstructionScores
from .batches import evaluation_input
from .configuration import Configuration
from .network import block_of

__all__ = ["Evaluation", "Samples", "evaluate"]

SHOWN = 8


@dataclass(frozen=True)
class Samples:
    """The first test images with their latents and reconstructions, for figures."""

    original: Float[Tensor, "shown 3 height width"]
    latent: Float[Tensor, "shown 3 height width"]
    reconstruction: Float[Tensor, "shown 3 height width"]


@dataclass(frozen=True)
class Evaluation:
    """What inverting all test images gave.

    Args:
        scores: errors per image, on the scale 0–255.
        inverse: how the solver did, as JSON values.
        samples: images for the figures.
    """

    scores: ReconstructionScores
    inverse: dict[str, Any]
    samples: Samples


@dataclass
class _Part:
    scores: ReconstructionScores
    evaluations: Tensor
    residual: Tensor
    error: Tensor
    error_bound: Tensor


@torch.no_grad()
def evaluate(
    network: Sequential,
    images: UInt8[Tensor, "images 3 height width"],
    configuration: Configuration,
    *,
    seed: int,
    micro_batch: int,
    device: torch.device,
    report: Callable[[int], None] | None = None,
) -> Evaluation:
    """Map the test images forward and back.

    Args:
        network: trained, in evaluation mode, on ``device``.
        images: all test images, 0–255.
        configuration: of the run; its tolerance decides what counts as converged.
        seed: of the dequantization noise.
        micro_batch: images inverted at once.
        device: where.
        report: called with the number of images done.
    """
    squeeze, block = network[0], block_of(network)
    x = evaluation_input(images, seed=seed)
    parts, samples, done, seconds = [], [], 0, 0.0
    for batch in x.split(micro_batch):
        batch = batch.to(device)
        z = network(batch)
        start = time.perf_counter()
        solution = block.solve_inverse(z)
        seconds += time.perf_counter() - start
        reconstruction = squeeze.inverse(solution.value)
        parts.append(
            _Part(
                ReconstructionScores.compare(to_pixels(reconstruction), to_pixels(batch)),
                solution.evaluations.cpu(),
                solution.residual.cpu(),
                _norm(reconstruction - batch).cpu(),
                solution.error_bound.cpu(),
            )
        )
        if done < SHOWN:
            samples.append((batch.cpu(), squeeze.inverse(z).cpu(), reconstruction.cpu()))
        done += len(batch)
        if report is not None:
            report(done)
    scores = ReconstructionScores.concatenate([part.scores for part in parts])
    shown = (torch.cat(tensors)[:SHOWN] for tensors in zip(*samples, strict=True))
    inverse = _inverse(parts, configuration.tolerance)
    return Evaluation(scores, inverse | {"seconds": seconds}, Samples(*shown))


def _inverse(parts: list[_Part], tolerance: float) -> dict[str, Any]:
    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts]).double()

    evaluations, residual, error, bound = (
        join(name) for name in ("evaluations", "residual", "error", "error_bound")
    )
    certified = bool(bound.isfinite().all())
    converged = residual <= tolerance
    mse = torch.cat([part.scores.mse for part in parts])
    return {
        "evaluations_mean": evaluations.mean().item(),
        "evaluations_max": int(evaluations.max()),
        "converged_share": converged.double().mean().item(),
        # Solved, but by another image: the map is not injective there, or so nearly that the input is lost.
        "elsewhere_share": (converged & (mse >= V_SCORE_LIMIT)).double().mean().item(),
        "residual_median": finite(residual.nan_to_num(nan=torch.inf).median()),
        "residual_max": finite(residual.max()),
        "error_max": finite(error.max()),
        "error_bound_max": finite(bound.max()) if certified else None,
        "error_bound_holds_share": (error <= bound).double().mean().item() if certified else None,
    }


def _norm(x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    return torch.linalg.vector_norm(x.double().flatten(1), dim=1)
