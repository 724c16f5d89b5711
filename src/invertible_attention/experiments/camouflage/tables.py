"""Table 4: detection of camouflaged objects, published and ours; what it costs; whether the attention inside "
"inverts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..published import TABLE_4, TABLE_4_DATASETS
from ..report import (
    Column,
    Definition,
    Kind,
    Line,
    Result,
    Section,
    Source,
    Table,
    format_fixed,
    format_number,
    settings_table,
    stored_pictures,
    tabulate,
)
from .figures import FIGURES
from .findings import audit_findings, claim_findings, headline
from .metrics import CONVENTIONS, MEASURES
from .models import MODELS, row_today
from .results import TABLE_MEASURES, Row, datasets, rows

__all__ = ["COST", "DEFINITION", "RUN", "SCORES"]


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return Table 4 with the measured rows under the published ones, what each run found, costs and scores."""
    runs = [result for result in results if result.kind == RUN]
    found = []
    if runs:
        sources = {result.name: _source(result) for result in runs}
        found = [_table_4(runs, sources), *(_run(result, sources[result.name]) for result in runs)]
    builders = {COST.name: _costs, SCORES.name: _scores}
    return found + [builders[r.kind.name](r) for r in results if r.kind.name in builders]


def _source(result: Result) -> Source:
    cells = result.content["cells"]
    runs = [cell["run"] for cell in cells if "run" in cell] or [result.content["run"]]
    title = f"camouflaged objects, {len({cell['model'] for cell in cells})} kinds of attention"
    return Source.of_runs(result.name, title, runs, seeds=[cell["seed"] for cell in cells])


def _table_4(runs: Sequence[Result], sources: dict[str, Source]) -> Section:
    tested = list(dict.fromkeys(name for result in runs for name in datasets(result.content)))
    # The paper's other data sets are named where some of them were tested on.
    paper = TABLE_4_DATASETS if set(tested) & set(TABLE_4_DATASETS) else ()
    order = [*paper, *(name for name in tested if name not in TABLE_4_DATASETS)]
    notes = [_setting(result) for result in runs]
    if not all(_like_the_paper(result.content["configuration"]) for result in runs):
        notes.append(
            "The published numbers are for ResNet-50 with ImageNet weights at 352×352, 30 epochs on 4,040 images of "
            "CAMO and COD10K. Rows of another setting are to be compared with each other, not with the paper's."
        )
    return Section(
        "Table 4: camouflaged object detection",
        tables=[_beside(dataset, runs, sources) for dataset in order],
        notes=notes,
    )


def _like_the_paper(settings: dict[str, Any]) -> bool:
    wanted = {"backbone": "resnet50", "size": 352, "batch_size": 6, "epochs": 30, "learning_rate": 2.5e-5}
    return all(settings.get(name) == value for name, value in wanted.items())


def _setting(result: Result) -> str:
    settings = result.content["configuration"]
    return (
        f"{result.name}: backbone {settings['backbone']}, images of {settings['size']}×{settings['size']}, "
        f"{settings['epochs']} epoch{'s' if settings['epochs'] != 1 else ''} of batches of {settings['batch_size']}."
    )


def _beside(dataset: str, results: Sequence[Result], sources: dict[str, Source]) -> Table:
    """Return Table 4 on one dataset."""

    def measured(measure: str) -> Callable[[Row], str]:
        return lambda row: row.text(dataset, measure) if row.values(dataset, "mae") else ""

    def seeds(row: Row) -> str:
        scored = len(row.scored) if row.values(dataset, "mae") else 0
        return f"{scored}, {row.diverged} diverged" if row.diverged else str(scored)

    columns = [
        Column(MEASURES[ours], measured(ours), lambda paper, name=published: f"{getattr(paper, name):.3f}")
        for ours, published in TABLE_MEASURES.items()
    ]
    columns.append(Column("seeds", seeds))
    used = []
    lines: dict[str, list[Line]] = {
        title: [("paper, Table 4", published[dataset], "paper")]
        for title, published in TABLE_4.items()
        if dataset in published
    }
    for result in results:
        if dataset in datasets(result.content):
            used.append(sources[result.name])
            for row in rows(result.content):
                lines.setdefault(row.title, []).append((result.name, row, _kind(row)))
    if not used:
        lines = {"": [(title, line[1], line[2]) for title, (line,) in lines.items()]}
    caption = (
        f"{dataset}: S, mean F, mean E (higher is better) and mean absolute error (lower is better); "
        + ("mean ± deviation over seeds." if used else "published numbers only, not run.")
    )
    return tabulate("scores", caption, columns, lines, used)


def _kind(row: Row) -> str:
    return "certified" if row.model.constraint == "certified" else ""


