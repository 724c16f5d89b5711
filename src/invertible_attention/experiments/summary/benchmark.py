"""Time and memory: the claims and whether they are met, and times beside the N×N matrix and fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..benchmark.contenders import CONTENDERS, RESPONSES
from ..benchmark.figure import TITLES, draw
from ..report import format_number
from .content import Picture, Row, RowGroup, Section, Source, Table
from .recognition import Result

__all__ = ["sections"]


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per benchmark."""
    return [_section(result) for result in results]


def _section(result: Result) -> Section:
    content = result.content
    # Random tokens are drawn with seed 0 whatever the run.
    source = Source.of_runs(result.name, "time and memory", [content["metadata"]], seeds=[0])
    met = sum(record["met"] for record in content["claims"])
    tables = [_claims(content, source), _times(content, source)]
    if content["released"]:
        tables.append(_released(content, source))
    return Section(
        f"Time and memory: {result.name}",
        lead=[f"{met} of {len(content['claims'])} claims are met on this machine."]
        if content["claims"]
        else [],
        tables=tables,
        pictures=[Picture(draw(content), (source,))],
        notes=["One sample of 12 channels, weights normalised by column; medians over runs that take turns."],
    )


def _claims(content: dict[str, Any], source: Source) -> Table:
    rows = tuple(
        Row(
            (
                record["claim"],
                format_number(record["measured"]),
                record["limit"],
                "met" if record["met"] else "not met",
            )
        )
        for record in content["claims"]
    )
    return Table(
        "What the project sets out to show, and what was measured.",
        ("claim", "measured", "wanted", ""),
        (RowGroup("", rows),),
        (source,),
    )


def _times(content: dict[str, Any], source: Source) -> Table:
    seconds = {
        (record["response"], record["contender"], record["tokens"], record["backward"]): record["seconds"]
        for record in content["times"]
        if record["batch"] == 1
    }
    groups = []
    for response in RESPONSES:
        rows = []
        for name, contender, tokens, backward in seconds:
            if (name, contender) != (response, "auto"):
                continue
            own = seconds[name, contender, tokens, backward]
            others = [seconds.get((name, other, tokens, backward)) for other in CONTENDERS[1:]]
            ratios = ["–" if other is None else f"{other / own:.2f}×" for other in others]
            what = f"{tokens:,} tokens, {'with gradients' if backward else 'forward'}"
            rows.append(Row((what, f"{format_number(1e3 * own)} ms", *ratios)))
        if rows:
            groups.append(RowGroup(TITLES[response], tuple(rows)))
    return Table(
        "Time of this library, and how many times as long the others take in the same run.",
        ("", "this library", "N×N matrix", "fused softmax attention"),
        tuple(groups),
        (source,),
    )


def _released(content: dict[str, Any], source: Source) -> Table:
    rows = tuple(
        Row(
            (
                f"{TITLES[record['response']]}, {record['tokens']:,} tokens",
                f"{format_number(record['seconds'])} s",
                f"{format_number(record['bytes'] / 1e9)} GB",
            )
        )
        for record in content["released"]
    )
    return Table(
        "The authors' released code, forward, from their own checkout.",
        ("", "time", "peak memory"),
        (RowGroup("", rows),),
        (source,),
    )
