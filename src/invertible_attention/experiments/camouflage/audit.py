"""Whether the invertible attention inside a trained network still inverts, on the features it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...lipschitz.audit import audit
from ...lipschitz.report import AuditReport
from ..data.source import open_image
from ..files import finite
from .data import Pair
from .data.augmentation import image_tensor
from .network import Detector

__all__ = ["audit_network", "spread"]


@torch.no_grad()
def audit_network(
    network: Detector, pairs: Sequence[Pair], *, size: int, images: int, device: torch.device
) -> dict[str, Any]:
    """Audit every invertible attention module on the reduced maps of some images, evenly spread over ``pairs``.

    Args:
        network: trained.
        pairs: test images.
        size: side of the images the network sees.
        images: how many are looked at.
        device: where the network is.

    Returns:
        A summary per level, as JSON values; empty where the network has no invertible attention.
    """
    modules = network.invertible_attention()
    if not modules or not pairs:
        return {}
    chosen = spread(pairs, images)
    batch = torch.stack([image_tensor(open_image(pair.image), size) for pair in chosen]).to(device)
    features = network.eval().reduced(batch)
    return {str(level): _summary(module, features[level - 1]) for level, module in modules.items()}


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return ``count`` pairs at even distances.

    Example:
        >>> spread(range(10), 3)
        [0, 3, 6]
    """
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _summary(module: Any, features: Tensor) -> dict[str, Any]:
    # Image by image: with all of them at once the estimates would need many N×N matrices.
    reports = [audit(module, x) for x in features.split(1)]
    radius = module.branch.radius
    norms = torch.linalg.vector_norm(features, dim=1)
    local = torch.cat(
        [report.lipschitz_estimate for report in reports if report.lipschitz_estimate is not None]
    )
    return {
        "images": len(features),
        "tokens": features[0, 0].numel(),
        "certificate": finite(reports[0].certificate),
        "local_lipschitz_median": finite(local.median()),
        "local_lipschitz_largest": finite(local.max()),
        "smallest_stretch": finite(torch.cat([report.smallest_stretch for report in reports]).min()),
        "recovered": sum(len(report.recovered) for report in reports),
        "silently_wrong": sum(len(report.silently_wrong) for report in reports),
        "not_injective": sum(len(report.not_injective) for report in reports),
        "said_to_fail": sum(len(report.failed) for report in reports),
        "evaluations_mean": _mean(reports, "evaluations"),
        "relative_error_largest": _largest(reports, "relative_error"),
        "residual_largest": _largest(reports, "residual"),
        "error_bound_largest": _largest(reports, "error_bound"),
        "branch_share": finite(torch.linalg.vector_norm(module.branch(features)) / features.norm()),
        "tokens_outside_ball": None if radius is None else finite((norms > radius).double().mean()),
        "passed": all(report.passed for report in reports),
    }


def _values(reports: Sequence[AuditReport], name: str) -> Tensor | None:
    found = [getattr(report, name) for report in reports]
    return None if any(value is None for value in found) else torch.cat(found).double()


def _mean(reports: Sequence[AuditReport], name: str) -> float | None:
    values = _values(reports, name)
    return None if values is None else finite(values.mean())


def _largest(reports: Sequence[AuditReport], name: str) -> float | None:
    values = _values(reports, name)
    return None if values is None else finite(values.max())
