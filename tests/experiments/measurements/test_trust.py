"""Mutants are counted by judgment, and killed runs by phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.experiments.report.kinds import result_of
from invertible_attention.experiments.report.summary import build_sections


def rows(content: dict[str, Any], *, table: int = 0) -> list[dict[str, str]]:
    (section,) = build_sections([result_of(content | {"run": run_metadata()}, Path("trust"))])
    found = section.tables[table]
    return [
        dict(zip(("", *found.columns[1:]), row.cells, strict=True))
        for group in found.groups
        for row in group.rows
    ]


def test_mutants_are_counted_by_judgment() -> None:
    judgements = ["equivalent: the same", "no matter: a message", "equivalent: the same too"]
    found = {
        "mutants": 90,
        "tried": 10,
        "killed": 7,
        "survived": 3,
        "survivors": [{"judgement": text} for text in judgements],
    }
    modules = {
        "src/invertible_attention/solvers/base.py": found,
        "src/invertible_attention/lipschitz/gram.py": found,
    }
    schema = "invertible-attention/mutation/1"
    first, _, total = rows({"schema": schema, "modules": modules, "seed": 0, "sample": 8})
    assert list(first.values()) == ["solvers/base.py", "90", "10", "7", "3", "2", "1"]
    assert list(total.values()) == ["all", "180", "20", "14", "6", "4", "2"]


def test_killed_runs_are_counted_by_phase() -> None:
    content: dict[str, Any] = {
        "schema": "invertible-attention/kills/1",
        "experiment": "density",
        "seed": 7,
        "moments": 3,
        "runs": 2,
        "mismatches": ["run 2: other weights in model.safetensors"],
        "stages": {"start": 0, "training": 2, "evaluation": 0, "report": 1},
        "seconds_whole": 12.3,
        "kills": [
            {"fraction": 0.1, "stage": "training", "begun": []},
            {"fraction": 0.2, "stage": "training", "begun": [".training.ckpt.aaaaaaaa.ckpt"]},
            {"fraction": 0.9, "stage": "report", "begun": [".training.ckpt.aaaaaaaa.ckpt"]},
        ],
    }
    (row,) = rows(content)
    assert row == {
        "": "density",
        "kills": "3",
        "start": "0",
        "training": "2",
        "evaluation": "0",
        "report": "1",
        "while writing a file": "1",
        "runs": "2",
        "mismatches": "1",
    }
    assert rows(content, table=1) == [{"": "run 2: other weights in model.safetensors"}]
