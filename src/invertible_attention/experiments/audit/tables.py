"""What audits and searches found: whether networks invert, and how close layers come to their bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from ..camouflage.models import folder_today
from ..reconstruct.configuration import Cell as Reconstruction
from ..report import (
    Column,
    Definition,
    FigureKind,
    Kind,
    Line,
    Result,
    Section,
    Source,
    Table,
    format_number,
    format_ratio,
    format_value,
    settings_table,
    stored_pictures,
    tabulate,
)
from ..variants import Normalization
from .attack_results import describe, response_today
from .attack_results import headline as attack_headline
from .audit_results import headline as audit_headline

__all__ = ["ATTACK", "AUDIT", "DEFINITION", "LIPSCHITZ_FIGURE", "RATIO_FIGURE"]

LIPSCHITZ_FIGURE = FigureKind(
    "lipschitz",
    "Local Lipschitz constants of every residual branch, estimated from below at each input, and the certified "
    "constant where there is one. Left of the dashed line the branch is a contraction.",
    "One row per block: points for the inputs, a bar for the certificate.",
)
RATIO_FIGURE = FigureKind(
    "attack",
    "Local Lipschitz constant divided by the bound, for random layers. Left: the share of them that come closer to "
    "their bound than a given distance, as drawn. Right: the closest ones after gradient ascent in input and weights, "
    "by the range of the scores over the ball in the sharpest head: 0 is equal weights for all pairs.",
    "A falling curve of the share of layers with a larger ratio, and bars of the largest ratios.",
)

Cell = Callable[[dict[str, Any]], str]


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per audit and per search."""
    return [_audit(result) if result.kind == AUDIT else _attack(result) for result in results]


def _source(result: Result, title: str) -> Source:
    content = result.content
    return Source.of_runs(result.name, title, [content["run"]], seeds=[content["configuration"]["seed"]])


def _audit(result: Result) -> Section:
    content = result.content
    blocks = content["blocks"]
    source = _source(result, f"audit of {content['configuration']['checkpoint']}")
    lines: dict[str, list[Line]] = {}
    attacked: dict[str, list[Line]] = {}
    for block in blocks:
        kind = "certified" if block["contraction"] == "certified" else ""
        for found in (lines, attacked) if block.get("attack") else (lines,):
            found.setdefault(block["network"], []).append((block["block"], block, kind))
    tables = [_networks(attacked, source), _blocks(lines, source), _details(lines, source)]
    tables += [_ascents(attacked, source), settings_table({result.name: content["configuration"]}, (source,))]
    inputs = sorted({f"{block['kind']}, {block['inputs']}" for block in blocks})
    return Section(
        f"Audit: {result.name}",
        lead=[audit_headline(blocks)],
        tables=[table for table in tables if table.groups],
        pictures=stored_pictures(result.folder, result.name, (LIPSCHITZ_FIGURE,), source),
        notes=[
            f"Inputs: {'; '.join(inputs)}.",
            "A second preimage, another input with the same output, is excluded by a certificate below 1, and searched "
            "for otherwise; not finding one proves nothing. A certificate counts as exceeded above an allowance of "
            f"{format_number(content['allowance'], 1)} for rounding.",
        ],
    )


def _blocks(lines: dict[str, list[Line]], source: Source) -> Table:
    def preimages(block: dict[str, Any]) -> str:
        found = block["second_preimages"]
        return str(found) if found or block["searched"] else "excluded"

    columns = (
        Column("recovered", lambda block: f"{block['recovered']} of {block['samples']}"),
        Column("round-trip error", _number("relative_error", 2, "∞")),
        Column("certified constant", _number("certificate", 3, "none")),
        Column("largest local constant", _number("lipschitz_estimate")),
        Column("contraction", _text("contraction")),
        Column("evaluations", _number("evaluations")),
        Column("second preimages", preimages),
        Column("said to fail", _text("said_to_fail")),
        Column("wrong without a warning", _text("silently_wrong")),
        Column("passed", _text("passed")),
    )
    caption = (
        "Every residual block of the trained networks at the inputs that reach it: inputs recovered, the largest "
        "relative error of the round trip, the certified Lipschitz constant next to the largest local one, which is "
        "estimated from below. Contraction: certified everywhere, or measured here, at these inputs, only."
    )
    return tabulate("blocks", caption, columns, lines, (source,))


