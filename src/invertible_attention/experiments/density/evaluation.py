"""Bits per dimension of test images, with their standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ...logdet import Exact, LogDetEstimator
from ..files import finite
from .batches import EVALUATION, step_seed
from .network import using_estimator
from .radius import MeasureRadius

__all__ = ["Score", "evaluation_estimator", "score"]

EXACT_DIMENSIONS = 128
"""Up to this many dimensions densities are evaluated with exact determinants."""


def evaluation_estimator(dimensions: int, otherwise: LogDetEstimator) -> LogDetEstimator:
    """Return :class:`~invertible_attention.Exact` for few dimensions, ``otherwise`` for many."""
    return Exact(chunk_size=EXACT_DIMENSIONS) if dimensions <= EXACT_DIMENSIONS else otherwise


@dataclass(frozen=True)
class Score:
    """Bits per dimension of a set of images.

    Args:
        values: one row per draw of dequantization noise (and of what the estimator draws), one column per
            image.
        estimator: what computed the log-determinants, in words.
        exact: whether it computes rather than estimates them.
        radius: largest spectral radius met in blocks without a certificate, ``None`` if there are none. From 1
            on, an estimate is not unbiased any more; exact values stand.
    """

    values: Float[Tensor, "draws images"]
    estimator: str
    exact: bool
    radius: float | None = None

    @property
    def mean(self) -> float:
        """Mean over images and draws; NaN if a value is not finite."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """What the random draws leave uncertain about the mean on these very images; NaN for one draw."""
        if len(self.values) < 2:
            return math.nan
        return (self.values.var(0).sum() / len(self.values)).sqrt().item() / self.values.shape[1]

    @property
    def sampling_error(self) -> float:
        """What the choice of these images leaves uncertain about the mean on all such images."""
        return self.values.mean(0).std().item() / math.sqrt(self.values.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values; what is not finite becomes ``None``."""
        return {
            "bits_per_dim": finite(self.mean),
            "standard_error": finite(self.standard_error),
            "sampling_error": finite(self.sampling_error),
            "draws": len(self.values),
            "images": self.values.shape[1],
            "not_finite": int((~self.values.isfinite()).sum()),
            "estimator": self.estimator,
            "exact": self.exact,
            "spectral_radius": None if self.radius is None else finite(self.radius),
        }


@torch.no_grad()
def score(
    model: nn.Module,
    images: UInt8[Tensor, "images channels height width"],
    *,
    estimator: LogDetEstimator,
    draws: int,
    seed: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    report: Callable[[int], None] | None = None,
) -> Score:
    """Compute the bits per dimension of every image, several times with fresh noise.

    Args:
        model: the density; it is evaluated in evaluation mode and left in the mode it was in.
        images: of the test set.
        estimator: of the log-determinants of residual blocks.
        draws: how often every image is dequantized.
        seed: of the noise.
        batch_size: images at once.
        device: where to compute; the model is there already.
        report: called after every batch with how many batches are done.
    """
    training = model.training
    model.eval()
    rows, done = [], 0
    measuring = MeasureRadius(estimator)
    with torch.random.fork_rng(), ExitStack() as stack:
        stack.enter_context(using_estimator(model, measuring))
        for draw in range(draws):
            row = []
            if draw == 1:  # one draw is enough for the radius
                stack.enter_context(using_estimator(model, estimator))
            for number, batch in enumerate(images.split(batch_size)):
                torch.manual_seed(step_seed(seed, EVALUATION, draw * 100_003 + number))
                row.append(model.bits_per_dim(batch.to(device)).double().cpu())  # pyright: ignore
                done += 1
                if report is not None:
                    report(done)
            rows.append(torch.cat(row))
    model.train(training)
    radius = torch.cat(measuring.radii).max().item() if measuring.radii else None
    return Score(torch.stack(rows), str(estimator), isinstance(estimator, Exact), radius)
