"""What the measurements say: ratios, growth, and the claims made from them."""

from __future__ import annotations

from typing import Any

from .configuration import PAPER_TOKENS
from .implementations import IMPLEMENTATIONS, RESPONSES
from .timing import exponent

__all__ = ["claims", "growth"]

FEWEST_GROWTH_TOKENS = 4096
"""Growth is fitted from here on: below, fixed costs hide it."""


def growth(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit the exponents of time and memory in the number of tokens, for every response and implementation."""
    found = []
    for response in RESPONSES:
        for implementation in IMPLEMENTATIONS:
            for kind, unit in (("times", "seconds"), ("memory", "bytes")):
                points = [
                    (record["tokens"], record[unit])
                    for record in results[kind]
                    if record["response"] == response
                    and record["contender"] == implementation
                    and not record["backward"]
                    and record["batch"] == 1
                    and record["tokens"] >= FEWEST_GROWTH_TOKENS
                    and record[unit]
                ]
                if len(points) >= 2:
                    value = round(exponent(*zip(*points, strict=True)), 3)
                    found.append(
                        {"response": response, "contender": implementation, "of": kind, "exponent": value}
                    )
    return found


def claims(results: dict[str, Any], tokens: int = PAPER_TOKENS) -> list[dict[str, Any]]:
    """Compare the measurements at one size with what the project sets out to show.

    Args:
        results: all measurements, growth included.
        tokens: the size.

    Returns:
        One record per claim that could be measured: its words, the number, the limit, and whether it is met.
    """
    found: list[dict[str, Any]] = []

    def claim(words: str, measured: float | None, limit: float, *, at_least: bool) -> None:
        if measured is not None:
            met = measured >= limit if at_least else measured <= limit
            sign = "≥" if at_least else "≤"
            record = {
                "claim": words,
                "measured": round(measured, 3),
                "limit": f"{sign} {limit:g}",
                "met": met,
            }
            found.append(record)

    for response in RESPONSES:
        forward = _ratio(results, response, "reference", tokens, backward=False)
        gradient = _ratio(results, response, "reference", tokens, backward=True)
        limits = {"concatenation": (100.0, 1.0), "dot_product": (1.0, 1.0)}.get(response, (3.5, 2.5))
        claim(f"{response}: forward, times faster than N×N", forward, limits[0], at_least=True)
        claim(f"{response}: with gradients, times faster than N×N", gradient, limits[1], at_least=True)
        if RESPONSES[response].phi == "exp":
            fused = _ratio(results, response, "sdpa", tokens, backward=False)
            slower = None if fused is None else 1 / fused
            claim(f"{response}: forward, in units of one fused attention", slower, 2.5, at_least=False)
        for record in results["growth"]:
            kind = (record["response"], record["contender"], record["of"])
            if kind == (response, "auto", "memory"):
                claim(f"{response}: growth exponent of memory", record["exponent"], 1.1, at_least=False)
            if kind == (response, "auto", "times") == ("concatenation", "auto", "times"):
                claim("concatenation: growth exponent of time", record["exponent"], 1.2, at_least=False)
    for record in results["released"]:
        ours = _seconds(results, record["response"], "auto", record["tokens"], backward=False)
        if ours:
            limit = 1000.0 if record["response"] == "concatenation" else 1.0
            words = f"{record['response']}: forward, times faster than the authors’ code"
            claim(words, record["seconds"] / ours, limit, at_least=True)
    for record in results["memory"]:
        kind = (
            record["response"],
            record["contender"],
            record["tokens"],
            record["batch"],
            record["backward"],
        )
        if kind == ("concatenation", "auto", tokens, 1, False) and record["bytes"]:
            words = "concatenation: peak memory above import, MB"
            claim(words, record["bytes"] / 1e6, 100.0, at_least=False)
    return found


def _ratio(
    results: dict[str, Any], response: str, other: str, tokens: int, *, backward: bool
) -> float | None:
    ours = _seconds(results, response, "auto", tokens, backward)
    theirs = _seconds(results, response, other, tokens, backward)
    return theirs / ours if ours and theirs else None


def _seconds(
    results: dict[str, Any], response: str, implementation: str, tokens: int, backward: bool
) -> float | None:
    for record in results["times"]:
        key = (record["response"], record["contender"], record["tokens"], record["backward"])
        if key == (response, implementation, tokens, backward):
            return record["seconds"]
    return None
