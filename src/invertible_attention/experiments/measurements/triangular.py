"""What attention that is invertible by order costs, compared with the flow it is in, and how it is best inverted."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]

COST = (
    Column("without, s", lambda row: format_number(row["reference"])),
    Column("with, s", lambda row: format_number(row["seconds"])),
    Column("ratio", lambda row: f"{row['ratio']:.2f}×"),
)
INVERSION = (
    Column("at once, s", lambda row: format_number(row["at once"]["seconds"])),
    Column("evaluations", lambda row: str(row["at once"]["evaluations"])),
    Column("solved", lambda row: "yes" if row["at once"]["converged"] else "no"),
    Column("one by one, s", lambda row: format_number(row["sequential"]["seconds"])),
    Column("evaluations", lambda row: str(row["sequential"]["evaluations"])),
    Column("solved", lambda row: "yes" if row["sequential"]["converged"] else "no"),
    Column("ratio", lambda row: f"{row['ratio']:.2f}×"),
)


def _section(result: Result) -> Section:
    content, settings = result.content, result.content["settings"]
    source = Source.of_runs(
        result.name, "cost of triangular attention", [content["run"]], seeds=[content["seed"]]
    )
    groups: dict[str, list[Line]] = {}
    for row in content["cost"]:
        groups.setdefault(row["action"], []).append((row["form"], row, ""))
    timing = f"CPU time of {settings['threads']} thread, medians of {settings['rounds']} rounds"
    blocks = "-".join([str(settings["blocks"])] * 3)
    cost = (
        f"Two layers of triangular attention at scale 1 of an i-ResNet of {blocks} blocks of {settings['channels']} "
        f"channels, trained for {settings['steps']} steps, batches of {settings['batch']}, compared with the same flow "
        f"without them; {timing}."
    )
    inversion = (
        "The inverse of one affine layer, all tokens at once and one by one with cached keys and values; "
        f"{timing}."
    )
    batches: list[Line] = [(str(row["batch"]), row, "") for row in content["inversion"]]
    return Section(
        f"Triangular attention: {result.name}",
        tables=[
            tabulate("cost", cost, COST, groups, (source,), label="form"),
            tabulate("inversion", inversion, INVERSION, {"": batches}, (source,), label="batch"),
        ],
    )


DEFINITION = Definition.of_each(
    Kind("triangular-cost", "cost of triangular attention", "python benchmarks/triangular.py"),
    _section,
    place=5,
)
