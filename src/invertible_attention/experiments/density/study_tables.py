"""What is shown of densities compared."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from ..report import (
    Column,
    Line,
    Picture,
    Result,
    Section,
    Source,
    Table,
    settings_table,
    stored_pictures,
    tabulate,
)
from .comparison import equal, guarantee, is_likelihood
from .configuration import Configuration
from .figures import STUDY_FIGURES, draw_curve
from .run_tables import METHOD, data_note, kind_of_row, tables_of_runs
from .scores import BRACKETS, bracketed, determinants, mean_bits, spread
from .variants import parse_variant

__all__ = ["rows_of", "source_of", "steps_of", "study_section"]

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


def source_of(result: Result) -> Source:
    """Return where the figures of a study come from."""
    content = result.content
    return Source.of_runs(
        result.name,
        f"densities of {content['data']['title']}, {len(content['rows'])} variants",
        [cell["run"] for cell in content["cells"]],
        seeds=[cell["seed"] for cell in content["cells"]],
    )


def study_section(result: Result) -> Section:
    """Return what is shown of one study."""
    content, source = result.content, source_of(result)
    settings = content["base"]
    rows = rows_of(content)
    right = all(is_likelihood(row) for row in content["rows"])
    cells: dict[str, list[tuple[str, dict[str, Any], str]]] = {row["variant"]: [] for row, _ in rows}
    for row, kind in rows:
        cells[row["variant"]] = [
            (f"seed {cell['seed']}", cell | {"model": row["model"]}, kind)
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
            *tables_of_runs(cells, (source,)),
            settings_table({result.name: settings}, (source,)),
        ],
        pictures=lambda: [*stored(), Picture(draw_curve(content["cells"]), (source,))],
        notes=[*([] if right else [BRACKETS]), note, data_note(result), *STUDY_METHOD, *METHOD],
    )


def rows_of(study: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the rows of a study with their models, and their kinds."""
    base = Configuration.from_json(study["base"])
    found = []
    for row in study["rows"]:
        variant = parse_variant(row["variant"], base)
        constraint = variant.constraint if variant.attention != "none" else "certified"
        found.append((row | {"model": variant.model, "constraint": constraint}, kind_of_row(variant)))
    return found


def _equal(study: dict[str, Any]) -> str:
    return equal(study["base"], [cell["training"]["steps"] for cell in study["cells"]])


def steps_of(study: dict[str, Any], row: dict[str, Any]) -> int:
    """Return the steps of a row, the mean over its seeds."""
    own = [cell["training"]["steps"] for cell in study["cells"] if cell["variant"] == row["variant"]]
    return round(fmean(own))


def _comparison(content: dict[str, Any], rows: list[tuple[dict[str, Any], str]], source: Source) -> Table:
    def difference(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: spread(row[name], sign=True) if is_likelihood(row) else "–"

    limit = _equal(content)
    # Of a table that an earlier version made the curves were not kept.
    rows = [
        ({f"{what}at_equal_{limit}": UNKNOWN for what in ("", "difference_")} | row, kind)
        for row, kind in rows
    ]
    columns = (
        Column("bits/dim", mean_bits),
        Column("difference", difference("difference")),
        Column(f"at equal {limit}", lambda row: bracketed(spread(row[f"at_equal_{limit}"]), row)),
        Column(f"difference at equal {limit}", difference(f"difference_at_equal_{limit}")),
        Column("steps", lambda row: f"{steps_of(content, row):,}"),
        Column("CPU min", lambda row: f"{row['processor_seconds'] / 60:.1f}"),
        Column("parameters", lambda row: f"{row['parameters']:,} ({row['parameters_relative']:.3f})"),
        Column("determinants", lambda row: determinants(row, row["model"])),
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
