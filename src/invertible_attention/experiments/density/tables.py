"""Table 3: bits per dimension, published and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..published import TABLE_3
from ..report import Column, Definition, Kind, Line, Result, Section, Source, tabulate
from . import run_tables, study_tables
from .configuration import Configuration
from .run_tables import kind_of_row, runs_section
from .scores import BRACKETS, bits, mean_bits
from .study_tables import rows_of, steps_of, study_section

__all__ = ["DEFINITION", "RUN", "STUDY"]


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return the paper's table, then one section per data set of runs and one per study."""
    found = [_published(results)]
    by_data: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == RUN:
            by_data.setdefault(result.content["data"]["title"], []).append(result)
    found += [runs_section(title, members) for title, members in by_data.items()]
    found += [study_section(result) for result in results if result.kind == STUDY]
    return found


def _published(results: Sequence[Result]) -> Section:
    measured = [result for result in results if _settings(result)["dataset"] == "cifar10"]
    columns = [Column("bits/dim", lambda row: row["bits"], lambda value: f"{value:.2f}")]
    if measured:
        columns += [
            Column("parameters", lambda row: f"{row['parameters']:,}"),
            Column("steps", lambda row: f"{row['steps']:,}"),
        ]
    lines: list[Line] = [(name, value, "paper") for name, value in TABLE_3.items()]
    lines += [line for result in measured for line in _beside(result)]
    note = (
        "The published numbers are one run each of full-size models after days on a GPU; the i-ResNet rows are biased "
        "estimates (a series of 5 terms)."
    )
    if not measured:
        note += " No density of CIFAR-10 is among the folders: compare what follows within itself, not with these."
    caption = "Bits per dimension of CIFAR-10's test images (lower is better)" + (
        ", ours with standard errors, and the size of what was trained." if measured else "."
    )
    table = tabulate("published", caption, columns, {"": lines}, tuple(map(_source, measured)))
    brackets = [BRACKETS] if any("[" in cell for row in table.groups[0].rows for cell in row.cells) else []
    return Section("Table 3: density of CIFAR-10", tables=[table], notes=[note, *brackets])


def _settings(result: Result) -> dict[str, Any]:
    return result.content["configuration" if result.kind == RUN else "base"]


def _source(result: Result) -> Source:
    return (run_tables if result.kind == RUN else study_tables).source_of(result)


def _beside(result: Result) -> list[Line]:
    content = result.content
    if result.kind == RUN:
        record = content | {"model": content["configuration"]["model"]}
        record |= {"bits": bits(record["evaluation"]), "steps": content["training"]["steps"]}
        return [(content["name"], record, kind_of_row(Configuration.from_json(content["configuration"])))]
    return [
        (row["variant"], row | {"bits": mean_bits(row), "steps": steps_of(content, row)}, kind)
        for row, kind in rows_of(content)
    ]


RUN = Kind(
    "density",
    "density (Table 3)",
    "invertible-attention density train",
    unshown={"data.fingerprint": "of the images", "curve": "drawn: curve"},
)


STUDY = Kind(
    "density-study",
    "comparison of densities (Table 3)",
    "invertible-attention density study",
    unshown={
        "data.fingerprint": "of the images",
        "run": "that of the cells is shown",
        "variants": "those of the rows",
        "rows.*.name": "the variant says it",
        "rows.*.model": "the variant says it",
        "rows.*.bits_per_dim.values": "those of the cells",
        "rows.*.difference.values": "drawn: differences",
        "rows.*.at_equal_time.values": "drawn: curve",
        "rows.*.difference_at_equal_time.values": "drawn: curve",
        "rows.*.at_equal_steps.values": "drawn: curve",
        "rows.*.difference_at_equal_steps.values": "drawn: curve",
        "cells.*.name": "the variant says it",
        "cells.*.curve": "drawn: curve",
    },
)


DEFINITION = Definition(kinds=(RUN, STUDY), sections=_sections, place=2)
