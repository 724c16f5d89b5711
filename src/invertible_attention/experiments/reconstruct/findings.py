"""What the numbers of a run say, in sentences made from them."""

from __future__ import annotations

from typing import Any

from ..published import RESPONSES
from ..report import format_number
from .results import Group, groups

__all__ = ["findings", "headline"]

HARMLESS_CANCELLATION = 1.1


def headline(results: dict[str, Any]) -> str:
    """Return the run's main finding."""
    certified = _of(results, "certified")
    images = results["configuration"]["test_images"]
    if not certified:
        return f"{images} test images per network, mapped forward and back."
    names = _join([RESPONSES[name] for name in dict.fromkeys(group.response for group in certified)])
    scores = [value for group in certified for value in group.values("reconstruction", "v_score")]
    errors = [value for group in certified for value in group.values("reconstruction", "mse")]
    if None in errors or min(scores) < 100:
        return (
            f"Under the certificate ({names}) the V-score is {min(scores):.1f} % at least, over {images} test "
            "images per network."
        )
    spent = [value for group in certified for value in group.values("inverse", "evaluations_mean")]
    least, most = f"{min(spent):.1f}", f"{max(spent):.1f}"
    return (
        f"Under the certificate every one of the {images} test images comes back, for {names}: V-score 100 %, "
        f"mean squared error at most {format_number(max(errors), 2)} on the scale 0–255, after "
        f"{least if least == most else f'{least} to {most}'} evaluations on average."
    )


def findings(results: dict[str, Any]) -> list[str]:
    """Return why the inverse fails where it does, from what was measured."""
    released = {group.response: group for group in _of(results, "released")}
    relaxed, certified = _of(results, "relaxed"), _of(results, "certified")
    sentences = []
    if released:
        sentences.append(_scores(released))
        sentences += [
            _signed(released[name]) for name in ("dot_product", "concatenation") if name in released
        ]
        sentences += _positive([released[n] for n in ("gaussian", "embedded_gaussian") if n in released])
    if relaxed:
        sentences.append(_relaxed(relaxed))
    if certified:
        sentences.append(_certified(certified))
    return sentences


def _scores(released: dict[str, Group]) -> str:
    listed = [
        f"{RESPONSES[name]} {group.mean('reconstruction', 'v_score'):.1f} %"
        for name, group in released.items()
    ]
    return f"V-scores of the authors’ code: {_join(listed)}."


def _signed(group: Group) -> str:
    def share(name: str) -> str:
        return f"{100 * (group.mean('study', 'weights', name) or 0):.1f} %"

    cancellation = group.largest("study", "weights", "cancellation_largest")
    above = 100 * (group.mean("study", "local_lipschitz", "above_one_share") or 0)
    if cancellation is not None and cancellation < HARMLESS_CANCELLATION:
        return (
            f"{RESPONSES[group.response]}, authors’ code: {share('negative_share')} of the trained network's weights "
            "are negative, but in every sum nearly all have one sign, which drops out of the quotient (the terms' "
            f"absolute values add up to at most {format_number(cancellation)} times their sum). By the luck of "
            "its initial weights this network behaves as one with positive weights does; its largest local "
            f"Lipschitz constant is {_local(group)}."
        )
    return (
        f"{RESPONSES[group.response]}, authors’ code: ELU is negative below zero; {share('negative_share')} of the "
        f"trained network's weights are negative, and {share('mixed_share')} of the sums they are divided by "
        "mix both signs. In the worst sum the terms' absolute values add up to "
        f"{format_number(cancellation, missing='∞')} times what is left of them (1 where signs agree); by so "
        "much normalized weights exceed an average, and they jump where the sum passes zero. The local Lipschitz "
        f"constant reaches {_local(group)} and is above 1 on {above:.0f} % of the studied images"
        + (": there the fixed-point steps need not converge." if above else ".")
    )


def _positive(entries: list[Group]) -> list[str]:
    if not entries:
        return []
    names = _join([RESPONSES[group.response] for group in entries])
    return [
        f"{names}, authors’ code: weights are positive and nothing cancels. The largest local Lipschitz constants "
        f"are {_join([_local(group) for group in entries])}; nothing in the code keeps them below 1."
    ]


def _relaxed(entries: list[Group]) -> str:
    worst = max(
        entries, key=lambda group: group.largest("study", "local_lipschitz", "largest") or float("inf")
    )
    elsewhere = max(100 * (group.mean("inverse", "elsewhere_share") or 0) for group in entries)
    text = (
        "Relaxed (the paper's Section 2.4): the norms of F and W_L are bounded, how fast the weights move is "
        f"not. The local Lipschitz constant reaches {_local(worst)} ({RESPONSES[worst.response]})."
    )
    if elsewhere:
        text += (
            f" On up to {elsewhere:.1f} % of the test images the solver did converge, to another image: the map "
            "is not injective there, or so nearly that the input is lost, and no solver can help."
        )
    return text


def _certified(entries: list[Group]) -> str:
    bound = max(group.largest("study", "lipschitz_bound") or float("inf") for group in entries)
    worst = max(group.largest("study", "local_lipschitz", "largest") or float("inf") for group in entries)
    return (
        "Certified: φ is ELU + 1, which is positive, and the branch is scaled by a bound on everything that "
        f"moves, so its constant is at most {format_number(bound, 2)} for every input; the largest local "
        f"constant met is {format_number(worst)}."
    )


def _of(results: dict[str, Any], constraint: str) -> list[Group]:
    return [
        group for entries in groups(results).values() for group in entries if group.constraint == constraint
    ]


def _local(group: Group) -> str:
    return format_number(group.largest("study", "local_lipschitz", "largest"), missing="∞")


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
