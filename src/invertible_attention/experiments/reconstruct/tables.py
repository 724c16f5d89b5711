"""Tables 2 and 5: reconstruction errors, published, rerun and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..published import RESPONSES
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
    format_fixed,
    format_number,
    format_percent,
    format_spread,
    format_value,
    settings_table,
    stored_pictures,
    tabulate,
)
from .configuration import Configuration
from .figures import FIGURES, SOLVERS
from .findings import findings, headline
from .overview import draw_errors
from .results import ORDER, SCHEMA, Group, groups

__all__ = ["DEFINITION"]

CONVERGED = 1e-6
"""Relative residual at which a sample counts as converged."""

COMMAND = "invertible-attention reconstruct"

Entries = dict[str, list[tuple[str, Group]]]
"""Labelled groups by response."""


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per data set and size, the paper's tables first, and a picture of all errors."""
    together: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        data = result.content["data"]
        together.setdefault((data["title"], *data["size"]), []).append(result)
    parts = sorted(together.values(), key=lambda members: _place(members[0].content))
    found = [_section(members) for members in parts]
    if len(parts) == 1:
        return found
    panels = {_data(members[0].content): (_published(members), _entries(members)) for members in parts}
    sources = tuple(_source(result) for members in parts for result in members)
    glance = Section(
        "Reconstruction errors at a glance", pictures=lambda: [Picture(draw_errors(panels), sources)]
    )
    return [glance, *found]


def _place(content: dict[str, Any]) -> tuple[Any, ...]:
    published = content["published"]
    order = ["cifar10", "svhn", "celeba"]
    dataset = content["configuration"]["dataset"]
    return (
        published["table"] if published else "~",
        order.index(dataset) if dataset in order else len(order),
        content["data"]["title"],
    )


def _data(content: dict[str, Any]) -> str:
    height, width = content["data"]["size"]
    # Some titles end in the size already.
    title = content["data"]["title"].removesuffix(f", {height}x{width}")
    return f"{title}, {height}×{width}"


def _section(members: list[Result]) -> Section:
    first = members[0].content
    published = _published(members)
    sources = tuple(_source(result) for result in members)
    entries = _entries(members)
    notes = [_protocol(result) for result in members]
    if not published:
        notes.insert(0, "The paper has no numbers for these images.")
    elif first["configuration"]["title"] is not None:
        # Images that only have CelebA's format are compared with its numbers, which has to be said.
        notes.insert(
            0,
            "The published numbers are for another data set of the same format; the images here are: "
            f"{first['data']['title']}.",
        )
    tables = [
        _errors(entries, published, sources),
        _inverses(entries, sources),
        _solvers(entries, sources),
        _images(entries, sources),
        _training(entries, sources),
        _weights(entries, sources),
        _pictures(entries, sources),
        _beside(entries, published, sources, first["data"]["title"]),
        settings_table({result.name: result.content["configuration"] for result in members}, sources),
    ]
    pictures = [
        stored_pictures(result.folder, result.name, FIGURES, source)
        for result, source in zip(members, sources, strict=True)
    ]
    return Section(
        f"{_what(members)}: {_data(first)}",
        lead=_said(members, lambda content: [headline(content)]),
        tables=[table for table in tables if table.groups],
        pictures=lambda: [picture for read in pictures for picture in read()],
        findings=_said(members, findings),
        notes=[*notes, *METHOD],
    )


def _what(members: list[Result]) -> str:
    """Return which of the paper's tables the folders are about, unless all trained for less than the paper."""
    published = _published(members)
    if not published:
        return "Reconstruction"
    paper = Configuration.choose(size=members[0].content["data"]["size"]).epochs
    epochs = max(result.content["configuration"]["epochs"] for result in members)
    return (
        published["table"] if epochs >= paper else f"After {published['table']}, {epochs} of {paper} epochs"
    )


METHOD = (
    "Network: squeeze 2×2 pixels into channels, then one attention block. Training: Adam, mean squared error to one "
    "random normal tensor of a batch’s shape, fixed for the run. Input: (255 x + u) / 256 − 1/2 with uniform u, fresh "
    "in training, one fixed draw for testing. All test images count. Distances are Euclidean norms over an image in "
    "the network’s units (pixels / 256).",
    "Errors are computed in float64 from the network’s float32 output on the scale 255 (x + 1/2), neither rounded nor "
    "clamped nor saved as JPEG. The authors’ images were saved with 8 bits, which limits the error of a reconstruction "
    "that diverges; the rows “clamped” limit it in the same way. Structural similarity: Gaussian window of "
    "11×11, σ = 1.5, data range 255; 0 for an image that is not finite.",
    "Certified: the solver stops at the tolerance. Relaxed: the paper’s Section 2.4, the same solver, no promise. "
    "Authors’ code: what their published code does, reimplemented: rows that sum to 2/3, signed ELU weights, norms "
    "estimated by five steps of power iteration, 50 fixed-point steps, the last iterate whatever it is.",
)