def _details(lines: dict[str, list[Line]], source: Source) -> Table:
    columns = (
        Column("shape", lambda block: "×".join(map(str, block["event_shape"]))),
        Column("largest residual", _number("residual", 2, "∞")),
        Column("error bound", _number("error_bound", 2, "none")),
        Column("smallest stretch", _number("smallest_stretch")),
        Column("above the certificate", _text("exceeds_certificate")),
    )
    caption = (
        "The same blocks: shape of an input, the residual and the error bound of the inverse, the smallest factor by "
        "which a direction is stretched, and inputs whose local constant exceeds the certificate."
    )
    return tabulate("details", caption, columns, lines, (source,))


def _ascents(lines: dict[str, list[Line]], source: Source) -> Table:
    def of(kind: str, name: str, text: Callable[[Any], str]) -> Cell:
        return lambda block: text(block["attack"][kind][name])

    columns = [
        Column(f"{name}: {kind}", of(kind, name, text))
        for kind in ("input", "weights")
        for name, text in (
            ("ratio", format_ratio),
            ("constant", format_number),
            ("bound", format_number),
            ("ascents", str),
        )
    ]
    caption = (
        "Gradient ascent on the ratio of the local Lipschitz constant to the certificate, in float64: in the input, "
        "and in input and weights, the certificate following them. The largest ratio, its constant and bound, and "
        "ascents."
    )
    return tabulate("ascents", caption, columns, lines, (source,))


def _networks(lines: dict[str, list[Line]], source: Source) -> Table:
    def largest(kind: str) -> Callable[[list[dict[str, Any]]], str]:
        def text(blocks: list[dict[str, Any]]) -> str:
            ratios = [block["attack"][kind]["ratio"] for block in blocks]
            return format_ratio(None if None in ratios else max(ratios))

        return text

    columns = (
        Column("certified blocks", lambda blocks: str(len(blocks))),
        Column(
            "ascents", lambda blocks: str(sum(a["ascents"] for b in blocks for a in b["attack"].values()))
        ),
        Column("largest ratio: input", largest("input")),
        Column("input and weights", largest("weights")),
    )
    caption = (
        "Largest local Lipschitz constant found by gradient ascent, divided by its bound, over all certified blocks of "
        "a network."
    )
    rows: list[Line] = [
        (network, [block for _, block, _ in members], "certified") for network, members in lines.items()
    ]
    return tabulate("networks", caption, columns, {"": rows}, (source,), label="network")


def _attack(result: Result) -> Section:
    content = result.content
    source = _source(result, f"search of {content['configurations']:,} layers for one above its bound")
    tables = [
        _violations(content, source),
        _ranges(content, source),
        _cases(content, source),
        _tightest_networks(content, source),
        settings_table({result.name: content["configuration"]}, (source,)),
    ]
    return Section(
        f"Search for a layer above its bound: {result.name}",
        lead=[attack_headline(content)],
        tables=[table for table in tables if table.groups],
        pictures=stored_pictures(result.folder, result.name, (RATIO_FIGURE,), source),
        notes=[
            f"{content['groups']:,} groups of layers over {content['combinations']:,} combinations of response, "
            "normalization, heads, biases, position prior and precision; "
            f"{content['ascended']:,} ascents; {content['run']['processor_seconds']:,} s of CPU time."
            + (
                f" {content['not_finite']} layers had a bound or a Jacobian that is not finite."
                if content["not_finite"]
                else ""
            ),
            *METHOD,
        ],
    )


METHOD = (
    "Weights, radii and inputs have scales from 10⁻⁶ to 10⁶; four layers in five have scores of a chosen range over "
    "the ball, 10⁻⁶ to 300, the others of whatever range comes. Weights are dense, of rank one, orthogonal, or zero "
    "but for one entry. Every local Lipschitz constant is the exact spectral norm of the whole Jacobian in float64. In "
    "float32 and bfloat16 the weights are rounded, and the bound and the factor that keeps it are computed as such a "
    "layer does; the Jacobian is that of the map these numbers define. Then the layers closest to their bound, as many "
    "for each range of the scores, are changed by Adam on the logarithm of the ratio, in input and weights; those with "
    "a range above 1 keep it. The allowance is for rounding in the Jacobian and its norm.",
)


