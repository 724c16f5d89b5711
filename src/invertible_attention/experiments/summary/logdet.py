"""Log-determinant estimators: what they cost, how far they spread, and whether they are biased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report import format_number
from .content import Row, RowGroup, Section, Source, Table
from .recognition import Result

__all__ = ["sections"]

COLUMNS = ("", "mean error", "spread of one call", "evaluation", "training", "calls")


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per comparison of estimators."""
    return [_section(result) for result in results]


def _section(result: Result) -> Section:
    content = result.content
    # Its layer and points are drawn with seed 0.
    source = Source.of_runs(result.name, "log-determinant estimators", [content["run"]], seeds=[0])
    caption = (
        f"Estimators of log det on {content['layer']}, whose exact value is {content['exact']:.4f}: mean error with "
        "its standard error, standard deviation of one call, and time in units of one forward pass."
    )
    rows = tuple(Row((row["estimator"], *_row(row))) for row in content["rows"])
    bound = format_number(content["truncation_bound_of_5_terms"])
    return Section(
        f"Log-determinants: {result.name}",
        tables=[Table(caption, COLUMNS, (RowGroup("", rows),), (source,))],
        notes=[
            f"The paper truncates the series at 5 terms, which is biased: by at most {bound} for a Lipschitz constant "
            f"of {format_number(content['lipschitz_bound'])} in {content['dim']} dimensions."
        ],
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['mean_error']:+.4f} ± {row['standard_error']:.4f}",
        format_number(row["deviation"]),
        f"{format_number(row['evaluation_relative'])}×",
        f"{format_number(row['training_relative'])}×",
        str(row["calls"]),
    )
