"""Rows of a study's table: means over seeds, and paired differences from the first variant."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from ..report import mean_and_error
from .configuration import RESIDUAL

__all__ = ["compare", "equal", "guarantee", "is_likelihood", "read_curve"]

AXES = {"time": ("processor_seconds", "processor_seconds"), "steps": ("step", "steps")}
"""What learning curves are read at, as their points and as a finished training call it."""


def equal(settings: dict[str, Any], steps: Iterable[int]) -> str:
    """Return at what learning curves are compared: at equal time, or where time ended training, at equal steps.

    Args:
        settings: those that all runs share.
        steps: that the runs took.
    """
    return "steps" if settings["minutes"] is not None and min(steps) < settings["steps"] else "time"


def read_curve(curve: Sequence[dict[str, Any]], axis: str, value: float) -> float | None:
    """Return test bits per dimension at so many processor seconds of training, or steps, interpolated.

    By monotone cubics: a curve that flattens lies below its chords, and straight lines would put every slower
    variant at a disadvantage. ``None`` before the first point, after the last, and where a value was not finite.
    """
    from scipy.interpolate import PchipInterpolator

    for before, after in pairwise(curve):
        if before[axis] <= value <= after[axis]:
            if before["test"] is None or after["test"] is None:
                return None
            known = {point[axis]: point["test"] for point in curve if point["test"] is not None}
            if len(known) == 1:
                return after["test"]
            return float(PchipInterpolator(list(known), list(known.values()))(value))
    return None


def compare(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per variant, in their order; the first is what others are compared with.

    Differences are paired: runs with the same seed share data, order of batches, noise, and the weights that
    both have. Equal time is the CPU time of the fastest run of a seed, at which the learning curves
    are read. Where the learning rate decays over the steps, a slower run is read before its own has, which
    counts against it: limit the time of all instead. Where that is done, the curves are read at equal steps, those
    of the slowest run of a seed. Where a run is missing, the others of its variant and its seed are compared.
    """
    by_cell = {(run["variant"], run["configuration"]["seed"]): run for run in runs}
    variants = list(dict.fromkeys(variant for variant, _ in by_cell))
    seeds = {variant: sorted(seed for other, seed in by_cell if other == variant) for variant in variants}
    limit = equal(runs[0]["configuration"], [run["training"]["steps"] for run in runs])
    axis, total = AXES[limit]
    shortest = {
        seed: min(run["training"][total] for (_, own), run in by_cell.items() if own == seed)
        for _, seed in by_cell
    }

    def final(run: dict[str, Any]) -> float | None:
        return run["evaluation"]["bits_per_dim"]

    def at_limit(run: dict[str, Any]) -> float | None:
        start = {axis: 0, "test": run["untrained"]["bits_per_dim"]}
        return read_curve([start, *run["curve"]], axis, shortest[run["configuration"]["seed"]])

    def difference(measure: Any, variant: str) -> dict[str, Any]:
        both = [seed for seed in seeds[variant] if seed in seeds[variants[0]]]
        pairs = [(measure(by_cell[variant, seed]), measure(by_cell[variants[0], seed])) for seed in both]
        return _summary([None if a is None or b is None else a - b for a, b in pairs])

    reference = by_cell[variants[0], seeds[variants[0]][0]]
    rows = []
    for variant in variants:
        own = [by_cell[variant, seed] for seed in seeds[variant]]
        first = own[0]
        rows.append(
            {
                "variant": variant,
                "name": first["name"],
                "parameters": first["parameters"],
                "parameters_relative": first["parameters"] / reference["parameters"],
                "processor_seconds": statistics.fmean(r["training"]["processor_seconds"] for r in own),
                "model": first["configuration"]["model"],
                "exact": all(run["evaluation"]["exact"] for run in own),
                "spectral_radius": max(
                    (r["evaluation"].get("spectral_radius") or 0.0 for r in own), default=0.0
                )
                or None,
                "skipped_steps": sum(run["training"]["skipped_steps"] for run in own),
                "failed_samples": sum(r["samples"]["drawn"] - r["samples"]["converged"] for r in own),
                "bits_per_dim": _summary([final(run) for run in own]),
                "difference": difference(final, variant),
                f"at_equal_{limit}": _summary([at_limit(run) for run in own]),
                f"difference_at_equal_{limit}": difference(at_limit, variant),
            }
        )
    return rows


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean, error = mean_and_error(known) if known else (None, None)
    return {"mean": mean, "standard_error": error, "values": list(values)}


def guarantee(row: dict[str, Any]) -> str:
    """Return the largest spectral radius met, or why there is none: a certificate, order, or no residual blocks."""
    if row["spectral_radius"] is not None:
        return format(row["spectral_radius"], ".3f")
    if row.get("model", "i-resnet") not in RESIDUAL:
        return "–"
    return "by order" if row.get("constraint") == "triangular" else "certified"


def is_likelihood(row: dict[str, Any]) -> bool:
    """Return whether the bits per dimension of a row, or of one evaluation, are exact or unbiased.

    A series of powers of a Jacobian does not converge where its spectral radius reaches 1, and an estimate of it
    is then no estimate of the log-determinant.
    """
    return row["spectral_radius"] is None or row["spectral_radius"] < 1 or row["exact"]
