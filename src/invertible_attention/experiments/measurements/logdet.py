"""Log-determinant estimators: what they cost, how far they spread, and whether they are biased."""

from __future__ import annotations

from ..report import (
    Column,
    Definition,
    Kind,
    Line,
    Result,
    Section,
    Source,
    format_error,
    format_number,
    tabulate,
)

__all__ = ["DEFINITION"]

COLUMNS = (
    Column("mean error", lambda row: format_error(row["mean_error"], row["standard_error"], sign=True)),
    Column("spread of one call", lambda row: format_number(row["deviation"])),
    Column("evaluation", lambda row: f"{format_number(row['evaluation_relative'])}×"),
    Column("training", lambda row: f"{format_number(row['training_relative'])}×"),
    Column("calls", lambda row: str(row["calls"])),
)


def _section(result: Result) -> Section:
    content = result.content
    # Its layer and points are drawn with seed 0.
    source = Source.of_runs(result.name, "log-determinant estimators", [content["run"]], seeds=[0])
    caption = (
        f"Estimators of the log-determinant on {content['layer']}, whose exact value is {content['exact']:.4f}: mean "
        "error with its standard error, standard deviation of one call, and CPU time in units of one forward pass."
    )
    lines: list[Line] = [(row["estimator"], row, "") for row in content["rows"]]
    bound = format_number(content["truncation_bound_of_5_terms"])
    return Section(
        f"Log-determinants: {result.name}",
        tables=[tabulate("estimators", caption, COLUMNS, {"": lines}, (source,), label="estimator")],
        notes=[
            f"The paper truncates the series at 5 terms, which is biased: by at most {bound} for a Lipschitz constant "
            f"of {format_number(content['lipschitz_bound'])} in {content['dim']} dimensions."
        ],
    )


DEFINITION = Definition.of_each(
    Kind("logdet", "log-determinant estimators", "python benchmarks/logdet.py"), _section, place=4
)
