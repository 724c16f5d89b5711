"""What the numbers of a run say, in sentences made from them."""

from __future__ import annotations

from typing import Any

from ..published import RESPONSES
from ..report import format_number
from .results import Group, groups

__all__ = ["headline", "released_findings"]


def headline(results: dict[str, Any]) -> str:
    """Return the run's main finding."""
    certified = _of(results, "certified")
    images = results["configuration"]["test_images"]
    if not certified:
        return f"{images} test images per network, mapped forward and back."
    scores = [value for group in certified for value in group.values("reconstruction", "v_score")]
    errors = [value for group in certified for value in group.values("reconstruction", "mse")]
    evaluations = [value for group in certified for value in group.values("inverse", "evaluations_mean")]
    names = _join([RESPONSES[name] for name in dict.fromkeys(group.response for group in certified)])
    if None in errors or min(_known(scores)) < 100:
        return (
            f"Under the certificate ({names}) the V-score is {min(_known(scores)):.1f} % at least, over "
            f"{images} test images per network."
        )
    return (
        f"Under the certificate every one of the {images} test images comes back, for {names}: V-score "
        f"100 %, mean squared error at most {format_number(max(_known(errors)), 2)} on the scale 0–255, after "
        f"{min(_known(evaluations)):.1f} to {max(_known(evaluations)):.1f} evaluations on average."
    )


def released_findings(results: dict[str, Any]) -> list[str]:
    """Return why the released code fails where it does, from what was measured; empty if it was not run."""
    released = {group.response: group for group in _of(results, "released")}
    if not released:
        return []
    sentences = [_scores(released)]
    for response in ("dot_product", "concatenation"):
        if response in released:
            sentences.append(_weights(released[response]))
    exponential = [released[name] for name in ("gaussian", "embedded_gaussian") if name in released]
    if exponential:
        names = _join([RESPONSES[group.response] for group in exponential])
        largest = _join([group.local_lipschitz for group in exponential])
        sentences.append(
            f"{names} have positive weights, so nothing cancels; the largest local Lipschitz constants are "
            f"{largest}, and nothing in the released code keeps them below 1."
        )
    certified = [group for group in _of(results, "certified") if group.response in released]
    if certified:
        bound = max(group.cells[0]["study"]["lipschitz_bound"] for group in certified)
        worst = max(
            _known(value for g in certified for value in g.values("study", "local_lipschitz", "largest"))
        )
        sentences.append(
            "Under the certificate φ is ELU + 1, which is positive, and the branch is scaled so that its "
            f"constant is at most {format_number(bound, 2)} for every input; the largest local constant met is "
            f"{format_number(worst)}."
        )
    return sentences


def _scores(released: dict[str, Group]) -> str:
    scores = {name: _mean(group, "reconstruction", "v_score") for name, group in released.items()}
    listed = _join([f"{RESPONSES[name]} {score:.1f} %" for name, score in scores.items()])
    return f"V-scores of the authors' code as it is: {listed}."


def _weights(group: Group) -> str:
    weights = [cell["study"]["weights"] for cell in group.cells]
    negative = 100 * sum(w["negative_share"] for w in weights) / len(weights)
    mixed = 100 * sum(w["mixed_share"] for w in weights) / len(weights)
    cancellation = _largest([w["cancellation_largest"] for w in weights])
    local = [cell["study"]["local_lipschitz"] for cell in group.cells]
    above = 100 * sum(entry["above_one_share"] for entry in local) / len(local)
    return (
        f"{RESPONSES[group.response]}: ELU is negative below zero, and {negative:.1f} % of the trained "
        f"network's weights are negative; {mixed:.1f} % of the sums they are divided by mix both signs. The "
        f"worst sum cancels to one part in {cancellation} of its terms' absolute values (1 where signs "
        "agree), so normalised weights grow that much beyond an average and jump when the sum passes zero. "
        f"The local Lipschitz constant reaches {group.local_lipschitz} and is above 1 on {above:.0f} % of the "
        "studied images, where the fixed-point iteration need not converge and the inverse need not be unique."
    )


def _of(results: dict[str, Any], constraint: str) -> list[Group]:
    return [
        group for entries in groups(results).values() for group in entries if group.constraint == constraint
    ]


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None] or [float("inf")]


def _mean(group: Group, *path: str) -> float:
    values = _known(group.values(*path))
    return sum(values) / len(values)


def _largest(values: list[float | None]) -> str:
    return "∞" if None in values else format_number(max(_known(values)))


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
