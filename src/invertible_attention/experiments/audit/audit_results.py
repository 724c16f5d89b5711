"""What the audit of trained networks found, said in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .search import ALLOWANCE

__all__ = ["headline"]


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """Return the result in a sentence."""
    passed = sum(row["passed"] for row in rows)
    certified = sum(row["contraction"] == "certified" for row in rows)
    silent = sum(row["silently_wrong"] for row in rows)
    exceeded = sum(row["exceeds_certificate"] > 0 or _beaten(row) for row in rows)
    said = "no certificate was exceeded" if not exceeded else f"{exceeded} CERTIFICATES WERE EXCEEDED"
    wrong = "" if not silent else f" {silent} inverses were WRONG WITHOUT SAYING SO."
    return f"{passed} of {len(rows)} blocks passed, {certified} of them are certified; {said}.{wrong}"


def _beaten(row: dict[str, Any]) -> bool:
    attack = row.get("attack") or {}
    # What is not finite is written as null: a constant above a bound of zero, or one that is not a number.
    return any(item["ratio"] is None or item["ratio"] > 1 + ALLOWANCE for item in attack.values())
