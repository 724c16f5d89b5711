"""How fast batches of detection images come, and training steps on them, from files and from caches."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]

COLUMNS = (
    Column("a second", lambda row: format_number(row["per_second"])),
    Column("times the first", lambda row: f"{row['ratio']:.2f}"),
)


def _section(result: Result) -> Section:
    content, settings = result.content, result.content["settings"]
    source = Source.of_runs(result.name, "rates of detection", [content["run"]], seeds=[0])
    lines: dict[str, list[Line]] = {}
    for row in content["rows"]:
        group, _, what = row["what"].partition(": ")
        lines.setdefault(group, []).append((what, row, ""))
    caption = (
        f"Batches of {settings['batch_size']} images made, and training steps of Base on {settings['backbone']} at "
        f"{settings['size']}×{settings['size']}, per second of CPU time of {content['threads']} thread; "
        f"medians of {settings['repeats']}, over {settings['images']} images."
    )
    return Section(
        f"Rates of detection: {result.name}",
        tables=[tabulate("rates", caption, COLUMNS, lines, (source,), label="from")],
    )


DEFINITION = Definition.of_each(
    Kind("camouflage-rates", "rates of detection", "python benchmarks/camouflage_rates.py"), _section, place=6
)
