"""Whether an invertible row is as good as the ordinary one, and what their difference is compared with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..report import mean_and_error
from .results import Row

__all__ = ["Comparison", "Deviation", "compare", "pooled_deviation", "usual_deviation"]

MEASURE = "s_measure"

UNSTABLE = 5
"""How many times the median deviation of all rows makes a row unstable."""


@dataclass(frozen=True)
class Deviation:
    """A standard deviation over seeds, and where it comes from.

    Args:
        value: pooled over the rows.
        rows: titles of the rows it is pooled over.
        unstable: titles of rows with several seeds that were omitted from it.
    """

    value: float
    rows: tuple[str, ...]
    unstable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """An invertible row against the ordinary one with the same response, by S-measure.

    Args:
        form: title of the invertible row.
        difference: mean of the invertible row minus mean of the ordinary one, ``None`` where a row has no score.
        deviation: what the difference is compared with, ``None`` where there is no estimate.
        borrowed: whether the deviation is that of other rows, since neither of these has several seeds.
        paired: mean and standard error over the seeds that both rows share, ``None`` with fewer than two.
        seeds: how many were scored, of the invertible row and of the ordinary one.
        shared: how many seeds both have.
        diverged: how many trainings diverged, of the invertible row and of the ordinary one.
    """

    form: str
    difference: float | None
    deviation: Deviation | None
    borrowed: bool
    paired: tuple[float, float] | None
    seeds: tuple[int, int]
    shared: int
    diverged: tuple[int, int]

    @property
    def place(self) -> str | None:
        """Where the invertible row is: ``"above"``, ``"within"`` one deviation or ``"below"``; ``None`` if unknown."""
        if self.difference is None or self.deviation is None:
            return None
        if abs(self.difference) <= self.deviation.value:
            return "within"
        return "above" if self.difference > 0 else "below"


def pooled_deviation(found: Sequence[Row], dataset: str) -> float | None:
    """Return the standard deviation over seeds, pooled over the rows that have several; ``None`` without any."""
    squares, freedom = 0.0, 0
    for row in found:
        values = row.values(dataset, MEASURE)
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else None


def usual_deviation(found: Sequence[Row], dataset: str) -> Deviation | None:
    """Return the deviation pooled over the stable rows with several seeds; ``None`` without any.

    A row is unstable where a training diverged, or where its own deviation is more than :data:`UNSTABLE` times
    the median one (of two, the smaller).
    """
    several = [row for row in found if len(row.values(dataset, MEASURE)) > 1]
    own = {row.title: statistics.stdev(row.values(dataset, MEASURE)) for row in several if not row.diverged}
    limit = UNSTABLE * statistics.median_low(own.values()) if own else 0.0
    stable = [row for row in several if row.title in own and own[row.title] <= limit]
    value = pooled_deviation(stable, dataset)
    if value is None:
        return None
    left_out = tuple(row.title for row in several if row not in stable)
    return Deviation(value, tuple(row.title for row in stable), left_out)


def compare(found: Sequence[Row], dataset: str) -> list[Comparison]:
    """Compare every invertible row with the ordinary one that has the same response.

    The deviation is that of the pair's own rows where one of them has several seeds, else that of
    :func:`usual_deviation`.
    """
    ordinary = {row.model.response: row for row in found if row.model.constraint == "ordinary"}
    usual = usual_deviation(found, dataset)
    return [
        _compare(row, ordinary[row.model.response], dataset, usual)
        for row in found
        if row.model.invertible and row.model.response in ordinary
    ]


def _compare(row: Row, partner: Row, dataset: str, usual: Deviation | None) -> Comparison:
    own, other = row.by_seed(dataset, MEASURE), partner.by_seed(dataset, MEASURE)
    pooled = pooled_deviation([row, partner], dataset)
    deviation = usual
    if pooled is not None:
        names = tuple(r.title for r, values in ((row, own), (partner, other)) if len(values) > 1)
        deviation = Deviation(pooled, names)
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    mean, error = mean_and_error(differences) if differences else (None, None)
    difference = None
    if own and other:
        difference = statistics.fmean(own.values()) - statistics.fmean(other.values())
    return Comparison(
        form=row.title,
        difference=difference,
        deviation=deviation,
        borrowed=pooled is None and deviation is not None,
        paired=None if mean is None or error is None else (mean, error),
        seeds=(len(own), len(other)),
        shared=len(differences),
        diverged=(row.diverged, partner.diverged),
    )
