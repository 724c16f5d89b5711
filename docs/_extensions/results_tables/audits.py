"""Tables of the audit: how close a search came to the bounds, and what each trained block does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import Table, grid, large, provenance, read

__all__ = ["TABLES"]


def audit(path: Path) -> str:
    """Write a search or the audit of trained networks, whichever the file holds."""
    content = read(path)
    write = {"attack": _attack, "audit": _blocks}[content["schema"].split("/")[1]]
    return f"**{path.parent.name}**\n\n{write(content)}"


def _attack(content: dict[str, Any]) -> str:
    from invertible_attention.experiments.audit.attack_results import format_ratio, headline

    names = content["score_ranges"]["names"]
    rows = [
        [f"{kind}: {value}", *map(format_ratio, ratios)]
        for kind, found in content["tightest_by"].items()
        for value, ratios in found.items()
    ]
    more = "largest local Lipschitz constant divided by its bound, by the range of the scores over the ball"
    table = grid(["", *names], rows)
    return f"{headline(content)}\n\n{table}\n\n{provenance(content['run'], more=more)}"


def _blocks(content: dict[str, Any]) -> str:
    head = [name for name, value in content["blocks"][0].items() if not isinstance(value, (dict, list))]
    rows = [[_cell(block.get(name)) for name in head] for block in content["blocks"]]
    return f"{grid([name.replace('_', ' ') for name in head], rows)}\n\n{provenance(content['run'])}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return large(value) if isinstance(value, float) else "–" if value is None else str(value)


TABLES = (
    Table("audit", "audit", ("results.json", "*/results.json"), "invertible-attention audit --attack", audit),
)