def _said(members: list[Result], say: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    """Return what is to be said of every folder, with its name where there are several."""
    several = len(members) > 1
    return [
        f"{result.name}: {sentence}" if several else sentence
        for result in members
        for sentence in say(result.content)
    ]


def _protocol(result: Result) -> str:
    settings = result.content["configuration"]
    epochs, repeats = settings["epochs"], settings["repeats"]
    return (
        f"{result.name}: {settings['train_images']} training and {settings['test_images']} test images, "
        f"{epochs} epoch{'s' if epochs != 1 else ''} of batches of {settings['batch_size']}, coefficient "
        f"{settings['coefficient']}, solver {settings['solver']} to {format_number(settings['tolerance'], 1)}, "
        f"{repeats} repeat{'s' if repeats != 1 else ''}."
        + f" {result.content['data'].get('about', '')}".rstrip()
    )


def _source(result: Result) -> Source:
    cells = result.content["cells"]
    return Source.of_runs(
        result.name,
        f"reconstruction of {_data(result.content)}",
        [run for cell in cells for run in (cell["run"], cell["training"].get("run")) if run],
        seeds=[cell["seed"] for cell in cells],
    )


def _published(members: list[Result]) -> dict[str, Any] | None:
    return members[0].content["published"]


def _entries(members: list[Result]) -> Entries:
    """Return the labelled groups of all folders by response: the authors' code first, ours last."""
    found: Entries = {response: [] for response in RESPONSES}
    for result in members:
        for response, entries in groups(result.content).items():
            taken = {label for label, _ in found[response]}
            for group in entries:
                label = _label(group)
                found[response].append((f"{label} ({result.name})" if label in taken else label, group))
    for entries in found.values():
        entries.sort(key=lambda entry: [str(kind) for kind in ORDER].index(entry[1].constraint))
    return {response: entries for response, entries in found.items() if entries}


def _label(group: Group) -> str:
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


def _errors(entries: Entries, published: dict[str, Any] | None, sources: tuple[Source, ...]) -> Table:
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


def _inverses(entries: Entries, sources: tuple[Source, ...]) -> Table:
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


def _solvers(entries: Entries, sources: tuple[Source, ...]) -> Table:
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


def _images(entries: Entries, sources: tuple[Source, ...]) -> Table:
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


def _training(entries: Entries, sources: tuple[Source, ...]) -> Table:
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


def _weights(entries: Entries, sources: tuple[Source, ...]) -> Table:
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


def _pictures(entries: Entries, sources: tuple[Source, ...]) -> Table:
    lines: dict[str, list[Line]] = {}
    for response, members in entries.items():
        for label, group in members:
            for cell in group.cells:
                title = f"{RESPONSES[response]}, {label}" + (
                    f", seed {cell['seed']}" if len(group.cells) > 1 else ""
                )
                lines[title] = [(p["picture"], p, group.constraint) for p in cell.get("pictures", ())]
    caption = (
        "The test images at their own size, through the network that was trained on small ones, and back: errors on "
        "0–255 as they are, and the share of pixels that are the same in the PNG that was written, in the folder "
        "pictures of the network."
    )
    shown = {title: members for title, members in lines.items() if members}
    return tabulate("pictures", caption, PICTURES, shown, sources, label="picture")


def _beside(
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
        Column("evaluations, paper", lambda _: "100"),
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
    return tabulate("beside", caption, columns, {"": lines} if lines else {}, sources, label=label)


DEFINITION = Definition(
    kinds=(
        Kind(
            "reconstruct",
            "reconstruction (Tables 2 and 5)",
            COMMAND,
            unshown={
                "summary": "means over the cells, computed again from them",
                "run": "that of the cells is shown",
                "cells.*.images": "fingerprint of the images",
                "cells.*.repeat": "its seed is shown",
                "cells.*.training.run.time": "that of the evaluation is shown",
                "cells.*.training.run.seconds": "that of the training itself is shown",
                "cells.*.reconstruction.histogram": "drawn: histogram",
                "cells.*.study.solvers": "drawn: residuals; the table of solvers reads it",
                "cells.*.study.picard_mse": "drawn: iterations",
            },
        ),
    ),
    sections=_sections,
    place=1,
)
assert DEFINITION.kinds[0].schema == SCHEMA
