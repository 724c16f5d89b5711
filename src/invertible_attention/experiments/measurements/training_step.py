"""What a training step of a density takes, in the authors' formulation and in ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]


def _section(result: Result) -> Section:
    content = result.content
    first, *_ = content["rows"]

    def relative(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: f"{row[name] / first[name]:.2f}"

    columns = (
        Column("peak above start, MiB", lambda row: format_number(row["mib"], 4)),
        Column("of the first", relative("mib")),
        Column("peak, MiB", lambda row: format_number(row["total_mib"], 4)),
        Column("CPU time, s", lambda row: format_number(row["seconds"])),
        Column("of the first", relative("seconds")),
    )
    source = Source.of_runs(result.name, "training step of a density", [content["run"]], seeds=[0])
    lines: list[Line] = [(row["formulation"], row, "") for row in content["rows"]]
    caption = (
        f"Memory and time of a training step: {content['blocks']} blocks of {content['channels']} channels per scale, "
        f"batches of {content['batch']}, {content['threads']} thread{'s' if content['threads'] != 1 else ''}."
    )
    return Section(
        f"Training step of a density: {result.name}",
        tables=[tabulate("formulations", caption, columns, {"": lines}, (source,), label="formulation")],
    )


DEFINITION = Definition.of_each(
    Kind("density-training-step", "training step of a density", "python benchmarks/density_training_step.py"),
    _section,
    place=3,
)
