"""What a search found: gathered for results.json, said in a sentence, shown as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .search import ALLOWANCE, EDGES, RANGES

__all__ = ["RANGE_NAMES", "collect", "describe", "format_ratio", "headline", "print_attack"]

SCHEMA = "invertible-attention/attack/1"
SHOWN = 20
RANGE_NAMES = ("up to 0.1", "0.1 to 1", "1 to 5", "above 5")
"""Parts of the range of scores over the ball, the logarithm of the largest ratio of two weights."""


def collect(state: dict[str, Any], configuration: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        state: groups and networks as they were found.
        configuration: of the search.
        run: under which conditions.
    """
    groups, networks = state["groups"], state["networks"]
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
        "run": run | {"processor_seconds": round(state["processor_seconds"], 1)},
    }


def headline(results: dict[str, Any]) -> str:
    """Return the result in a sentence."""
    count = len(results["violations"])
    found = "no bound was exceeded" if not count else f"{count} BOUNDS WERE EXCEEDED"
    return (
        f"{results['configurations']:,} configurations and {results['blocks']} blocks of {results['networks']} "
        f"networks: {found} beyond an allowance of {results['allowance']:.0e} for rounding."
    )


def print_attack(console: Console, results: dict[str, Any]) -> None:
    """Print how close the search came to the bounds, and every bound that was exceeded."""
    table = Table(
        title="Largest local Lipschitz constant / bound, by the range of the scores",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("", no_wrap=True)
    for name in RANGE_NAMES:
        table.add_column(name, justify="right")
    for kind in ("response", "normalization", "dtype"):
        for value, ratios in results["tightest_by"][kind].items():
            table.add_row(value, *map(format_ratio, ratios))
        table.add_section()
    console.print(table)
    cases = Table(title="Tightest cases", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("ratio", "bound", "layer", "group", "member"):
        cases.add_column(name, justify="left" if name == "layer" else "right")
    for case in results["tightest"][:8]:
        cases.add_row(
            format_ratio(case["ratio"], 9),
            f"{case['bound']:.3g}",
            describe(case["structure"]),
            str(case["group"]),
            str(case["member"]),
        )
    if results["tightest"]:
        console.print(cases)
    for violation in results["violations"][:SHOWN]:
        console.print(f"EXCEEDED: {violation}", highlight=False, soft_wrap=True)
    if results["not_finite"]:
        console.print(f"{results['not_finite']} layers had a bound or a Jacobian that is not finite.")
    console.print(headline(results), highlight=False, soft_wrap=True)


def format_ratio(ratio: float, decimals: int = 6) -> str:
    """Return a ratio with fixed decimals, rounded so that what is below 1 is not shown as 1.

    Example:
        >>> format_ratio(0.9999999), format_ratio(1.0000001)
        ('0.999999', '1.000001')
    """
    unit = 10**decimals
    rounded = math.floor(ratio * unit) if ratio <= 1 else math.ceil(ratio * unit)
    return f"{rounded / unit:.{decimals}f}"


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
