"""What attention costs in flows that work without it."""

from __future__ import annotations

from typing import Any

from ..published import RESPONSES
from ..report import Column, Definition, Kind, Line, Result, Section, Source, format_number, tabulate

__all__ = ["DEFINITION"]


def _times(what: str, unit: str) -> Column:
    def cell(row: dict[str, Any]) -> str:
        own = f"{format_number(row[what])} {unit}"
        without = row["without"][what]
        return own if row["layers"] == 0 or not without else f"{format_number(row[what] / without)}× ({own})"

    return Column({"log_prob": "`log_prob`", "step": "training step"}.get(what, what), cell)


COLUMNS = (
    Column("parameters", lambda row: f"{row['parameters']:,}"),
    _times("step", "s"),
    _times("log_prob", "s"),
    _times("sample", "s"),
    _times("memory", "MiB"),
)


def _section(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(
        result.name, "cost of attention in flows", [content["run"]], seeds=[content["seed"]]
    )
    without = {row["flow"]: row for row in content["rows"] if row["layers"] == 0}
    lines: dict[str, list[Line]] = {}
    for row in content["rows"]:
        label = f"{row['layers']} layer{'s' if row['layers'] != 1 else ''}" if row["layers"] else "without"
        lines.setdefault(row["flow"], []).append((label, row | {"without": without[row["flow"]]}, ""))
    caption = (
        f"What layers of certified attention ({RESPONSES[content['response']]}) add to a flow, in units of the flow "
        f"without: a training step and log_prob of {content['batch']} samples, sampling {content['samples']}, CPU "
        f"time, medians of {content['rounds']} rounds after {content['warm']} steps of training; and the peak memory "
        "of training."
    )
    return Section(
        f"Attention in flows: {result.name}",
        tables=[tabulate("ratios", caption, COLUMNS, lines, (source,), label="flow")],
    )


DEFINITION = Definition.of_each(
    Kind("flow-cost", "cost of attention in flows", "python benchmarks/flow_cost.py"), _section, place=7
)
