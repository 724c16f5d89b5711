"""Tables 2 and 5: reconstruction errors, published, rerun and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..published import RESPONSES
from ..reconstruct.findings import findings, headline
from ..reconstruct.results import ORDER, Group, groups
from ..report import format_fixed, format_number, format_spread
from .content import Picture, Row, RowGroup, Section, Source, Table
from .figures import draw_errors, stored_pictures
from .recognition import Result

__all__ = ["sections"]

ELSEWHERE = "to another image %"
ERROR_COLUMNS = ("", "MSE", "SSIM", "V-score %", "converged %", ELSEWHERE, "evaluations")
PROMISE_COLUMNS = (
    "",
    "residual",
    "error",
    "its bound",
    "certified",
    "local, median",
    "local, largest",
    "above 1, %",
)


Entries = dict[str, list[tuple[str, Group]]]
"""Labelled groups by response."""


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per data set and size, the paper's tables first, and a picture of all errors."""
    together: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        data = result.content["data"]
        together.setdefault((data["title"], *data["size"]), []).append(result)
    parts = sorted(together.values(), key=lambda members: _place(members[0].content))
    found = [_section(members) for members in parts]
    panels = {_data(members[0].content): (_published(members), _entries(members)) for members in parts}
    sources = tuple(_source(result) for members in parts for result in members)
    overview = Section("Reconstruction errors at a glance", pictures=[Picture(draw_errors(panels), sources)])
    return [overview, *found]


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
    published = first["published"]
    table = f"{published['table']}: " if published else "Reconstruction: "
    sources = tuple(_source(result) for result in members)
    entries = _entries(members)
    notes = [_protocol(result) for result in members]
    if not published:
        notes.insert(0, "The paper has no numbers for these images.")
    elif first["configuration"]["title"] is not None:
        notes.insert(
            0,
            "The published numbers are for another data set of the same format; the images here are: "
            f"{first['data']['title']}.",
        )
    return Section(
        table + _data(first),
        lead=_said(members, lambda content: [headline(content)]),
        tables=[_errors(entries, _published(members), sources), _promises(entries, sources)],
        pictures=[
            picture
            for result, source in zip(members, sources, strict=True)
            for picture in stored_pictures(result, source)
        ],
        findings=_said(members, findings),
        notes=notes,
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
    )


def _source(result: Result) -> Source:
    cells = result.content["cells"]
    return Source.of_runs(
        result.name,
        f"reconstruction of {_data(result.content)}",
        [cell["run"] for cell in cells],
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


def _all(entries: Entries) -> list[Group]:
    return [group for members in entries.values() for _, group in members]


def _label(group: Group) -> str:
    if group.constraint == "released":
        return "authors’ code, rerun"
    return f"{group.constraint}, {group.normalization}"


def _errors(entries: Entries, published: dict[str, Any] | None, sources: tuple[Source, ...]) -> Table:
    # Runs of earlier versions did not look whether a converged solver had found another image.
    looked = any(None not in group.values("inverse", "elsewhere_share") for group in _all(entries))
    columns = tuple(name for name in ERROR_COLUMNS if looked or name != ELSEWHERE)
    rows = []
    for response, members in entries.items():
        lines = [] if published is None else [_paper(published, response, len(columns))]
        lines += [Row((label, *_scores(group, looked)), group.constraint) for label, group in members]
        rows.append(RowGroup(RESPONSES[response], tuple(lines)))
    caption = (
        "Mean squared error on 0–255 (lower is better), structural similarity, V-score (share of images whose own "
        "error is below 10); the share of images the solver brought to its tolerance"
        + (", those among them that are another image all the same," if looked else "")
        + " and evaluations of the branch per image. Mean ± deviation over repeats, where there are several."
    )
    return Table(caption, columns, tuple(rows), sources)


def _paper(published: dict[str, Any], response: str, columns: int) -> Row:
    row = published["rows"][response]
    numbers = (_as_published(row["mse"]), f"{row['ssim']:.3f}", f"{row['v_score']:.1f}")
    blank = [""] * (columns - 1 - len(numbers))
    return Row((f"paper, {published['table']}", *numbers, *blank), "paper")


def _as_published(mse: float) -> str:
    """Return all digits of a published error."""
    return f"{mse:g}" if mse > 1e-4 else format_number(mse, 4)


def _scores(group: Group, looked: bool) -> tuple[str, ...]:
    def percent(name: str) -> str:
        values = group.values("inverse", name)
        return format_fixed([None if value is None else 100 * value for value in values], 1)

    mse = format_spread(group.values("reconstruction", "mse"), missing="∞")
    return (
        f"{mse} ({group.non_finite} images)" if group.non_finite else mse,
        format_fixed(group.values("reconstruction", "ssim"), 3),
        format_fixed(group.values("reconstruction", "v_score"), 1),
        percent("converged_share"),
        *((percent("elsewhere_share"),) if looked else ()),
        format_fixed(group.values("inverse", "evaluations_mean"), 1),
    )


def _promises(entries: Entries, sources: tuple[Source, ...]) -> Table:
    rows = [
        RowGroup(
            RESPONSES[response],
            tuple(Row((label, *_promise(group)), group.constraint) for label, group in members),
        )
        for response, members in entries.items()
    ]
    return Table(
        "What the inverse promises and keeps. Over all test images: the largest relative residual, the largest "
        "distance to the original, and the largest bound the solver gave for it. On the studied images: the "
        "certified Lipschitz constant of the branch, local constants from its Jacobian, and how many exceed 1.",
        PROMISE_COLUMNS,
        tuple(rows),
        sources,
    )


def _promise(group: Group) -> tuple[str, ...]:
    above = group.mean("study", "local_lipschitz", "above_one_share") or 0.0
    return (
        format_number(group.largest("inverse", "residual_max"), 2, missing="∞"),
        format_number(group.largest("inverse", "error_max"), 2, missing="∞"),
        format_number(group.largest("inverse", "error_bound_max"), 2, missing="none"),
        format_number(group.largest("study", "lipschitz_bound"), missing="none"),
        format_number(group.mean("study", "local_lipschitz", "median"), missing="∞"),
        format_number(group.largest("study", "local_lipschitz", "largest"), missing="∞"),
        f"{100 * above:.0f}",
    )
