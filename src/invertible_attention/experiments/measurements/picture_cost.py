"""What a photograph at full size costs."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]

WORK = {"forward": "forward", "inverse": "inverse", "step": "training step"}

COLUMNS = tuple(
    Column(
        title,
        lambda row, what=what: (
            f"{format_number(row[what]['seconds'])} s, {format_number(row[what]['mib'] / 1024, 2)} GiB"
        ),
    )
    for what, title in WORK.items()
)


def _section(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "cost of a photograph", [content["run"]], seeds=[content["seed"]])
    lines: list[Line] = [(f"{row['width']}×{row['height']}", row, "") for row in content["rows"]]
    caption = (
        "A photograph, squeezed 2×2, through one certified layer of Concatenation attention and back: CPU time, and "
        "peak memory above what the imported libraries take."
    )
    return Section(
        f"Photographs at full size: {result.name}",
        tables=[tabulate("sizes", caption, COLUMNS, {"": lines}, (source,), label="pixels")],
    )


DEFINITION = Definition.of_each(
    Kind("picture-cost", "cost of a photograph at full size", "python benchmarks/picture_cost.py"),
    _section,
    place=7,
)
