"""What a search found: gathered for results.json, and said in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .search import ALLOWANCE, EDGES, RANGES

__all__ = ["RANGE_NAMES", "SCHEMA", "collect", "describe", "headline", "response_today"]

SCHEMA = "invertible-attention/attack/2"
SHOWN = 20
RANGE_NAMES = ("up to 0.1", "0.1 to 1", "1 to 5", "above 5")
"""Parts of the range of scores over the ball, the logarithm of the largest ratio of two weights."""


def response_today(value: Any) -> Any:
    """Return a response, or what is stored by response, with the words that earlier versions divided by commas.

    Example:
        >>> response_today("dot_product, softplus"), response_today({"gaussian": 1}), response_today(2)
        ('dot_product/softplus', {'gaussian': 1}, 2)
    """
    if isinstance(value, dict):
        return {response_today(name): inner for name, inner in value.items()}
    return value.replace(", ", "/") if isinstance(value, str) else value


def collect(
    found: Sequence[dict[str, Any]], configuration: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        found: groups and networks.
        configuration: of the search.
        run: under which conditions.
    """
    groups: list[dict[str, Any]] = [
        item | {"structure": {name: response_today(value) for name, value in item["structure"].items()}}
        for item in found
        if "group" in item
    ]
    networks = [item for item in found if "network" in item]
    violations = [
        {"group": group["group"], "member": member, "ratio": ratio, "structure": group["structure"]}
        for group in groups
        for member, ratio in group["violations"]
    ]
    violations += [
        {"network": net["network"], "block": block, "ratio": ratio, "structure": net["description"]}
        for net in networks
        for block, ratio in net["violations"]
    ]
    budget = configuration["budget"]
    return {
        "schema": SCHEMA,
        "configuration": configuration,
        "allowance": ALLOWANCE,
        "configurations": sum(group["configurations"] for group in groups),
        "groups": len(groups),
        "combinations": len({_combination(group["structure"]) for group in groups}),
        "ascended": len(groups) * budget["ascents"],
        "networks": len(networks),
        "blocks": sum(net["blocks"] for net in networks),
        "violations": violations,
        "not_finite": sum(group["not_finite"] for group in groups),
        "histogram": {"edges": list(EDGES), "counts": _sums(group["histogram"] for group in groups)},
        "score_ranges": {"limits": list(RANGES), "names": list(RANGE_NAMES)},
        "tightest_by": {
            name: _tightest_by(groups, name)
            for name in ("response", "normalization", "dtype", "heads", "prior")
        },
        "tightest": [_case(group) for group in _largest(groups, "ascended")],
        "tightest_networks": [
            {name: net[name] for name in ("network", "block", "ratio", "description")}
            for net in _largest(networks, "ratio")
        ],
        "run": run | {"processor_seconds": round(sum(item["processor_seconds"] for item in found), 1)},
    }


def headline(results: dict[str, Any]) -> str:
    """Return the result in a sentence."""
    count = len(results["violations"])
    found = "no bound was exceeded" if not count else f"{count} BOUNDS WERE EXCEEDED"
    return (
        f"{results['configurations']:,} configurations and {results['blocks']} blocks of {results['networks']} "
        f"networks: {found} beyond an allowance of {results['allowance']:.0e} for rounding."
    )


def describe(structure: dict[str, Any]) -> str:
    """Return a structure in a few words."""
    heads = structure["heads"]
    extras = [f"{heads} heads" if heads > 1 else "1 head"]
    extras += [name for name, key in (("biases", "bias"), ("position prior", "prior")) if structure[key]]
    size = "×".join(map(str, structure["spatial"]))
    return (
        f"{structure['response']}, {structure['normalization']}, {', '.join(extras)}, "
        f"{structure['channels']} channels on {size}, c = {structure['coefficient']}, {structure['dtype']}"
    )


def _case(group: dict[str, Any]) -> dict[str, Any]:
    return {
        "ratio": group["ascended"],
        "constant": group["constant"],
        "bound": group["bound"],
        "group": group["group"],
        "member": group["member"],
        "structure": group["structure"],
    }


def _largest(items: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: -item[name])[:SHOWN]


def _combination(structure: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(structure[name] for name in ("response", "normalization", "heads", "bias", "prior", "dtype"))


def _sums(rows: Iterable[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)] or [0] * len(EDGES)


def _tightest_by(groups: list[dict[str, Any]], name: str) -> dict[str, list[float]]:
    """Return the largest ratio in every range of scores, for each value of an argument."""
    found: dict[str, list[float]] = {}
    for group in groups:
        value = str(group["structure"][name])
        known = found.setdefault(value, [0.0] * len(RANGE_NAMES))
        found[value] = [max(pair) for pair in zip(known, group["tightest"], strict=True)]
    return dict(sorted(found.items()))
