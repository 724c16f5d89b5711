"""The tables of one data set: their columns and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..published import EVALUATIONS, RESPONSES
from ..report import (
    Column,
    Line,
    Source,
    Table,
    format_fixed,
    format_number,
    format_percent,
    format_spread,
    format_value,
    tabulate,
)
from .figures import SOLVERS
from .results import Group

__all__ = [
    "Entries",
    "beside_table",
    "errors_table",
    "images_table",
    "inverses_table",
    "label_of",
    "pictures_table",
    "solvers_table",
    "training_table",
    "weights_table",
]

CONVERGED = 1e-6
"""Relative residual at which a sample counts as converged."""

Entries = dict[str, list[tuple[str, Group]]]
"""Labeled groups by response."""


def label_of(group: Group) -> str:
    """Return what a group of cells is called in a table."""
    if group.constraint == "released":
        return "authors’ code"
    return f"{group.constraint}, {group.normalization}"


def _lines(entries: Entries, chosen: Callable[[Group], bool] = lambda _: True) -> dict[str, list[Line]]:
    """Return the groups as lines of a table, under the titles of their responses."""
    lines: dict[str, list[Line]] = {
        RESPONSES[response]: [(label, group, group.constraint) for label, group in members if chosen(group)]
        for response, members in entries.items()
    }
    return {title: members for title, members in lines.items() if members}


def _mse(group: Group) -> str:
    text = format_spread(group.values("reconstruction", "mse"), missing="∞")
    return f"{text} ({group.non_finite} images)" if group.non_finite else text


def _as_published(row: dict[str, Any]) -> str:
    """Return all digits of a published error."""
    return f"{row['mse']:g}" if row["mse"] > 1e-4 else format_number(row["mse"], 4)


ERRORS = (
    Column("MSE", _mse, _as_published),
    Column(
        "SSIM", lambda g: format_fixed(g.values("reconstruction", "ssim"), 3), lambda r: f"{r['ssim']:.3f}"
    ),
    Column(
        "V-score %",
        lambda g: format_fixed(g.values("reconstruction", "v_score"), 1),
        lambda r: f"{r['v_score']:.1f}",
    ),
    Column("converged %", lambda g: format_percent(g.values("inverse", "converged_share"))),
    Column("to another image %", lambda g: format_percent(g.values("inverse", "elsewhere_share"))),
    Column("evaluations", lambda g: format_fixed(g.values("inverse", "evaluations_mean"), 1)),
)


def errors_table(entries: Entries, published: dict[str, Any] | None, sources: tuple[Source, ...]) -> Table:
    """Return Table 2 or 5: the errors of reconstructions, published and measured."""
    lines = {}
    for title, members in _lines(entries).items():
        lines[title] = []
        for label, group, kind in members:
            lines[title].append((label, group, kind))
            if group.constraint == "released":
                lines[title].append(("authors’ code, clamped", _clamped(group), kind))
    if published:
        for response in entries:
            paper = (f"paper, {published['table']}", published["rows"][response], "paper")
            lines[RESPONSES[response]].insert(0, paper)
    caption = (
        "Mean squared error on 0–255 (lower is better), structural similarity, V-score (share of test images whose own "
        "error is below 10); the share of images the solver brought to its tolerance, those among them that are "
        "another image all the same, and evaluations of the branch per image. Mean ± standard deviation over repeats, "
        "where there are several."
    )
    return tabulate("errors", caption, ERRORS, lines, sources)


def _clamped(group: Group) -> Group:
    """Return a group with the errors of images clamped to 8 bits, and nothing of its inverse."""
    names = ("mse", "ssim", "v_score")
    cells = tuple(
        cell
        | {
            "reconstruction": {"non_finite": 0}
            | {name: cell["reconstruction"].get(f"{name}_clamped") for name in names},
            "inverse": {},
        }
        for cell in group.cells
    )
    return replace(group, cells=cells)


def inverses_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of local Lipschitz constants and of what the inverse took."""

    def above(group: Group) -> str:
        return f"{100 * (group.mean('study', 'local_lipschitz', 'above_one_share') or 0.0):.0f}"

    columns = (
        Column(
            "median residual", lambda g: format_number(g.mean("inverse", "residual_median"), 2, missing="∞")
        ),
        Column(
            "largest residual", lambda g: format_number(g.largest("inverse", "residual_max"), 2, missing="∞")
        ),
        Column("largest error", lambda g: format_number(g.largest("inverse", "error_max"), 2, missing="∞")),
        Column(
            "its bound", lambda g: format_number(g.largest("inverse", "error_bound_max"), 2, missing="none")
        ),
        Column("bound holds %", lambda g: format_percent(g.values("inverse", "error_bound_holds_share"))),
        Column("most evaluations", lambda g: format_number(g.largest("inverse", "evaluations_max"), 4)),
        Column(
            "certified constant",
            lambda g: format_number(g.largest("study", "lipschitz_bound"), missing="none"),
        ),
        Column(
            "median local constant",
            lambda g: format_number(g.mean("study", "local_lipschitz", "median"), missing="∞"),
        ),
        Column(
            "largest local constant",
            lambda g: format_number(g.largest("study", "local_lipschitz", "largest"), missing="∞"),
        ),
        Column("above 1, %", above),
    )
    caption = (
        "What the inverse promises and keeps. Over all test images: relative residuals, the largest distance to the "
        "original, the largest bound the solver gave for it, and the share of images where the bound holds. On the "
        "studied images: the certified Lipschitz constant of the branch, local constants estimated from its Jacobian, "
        "and the share of images where they exceed 1."
    )
    return tabulate("inverse", caption, columns, _lines(entries), sources)


