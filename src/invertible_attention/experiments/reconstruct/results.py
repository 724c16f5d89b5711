"""The results of a run: gathered from its cells, summarized over repeats, written as results.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..metadata import run_metadata
from ..published import reconstruction_table
from ..report import mean_and_deviation
from .configuration import Configuration

__all__ = ["SCHEMA", "Group", "collect", "groups", "histogram", "labels"]

SCHEMA = "invertible-attention/reconstruct/2"
ORDER = ("released", "relaxed", "certified")
HISTOGRAM_EDGES = [round(-14 + 0.5 * step, 1) for step in range(41)]
"""Decimal logarithms of mean squared errors, from 1e-14 to 1e6."""

SUMMARIZED = (
    ("reconstruction", "mse"),
    ("reconstruction", "mse_clamped"),
    ("reconstruction", "ssim"),
    ("reconstruction", "ssim_clamped"),
    ("reconstruction", "v_score"),
    ("reconstruction", "v_score_clamped"),
    ("inverse", "evaluations_mean"),
    ("inverse", "converged_share"),
    ("inverse", "elsewhere_share"),
    ("inverse", "error_max"),
    ("inverse", "error_bound_max"),
    ("inverse", "seconds"),
    ("training", "seconds"),
)


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
    cells: Sequence[dict[str, Any]],
    configuration: Configuration,
    *,
    title: str,
    about: str = "",
    device: torch.device,
) -> dict[str, Any]:
    """Return the content of results.json."""
    table = reconstruction_table(configuration.dataset, configuration.size)
    published = None
    if table is not None:
        published = {"table": table[0], "rows": {name: row._asdict() for name, row in table[1].items()}}
    return {
        "schema": SCHEMA,
        "configuration": configuration.to_json(),
        "data": {"title": title, "size": list(configuration.size)} | ({"about": about} if about else {}),
        "run": run_metadata(device),
        "published": published,
        "summary": [group.summary() for entries in _grouped(cells).values() for group in entries],
        "cells": list(cells),
    }


@dataclass(frozen=True)
class Group:
    """The repeats of one response under one constraint.

    Args:
        response, constraint, normalization: which.
        cells: the results, one per repeat.
        label: what to call it next to the others of its response.
        seen: how many images training saw, epochs counted.
    """

    response: str
    constraint: str
    normalization: str
    cells: tuple[dict[str, Any], ...]
    label: str
    seen: int = 0

    def values(self, *path: str) -> list[Any]:
        """Return a number of every repeat, by its path in the cell's result; ``None`` where it was not measured."""
        found = []
        for cell in self.cells:
            value: Any = cell
            for name in path:
                value = None if value is None else value.get(name)
            found.append(value)
        return found

    def mean(self, *path: str) -> float | None:
        """Return the mean of a number over repeats; ``None`` where one is not finite."""
        return mean_and_deviation(self.values(*path))[0]

    def largest(self, *path: str) -> float | None:
        """Return the largest value of a number over repeats; ``None`` where one is not finite."""
        values = self.values(*path)
        return None if None in values else max(values)

    @property
    def non_finite(self) -> int:
        """How many reconstructions, over all repeats, are not finite."""
        return sum(self.values("reconstruction", "non_finite"))

    def summary(self) -> dict[str, Any]:
        """Return means and deviations over repeats, as JSON values."""
        numbers = {}
        for section, name in SUMMARIZED:
            mean, deviation = mean_and_deviation(self.values(section, name))
            key = f"{section}_{name}" if name == "seconds" else name
            numbers[key] = {"mean": mean, "deviation": deviation}
        return {
            "response": self.response,
            "constraint": self.constraint,
            "normalization": self.normalization,
            "repeats": len(self.cells),
            **numbers,
        }


def groups(results: dict[str, Any]) -> dict[str, list[Group]]:
    """Return the cells of a results.json by response, repeats together, the authors' code first, ours last."""
    settings = results["configuration"]
    seen = settings["epochs"] * settings["train_images"]
    return {
        response: [replace(group, seen=seen) for group in members]
        for response, members in _grouped(results["cells"]).items()
    }


def labels(results: dict[str, Any]) -> list[str]:
    """Return the labels of the groups, in the same order."""
    found = [group for entries in groups(results).values() for group in entries]
    found.sort(key=lambda group: ORDER.index(group.constraint))
    return list(dict.fromkeys(group.label for group in found))


def _grouped(cells: Sequence[dict[str, Any]]) -> dict[str, list[Group]]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["response"], cell["constraint"], cell["normalization"]), []).append(cell)
    several = len({key[2] for key in found if key[1] != "released"}) > 1
    by_response: dict[str, list[Group]] = {}
    for key, members in found.items():
        own = key[1] == "released"
        label = "authors’ code" if own else f"{key[1]}, {key[2]}" if several else key[1]
        by_response.setdefault(key[0], []).append(Group(*key, tuple(members), label))
    for entries in by_response.values():
        entries.sort(key=lambda group: ORDER.index(group.constraint))
    return by_response
