"""Table 3: bits per dimension, published and ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from ..published import TABLE_3
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
    format_error,
    format_number,
    settings_table,
    stored_pictures,
    tabulate,
)
from .comparison import equal, guarantee, is_likelihood
from .configuration import RESIDUAL, Configuration
from .figures import PICTURES, STUDY_FIGURES, draw_curve
from .variants import parse_variant

__all__ = ["DEFINITION", "RUN", "STUDY"]

BRACKETS = (
    "In brackets: estimated where the spectral radius reaches 1, so that the series does not converge and the figure "
    "is no likelihood."
)


def _sections(results: Sequence[Result]) -> list[Section]:
    """Return the paper's table, then one section per data set of runs and one per study."""
    found = [_published(results)]
    by_data: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == RUN:
            by_data.setdefault(result.content["data"]["title"], []).append(result)
    found += [_runs(title, members) for title, members in by_data.items()]
    found += [_study(result) for result in results if result.kind == STUDY]
    return found


def _published(results: Sequence[Result]) -> Section:
    measured = [result for result in results if _settings(result)["dataset"] == "cifar10"]
    columns = [Column("bits/dim", lambda row: row["bits"], lambda value: f"{value:.2f}")]
    if measured:
        columns += [
            Column("parameters", lambda row: f"{row['parameters']:,}"),
            Column("steps", lambda row: f"{row['steps']:,}"),
        ]
    lines: list[Line] = [(name, value, "paper") for name, value in TABLE_3.items()]
    lines += [line for result in measured for line in _beside(result)]
    note = (
        "The published numbers are one run each of full-size models after days on a GPU; the i-ResNet rows are biased "
        "estimates (a series of 5 terms)."
    )
    if not measured:
        note += " No density of CIFAR-10 is among the folders: compare what follows within itself, not with these."
    caption = "Bits per dimension of CIFAR-10's test images (lower is better)" + (
        ", ours with standard errors, and the size of what was trained." if measured else "."
    )
    table = tabulate("published", caption, columns, {"": lines}, tuple(map(_source, measured)))
    brackets = [BRACKETS] if any("[" in cell for row in table.groups[0].rows for cell in row.cells) else []
    return Section("Table 3: density of CIFAR-10", tables=[table], notes=[note, *brackets])


def _beside(result: Result) -> list[Line]:
    content = result.content
    if result.kind == RUN:
        record = _run(content, content["configuration"]["model"])
        record |= {"bits": _bits(record["evaluation"]), "steps": content["training"]["steps"]}
        return [(content["name"], record, _highlight(Configuration.from_json(content["configuration"])))]
    return [
        (row["variant"], row | {"bits": _mean_bits(row), "steps": _steps(content, row)}, kind)
        for row, kind in _rows(content)
    ]


def _equal(study: dict[str, Any]) -> str:
    return equal(study["base"], [cell["training"]["steps"] for cell in study["cells"]])


def _steps(study: dict[str, Any], row: dict[str, Any]) -> int:
    """Return the steps of a row, the mean over its seeds."""
    own = [cell["training"]["steps"] for cell in study["cells"] if cell["variant"] == row["variant"]]
    return round(fmean(own))


def _settings(result: Result) -> dict[str, Any]:
    return result.content["configuration" if result.kind == RUN else "base"]


def _source(result: Result) -> Source:
    content = result.content
    if result.kind == STUDY:
        return Source.of_runs(
            result.name,
            f"densities of {content['data']['title']}, {len(content['rows'])} variants",
            [cell["run"] for cell in content["cells"]],
            seeds=[cell["seed"] for cell in content["cells"]],
        )
    title = f"density of {content['data']['title']}: {content['name']}"
    return Source.of_runs(result.name, title, [content["run"]], seeds=[content["configuration"]["seed"]])


def _highlight(configuration: Configuration) -> str:
    """Return the kind of a row: certified where the model has attention with a certificate, and only there."""
    attention = configuration.attention != "none" and configuration.model in RESIDUAL
    return "certified" if attention and configuration.constraint == "certified" else ""


