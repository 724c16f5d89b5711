"""What the numbers say about the paper's claims, in sentences, with the uncertainty they have."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .comparison import MEASURE, Comparison, compare
from .results import Row, datasets, rows

__all__ = ["audit_findings", "claim_findings", "headline"]

PLACES = {
    "above": "more than one deviation above",
    "within": "within one deviation",
    "below": "more than one deviation below",
}


def claim_findings(results: dict[str, Any]) -> list[str]:
    """Say, per dataset, whether invertible attention is as good as the ordinary kind (the paper's claim)."""
    found = rows(results)
    sentences = []
    for dataset in datasets(results):
        comparisons = compare(found, dataset)
        if comparisons:
            listed = "; ".join(_pair(comparison) for comparison in comparisons)
            sentences.append(
                f"{dataset}: S of the invertible rows minus S of the ordinary rows with the same response: "
                f"{listed}.{_origin(comparisons)}"
            )
    if datasets(results) and (diverged := _diverged(found)):
        sentences.append(f"{diverged[0].upper()}{diverged[1:]}; means are over the others.")
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
    diverged = _diverged(found)
    if not tested:
        return "No network finished training" + (f": {diverged}." if diverged else ".")
    dataset = tested[0]
    scored = [row for row in found if row.values(dataset, MEASURE)]
    ranked = sorted(scored, key=lambda row: statistics.fmean(row.values(dataset, MEASURE)))
    worst, best = ranked[0], ranked[-1]
    sentence = (
        f"S on {dataset} is between {worst.text(dataset, MEASURE)} ({worst.title}) "
        f"and {best.text(dataset, MEASURE)} ({best.title})"
    )
    if len(scored) == 1:
        sentence = (
            f"{best.title} reaches S {best.text(dataset, MEASURE)}, mean F {best.text(dataset, 'mean_f')}, "
            f"mean E {best.text(dataset, 'mean_e')} and MAE {best.text(dataset, 'mae')} on {dataset}"
        )
    return "; ".join(part for part in (sentence, _counts(compare(found, dataset)), diverged) if part) + "."


def _counts(comparisons: Sequence[Comparison]) -> str:
    """Return how many invertible rows are as good as the ordinary ones, empty where nothing can be said."""
    places = [comparison.place for comparison in comparisons]
    if not any(places):
        return ""
    count = "the only invertible row" if len(places) == 1 else f"{len(places)} invertible rows"
    parts = [
        f"{places.count('within')} within one deviation over seeds of the ordinary attention "
        "with the same response"
    ]
    parts += [f"{places.count(name)} {name}" for name in ("above", "below")]
    if unknown := places.count(None):
        parts.append(f"{unknown} that cannot be compared")
    return f"of {count}, {', '.join(parts[:-1])} and {parts[-1]}"


def _diverged(found: Sequence[Row]) -> str:
    """Return how many trainings of which rows diverged, empty where none did."""
    listed = [f"{row.title} {row.diverged} of {len(row.cells)}" for row in found if row.diverged]
    return f"trainings that diverged: {', '.join(listed)}" if listed else ""


def _pair(comparison: Comparison) -> str:
    """Return what is known of a pair of rows."""
    diverged = ""
    if any(comparison.diverged):
        diverged = f", {comparison.diverged[0]} and {comparison.diverged[1]} diverged"
    seeds = f"{comparison.seeds[0]} and {comparison.seeds[1]} seed{'' if comparison.seeds == (1, 1) else 's'}"
    if comparison.difference is None:
        return f"{comparison.form} cannot be compared ({seeds}{diverged})"
    verdict = "no deviation to compare with"
    if comparison.place is not None:
        verdict = PLACES[comparison.place]
    if comparison.deviation is not None and not comparison.borrowed:
        verdict += f", {comparison.deviation.value:.3f}"
    if comparison.paired is not None:
        mean, error = comparison.paired
        seeds += (
            f"; {mean:+.3f} ± {error:.3f} by the {comparison.shared} seeds of both, mean and standard error"
        )
    return f"{comparison.form} {comparison.difference:+.3f} ({verdict}; {seeds}{diverged})"


def _origin(comparisons: Sequence[Comparison]) -> str:
    """Return where the deviation of pairs with one seed comes from."""
    known = [comparison for comparison in comparisons if comparison.difference is not None]
    single = [comparison.form for comparison in known if comparison.borrowed]
    lacking = [comparison.form for comparison in known if comparison.deviation is None]
    if lacking:
        return (
            f" {_listed(lacking)}: no stable row has several seeds, so there is no deviation to compare with."
        )
    if not single:
        return ""
    deviation = next(c.deviation for c in known if c.borrowed and c.deviation is not None)
    text = (
        f" {_listed(single)}: compared with {deviation.value:.3f}, the deviation over seeds of "
        f"{_listed(deviation.rows)}, since {'this pair has' if len(single) == 1 else 'these pairs have'} one seed"
    )
    if deviation.unstable:
        text += f" ({_listed(deviation.unstable)} omitted from it as unstable)"
    return text + "."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
