"""What audits and searches found: whether networks invert, and how close layers come to their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report import format_number
from .content import Row, RowGroup, Section, Source, Table
from .figures import stored_pictures
from .recognition import Result

__all__ = ["sections"]

AUDIT_COLUMNS = (
    "",
    "recovered",
    "round-trip error",
    "certified",
    "local, largest",
    "evaluations",
    "second preimages",
    "wrong without saying so",
)


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per audit and per search."""
    return [_audit(result) if result.kind == "audit" else _attack(result) for result in results]


def _source(result: Result, title: str) -> Source:
    content = result.content
    return Source.of_runs(result.name, title, [content["run"]], seeds=[content["configuration"]["seed"]])


def _audit(result: Result) -> Section:
    blocks = result.content["blocks"]
    source = _source(result, f"audit of {result.content['configuration']['checkpoint']}")
    networks: dict[str, list[Row]] = {}
    for block in blocks:
        kind = "certified" if block["contraction"] == "certified" else ""
        networks.setdefault(block["network"], []).append(Row((block["block"], *_measured(block)), kind))
    caption = (
        "Every residual block of the trained networks at the inputs that reach it: inputs recovered, the largest "
        "relative error of the round trip, and the certified Lipschitz constant beside the largest local one, which "
        "is estimated from below."
    )
    groups = tuple(RowGroup(network, tuple(rows)) for network, rows in networks.items())
    passed = sum(block["passed"] for block in blocks)
    return Section(
        f"Audit: {result.name}",
        lead=[f"{passed} of {len(blocks)} blocks passed: every input recovered, no promise contradicted."],
        tables=[Table(caption, AUDIT_COLUMNS, groups, (source,))],
        pictures=stored_pictures(result, source),
    )


def _measured(block: dict[str, Any]) -> tuple[str, ...]:
    found = block["second_preimages"]
    return (
        f"{block['recovered']} of {block['samples']}",
        format_number(block["relative_error"], 2, missing="∞"),
        format_number(block["certificate"], missing="none"),
        format_number(block["lipschitz_estimate"]),
        format_number(block["evaluations"]),
        str(found) if found or block["searched"] else "excluded",
        str(block["silently_wrong"]),
    )


def _attack(result: Result) -> Section:
    content = result.content
    source = _source(result, f"search of {content['configurations']:,} layers for one above its bound")
    exceeded = len(content["violations"])
    found = "no bound was exceeded" if not exceeded else f"{exceeded} bounds were exceeded"
    limits = content["score_ranges"]["names"]
    groups = [
        RowGroup(
            name.replace("_", " "),
            tuple(Row((value, *map(_ratio, ratios))) for value, ratios in by_value.items()),
        )
        for name, by_value in content["tightest_by"].items()
    ]
    caption = (
        "Largest local Lipschitz constant divided by the certified bound, after gradient ascent in input and weights, "
        "by the range of the scores over the ball (the logarithm of the largest ratio of two weights). Above 1 a "
        "bound would be wrong."
    )
    return Section(
        f"Search for a layer above its bound: {result.name}",
        lead=[
            f"{content['configurations']:,} random layers and {content['blocks']} blocks of {content['networks']} "
            f"networks: {found}, beyond an allowance of {format_number(content['allowance'], 1)} for rounding."
        ],
        tables=[Table(caption, ("", *limits), tuple(groups), (source,))],
        pictures=stored_pictures(result, source),
    )


def _ratio(value: float) -> str:
    # Rounded down: a ratio just below 1 must not be shown as 1.
    return f"{int(value * 1e6) / 1e6:.6f}" if value < 1 else f"{value:.6f}"
