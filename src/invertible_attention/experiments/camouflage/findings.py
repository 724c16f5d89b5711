"""What the numbers say about the paper's claims, in sentences, with the uncertainty they have."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..published import RESPONSES
from .results import Row, datasets, rows

__all__ = ["Comparison", "audit_findings", "claim_findings", "compare", "headline", "pooled_deviation"]

MEASURE = "s_measure"


@dataclass(frozen=True)
class Comparison:
    """An invertible row against the ordinary one with the same response, by S-measure.

    Args:
        response: name of the response.
        form: title of the invertible row.
        difference: invertible minus ordinary.
        deviation: standard deviation over seeds that it is compared with, ``None`` where there is no estimate.
        seeds: of the invertible row and of the ordinary row.
    """

    response: str
    form: str
    difference: float
    deviation: float | None
    seeds: tuple[int, int]

    @property
    def within(self) -> bool | None:
        """Whether the invertible row is at most one deviation below the ordinary one; ``None`` without estimate."""
        return None if self.deviation is None else self.difference >= -self.deviation


def pooled_deviation(found: Sequence[Row], dataset: str) -> float | None:
    """Return the standard deviation over seeds, pooled over the rows that have several; ``None`` without any."""
    squares, freedom = 0.0, 0
    for row in found:
        values = row.values(dataset, MEASURE)
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else None


def compare(found: Sequence[Row], dataset: str) -> list[Comparison]:
    """Compare every invertible row with the ordinary one that has the same response."""
    ordinary = {row.model.response: row for row in found if row.model.constraint == "ordinary"}
    deviation = pooled_deviation(found, dataset)
    comparisons = []
    for row in found:
        partner = ordinary.get(row.model.response)
        if not row.model.invertible or partner is None or row.model.response is None:
            continue
        own, other = row.values(dataset, MEASURE), partner.values(dataset, MEASURE)
        if own and other:
            comparisons.append(
                Comparison(
                    row.model.response,
                    row.title,
                    statistics.fmean(own) - statistics.fmean(other),
                    deviation,
                    (len(own), len(other)),
                )
            )
    return comparisons


def claim_findings(results: dict[str, Any]) -> list[str]:
    """Say, per dataset, whether invertible attention is as good as the ordinary kind (the paper's claim)."""
    found = rows(results)
    sentences = []
    for dataset in datasets(results):
        comparisons = compare(found, dataset)
        if not comparisons:
            continue
        deviation = comparisons[0].deviation
        listed = "; ".join(
            f"{c.form} {c.difference:+.3f} ({_verdict(c)}; {c.seeds[0]} and {c.seeds[1]} "
            f"{'seed' if c.seeds == (1, 1) else 'seeds'})"
            for c in comparisons
        )
        base = "no row has several seeds, so there is no deviation to compare with"
        if deviation is not None:
            base = f"the deviation over seeds, pooled over the rows that have several, is {deviation:.3f}"
        sentences.append(
            f"{dataset}: S of the invertible rows minus S of the ordinary rows with the same response: "
            f"{listed}. Here {base}."
        )
    return sentences


def audit_findings(results: dict[str, Any]) -> list[str]:
    """Say whether the invertible attention inside the trained networks still inverts."""
    sentences = []
    for row in rows(results):
        levels = [level for cell in row.scored for level in cell["audit"].values()]
        if not levels:
            continue
        images = sum(level["images"] for level in levels)
        recovered = sum(level["recovered"] for level in levels)
        silent = sum(level["silently_wrong"] for level in levels)
        folds = sum(level["not_injective"] for level in levels)
        largest = [level["local_lipschitz_largest"] for level in levels]
        constant = "not finite" if None in largest else f"at most {max(largest):.3g}"
        certificates = [level["certificate"] for level in levels]
        promise = (
            "nothing is promised" if None in certificates else f"certified below {max(certificates):.3g}"
        )
        sentence = (
            f"{row.title}: {recovered} of {images} feature maps recovered; local Lipschitz constant {constant}, "
            f"{promise}"
        )
        if folds:
            sentence += f"; {folds} maps have a second preimage, so no solver can recover them"
        if silent:
            sentence += f"; {silent} maps came back wrong without a warning"
        sentences.append(sentence + ".")
    return sentences


def headline(results: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    found, tested = rows(results), datasets(results)
    if not tested:
        return "No network finished training."
    dataset = tested[0]
    scored = [row for row in found if row.values(dataset, MEASURE)]
    best = max(scored, key=lambda row: statistics.fmean(row.values(dataset, MEASURE)))
    sentence = f"{best.title} has the best S on {dataset}, {best.text(dataset, MEASURE)}"
    if len(scored) == 1:
        sentence = (
            f"{best.title} reaches S {best.text(dataset, MEASURE)}, mean F {best.text(dataset, 'mean_f')}, "
            f"mean E {best.text(dataset, 'mean_e')} and MAE {best.text(dataset, 'mae')} on {dataset}"
        )
    comparisons = [c for c in compare(found, dataset) if c.within is not None]
    if comparisons:
        kept = sum(bool(c.within) for c in comparisons)
        sentence += (
            f"; {kept} of {len(comparisons)} invertible rows are no more than one deviation over seeds below "
            "the ordinary attention with the same response"
        )
    return sentence + "."


def _verdict(comparison: Comparison) -> str:
    if comparison.within is None:
        return RESPONSES[comparison.response]
    return "within one deviation" if comparison.within else "more than one deviation below"