def _rows(study: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the rows of a study with their models, and their kinds."""
    base = Configuration.from_json(study["base"])
    found = []
    for row in study["rows"]:
        variant = parse_variant(row["variant"], base)
        constraint = variant.constraint if variant.attention != "none" else "certified"
        found.append((row | {"model": variant.model, "constraint": constraint}, _highlight(variant)))
    return found


def _runs(title: str, members: list[Result]) -> Section:
    sources = tuple(map(_source, members))
    pictures = [
        stored_pictures(result.folder, result.name, PICTURES, source)
        for result, source in zip(members, sources, strict=True)
    ]
    lines: dict[str, list[tuple[str, dict[str, Any], str]]] = {"": []}
    for result in members:
        content = result.content
        name = content["name"] if len(members) == 1 else f"{content['name']} ({result.name})"
        kind = _highlight(Configuration.from_json(content["configuration"]))
        lines[""].append((name, _run(content, content["configuration"]["model"]), kind))

    def drawn() -> list[Picture]:
        stored = [picture for read in pictures for picture in read()]
        return [Picture(draw_curve([result.content for result in members]), sources), *stored]

    return Section(
        f"Density: {title}",
        lead=[_headline(result.content) for result in members],
        tables=[
            *_run_tables(lines, sources),
            settings_table({result.name: result.content["configuration"] for result in members}, sources),
        ],
        pictures=drawn,
        notes=[*(_data_note(result) for result in members), *METHOD],
    )


def _headline(content: dict[str, Any]) -> str:
    score = content["evaluation"]
    skipped, samples = content["training"]["skipped_steps"], content["samples"]
    text = (
        f"{content['name']}: {_bits(score)} bits per dimension on {score['images']} test images, "
        f"{_determinants(score, content['configuration']['model'])} log-determinants; "
        f"{_bits(content['untrained'])} before training."
    )
    if skipped:
        text += f" {skipped} steps were skipped because their gradient was not finite."
    if samples["converged"] < samples["drawn"]:
        text += (
            f" {samples['drawn'] - samples['converged']} of {samples['drawn']} samples could not be inverted."
        )
    return text + _rounding(samples)


def _rounding(samples: dict[str, Any]) -> str:
    error = samples.get("round_trip_error", 0.0)
    if error is None:
        return " Samples do not come back from their latents: rounding is amplified beyond the precision."
    if error < 0.5:
        return ""
    return f" Rounding is amplified: samples come back from their latents with errors of up to {error:.2g} levels."


def _data_note(result: Result) -> str:
    data = result.content["data"]
    return (
        f"{result.name}: {data['train_images']:,} training and {data['test_images']:,} test images of "
        f"{'×'.join(map(str, data['shape']))} values with {data['levels']} levels."
    )


METHOD = (
    "Pixels are dequantized with uniform noise inside the model, so its bits per dimension are an upper bound of the "
    "code length of the pixels. Training: Adamax. Evaluated: an average of the weights. The first error is what the "
    "draws of the noise leave open on these images, the second what the choice of images leaves open. CPU time is that "
    "of training, evaluation not counted.",
)


def _run(content: dict[str, Any], model: str) -> dict[str, Any]:
    return content | {"model": model}


def _run_tables(
    lines: dict[str, list[tuple[str, dict[str, Any], str]]], sources: tuple[Source, ...]
) -> list[Table]:
    """Return the tables of single trainings: what they reached, and what they took."""
    score = (
        Column("bits/dim", _bits),
        Column("error of the draws", lambda s: format_number(s["standard_error"], 2)),
        Column("error of the images", lambda s: format_number(s["sampling_error"], 2)),
        Column("draws", lambda s: str(s["draws"])),
        Column("images", lambda s: f"{s['images']:,}"),
        Column("not finite", lambda s: str(s["not_finite"])),
        Column("determinants", lambda s: _determinants(s, s["model"])),
        Column("largest radius", lambda s: format_number(s["spectral_radius"])),
        Column("estimator", lambda s: s["estimator"]),
    )
    scores: dict[str, list[Line]] = {
        title: [
            (f"{name}{before}", record[key] | {"model": record["model"]}, kind if key == "evaluation" else "")
            for name, record, kind in members
            for key, before in (("untrained", ", untrained"), ("evaluation", ""))
        ]
        for title, members in lines.items()
    }
    cost = (
        Column("parameters", lambda r: f"{r['parameters']:,}"),
        Column("steps", lambda r: f"{r['training']['steps']:,}"),
        Column("skipped", lambda r: str(r["training"]["skipped_steps"])),
        Column("training, min", lambda r: f"{r['training']['seconds'] / 60:.1f}"),
        Column("CPU min", lambda r: f"{r['training']['processor_seconds'] / 60:.1f}"),
        Column("samples inverted", lambda r: f"{r['samples']['converged']} of {r['samples']['drawn']}"),
        Column("walks inverted", lambda r: f"{r['samples']['whole_walks']} of {r['samples']['walks']}"),
        Column("round trip, levels", lambda r: _round_trip(r["samples"])),
    )
    reached = (
        "Bits per dimension of the test images, lower is better, with the standard errors of the draws of the noise "
        "and of the choice of images; how log-determinants were computed for this number."
    )
    took = (
        "What was trained, how long it took, and how many samples, and walks between images, could be inverted; and by "
        "how many levels samples change on the way to their latents and back, at most: below 0.5 they are the same, "
        "above, rounding is amplified."
    )
    costs: dict[str, list[Line]] = {title: list(members) for title, members in lines.items()}
    return [tabulate("scores", reached, score, scores, sources), tabulate("runs", took, cost, costs, sources)]


def _study(result: Result) -> Section:
    content, source = result.content, _source(result)
    settings = content["base"]
    rows = _rows(content)
    right = all(is_likelihood(row) for row in content["rows"])
    cells: dict[str, list[tuple[str, dict[str, Any], str]]] = {row["variant"]: [] for row, _ in rows}
    for row, kind in rows:
        cells[row["variant"]] = [
            (f"seed {cell['seed']}", _run(cell, row["model"]), kind)
            for cell in content["cells"]
            if cell["variant"] == row["variant"]
        ]
    stored = stored_pictures(result.folder, result.name, STUDY_FIGURES, source)
    limit = (
        f"{settings['steps']} steps" if _equal(content) == "time" else f"{settings['minutes']:g} CPU minutes"
    )
    note = (
        f"{limit} of batches of {settings['batch_size']}, {content['seeds']} seeds, "
        f"{content['draws']} draws of the noise per test image."
    )
    return Section(
        f"Densities compared: {content['data']['title']} ({result.name})",
        tables=[
            _comparison(content, rows, source),
            *_run_tables(cells, (source,)),
            settings_table({result.name: settings}, (source,)),
        ],
        pictures=lambda: [*stored(), Picture(draw_curve(content["cells"]), (source,))],
        notes=[*([] if right else [BRACKETS]), note, _data_note(result), *STUDY_METHOD, *METHOD],
    )


STUDY_METHOD = (
    "All variants have the same images, batches, noise and, where they share them, initial weights for a seed. Steps "
    "whose gradient is not finite are skipped. The largest radius is that of the Jacobians of attention without a "
    "certificate, measured at the test images; from 1 on, only exact determinants are right. Attention that is "
    "invertible by order has no bound and needs none. Samples are drawn from the base and inverted; those that do not "
    "converge are counted.",
)


UNKNOWN = {"mean": None, "standard_error": None, "values": []}
CURVES_READ = {
    "time": "At equal time: learning curves read at the CPU time of the fastest variant",
    "steps": "Time ends training; at equal steps: learning curves read at the steps of the slowest variant",
}


def _comparison(content: dict[str, Any], rows: list[tuple[dict[str, Any], str]], source: Source) -> Table:
    def difference(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _spread(row[name], sign=True) if is_likelihood(row) else "–"

    limit = _equal(content)
    # Of a table that an earlier version made the curves were not kept.
    rows = [
        ({f"{what}at_equal_{limit}": UNKNOWN for what in ("", "difference_")} | row, kind)
        for row, kind in rows
    ]
    columns = (
        Column("bits/dim", _mean_bits),
        Column("difference", difference("difference")),
        Column(f"at equal {limit}", lambda row: _bracketed(_spread(row[f"at_equal_{limit}"]), row)),
        Column(f"difference at equal {limit}", difference(f"difference_at_equal_{limit}")),
        Column("steps", lambda row: f"{_steps(content, row):,}"),
        Column("CPU min", lambda row: f"{row['processor_seconds'] / 60:.1f}"),
        Column("parameters", lambda row: f"{row['parameters']:,} ({row['parameters_relative']:.3f})"),
        Column("determinants", lambda row: _determinants(row, row["model"])),
        Column("largest radius", guarantee),
        Column("skipped steps", lambda row: str(row["skipped_steps"])),
        Column("samples not inverted", lambda row: str(row["failed_samples"])),
    )
    caption = (
        "Bits per dimension of test images, mean ± standard error over seeds; lower is better. Differences are paired "
        f"by seed, from {content['rows'][0]['variant']}; negative is better. {CURVES_READ[limit]}, interpolated by "
        "monotone cubics"
    )
    if content["base"]["decay"]:
        caption += "; the learning rate decays over the steps: a slower variant is read before the end of its schedule"
    lines: dict[str, list[Line]] = {"": [(row["variant"], row, kind) for row, kind in rows]}
    return tabulate("comparison", f"{caption}.", columns, lines, (source,), label="variant")


def _bits(score: dict[str, Any]) -> str:
    if score["bits_per_dim"] is None:
        return f"not finite on {score['not_finite']} values"
    return _bracketed(format_error(score["bits_per_dim"], score["standard_error"]), score)


def _mean_bits(row: dict[str, Any]) -> str:
    return _bracketed(_spread(row["bits_per_dim"]), row)


def _bracketed(text: str, score: dict[str, Any]) -> str:
    return text if is_likelihood(score) else f"[{text}]"


def _determinants(score: dict[str, Any], model: str) -> str:
    if model not in RESIDUAL:
        return "the model’s"
    if score["exact"]:
        return "exact"
    return "unbiased" if is_likelihood(score) else "diverge"


def _round_trip(samples: dict[str, Any]) -> str:
    error = samples.get("round_trip_error", math.nan)
    return format_number(math.inf if error is None else error, 2)


def _spread(summary: dict[str, Any], *, sign: bool = False) -> str:
    """Return mean ± standard error, and how many values were not finite."""
    text = format_error(summary["mean"], summary["standard_error"], sign=sign, missing="–")
    missing = sum(value is None for value in summary["values"])
    return f"{text} ({missing} not finite)" if missing and summary["mean"] is not None else text


RUN = Kind(
    "density",
    "density (Table 3)",
    "invertible-attention density train",
    unshown={"data.fingerprint": "of the images", "curve": "drawn: curve"},
)
STUDY = Kind(
    "density-study",
    "comparison of densities (Table 3)",
    "invertible-attention density study",
    unshown={
        "data.fingerprint": "of the images",
        "run": "that of the cells is shown",
        "variants": "those of the rows",
        "rows.*.name": "the variant says it",
        "rows.*.model": "the variant says it",
        "rows.*.bits_per_dim.values": "those of the cells",
        "rows.*.difference.values": "drawn: differences",
        "rows.*.at_equal_time.values": "drawn: curve",
        "rows.*.difference_at_equal_time.values": "drawn: curve",
        "rows.*.at_equal_steps.values": "drawn: curve",
        "rows.*.difference_at_equal_steps.values": "drawn: curve",
        "cells.*.name": "the variant says it",
        "cells.*.curve": "drawn: curve",
    },
)
DEFINITION = Definition(kinds=(RUN, STUDY), sections=_sections, place=2)
