"""Tables of the audit: what was searched for, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import Table, grid, large, provenance, read

__all__ = ["TABLES"]


def summary(path: Path) -> str:
    """Every list of records in the file's summary, as it is."""
    content = read(path)
    parts = []
    for name, records in _lists(content):
        head = [key for key, value in records[0].items() if not isinstance(value, (dict, list))]
        rows = [[_cell(record.get(key)) for key in head] for record in records]
        parts.append(f"**{name.replace('_', ' ')}**\n\n{grid([k.replace('_', ' ') for k in head], rows)}")
    return "\n\n".join([*parts, provenance(content.get("run") or content.get("metadata"))])


def _lists(content: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    found = []
    for name, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and len(value) <= 40:
            found.append((name, value))
    return found


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return large(value)
    return "–" if value is None else str(value)


TABLES = (
    Table(
        "audit", "audit", ("results.json", "*.json", "*/results.json"), "invertible-attention audit", summary
    ),
)
