"""What compiling a branch saves of its inverse."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]

COLUMNS = (
    Column("eager, ms", lambda case: format_number(case["eager_ms"])),
    Column("compiled, ms", lambda case: format_number(case["compiled_ms"])),
    Column("ratio", lambda case: f"{format_number(case['ratio'])}×"),
    Column("largest difference", lambda case: format_number(case["difference"], 2)),
)


def _section(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "compiled solves", [content["run"]], seeds=[0])
    lines: list[Line] = [(name, case, "") for name, case in content["cases"].items()]
    caption = (
        f"Solves as they are and compiled, in the same run: {content['what']}, {content['repeats']} repeats."
    )
    return Section(
        f"Compiled solves: {result.name}",
        tables=[tabulate("cases", caption, COLUMNS, {"": lines}, (source,), label="inverse")],
    )


DEFINITION = Definition.of_each(
    Kind("compiled", "compiled solves", "python benchmarks/compiled_inverse.py"), _section, place=6
)
