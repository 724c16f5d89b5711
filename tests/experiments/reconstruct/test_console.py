"""The table of a run on the terminal, with and without the paper's numbers beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from invertible_attention.experiments.published import reconstruction_table
from invertible_attention.experiments.reconstruct.configuration import Configuration
from invertible_attention.experiments.reconstruct.console import print_summary


def printed(published: dict[str, Any] | None, width: int = 120) -> str:
    path = Path(__file__).parents[3] / "results" / "reconstruct" / "cifar10" / "results.json"
    if not path.is_file():
        pytest.skip("needs the repository's results folder")
    shown = io.StringIO()
    results = json.loads(path.read_text(encoding="utf-8"))
    print_summary(Console(file=shown, width=width), results | {"published": published})
    return shown.getvalue()


def test_the_papers_numbers_stand_beside_ours_where_there_are_any() -> None:
    found = reconstruction_table("cifar10", (32, 32))
    assert found is not None
    table, rows = found
    published = {"table": table, "rows": {name: row._asdict() for name, row in rows.items()}}
    text = printed(published)
    assert text.count(f"paper, {table}") == len(rows)
    assert "paper" not in printed(None)


def test_nothing_is_cut_on_a_terminal_of_80_columns() -> None:
    assert "…" not in printed(None, width=80)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"responses": ()}, "responses must not be empty"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Configuration(**settings)
