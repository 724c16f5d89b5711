"""How far the tests can be trusted: runs that were killed, what the tests reach, and what they notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..report import Column, Definition, Kind, Line, Result, Section, Source, Table, tabulate

__all__ = ["DEFINITION"]


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return one section with the tables of every file."""
    tables = [table for result in results for table in BUILDERS[result.kind.name](result)]
    return [Section("Trust in the tests", tables=tables)]


def _source(result: Result, title: str, seeds: Sequence[int] = ()) -> Source:
    return Source.of_runs(result.name, title, [result.content["run"]], seeds=seeds)


def _kills(result: Result) -> list[Table]:
    content = result.content
    # A file may lie there half written over several kills; it was begun before one.
    begun = {name for kill in content["kills"] for name in kill["begun"]}
    columns = [
        Column("kills", lambda c: str(c["moments"])),
        *(Column(stage, lambda c, stage=stage: str(c["stages"][stage])) for stage in content["stages"]),
        Column("while writing a file", lambda _: str(len(begun))),
        Column("runs", lambda c: str(c["runs"])),
        Column("mismatches", lambda c: str(len(c["mismatches"]))),
    ]
    caption = (
        f"Where the kills of a run fell, and what was not as it should be afterwards. A run left alone took "
        f"{content['seconds_whole']:.0f} s, all of them {content['run'].get('seconds', 0):.0f} s."
    )
    lines: list[Line] = [(content["experiment"], content, "")]
    source = _source(result, "runs that were killed", [content["seed"]])
    table = tabulate("kills", caption, columns, {"": lines}, (source,), label="killed")
    if not content["mismatches"]:
        return [table]
    wrong: list[Line] = [(str(item), item, "") for item in content["mismatches"]]
    return [
        table,
        tabulate("mismatches", "What was not as in the run left alone.", (), {"": wrong}, (source,)),
    ]


def _coverage(result: Result) -> list[Table]:
    content = result.content
    columns = (
        Column("lines", lambda part: f"{part['lines']:,}"),
        Column("reached %", lambda part: f"{part['lines_percent']:.1f}"),
        Column("branches", lambda part: f"{part['branches']:,}"),
        Column("reached %", lambda part: f"{part['branches_percent']:.1f}"),
    )
    lines: list[Line] = [("all", content["total"], "certified")]
    lines += [(name, part, "") for name, part in content["packages"].items()]
    caption = f"Lines and branches that the tests reach, by package; {content['note']}."
    source = _source(result, "coverage of the tests")
    return [tabulate("coverage", caption, columns, {"": lines}, (source,), label="package")]


def _mutation(result: Result) -> list[Table]:
    content = result.content

    def count(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda module: str(module[name])

    columns = (
        Column("possible changes", count("mutants")),
        Column("tried", count("tried")),
        Column("noticed", count("killed")),
        Column("survived", count("survived")),
        Column("same behavior", count("equivalent")),
        Column("do not matter", count("harmless")),
    )
    records = {
        "/".join(Path(name).parts[-2:]): _judged(module) for name, module in content["modules"].items()
    }
    first, *_ = records.values()
    total = {name: sum(record[name] for record in records.values()) for name in first}
    lines: list[Line] = [(name, record, "") for name, record in records.items()]
    caption = (
        f"Small changes of the code that the tests noticed, by module; at most {content['sample']} of a module, drawn "
        "at random. What each survivor comes to is in the file."
    )
    source = _source(result, "changes of the code that the tests notice", [content["seed"]])
    lines.append(("all", total, "certified"))
    return [tabulate("mutation", caption, columns, {"": lines}, (source,), label="module")]


def _judged(module: dict[str, Any]) -> dict[str, int]:
    judgements = [survivor["judgement"].partition(":")[0] for survivor in module["survivors"]]
    equivalent = judgements.count("equivalent")
    counts = {name: module[name] for name in ("mutants", "tried", "killed", "survived")}
    return counts | {"equivalent": equivalent, "harmless": len(judgements) - equivalent}


KILLS = Kind(
    "kills",
    "runs that were killed",
    "python tests/trust/killing.py",
    unshown={
        "kills.*.fraction": "drawn at random",
        "kills.*.stage": "counted in the stages",
        "kills.*.begun": "counted",
    },
)
COVERAGE = Kind("coverage", "coverage of the tests", "make coverage")
MUTATION = Kind(
    "mutation",
    "changes of the code that the tests notice",
    "make mutation",
    unshown={"modules.*.survivors": "the judgements are counted"},
)
BUILDERS = {KILLS.name: _kills, COVERAGE.name: _coverage, MUTATION.name: _mutation}
DEFINITION = Definition(kinds=(KILLS, COVERAGE, MUTATION), sections=_sections, place=9)