def solvers_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of evaluations that each solver needs."""

    def needed(solver: str) -> Callable[[Group], str]:
        def text(group: Group) -> str:
            # Of several repeats the first: the median is over its images.
            trace = group.cells[0]["study"]["solvers"][solver]["median"]
            converged = (
                n for n, residual in enumerate(trace, 1) if residual is not None and residual <= CONVERGED
            )
            return str(next(converged, f"> {len(trace)}"))

        return text

    columns = [Column(name, needed(solver)) for solver, name in SOLVERS.items()]
    caption = (
        f"Evaluations of the branch until the median relative residual of the studied images is below "
        f"{format_number(CONVERGED, 1)}, of the first repeat; products with the Jacobian count as one each."
    )
    return tabulate("solvers", caption, columns, _lines(entries, lambda g: "study" in g.cells[0]), sources)


def images_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of how many images were measured, and their worst errors."""
    columns = (
        Column("images", lambda g: format_number(g.mean("reconstruction", "images"), 5)),
        Column("median MSE", lambda g: format_spread(g.values("reconstruction", "mse_median"), missing="∞")),
        Column("largest MSE", lambda g: format_number(g.largest("reconstruction", "mse_max"), missing="∞")),
        Column("not finite", lambda g: str(g.non_finite)),
        Column("studied", lambda g: format_number(g.mean("study", "images"))),
    )
    caption = (
        "Mean squared errors of the single test images, over all repeats; and how many images were studied."
    )
    return tabulate("images", caption, columns, _lines(entries), sources)


def training_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of training losses and times."""

    def per_thousand(group: Group) -> str:
        seconds = group.mean("training", "seconds")
        return format_number(1000 * seconds / group.seen) if seconds and group.seen else "–"

    columns = (
        Column("steps", lambda g: format_number(g.mean("training", "steps"), 6)),
        Column("first loss", lambda g: format_number(g.mean("training", "first_loss"), 4)),
        Column("last loss", lambda g: format_number(g.mean("training", "last_loss"), 4)),
        Column("training, s", lambda g: format_number(g.mean("training", "seconds"))),
        Column("per 1,000 images, s", per_thousand),
        Column("all inverses, s", lambda g: format_number(g.mean("inverse", "seconds"))),
        Column("whole cell, s", lambda g: format_number(g.mean("run", "seconds"))),
    )
    caption = "Training and time: seconds on the clock for all training steps, and for the inverses of all test images."
    return tabulate("training", caption, columns, _lines(entries), sources)


def weights_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of the norms of trained weights."""

    def measured(name: str) -> Callable[[Group], float | None]:
        return lambda group: group.mean("study", "weights", name)

    columns = (
        Column("negative, %", lambda g: format_number(100 * (measured("negative_share")(g) or 0))),
        Column("mixed sums, %", lambda g: format_number(100 * (measured("mixed_share")(g) or 0))),
        Column(
            "median cancellation", lambda g: format_number(measured("cancellation_median")(g), missing="∞")
        ),
        Column(
            "largest cancellation",
            lambda g: format_number(g.largest("study", "weights", "cancellation_largest"), missing="∞"),
        ),
        Column(
            "smallest sum / tokens",
            lambda g: format_number(min(g.values("study", "weights", "denominator_smallest")), 2),
        ),
    )
    caption = (
        "The authors’ code: attention weights before normalization, on the studied images. Negative ones; sums over "
        "weights of both signs; how much larger the terms’ absolute values are than their sum; and the smallest sum "
        "per token, in absolute value."
    )
    lines = _lines(entries, lambda group: "weights" in group.cells[0].get("study", {}))
    return tabulate("weights", caption, columns, lines, sources)


