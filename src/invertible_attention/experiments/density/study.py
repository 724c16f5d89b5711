"""Comparing variants: every one trained with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, write_json
from ..metadata import run_metadata
from ..report import Figure
from ..report.kinds import kind_of
from ..study import CELLS, CONFIGURATION, RESULT, Cell, Report, Study, Workers, keep
from ..variants import slug
from .baselines import check_library
from .comparison import compare
from .configuration import Configuration
from .data import load_data
from .figures import draw_curve, draw_differences
from .run import train_cell
from .tables import RUN, STUDY
from .variants import parse_variant

__all__ = ["run_study"]

OWNED = ("study.json", "study.md", "study.html", "figures")


def run_study(
    base: Configuration,
    variants: Sequence[str],
    *,
    seeds: int,
    output: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    workers: Workers | None = None,
    draws: int = 4,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Train every variant with every seed and compare them with the first.

    Args:
        base: what all variants share.
        variants: see :func:`~.variants.parse_variant`.
        seeds: how many, counted from the base's seed.
        output: folder for everything written; finished densities in it are not trained again.
        data_dir: local data.
        device: name of the device.
        workers: how many densities are trained at once, and where.
        draws: dequantizations per test image in the evaluation.
        resume: continue an interrupted study, or add variants and seeds to a finished one, of which study.json
            is enough.
        overwrite: delete an earlier study's results first.
        console: where progress and the table are shown.

    Returns:
        The content of study.json.

    Raises:
        ExperimentError: when a variant makes no sense, the data or the folder cannot be used, or a density fails.
    """
    try:
        parsed = {
            (text, base.seed + i): replace(parse_variant(text, base), seed=base.seed + i)
            for i in range(seeds)
            for text in variants
        }
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    for configuration in parsed.values():
        check_library(configuration)
    if resume:
        restore(output)
    study = Study(
        output,
        {"base": base.to_json(), "variants": list(variants), "seeds": seeds, "draws": draws},
        growing=("variants", "seeds"),
        owned=OWNED,
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        console=console,
        unit="densities",
    )

    data = load_data(base, data_dir).fingerprint
    with study:
        adopt(output)
    cells = [_cell(text, configuration, data) for (text, _), configuration in parsed.items()]
    return study.run(
        cells,
        partial(train_cell, data_dir=data_dir, device=device, draws=draws),
        Report(
            collect=lambda finished: _collect(finished, study.settings),
            draw=_draw,
            shown=["comparison"],
            line=lambda run: f"{run['training']['seconds']:.0f} s of training",
            results="study.json",
            page="study.html",
            markdown="study.md",
        ),
    )


def _cell(text: str, configuration: Configuration, data: str) -> Cell:
    seed = configuration.seed
    return Cell(slug(text, seed), configuration.to_json(), configuration, f"{text}, seed {seed}", data)


def _collect(finished: dict[str, dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Return the content of study.json: the densities that are done, in the order of the variants."""
    names = {
        slug(text, about["base"]["seed"] + i): text
        for i in range(about["seeds"])
        for text in about["variants"]
    }
    runs = [
        finished[name] | {"variant": text, "folder": name} for name, text in names.items() if name in finished
    ]
    return {
        "schema": STUDY.schema,
        **about,
        "data": runs[0]["data"],
        "rows": compare(runs),
        "cells": [_brief(run) for run in runs],
        "run": run_metadata(),
    }


def _brief(run: dict[str, Any]) -> dict[str, Any]:
    kept = ("variant", "name", "parameters", "training", "curve", "untrained", "evaluation", "samples", "run")
    return {name: run[name] for name in kept} | {"seed": run["configuration"]["seed"]}


def _draw(study: dict[str, Any]) -> list[Figure]:
    figures = [draw_differences(study), draw_curve(study["cells"])]
    return [figure for figure in figures if figure is not None]


def restore(output: Path) -> None:
    """Make cells of what study.json says of them, where it is all that was kept of a study.

    Raises:
        ExperimentError: when the file holds something else.
    """
    file = output / "study.json"
    if (output / CONFIGURATION).exists() or not file.is_file():
        return
    study = read_json(file)
    if kind_of(study) != STUDY:
        raise ExperimentError(f"{file} is no study of densities of this version: choose another --output")
    base = Configuration.from_json(study["base"])
    data = study["data"]
    for run in study["cells"]:
        configuration = replace(parse_variant(run["variant"], base), seed=run["seed"])
        whole = run | {"schema": RUN.schema, "configuration": configuration.to_json(), "data": data}
        keep(output, _cell(run["variant"], configuration, data["fingerprint"]), whole)
    # Last: a folder that has it is one that can be continued.
    write_json(output / CONFIGURATION, {name: study[name] for name in ("base", "variants", "seeds", "draws")})


def adopt(output: Path) -> None:
    """Bring the densities of a study that an earlier version began to where they are now."""
    for cell in sorted((output / CELLS).glob("[0-9][0-9]-*/cell.json")):
        folder = cell.parent.rename(cell.parent.with_name(cell.parent.name[3:]))
        (folder / "cell.json").unlink()
        for entry in [*(folder / "run").glob("[!.]*"), folder / "results.json"]:
            if entry.exists():
                entry.rename(folder / (RESULT if entry.name == "results.json" else entry.name))
