"""The cost of attention is shown relative to the same flow without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.experiments.report.kinds import result_of
from invertible_attention.experiments.report.summary import build_sections


def row(flow: str, layers: int, seconds: float) -> dict[str, Any]:
    times = {"step": seconds, "log_prob": 2 * seconds, "sample": 4 * seconds}
    return {"flow": flow, "layers": layers, "parameters": 1234, "memory": 100 * seconds, **times}


def test_costs_are_relative_to_the_flow_without_attention() -> None:
    content = {
        "schema": "invertible-attention/flow-cost/1",
        "response": "embedded_gaussian",
        "batch": 2,
        "samples": 3,
        "warm": 4,
        "rounds": 5,
        "seed": 0,
        "rows": [row("a", 0, 1.0), row("a", 1, 1.5), row("b", 0, 2.0), row("b", 3, 3.0)],
        "run": run_metadata(),
    }
    (section,) = build_sections([result_of(content, Path("flows"))])
    (table,) = section.tables
    shown = {(group.title, line.cells[0]): line.cells[1:] for group in table.groups for line in group.rows}
    assert shown["a", "without"] == ("1,234", "1 s", "2 s", "4 s", "100 MiB")
    assert shown["a", "1 layer"] == ("1,234", "1.5× (1.5 s)", "1.5× (3 s)", "1.5× (6 s)", "1.5× (150 MiB)")
    assert shown["b", "3 layers"][1:3] == ("1.5× (3 s)", "1.5× (6 s)")
