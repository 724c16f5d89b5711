"""Terminal output of a search and figure of an audit, with and without findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from invertible_attention.experiments.audit.audit_figure import draw_audit
from invertible_attention.experiments.audit.tables import ATTACK
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.experiments.report.summary import run_markdown


def results(**found: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {name: {} for name in ("response", "normalization", "dtype")}
    counts = {"configurations": 1000, "blocks": 3, "networks": 1, "allowance": 1e-12}
    counts |= {"groups": 1, "combinations": 1, "ascended": 1}
    empty: dict[str, Any] = {"tightest_by": nothing, "tightest": [], "violations": [], "not_finite": 0}
    about = {"schema": ATTACK.schema, "configuration": {"seed": 0}, "score_ranges": {"names": ["low"]}}
    run = run_metadata() | {"processor_seconds": 1.0}
    return about | counts | empty | {"tightest_networks": [], "run": run} | found


def shown(**found: Any) -> str:
    return run_markdown(results(**found), Path("a folder"))


def test_search_without_violations_reports_only_that() -> None:
    text = shown()
    assert "no bound was exceeded beyond an allowance of 1e-12" in text
    assert "Tightest cases" not in text
    assert "EXCEEDED" not in text
    assert "not finite" not in text


def test_violations_and_nonfinite_values_are_reported() -> None:
    violation = {"group": 3, "member": 7, "ratio": 1.0000003, "structure": {"response": "gaussian"}}
    text = shown(violations=[violation], not_finite=2)
    assert "| 1.000000300 | group 3, member 7 |" in text
    assert "2 layers had a bound or a Jacobian that is not finite" in text
    assert "1 BOUNDS WERE EXCEEDED" in text


@pytest.mark.parametrize("largest", [0.8, 12.0])
def test_figure_shows_blocks_with_and_without_a_certificate(largest: float) -> None:
    row = {"network": "n", "block": "0", "lipschitz_estimates": [0.5, largest]}
    certified, relaxed = row | {"certificate": 0.9}, row | {"certificate": None}
    assert draw_audit([certified]).png != draw_audit([relaxed]).png
