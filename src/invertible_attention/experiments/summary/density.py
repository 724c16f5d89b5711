"""Table 3: bits per dimension, published and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..density.report import draw_curve
from ..published import TABLE_3
from ..report import format_number
from .content import Picture, Row, RowGroup, Section, Source, Table
from .figures import stored_pictures
from .recognition import Result

__all__ = ["sections"]

RUN_COLUMNS = (
    "",
    "bits/dim",
    "determinants",
    "before training",
    "steps",
    "processor min",
    "parameters",
    "samples inverted",
)
STUDY_COLUMNS = (
    "",
    "bits/dim",
    "difference",
    "at equal time",
    "processor min",
    "parameters",
    "determinants",
    "largest radius",
    "steps left out",
    "samples not inverted",
)


def sections(results: Sequence[Result]) -> list[Section]:
    """Return the paper's table, then one section per data set of runs and one per study."""
    found = [_published(results)]
    by_data: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "density":
            by_data.setdefault(result.content["data"]["title"], []).append(result)
    found += [_runs(title, members) for title, members in by_data.items()]
    found += [_study(result) for result in results if result.kind == "density-study"]
    return found


def _published(results: Sequence[Result]) -> Section:
    measured = [result for result in results if _dataset(result) == "cifar10"]
    columns = ("", "bits/dim", "parameters", "steps") if measured else ("", "bits/dim")
    blank = [""] * (len(columns) - 2)
    rows = [Row((name, f"{value:.2f}", *blank), "paper") for name, value in TABLE_3.items()]
    rows += [row for result in measured for row in _beside(result)]
    note = (
        "The published numbers are one run each of full-size models after days on a GPU; the i-ResNet rows are biased "
        "estimates (a series of 5 terms)."
    )
    if not measured:
        note += " No density of CIFAR-10 is among the folders: compare what follows within itself, not with these."
    return Section(
        "Table 3: density of CIFAR-10",
        tables=[
            Table(
                "Bits per dimension of CIFAR-10's test images (lower is better)"
                + (", ours with standard errors, and the size of what was trained." if measured else "."),
                columns,
                (RowGroup("", tuple(rows)),),
                tuple(_source(result) for result in measured),
            )
        ],
        notes=[note],
    )


def _beside(result: Result) -> list[Row]:
    content = result.content
    if result.kind == "density":
        cells = (content["name"], _bits(content["evaluation"]), f"{content['parameters']:,}")
        return [Row((*cells, f"{content['training']['steps']:,}"), "certified")]
    steps = f"{content['base']['steps']:,}"
    return [
        Row((row["variant"], _spread(row["bits_per_dim"]), f"{row['parameters']:,}", steps), "certified")
        for row in content["rows"]
    ]


def _dataset(result: Result) -> str | None:
    settings = {"density": "configuration", "density-study": "base"}.get(result.kind)
    return None if settings is None else result.content[settings]["dataset"]


def _source(result: Result) -> Source:
    content = result.content
    if result.kind == "density-study":
        return Source.of_runs(
            result.name,
            f"densities of {content['data']['title']}, {len(content['rows'])} variants",
            [cell["run"] for cell in content["cells"]],
            seeds=[cell["seed"] for cell in content["cells"]],
        )
    title = f"density of {content['data']['title']}: {content['name']}"
    return Source.of_runs(result.name, title, [content["run"]], seeds=[content["configuration"]["seed"]])


def _runs(title: str, members: list[Result]) -> Section:
    sources = tuple(_source(result) for result in members)
    rows = tuple(Row((result.content["name"], *_run(result.content)), "certified") for result in members)
    pictures = [Picture(draw_curve([result.content for result in members]), sources)]
    for result, source in zip(members, sources, strict=True):
        pictures += stored_pictures(result, source)
    caption = (
        f"Bits per dimension of the test images of {title}, with the standard error of the draws; lower is better. "
        "Determinants: how they were computed for this number."
    )
    return Section(
        f"Density: {title}",
        tables=[Table(caption, RUN_COLUMNS, (RowGroup("", rows),), sources)],
        pictures=pictures,
    )


def _run(content: dict[str, Any]) -> tuple[str, ...]:
    samples = content["samples"]
    return (
        _bits(content["evaluation"]),
        _determinants(content["evaluation"]),
        _bits(content["untrained"]),
        f"{content['training']['steps']:,}",
        f"{content['training']['processor_seconds'] / 60:.1f}",
        f"{content['parameters']:,}",
        f"{samples['converged']} of {samples['drawn']}",
    )


def _study(result: Result) -> Section:
    content, source = result.content, _source(result)
    rows = tuple(
        Row(
            (
                row["variant"],
                _spread(row["bits_per_dim"]),
                _spread(row["difference"], sign=True),
                _spread(row["difference_at_equal_time"], sign=True),
                f"{row['processor_seconds'] / 60:.1f}",
                f"{row['parameters']:,} ({row['parameters_relative']:.3f})",
                _determinants(row),
                format_number(row["spectral_radius"], missing="certified"),
                str(row["skipped_steps"]),
                str(row["failed_samples"]),
            )
        )
        for row in content["rows"]
    )
    caption = (
        "Bits per dimension of test images, mean ± standard error over seeds; lower is better. Differences are paired "
        f"by seed, from {content['rows'][0]['variant']}; at equal time: learning curves read at the processor time of "
        "the fastest variant. From a radius of 1 on, only exact determinants are right."
    )
    pictures = [*stored_pictures(result, source), Picture(draw_curve(content["cells"]), (source,))]
    data, settings = content["data"], content["base"]
    note = (
        f"{result.name}: {data['train_images']} training and {data['test_images']} test images of "
        f"{'×'.join(map(str, data['shape']))}, {settings['steps']} steps of batches of {settings['batch_size']}, "
        f"{content['draws']} draws of the noise per image."
    )
    return Section(
        f"Densities compared: {data['title']} ({result.name})",
        tables=[Table(caption, STUDY_COLUMNS, (RowGroup("", rows),), (source,))],
        pictures=pictures,
        notes=[note],
    )


def _bits(score: dict[str, Any]) -> str:
    if score["bits_per_dim"] is None:
        return f"not finite on {score['not_finite']} values"
    error = score["standard_error"]
    return f"{score['bits_per_dim']:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _determinants(score: dict[str, Any]) -> str:
    if score["exact"]:
        return "exact"
    radius = score["spectral_radius"]
    return "unbiased" if radius is None or radius < 1 else "not unbiased"


def _spread(summary: dict[str, Any], *, sign: bool = False) -> str:
    if summary["mean"] is None:
        return "not finite"
    text = f"{summary['mean']:+.4f}" if sign else f"{summary['mean']:.4f}"
    error = summary["standard_error"]
    return text if error is None else f"{text} ± {error:.4f}"
