"""The results of a run: gathered from its cells, summarised over repeats, written as results.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..metadata import run_metadata
from ..published import reconstruction_table
from ..report import format_spread, mean_and_deviation
from .configuration import Configuration

__all__ = ["SCHEMA", "Group", "collect", "groups", "histogram", "kinds"]

SCHEMA = "invertible-attention/reconstruct/1"
ORDER = ("released", "relaxed", "certified")
HISTOGRAM_EDGES = [round(-14 + 0.5 * step, 1) for step in range(41)]
"""Decimal logarithms of mean squared errors, from 1e-14 to 1e6."""


def histogram(mse: Float[Tensor, " images"]) -> dict[str, Any]:
    """Count images by the decimal logarithm of their error.

    What lies outside the edges counts in the first or last bin; errors that are not finite are counted apart.
    """
    finite = mse[mse.isfinite()].double()
    edges = torch.tensor(HISTOGRAM_EDGES, dtype=torch.float64)
    inside = finite.clamp_min(1e-300).log10().clamp(edges[0], edges[-1] - 1e-9)
    counts = torch.histogram(inside, edges).hist.long()
    return {"log10_edges": HISTOGRAM_EDGES, "counts": counts.tolist(), "non_finite": len(mse) - len(finite)}


def collect(
    cells: Sequence[dict[str, Any]], configuration: Configuration, *, title: str, device: torch.device
) -> dict[str, Any]:
    """Return the content of results.json."""
    table = reconstruction_table(configuration.dataset, configuration.size)
    return {
        "schema": SCHEMA,
        "configuration": configuration.to_json(),
        "data": {"title": title, "size": list(configuration.size)},
        "run": run_metadata(device),
        "published": None
        if table is None
        else {"table": table[0], "rows": {name: row._asdict() for name, row in table[1].items()}},
        "summary": [group.to_json() for entries in _group(cells).values() for group in entries],
        "cells": list(cells),
    }


@dataclass(frozen=True)
class Group:
    """The repeats of one response under one constraint."""

    response: str
    constraint: str
    normalization: str
    cells: tuple[dict[str, Any], ...]

    def values(self, *path: str) -> list[float | None]:
        """Return a number of every repeat, by its path in the cell's result."""
        found = []
        for cell in self.cells:
            value: Any = cell
            for name in path:
                value = value[name]
            found.append(value)
        return found

    @property
    def label(self) -> str:
        """The constraint, and the normalisation where there is a choice."""
        return (
            self.constraint if self.constraint == "released" else f"{self.constraint}, {self.normalization}"
        )

    @property
    def non_finite(self) -> int:
        """How many reconstructions, over all repeats, are not finite."""
        return sum(cell["reconstruction"]["non_finite"] for cell in self.cells)

    @property
    def mse(self) -> str:
        """Mean squared error; where some are not finite, infinity and how many."""
        text = format_spread(self.values("reconstruction", "mse"), missing="∞")
        return f"{text} ({self.non_finite} images)" if self.non_finite else text

    @property
    def ssim(self) -> str:
        """Structural similarity."""
        return _fixed(self.values("reconstruction", "ssim"), 3)

    @property
    def v_score(self) -> str:
        """V-score in percent."""
        return _fixed(self.values("reconstruction", "v_score"), 1)

    @property
    def converged(self) -> str:
        """Share of images whose residual is below the tolerance, in percent."""
        return _fixed([100 * (value or 0.0) for value in self.values("inverse", "converged_share")], 1)

    @property
    def evaluations(self) -> str:
        """Evaluations of the branch per image."""
        return _fixed(self.values("inverse", "evaluations_mean"), 1)

    @property
    def local_lipschitz(self) -> str:
        """Largest local Lipschitz constant met on the studied images, the largest over repeats."""
        values = self.values("study", "local_lipschitz", "largest")
        known = [value for value in values if value is not None]
        return "∞" if len(known) < len(values) else f"{max(known):.3g}"

    def to_json(self) -> dict[str, Any]:
        """Return means and deviations over repeats."""
        numbers = {}
        for section, name in (
            ("reconstruction", "mse"),
            ("reconstruction", "mse_clamped"),
            ("reconstruction", "ssim"),
            ("reconstruction", "v_score"),
            ("inverse", "evaluations_mean"),
            ("inverse", "converged_share"),
            ("training", "seconds"),
        ):
            mean, deviation = mean_and_deviation(self.values(section, name))
            numbers[name if section != "training" else "training_seconds"] = {
                "mean": mean,
                "deviation": deviation,
            }
        return {
            "response": self.response,
            "constraint": self.constraint,
            "normalization": self.normalization,
            "repeats": len(self.cells),
            **numbers,
        }


def kinds(results: dict[str, Any]) -> list[str]:
    """Return the labels of the groups: the authors' code first, ours last."""
    found = [group for entries in groups(results).values() for group in entries]
    found.sort(key=lambda group: ORDER.index(group.constraint))
    return list(dict.fromkeys(group.label for group in found))


def groups(results: dict[str, Any]) -> dict[str, list[Group]]:
    """Return the cells of a results.json by response, repeats together."""
    return _group(results["cells"])


def _group(cells: Sequence[dict[str, Any]]) -> dict[str, list[Group]]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["response"], cell["constraint"], cell["normalization"]), []).append(cell)
    by_response: dict[str, list[Group]] = {}
    for key, members in found.items():
        by_response.setdefault(key[0], []).append(Group(*key, tuple(members)))
    for entries in by_response.values():
        entries.sort(key=lambda group: ORDER.index(group.constraint))
    return by_response


def _fixed(values: Sequence[float | None], decimals: int) -> str:
    mean, deviation = mean_and_deviation(values)
    if mean is None:
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"