def _violations(content: dict[str, Any], source: Source) -> Table:
    def where(item: dict[str, Any]) -> str:
        return ", ".join(
            f"{name} {value}" for name, value in item.items() if name not in ("ratio", "structure")
        )

    columns = (Column("ratio", lambda item: format_ratio(item["ratio"], 9)), Column("where", where))
    lines: list[Line] = [(str(item["structure"]), item, "") for item in content["violations"]]
    return tabulate("violations", "Bounds that were exceeded.", columns, {"": lines}, (source,))


def _ranges(content: dict[str, Any], source: Source) -> Table:
    columns = [
        Column(f"log M {name}", lambda ratios, i=i: format_ratio(ratios[i]))
        for i, name in enumerate(content["score_ranges"]["names"])
    ]
    lines: dict[str, list[Line]] = {
        name.replace("_", " "): [(value, ratios, "") for value, ratios in by_value.items()]
        for name, by_value in content["tightest_by"].items()
    }
    caption = (
        "Largest local Lipschitz constant divided by the certified bound, after gradient ascent in input and weights, "
        "by the range of the scores over the ball (the logarithm of the largest ratio of two weights, in the sharpest "
        "head). Above 1 a bound would be wrong. At equal weights attention is an average, and its bound the product of "
        "two norms: there it is attained."
    )
    return tabulate("ranges", caption, columns, lines, (source,))


def _cases(content: dict[str, Any], source: Source) -> Table:
    columns = (
        Column("ratio", lambda case: format_ratio(case["ratio"], 9)),
        Column("local constant", _number("constant")),
        Column("bound", _number("bound")),
        Column("group", _text("group")),
        Column("member", _text("member")),
    )
    lines: list[Line] = [(describe(case["structure"]), case, "") for case in content["tightest"]]
    return tabulate("cases", "Tightest cases.", columns, {"": lines}, (source,), label="layer")


def _tightest_networks(content: dict[str, Any], source: Source) -> Table:
    def described(name: str) -> Cell:
        return lambda item: format_value(item["description"][name])

    columns = (
        Column("block", _text("block")),
        Column("ratio", lambda item: format_ratio(item["ratio"], 9)),
        Column("shape", lambda item: "×".join(map(str, item["description"]["shape"]))),
        *(
            Column(name.replace("_", " "), described(name))
            for name in (
                "response",
                "normalization",
                "dtype",
                "blocks",
                "hidden_channels",
                "coefficient",
                "activation",
                "linear_blocks",
                "linear_hidden",
            )
        ),
    )
    lines: list[Line] = [(str(item["network"]), item, "") for item in content["tightest_networks"]]
    caption = (
        f"Whole residual networks: {content['blocks']} blocks of {content['networks']} networks, each against its own "
        "bound; the tightest block of each."
    )
    return tabulate("networks", caption, columns, {"": lines}, (source,), label="network")


def _text(name: str) -> Cell:
    return lambda record: format_value(record[name])


def _number(name: str, digits: int = 3, missing: str = "–") -> Cell:
    return lambda record: format_number(record[name], digits, missing=missing)


def _network_today(name: str) -> str:
    """Return what an audit calls a network that it called by its folder.

    Example:
        >>> _network_today("certified-row-dot_product-1"), _network_today("certified-dot-product-1")
        ('dot_product/certified/row, repeat 1', 'dot-product-certified-1')
    """
    constraint, normalization, response, repeat = (*name.split("-"), "", "", "")[:4]
    if normalization in get_args(Normalization):
        return str(Reconstruction(response, constraint, normalization, int(repeat)))
    return folder_today(name)


AUDIT = Kind(
    "audit",
    "audit of trained networks",
    "invertible-attention audit CHECKPOINT",
    version=2,
    changed=("network", _network_today),
    unshown={"blocks.*.lipschitz_estimates": "drawn: lipschitz; the largest is shown"},
)
ATTACK = Kind(
    "attack",
    "search for a layer above its bound",
    "invertible-attention audit --attack",
    version=2,
    changed=("response", response_today),
    unshown={
        "histogram": "drawn: attack",
        "score_ranges.limits": "the names say them",
        "tightest.*.structure.embedding": "not distinguished in the description",
    },
)
DEFINITION = Definition(kinds=(AUDIT, ATTACK), sections=_sections, place=8)
