"""What is shown of single densities: what they reached, what they took, their curves and pictures."""

from __future__ import annotations

from typing import Any

from ..report import (
    Column,
    Line,
    Picture,
    Result,
    Section,
    Source,
    Table,
    format_number,
    settings_table,
    stored_pictures,
    tabulate,
)
from .configuration import RESIDUAL, Configuration
from .figures import PICTURES, draw_curve
from .scores import bits, determinants, round_trip

__all__ = [
    "METHOD",
    "data_note",
    "kind_of_row",
    "runs_section",
    "source_of",
    "tables_of_runs",
]

METHOD = (
    "Pixels are dequantized with uniform noise inside the model, so its bits per dimension are an upper bound of the "
    "code length of the pixels. Training: Adamax. Evaluated: an average of the weights. The first error is what the "
    "draws of the noise leave open on these images, the second what the choice of images leaves open. CPU time is that "
    "of training, evaluation not counted.",
)


def source_of(result: Result) -> Source:
    """Return where the figures of a run come from."""
    content = result.content
    title = f"density of {content['data']['title']}: {content['name']}"
    return Source.of_runs(result.name, title, [content["run"]], seeds=[content["configuration"]["seed"]])


def kind_of_row(configuration: Configuration) -> str:
    """Return the kind of a row: certified where the model has attention with a certificate, and only there."""
    attention = configuration.attention != "none" and configuration.model in RESIDUAL
    return "certified" if attention and configuration.constraint == "certified" else ""


def runs_section(title: str, members: list[Result]) -> Section:
    """Return what is shown of the runs on one set of data."""
    sources = tuple(map(source_of, members))
    pictures = [
        stored_pictures(result.folder, result.name, PICTURES, source)
        for result, source in zip(members, sources, strict=True)
    ]
    lines: dict[str, list[tuple[str, dict[str, Any], str]]] = {"": []}
    for result in members:
        content = result.content
        name = content["name"] if len(members) == 1 else f"{content['name']} ({result.name})"
        kind = kind_of_row(Configuration.from_json(content["configuration"]))
        lines[""].append((name, content | {"model": content["configuration"]["model"]}, kind))

    def drawn() -> list[Picture]:
        stored = [picture for read in pictures for picture in read()]
        return [Picture(draw_curve([result.content for result in members]), sources), *stored]

    return Section(
        f"Density: {title}",
        lead=[_headline(result.content) for result in members],
        tables=[
            *tables_of_runs(lines, sources),
            settings_table({result.name: result.content["configuration"] for result in members}, sources),
        ],
        pictures=drawn,
        notes=[*(data_note(result) for result in members), *METHOD],
    )


def _headline(content: dict[str, Any]) -> str:
    score = content["evaluation"]
    skipped, samples = content["training"]["skipped_steps"], content["samples"]
    text = (
        f"{content['name']}: {bits(score)} bits per dimension on {score['images']} test images, "
        f"{determinants(score, content['configuration']['model'])} log-determinants; "
        f"{bits(content['untrained'])} before training."
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


def data_note(result: Result) -> str:
    """Return a sentence about the images of a result."""
    data = result.content["data"]
    return (
        f"{result.name}: {data['train_images']:,} training and {data['test_images']:,} test images of "
        f"{'×'.join(map(str, data['shape']))} values with {data['levels']} levels."
    )


def tables_of_runs(
    lines: dict[str, list[tuple[str, dict[str, Any], str]]], sources: tuple[Source, ...]
) -> list[Table]:
    """Return the tables of single trainings: what they reached, and what they took."""
    score = (
        Column("bits/dim", bits),
        Column("error of the draws", lambda s: format_number(s["standard_error"], 2)),
        Column("error of the images", lambda s: format_number(s["sampling_error"], 2)),
        Column("draws", lambda s: str(s["draws"])),
        Column("images", lambda s: f"{s['images']:,}"),
        Column("not finite", lambda s: str(s["not_finite"])),
        Column("determinants", lambda s: determinants(s, s["model"])),
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
        Column("round trip, levels", lambda r: round_trip(r["samples"])),
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
