"""Pieces of Markdown that all tables are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESPONSES", "Table", "fixed", "grid", "large", "provenance", "read", "small"]

RESPONSES = {
    "gaussian": "Gaussian",
    "embedded_gaussian": "Embedded Gaussian",
    "dot_product": "Dot-product",
    "concatenation": "Concatenation",
}
MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table of one kind of results.

    Args:
        name: what pages call it.
        folder: where under ``results/`` its files are.
        patterns: names of its files, the first that is found counts.
        command: what writes them.
        write: returns Markdown for one file.
    """

    name: str
    folder: str
    patterns: tuple[str, ...]
    command: str
    write: Callable[[Path], str]

    def files(self, results: Path) -> list[Path]:
        """Return the files the table is written from."""
        for pattern in self.patterns:
            found = sorted((results / self.folder).glob(pattern))
            if found:
                return found
        return []


def read(path: Path) -> dict[str, Any]:
    """Read a results file."""
    return json.loads(path.read_text(encoding="utf-8"))


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a Markdown table: the first columns are text, the others numbers."""
    rule = ["---" if index < text_columns else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def small(value: float | None, digits: int = 2) -> str:
    """Return a number in few digits, in scientific notation where it is tiny or huge."""
    if value is None:
        return "∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")


def large(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash where it was not measured."""
    return MISSING if value is None else small(value, digits)


def fixed(value: float | None, decimals: int) -> str:
    """Return a number with so many decimals, or a dash where there is none."""
    return MISSING if value is None else f"{value:.{decimals}f}"


def provenance(run: dict[str, Any] | None, *, more: str = "") -> str:
    """Return one line: when, where and with what the numbers were measured."""
    if not run:
        return _sentence([more])
    machine, versions = run.get("machine", {}), run.get("versions", {})
    threads = machine.get("threads")
    parts = [
        more,
        f"measured {run['time'][:10]}" if "time" in run else "",
        f"commit `{run['commit']}`" if run.get("commit") else "",
        f"PyTorch {versions['torch']}" if "torch" in versions else "",
        machine.get("accelerator") or machine.get("processor") or "",
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else "",
    ]
    return _sentence(parts)


def _sentence(parts: Sequence[str]) -> str:
    text = ", ".join(part for part in parts if part)
    return f"*{text[:1].upper()}{text[1:]}.*" if text else ""
