"""Residual blocks and solvers of other libraries, and ours over the same layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]


def _ratio(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[name][1] / row[name][0]:.2f}"


def _pair(name: str, digits: int) -> Callable[[dict[str, Any]], str]:
    return lambda row: " / ".join(format_number(value, digits) for value in row[name])


def _bias(mode: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        found = (bias[mode] for bias in row["bias"])
        return " / ".join(f"{bias['error']:+.3f} ± {bias['standard_error']:.3f}" for bias in found)

    return cell


BLOCKS = (
    Column("training step", _ratio("step")),
    Column("its memory", _ratio("bytes")),
    Column("inverse", _ratio("inverse")),
    Column("its error", _pair("error of the inverse", 2)),
    Column("inverse by default", _ratio("inverse by default")),
    Column("error of that", _pair("error of the inverse by default", 2)),
    Column("largest norm / limit", _pair("norm", 4)),
    Column("bias in training", _bias("training")),
    Column("bias in evaluation", _bias("evaluation")),
)
SOLVERS = (
    Column("time", _ratio("seconds")),
    Column("evaluations", lambda row: " / ".join(map(str, row["evaluations"]))),
    Column("residual", _pair("residual", 2)),
)


def _section(result: Result) -> Section:
    content = result.content
    settings = content["settings"]
    source = Source.of_runs(result.name, "other libraries", [content["run"]], seeds=[content["seed"]])
    blocks: dict[str, list[Line]] = {}
    for row in content["rows"]:
        blocks.setdefault(row["peer"], []).append((f"{row['layers']}, {row['limit']}", row, ""))
    solvers: dict[str, list[Line]] = {}
    for row in content["solvers"]:
        solvers.setdefault(row["peer"], []).append((row["problem"], row, ""))
    caption = (
        f"Ours as a share of theirs, or theirs / ours: {settings['blocks']} blocks over the same layers of "
        f"{settings['hidden']} channels with this limit of their norms, batches of {settings['batch']}, after "
        f"{settings['steps']} training steps; medians of CPU time over {settings['rounds']} rounds in turns, "
        f"inverses to a relative error of 1e-5 but for the defaults, biases with the standard error of "
        f"{settings['calls']} calls. A log-determinant of FrEIA has no gradient."
    )
    return Section(
        f"Other libraries: {result.name}",
        tables=[
            tabulate("blocks", caption, BLOCKS, blocks, (source,), label="layers and limit"),
            tabulate(
                "solvers",
                "Our Anderson and NewtonKrylov on the same problems, to the same residual, without preconditioners.",
                SOLVERS,
                solvers,
                (source,),
                label="problem",
            ),
        ],
    )


DEFINITION = Definition.of_each(
    Kind(
        "peers",
        "other libraries",
        "python benchmarks/peers.py",
        unshown={
            "settings.limits.*": "those of the rows",
            "settings.quick": "the other settings say what it means",
            "rows.*.bytes.*": "as a ratio",
            "rows.*.detached.*": "the caption says whose",
        },
    ),
    _section,
    place=5,
)
