"""Table 4: detection of camouflaged objects, published and ours, and whether the attention inside inverts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..camouflage.findings import audit_findings, claim_findings, headline
from ..camouflage.models import MODELS
from ..camouflage.results import TABLE_MEASURES, datasets, rows
from ..published import TABLE_4, TABLE_4_DATASETS
from ..report import format_number
from .content import Row, RowGroup, Section, Source, Table
from .figures import stored_pictures
from .recognition import Result

__all__ = ["sections"]

SCORE_COLUMNS = ("", "S", "F", "E", "MAE", "seeds")
AUDIT_COLUMNS = (
    "",
    "tokens",
    "recovered",
    "evaluations",
    "largest relative error",
    "certified",
    "local, largest",
    "second preimages",
)


def sections(results: Sequence[Result]) -> list[Section]:
    """Return Table 4 with the measured rows under the published ones, then what each run found."""
    sources = {result.name: _source(result) for result in results}
    tested = list(dict.fromkeys(name for result in results for name in datasets(result.content)))
    order = [*TABLE_4_DATASETS, *(name for name in tested if name not in TABLE_4_DATASETS)]
    tables = [_scores(dataset, results, sources) for dataset in order]
    notes = [_setting(result) for result in results]
    notes.append(
        "The published numbers are for ResNet-50 with ImageNet weights at 352×352, 30 epochs on 4,040 images of "
        "CAMO and COD10K. Rows of another setting are to be compared with each other, not with the paper's."
    )
    table = Section("Table 4: camouflaged object detection", tables=tables, notes=notes)
    return [table, *(_run(result, sources[result.name]) for result in results)]


def _source(result: Result) -> Source:
    cells = result.content["cells"]
    runs = [cell["run"] for cell in cells if "run" in cell] or [result.content["run"]]
    title = f"camouflaged objects, {len({cell['model'] for cell in cells})} kinds of attention"
    return Source.of_runs(result.name, title, runs, seeds=[cell["seed"] for cell in cells])


def _setting(result: Result) -> str:
    settings = result.content["configuration"]
    return (
        f"{result.name}: backbone {settings['backbone']}, images of {settings['size']}×{settings['size']}, "
        f"{settings['epochs']} epoch{'s' if settings['epochs'] != 1 else ''} of batches of {settings['batch_size']}."
    )


def _scores(dataset: str, results: Sequence[Result], sources: dict[str, Source]) -> Table:
    used = []
    by_title: dict[str, list[Row]] = {}
    for title, published in TABLE_4.items():
        if dataset in published:
            cells = (f"{value:.3f}" for value in published[dataset])
            by_title[title] = [Row(("paper, Table 4", *cells, ""), "paper")]
    for result in results:
        found = [row for row in rows(result.content) if dataset in datasets(result.content)]
        used += [sources[result.name]] if found else []
        for row in found:
            line = _measured(row, dataset, result.name)
            by_title.setdefault(row.title, []).append(line)
    if used:
        groups = [RowGroup(title, tuple(lines)) for title, lines in by_title.items()]
    else:
        lines = [Row((title, *line.cells[1:]), line.kind) for title, (line,) in by_title.items()]
        groups = [RowGroup("", tuple(lines))]
    caption = (
        f"{dataset}: S, mean F, mean E (higher is better) and mean absolute error (lower is better); "
        + ("mean ± deviation over seeds." if used else "published numbers only, not run.")
    )
    return Table(caption, SCORE_COLUMNS, tuple(groups), tuple(used))


def _measured(row: Any, dataset: str, name: str) -> Row:
    kind = "certified" if MODELS[row.name].constraint == "certified" else ""
    if not row.values(dataset, "mae"):
        return Row((name, "diverged", "", "", "", "0"), kind)
    numbers = (row.text(dataset, measure) for measure in TABLE_MEASURES)
    diverged = f", {row.diverged} diverged" if row.diverged else ""
    return Row((name, *numbers, f"{len(row.scored)}{diverged}"), kind)


def _run(result: Result, source: Source) -> Section:
    content = result.content
    lines = [
        RowGroup(
            row.title,
            tuple(
                Row((f"level {level}", *_audited(values)), row.model.constraint or "")
                for level, values in row.scored[0]["audit"].items()
            ),
        )
        for row in rows(content)
        if row.scored and row.scored[0]["audit"]
    ]
    caption = (
        "Does the attention inside the trained networks still invert? Audited on the feature maps of test images; the "
        "certified Lipschitz constant beside the largest local one, of every row's first seed."
    )
    return Section(
        f"Camouflaged objects: {result.name}",
        lead=[headline(content), *claim_findings(content), *audit_findings(content)],
        tables=[Table(caption, AUDIT_COLUMNS, tuple(lines), (source,))] if lines else [],
        pictures=stored_pictures(result, source),
    )


def _audited(values: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(values["tokens"]),
        f"{values['recovered']} of {values['images']}",
        format_number(values["evaluations_mean"]),
        format_number(values["relative_error_largest"], 2, missing="∞"),
        format_number(values["certificate"], missing="none"),
        format_number(values["local_lipschitz_largest"], missing="∞"),
        str(values["not_injective"]),
    )