def _run(result: Result, source: Source) -> Section:
    content = result.content
    tables = [
        _measures(content, source),
        _training(content, source),
        _audits(content, source),
        settings_table({result.name: content["configuration"]}, (source,)),
    ]
    return Section(
        f"Camouflaged objects: {result.name}",
        lead=[headline(content), *claim_findings(content), *audit_findings(content)],
        tables=[table for table in tables if table.groups],
        pictures=stored_pictures(result.folder, result.name, FIGURES, source),
        notes=[*METHOD, f"{SCORED}: {'; '.join(map(': '.join, CONVENTIONS.items()))}."],
    )


SCORED = "Conventions of the scores; published numbers are met with theirs only"
METHOD = (
    "Network: four levels of the backbone, each reduced to 32 channels by a sum of dilated convolutions, attention on "
    "some of them, and a decoder from coarse to fine with channel attention. Training: binary cross-entropy, Adam, "
    "flips, crops, rotations and color jitter. With one seed, all rows begin with the same weights outside the "
    "attention and see the same images in the same order.",
    "Maps: logits scaled to the mask’s own size, sigmoid, stretched to the whole range, 8 bits. Scores: pysodmetrics "
    "on those maps. Scored are the weights as they were after the last epoch: this command chooses no epoch, weights "
    "or settings by scores of test images. Max F and max E are, as they are defined, those of the threshold best on "
    "the test set.",
    "Attention: “ordinary” is the non-local block; “Inv” is the paper’s invertible form (Section 2.4), which promises "
    "nothing; “Certified” is ours.",
)


def _measures(content: dict[str, Any], source: Source) -> Table:
    columns = [
        Column(title, lambda item, name=name: item[0].text(item[1], name)) for name, title in MEASURES.items()
    ]
    columns.append(Column("images", lambda item: _images(*item)))
    lines: dict[str, list[Line]] = {
        row.title: [(dataset, (row, dataset), _kind(row)) for dataset in datasets(content)]
        for row in rows(content)
        if row.scored
    }
    return tabulate("measures", "All measures, mean ± deviation over seeds.", columns, lines, (source,))


def _images(row: Row, dataset: str) -> str:
    found = {cell.get("test_images", {}).get(dataset) for cell in row.scored}
    return ", ".join(format_number(count, 6) for count in sorted(found, key=str))


