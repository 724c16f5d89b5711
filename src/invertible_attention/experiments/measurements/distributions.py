"""What a density costs in torch.distributions."""

from __future__ import annotations

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]

COLUMNS = (
    Column("training step, s", lambda case: format_number(case["seconds"])),
    Column("ratio", lambda case: f"{format_number(case['ratio'])}×"),
)


def _section(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(
        result.name, "densities in torch.distributions", [content["run"]], seeds=[content["seed"]]
    )
    lines: list[Line] = [(name, case, "") for name, case in content["cases"].items()]
    caption = (
        f"The same density as a flow and in torch.distributions, in the same run: {content['what']}; CPU time of "
        f"a training step, median of {content['rounds']} rounds."
    )
    return Section(
        f"Densities in torch.distributions: {result.name}",
        tables=[tabulate("cases", caption, COLUMNS, {"": lines}, (source,), label="formulation")],
    )


DEFINITION = Definition.of_each(
    Kind(
        "distribution-transform",
        "densities in torch.distributions",
        "python benchmarks/distribution_transform.py",
    ),
    _section,
    place=7,
)
