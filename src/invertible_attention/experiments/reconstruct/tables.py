"""Tables 2 and 5: reconstruction errors, published, rerun and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..published import RESPONSES
from ..report import (
    Definition,
    Kind,
    Picture,
    Result,
    Section,
    Source,
    format_number,
    settings_table,
    stored_pictures,
)
from .columns import (
    Entries,
    beside_table,
    errors_table,
    images_table,
    inverses_table,
    label_of,
    pictures_table,
    solvers_table,
    training_table,
    weights_table,
)
from .configuration import Configuration, today
from .figures import FIGURES
from .findings import findings, headline
from .overview import draw_errors
from .results import ORDER, SCHEMA, groups

__all__ = ["DEFINITION"]

COMMAND = "invertible-attention reconstruct"


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
        errors_table(entries, published, sources),
        inverses_table(entries, sources),
        solvers_table(entries, sources),
        images_table(entries, sources),
        training_table(entries, sources),
        weights_table(entries, sources),
        pictures_table(entries, sources),
        beside_table(entries, published, sources, first["data"]["title"]),
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
    """Return the labeled groups of all folders by response: the authors' code first, ours last."""
    found: Entries = {response: [] for response in RESPONSES}
    for result in members:
        for response, entries in groups(result.content).items():
            taken = {label for label, _ in found[response]}
            for group in entries:
                label = label_of(group)
                found[response].append((f"{label} ({result.name})" if label in taken else label, group))
    for entries in found.values():
        entries.sort(key=lambda entry: [str(kind) for kind in ORDER].index(entry[1].constraint))
    return {response: entries for response, entries in found.items() if entries}


DEFINITION = Definition(
    kinds=(
        Kind(
            "reconstruct",
            "reconstruction (Tables 2 and 5)",
            COMMAND,
            version=2,
            changed=("configuration", today),
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
