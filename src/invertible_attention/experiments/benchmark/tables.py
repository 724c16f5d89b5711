"""Time and memory: the claims and whether they are met, and times compared with the N×N matrix and fused attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..published import RESPONSES as TITLES
from ..report import (
    Column,
    Definition,
    Kind,
    Line,
    Picture,
    Result,
    Section,
    Source,
    Table,
    format_number,
    tabulate,
)
from .configuration import PAPER_TOKENS
from .figure import draw
from .implementations import IMPLEMENTATIONS

__all__ = ["BENCHMARK", "DEFINITION"]

Case = dict[str, dict[str, Any]]
"""Records of one size and pass, by implementation."""


def _section(result: Result) -> Section:
    content = result.content
    # Random tokens are drawn with seed 0 whatever the run.
    source = Source.of_runs(result.name, "time and memory", [content["run"]], seeds=[0])
    met = sum(record["met"] for record in content["claims"])
    sizes = [record["tokens"] for record in content["times"]]
    paper = max((tokens for tokens in sizes if tokens <= PAPER_TOKENS), default=0)
    tables = [
        _claims(content, source),
        _times("times", content["times"], source),
        _times("times-at-paper-size", (r for r in content["times"] if r["tokens"] == paper), source),
        _memory(content, source),
        _growth(content, source),
        _released(content, source),
    ]
    return Section(
        f"Time and memory: {result.name}",
        lead=[f"{met} of {len(content['claims'])} claims are met on this machine."]
        if content["claims"]
        else [],
        tables=[table for table in tables if table.groups],
        pictures=lambda: [Picture(draw(content), (source,))],
        notes=[
            "One sample of 12 channels, weights normalized by column; implementations are measured in rounds."
        ],
    )


def _claims(content: dict[str, Any], source: Source) -> Table:
    columns = (
        Column("measured", lambda record: format_number(record["measured"])),
        Column("limit", lambda record: record["limit"]),
        Column("", lambda record: "met" if record["met"] else "not met"),
    )
    lines: list[Line] = [(record["claim"], record, "") for record in content["claims"]]
    caption = "What the project sets out to show, and what was measured."
    return tabulate("claims", caption, columns, {"": lines}, (source,), label="claim")


def _lines(records: Iterable[dict[str, Any]]) -> dict[str, list[Line]]:
    """Return records by response and size, implementations together, where this library is among them."""
    cases: dict[str, dict[tuple[Any, ...], Case]] = {}
    for record in records:
        size = (record["tokens"], record["batch"], record["backward"])
        cases.setdefault(record["response"], {}).setdefault(size, {})[record["contender"]] = record
    return {
        TITLES[response]: [(_size(*size), case, "") for size, case in found.items() if "auto" in case]
        for response, found in cases.items()
    }


def _size(tokens: int, batch: int, backward: bool) -> str:
    samples = "" if batch == 1 else f", {batch} samples"
    return f"{tokens:,} tokens{samples}, {'with gradients' if backward else 'forward'}"


def _times(name: str, records: Iterable[dict[str, Any]], source: Source) -> Table:
    def ratio(implementation: str) -> Callable[[Case], str]:
        def text(case: Case) -> str:
            other = case.get(implementation)
            return "–" if other is None else f"{format_number(other['seconds'] / case['auto']['seconds'])}×"

        return text

    reference, fused = IMPLEMENTATIONS[1:]
    columns = (
        Column("this library, ms", lambda case: format_number(1e3 * case["auto"]["seconds"])),
        Column("median, ms", lambda case: format_number(1e3 * case["auto"]["median"])),
        Column("rounds", lambda case: str(case["auto"]["turns"])),
        Column("N×N matrix", ratio(reference)),
        Column("fused softmax attention", ratio(fused)),
    )
    caption = (
        "Time of this library, the fastest round and the median one, and how many times as long the fastest rounds of "
        "the others take in the same run."
    )
    return tabulate(name, caption, columns, _lines(records), (source,))


def _memory(content: dict[str, Any], source: Source) -> Table:
    def size(implementation: str) -> Callable[[Case], str]:
        def text(case: Case) -> str:
            found = case.get(implementation, {}).get("bytes")
            return "–" if found is None else format_number(found / 1e6)

        return text

    names = ("this library, MB", "N×N matrix, MB", "fused softmax attention, MB")
    columns = [
        Column(name, size(implementation))
        for name, implementation in zip(names, IMPLEMENTATIONS, strict=True)
    ]
    caption = "Peak memory above what importing takes."
    return tabulate("memory", caption, columns, _lines(content["memory"]), (source,))


def _growth(content: dict[str, Any], source: Source) -> Table:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for record in content["growth"]:
        exponents = found.setdefault(TITLES[record["response"]], {}).setdefault(record["contender"], {})
        exponents[record["of"]] = record["exponent"]
    columns = [
        Column(name, lambda exponents, name=name: format_number(exponents.get(name)))
        for name in ("times", "memory")
    ]
    lines: dict[str, list[Line]] = {
        title: [(implementation, exponents, "") for implementation, exponents in implementations.items()]
        for title, implementations in found.items()
    }
    return tabulate(
        "growth", "Exponents of time and memory in the number of tokens, fitted.", columns, lines, (source,)
    )


def _released(content: dict[str, Any], source: Source) -> Table:
    columns = (
        Column("time, s", lambda record: format_number(record["seconds"])),
        Column("peak memory, GB", lambda record: format_number(record["bytes"] / 1e9)),
    )
    lines: list[Line] = [
        (f"{TITLES[record['response']]}, {record['tokens']:,} tokens", record, "")
        for record in content["released"]
    ]
    caption = "The authors’ code, forward, from their own checkout."
    return tabulate("released", caption, columns, {"": lines}, (source,))


BENCHMARK = Kind("benchmark", "time and memory", "invertible-attention benchmark")
DEFINITION = Definition.of_each(BENCHMARK, _section, place=7)