def _training(content: dict[str, Any], source: Source) -> Table:
    def part(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda cell: f"{cell['parameters'][name]:,}"

    columns = (
        Column("parameters", part("total")),
        Column("of the backbone", part("backbone")),
        Column("of the attention", part("attention")),
        Column("of the decoder", part("decoder")),
        Column("images", lambda cell: f"{cell['training']['images']:,}"),
        Column("steps", lambda cell: f"{cell['training']['steps']:,}"),
        Column("first loss", lambda cell: format_number(cell["training"]["first_loss"], 4)),
        Column("last loss", lambda cell: format_number(cell["training"]["last_loss"], 4)),
        Column("training, s", lambda cell: format_number(cell["training"]["seconds"])),
        Column("steps a second", lambda cell: format_number(cell["training"].get("steps_per_second"))),
        Column("loader alone", lambda cell: format_number(cell["training"].get("loader_steps_per_second"))),
        Column("in all, s", lambda cell: format_number(cell["run"].get("seconds"))),
    )
    lines: dict[str, list[Line]] = {
        row.title: [(f"seed {cell['seed']}", cell, _kind(row)) for cell in row.scored if "parameters" in cell]
        for row in rows(content)
    }
    caption = "The networks: parameters, training losses at the beginning and the end, and time."
    lines = {title: members for title, members in lines.items() if members}
    return tabulate("training", caption, columns, lines, (source,))


def _audits(content: dict[str, Any], source: Source) -> Table:
    def number(name: str, digits: int = 3, missing: str = "∞") -> Callable[[dict[str, Any]], str]:
        return lambda values: format_number(values.get(name), digits, missing=missing)

    columns = (
        Column("recovered", lambda values: f"{values['recovered']} of {values['images']}"),
        Column("said to fail", lambda values: str(values.get("said_to_fail", "–"))),
        Column("wrong without a warning", lambda values: str(values["silently_wrong"])),
        Column("second preimages", lambda values: str(values["not_injective"])),
        Column("tokens", lambda values: str(values["tokens"])),
        Column("evaluations", number("evaluations_mean")),
        Column("largest relative error", number("relative_error_largest", 2)),
        Column("largest residual", number("residual_largest", 2)),
        Column("its bound", number("error_bound_largest", 2, "none")),
        Column("certified constant", number("certificate", 3, "none")),
        Column("median local constant", number("local_lipschitz_median")),
        Column("largest local constant", number("local_lipschitz_largest")),
        Column("smallest stretch", number("smallest_stretch", 2, "–")),
        Column("share of the branch", number("branch_share", 2)),
        Column("outside the ball", number("tokens_outside_ball", 2, "–")),
        Column(
            "passed", lambda values: "–" if "passed" not in values else "yes" if values["passed"] else "no"
        ),
    )
    lines: dict[str, list[Line]] = {
        row.title: [
            (f"seed {cell['seed']}, level {level}", values, _kind(row))
            for cell in row.scored
            for level, values in cell["audit"].items()
        ]
        for row in rows(content)
    }
    caption = (
        "Does the attention inside the trained networks still invert? z = x + g(x) is computed on the feature maps of "
        "test images that reach it, solved for x, and compared. The certified Lipschitz constant of g next to local "
        "ones, measured from below; the share of the branch, ‖g(x)‖ / ‖x‖; the share of tokens outside the ball the "
        "certified branch sees them projected on."
    )
    lines = {title: members for title, members in lines.items() if members}
    return tabulate("audit", caption, columns, lines, (source,))


def step_seconds(seconds: Sequence[float]) -> float:
    """Return the time of a training step: the median, without the first, which does some things only once."""
    return statistics.median(seconds[1:] or seconds)


def _costs(result: Result) -> Section:
    content = result.content
    settings = content["configuration"]
    what = f"{settings['backbone']} at {settings['size']}×{settings['size']}"
    # The weights are drawn with seed 0, the images too.
    source = Source.of_runs(result.name, f"cost of the detector, {what}", [content["run"]], seeds=[0])
    columns = (
        Column("parameters", lambda model: f"{model['parameters']:,}"),
        Column("step, s", lambda model: format_number(step_seconds(model["step_seconds"]))),
        Column("evaluation, s", lambda model: format_number(model["evaluation_seconds"])),
        Column("step, MiB", lambda model: format_number(model["step_mib"], 5)),
        Column("evaluation, MiB", lambda model: format_number(model["evaluation_mib"], 5)),
        Column("idle, MiB", lambda model: format_number(model["idle_mib"], 5)),
        Column("loss", lambda model: format_number(model["loss"])),
    )
    lines: list[Line] = [
        (MODELS[model["model"]].title, model, MODELS[model["model"]].constraint or "")
        for model in content["models"]
    ]
    caption = (
        f"Time and peak memory of one training step and one evaluation of the detector, {what}, batches of "
        f"{settings['batch_size']}, {settings['weights']} weights. A step's time is the median, without the first of "
        "several; idle is the memory before the first."
    )
    return Section(
        f"Cost of the detector, {what} ({result.name})",
        tables=[
            tabulate("costs", caption, columns, {"": lines}, (source,)),
            settings_table({result.name: settings | {"threads": content["threads"]}}, (source,)),
        ],
    )


def _scores(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "scores of maps", [content["run"]])
    columns = [
        Column(title, lambda scores, name=name: format_fixed([scores[name]], 3))
        for name, title in MEASURES.items()
    ]
    columns += [
        Column("images", lambda scores: f"{scores['images']:,}"),
        Column("scaled to their masks", lambda scores: f"{scores['resized']:,}"),
    ]
    lines: list[Line] = [
        (name, scores | {"images": content["images"][name], "resized": content["resized"].get(name, 0)}, "")
        for name, scores in content["scores"].items()
    ]
    caption = "Scores of maps against masks, means over the images of each dataset."
    notes = [f"{name}: {convention}." for name, convention in content["conventions"].items()]
    notes += [f"Skipped: {item}." for item in (*content["left_out"], *content["not_scored"])]
    table = tabulate("maps", caption, columns, {"": lines}, (source,))
    return Section(f"Scores of maps: {result.name}", tables=[table], notes=notes)


RUN = Kind(
    "camouflage",
    "camouflaged objects (Table 4)",
    "invertible-attention camouflage study",
    version=2,
    changed=("model", row_today),
    unshown={
        "run": "that of the cells is shown",
        "summary": "means over the cells, computed again from them",
        "cells.*.images": "fingerprint of the images",
        "cells.*.configuration": "that of the run",
        "cells.*.training.losses": "drawn: losses",
        "cells.*.scores.*.f_curve": "drawn: curves",
        "cells.*.scores.*.e_curve": "drawn: curves",
    },
)
COST = Kind(
    "camouflage-measure",
    "cost of the detector",
    "invertible-attention camouflage measure",
    version=2,
    changed=("model", row_today),
)
SCORES = Kind(
    "camouflage-scores",
    "scores of maps",
    "invertible-attention camouflage evaluate",
    unshown={"scores.*.f_curve": "the numbers are shown", "scores.*.e_curve": "the numbers are shown"},
)
DEFINITION = Definition(kinds=(RUN, COST, SCORES), sections=_sections, place=5)
