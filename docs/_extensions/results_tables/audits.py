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
    from invertible_attention.experiments.audit.checkpoint_audit import headline

    blocks = content["blocks"]
    attacked = [block for block in blocks if block.get("attack")]
    if attacked:
        return _attacked(content, attacked)
    head = [name for name, value in blocks[0].items() if not isinstance(value, (dict, list))]
    rows = [[_cell(block.get(name)) for name in head] for block in blocks]
    table = grid([name.replace("_", " ") for name in head], rows)
    return f"{headline(blocks)}\n\n{table}\n\n{provenance(content['run'])}"


def _attacked(content: dict[str, Any], blocks: list[dict[str, Any]]) -> str:
    """Write a row for each network: its largest ratios after gradient ascent, over all of its certified blocks."""
    from invertible_attention.experiments.audit.attack_results import format_ratio
    from invertible_attention.experiments.audit.checkpoint_audit import headline

    networks: dict[str, list[dict[str, Any]]] = {}
    for block in blocks:
        networks.setdefault(block["network"], []).append(block)
    head = ["network", "certified blocks", "ascents", "largest ratio: input", "input and weights"]
    rows = []
    for name, own in networks.items():
        ascents = sum(attack["ascents"] for block in own for attack in block["attack"].values())
        ratios = [[block["attack"][kind]["ratio"] for block in own] for kind in ("input", "weights")]
        worst = ["∞" if None in found else format_ratio(max(found)) for found in ratios]
        rows.append([name, str(len(own)), str(ascents), *worst])
    more = (
        "largest local Lipschitz constant found divided by its bound, "
        f"{content['configuration']['attack_steps']} steps per ascent"
    )
    return f"{headline(content['blocks'])}\n\n{grid(head, rows)}\n\n{provenance(content['run'], more=more)}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return large(value) if isinstance(value, float) else "–" if value is None else str(value)


TABLES = (
    Table("audit", "audit", ("attack/results.json",), "invertible-attention audit --attack", audit),
    Table(
        "audit-trained",
        "audit/trained",
        ("*/results.json",),
        "invertible-attention audit CHECKPOINT --attack",
        audit,
    ),
)