PICTURES = (
    Column("height × width", lambda p: "{} × {}".format(*p["size"])),
    Column("MSE", lambda p: format_number(p["mse"], missing="∞")),
    Column("largest error", lambda p: format_number(p["error_max"], missing="∞")),
    Column("SSIM", lambda p: format_number(p["ssim"])),
    Column("pixels recovered %", lambda p: format_number(100 * p["equal_share"], 6)),
    Column("converged", lambda p: format_value(p["converged"])),
    Column("evaluations", lambda p: str(p["evaluations"])),
    Column("seconds", lambda p: format_number(p["seconds"])),
    Column("file", lambda p: p["file"]),
)


def pictures_table(entries: Entries, sources: tuple[Source, ...]) -> Table:
    """Return the table of a folder's pictures, a row for each."""
    lines: dict[str, list[Line]] = {}
    for response, members in entries.items():
        for label, group in members:
            for cell in group.cells:
                title = f"{RESPONSES[response]}, {label}" + (
                    f", seed {cell['seed']}" if len(group.cells) > 1 else ""
                )
                lines[title] = [(p["picture"], p, group.constraint) for p in cell.get("pictures", ())]
    caption = (
        "The test images at their own size, through the network that was trained on small ones, and back. They go in "
        "as a viewer shows them: upright, 8 bits per channel, transparency on white, the first picture of several. "
        "Errors on 0–255 as they are, and the share of pixels that are the same in the PNG that was written, in the "
        "folder pictures of the network."
    )
    shown = {title: members for title, members in lines.items() if members}
    return tabulate("pictures", caption, PICTURES, shown, sources, label="picture")


def beside_table(
    entries: Entries, published: dict[str, Any] | None, sources: tuple[Source, ...], title: str
) -> Table:
    """Return the table of the README: the published number, the authors' code per seed, and ours, side by side."""

    def scores(record: dict[str, Any]) -> str:
        values = record["released"].values("reconstruction", "v_score") if "released" in record else ()
        return " / ".join(f"{value:.1f}" for value in values) or "–"

    def mse(group: Group) -> str:
        return format_number(group.mean("reconstruction", "mse"), 2, missing="∞")

    def certified(text: Callable[[Group], str]) -> Callable[[dict[str, Any]], str]:
        return lambda record: text(record["certified"]) if "certified" in record else "–"

    columns = (
        Column("V-score %, paper", lambda r: f"{r['paper']['v_score']:.1f}"),
        Column("authors’ code, per seed", scores),
        Column(
            "certified",
            certified(lambda g: format_fixed([g.mean("reconstruction", "v_score")], 1)),
            ours=True,
        ),
        Column("MSE, paper", lambda r: _as_published(r["paper"])),
        Column("certified", certified(mse), ours=True),
        Column("evaluations, paper", lambda _: str(EVALUATIONS)),
        Column(
            "certified",
            certified(lambda g: format_fixed([g.mean("inverse", "evaluations_mean")], 1)),
            ours=True,
        ),
    )
    lines: list[Line] = []
    rows: dict[str, Any] = published["rows"] if published else {}
    for response, members in entries.items() if rows else ():
        record: dict[str, Any] = {"paper": rows[response]}
        for _, group in members:
            if group.normalization == "column" or group.constraint == "released":
                record.setdefault(group.constraint, group)
        lines.append((RESPONSES[response], record, ""))
    caption = (
        "The paper’s numbers, those of the authors’ code with every seed, and those of the certified layer, normalized "
        "by column: V-score, mean squared error on 0–255, and evaluations of the branch per inverse."
    )
    seeds = max((len(group.cells) for members in entries.values() for _, group in members), default=0)
    label = f"{title}, {seeds} seed{'s' if seeds != 1 else ''}"
    return tabulate("beside", caption, columns, {"": lines}, sources, label=label)
