"""What a training step of a density takes on a device."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]


def _section(result: Result) -> Section:
    content = result.content
    first, *_ = content["rows"]
    columns = [
        Column("step, ms", lambda row: format_number(1e3 * row["seconds"])),
        Column("of the first", lambda row: f"{row['seconds'] / first['seconds']:.2f}"),
    ]
    if "mib" in first:
        columns += [
            Column("device busy", lambda row: f"{100 * row['busy_seconds'] / row['seconds']:.0f} %"),
            Column("peak, MiB", lambda row: format_number(row["mib"], 4)),
        ]
    source = Source.of_runs(
        result.name, "training step on a device", [content["run"]], seeds=[content["seed"]]
    )
    lines: list[Line] = [(row["attention"], row, "") for row in content["rows"]]
    size = content["settings"]
    caption = (
        f"A training step on {content['device']}: {size['blocks']} blocks of {size['channels']} channels per scale, "
        f"batches of {size['batch']}; medians."
    )
    return Section(
        f"Training step on a device: {result.name}",
        tables=[tabulate("steps", caption, columns, {"": lines}, (source,), label="attention")],
    )


DEFINITION = Definition.of_each(
    Kind("device-step", "training step on a device", "python scripts/gpu.py"), _section, place=3
)
