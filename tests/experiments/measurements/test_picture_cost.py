"""Time and memory of reconstructing a photograph, by its size."""

from __future__ import annotations

from pathlib import Path

from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.experiments.report.kinds import result_of
from invertible_attention.experiments.report.summary import build_sections


def test_every_task_has_seconds_and_memory() -> None:
    row = {"width": 640, "height": 480} | {
        what: {"seconds": seconds, "mib": 1024 * seconds}
        for what, seconds in (("forward", 0.5), ("inverse", 1.5), ("step", 2.5))
    }
    content = {
        "schema": "invertible-attention/picture-cost/1",
        "seed": 0,
        "rows": [row],
        "run": run_metadata(),
    }
    (section,) = build_sections([result_of(content, Path("pictures"))])
    (line,) = section.tables[0].groups[0].rows
    assert line.cells == ("640×480", "0.5 s, 0.5 GiB", "1.5 s, 1.5 GiB", "2.5 s, 2.5 GiB")
