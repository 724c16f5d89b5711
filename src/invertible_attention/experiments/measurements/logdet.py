"""Log-determinants: what estimators cost, how far they spread, whether they are biased, and whether bounds hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

ESTIMATORS = (
    Column("mean error", lambda row: format_error(row["mean_error"], row["standard_error"], sign=True)),
    Column("spread of one call", lambda row: format_number(row["deviation"])),
    Column("evaluation", lambda row: f"{format_number(row['evaluation_relative'])}×"),
    Column("training", lambda row: f"{format_number(row['training_relative'])}×"),
    Column("calls", lambda row: str(row["calls"])),
)


def _estimators(result: Result) -> Section:
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
        tables=[tabulate("estimators", caption, ESTIMATORS, {"": lines}, (source,), label="estimator")],
        notes=[
            f"The paper truncates the series at 5 terms, which is biased: by at most {bound} for a Lipschitz constant "
            f"of {format_number(content['lipschitz_bound'])} in {content['dim']} dimensions."
        ],
    )


def _of(series: str, name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: format_number(row[series][name])


LAYERS = (
    Column("spread, series", _of("series", "deviation")),
    Column("spread, linear part known", _of("linear part", "deviation")),
    Column("smaller by", lambda row: f"{format_number(row['deviation_ratio'])}×"),
    Column("evaluation, series", lambda row: f"{_of('series', 'evaluation_relative')(row)}×"),
    Column("evaluation, linear part known", lambda row: f"{_of('linear part', 'evaluation_relative')(row)}×"),
    Column("training, series", lambda row: f"{_of('series', 'training_relative')(row)}×"),
    Column("training, linear part known", lambda row: f"{_of('linear part', 'training_relative')(row)}×"),
    Column("with `memory_saving=True`", lambda row: f"{_of('memory saving', 'training_relative')(row)}×"),
    Column("standard error, bits/dim", _of("linear part", "standard_error_bits")),
    Column("in training", _of("linear part", "training_error_bits")),
    Column("inverse, evaluations", lambda row: str(row["inverse_evaluations"])),
)


def _layers(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "log-determinants of trained layers", [content["run"]], seeds=[0])
    shape = "×".join(map(str, content["shape"]))
    caption = (
        f"The log-determinant of one layer on values of {shape}, trained on photographs for {content['steps']} steps, "
        "estimated from the series alone and from what the linear part of attention, known in closed form, leaves of "
        f"it: standard deviation of one probe in nats, and CPU time for a batch of {content['batch']} in units of one "
        "forward pass; the standard errors are those of the batch's mean, in evaluation and in training, where what is "
        "left is estimated on a sixteenth of the batch."
    )
    lines: list[Line] = [(row["layer"], row, "") for row in content["rows"]]
    return Section(
        f"Log-determinants of trained layers: {result.name}",
        tables=[tabulate("layers", caption, LAYERS, {"": lines}, (source,), label="layer")],
    )


def _remainder(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "certified remainders", [content["run"]], seeds=[content["seed"]])
    caption = (
        "Error of a partial sum in units of its certified remainder: the largest of "
        f"{content['configurations']:,} Jacobians and linear parts, after up to {content['terms']} terms each. "
        "Above 1 a bound would be wrong."
    )
    column = Column("largest share of the bound", lambda share: f"{share:.4f}")
    lines: list[Line] = [(name, share, "") for name, share in content["largest_share_of_the_bound"].items()]
    return Section(
        f"Certified remainders: {result.name}",
        tables=[tabulate("remainder", caption, (column,), {"": lines}, (source,), label="partial sum")],
    )


def _sections(results: Sequence[Result]) -> list[Section]:
    return [BUILDERS[result.kind.name](result) for result in results]


LOGDET = Kind("logdet", "log-determinant estimators", "python benchmarks/logdet.py")
OF_LAYERS = Kind(
    "logdet-layers",
    "log-determinants of trained layers",
    "python benchmarks/logdet_layers.py",
    unshown={
        "rows.*.series.standard_error_bits": "the deviation, in other units",
        "rows.*.series.training_error_bits": "likewise",
        "rows.*.memory saving": "as with the linear part, but for the time of training",
    },
)
REMAINDER = Kind("logdet-remainder", "certified remainders", "python benchmarks/logdet_remainder.py")
BUILDERS = {LOGDET.name: _estimators, OF_LAYERS.name: _layers, REMAINDER.name: _remainder}
DEFINITION = Definition(kinds=(LOGDET, OF_LAYERS, REMAINDER), sections=_sections, place=4)
