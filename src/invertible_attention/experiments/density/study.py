"""Comparing variants: every one trained with every seed, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, write_json, write_text
from ..metadata import run_metadata
from ..output import OutputFolder
from ..report import save_figures
from ..report.summary import print_run, run_markdown, write_run_page
from .baselines import check_library
from .comparison import compare
from .configuration import Configuration
from .figures import draw_curve, draw_differences
from .tables import STUDY
from .variants import parse_variant, slug

__all__ = ["run_study"]

OWNED = ("cells", "study.json", "study.md", "study.html", "figures")


def run_study(
    base: Configuration,
    variants: Sequence[str],
    *,
    seeds: int,
    output: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    jobs: int = 1,
    draws: int = 4,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train every variant with every seed and compare them with the first.

    Args:
        base: what all variants share.
        variants: see :func:`~.variants.parse_variant`.
        seeds: how many, counted from the base's seed.
        output: folder for everything written; finished cells in it are not trained again.
        data_dir: local data.
        device: name of the device.
        jobs: processes at once, each with one thread if there are several.
        draws: dequantizations per test image in the evaluation.
        resume: continue an interrupted study.
        overwrite: delete an earlier study's results first.
        console: where progress and the table are shown.

    Returns:
        The content of study.json.

    Raises:
        ExperimentError: when a variant makes no sense or a cell fails.
    """
    console = console or Console()
    try:
        cells = {
            slug(text, base.seed + i, variants): (
                text,
                replace(parse_variant(text, base), seed=base.seed + i),
            )
            for i in range(seeds)
            for text in variants
        }
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    for _, configuration in cells.values():
        check_library(configuration)
    about = {"base": base.to_json(), "variants": list(variants), "seeds": seeds, "draws": draws}
    with OutputFolder(output, about, resume=resume, overwrite=overwrite, owned=OWNED):
        pending = [name for name in cells if not (output / "cells" / name / "results.json").is_file()]
        for name in pending:
            write_json(output / "cells" / name / "cell.json", cells[name][1].to_json())
        _run_cells(pending, output / "cells", data_dir, device, jobs, draws, console)
        runs = [
            read_json(output / "cells" / name / "results.json") | {"variant": text, "folder": name}
            for name, (text, _) in cells.items()
        ]
        study = {
            "schema": STUDY.schema,
            **about,
            "data": runs[0]["data"],
            "rows": compare(runs),
            "cells": [_brief(run) for run in runs],
            "run": run_metadata(),
        }
        write_json(output / "study.json", study)
        figures = [draw_differences(study), draw_curve(study["cells"])]
        save_figures(output / "figures", [figure for figure in figures if figure is not None])
        write_text(output / "study.md", run_markdown(study, output))
        write_run_page(output / "study.html", study)
    print_run(console, study, output, ["comparison"])
    return study


def _brief(run: dict[str, Any]) -> dict[str, Any]:
    kept = ("variant", "name", "parameters", "training", "curve", "untrained", "evaluation", "samples", "run")
    return {name: run[name] for name in kept} | {"seed": run["configuration"]["seed"]}


def _run_cells(
    names: Sequence[str],
    folder: Path,
    data_dir: Path | None,
    device: str,
    jobs: int,
    draws: int,
    console: Console,
) -> None:
    """Run cells in processes, ``jobs`` at once; the first that fails ends the others."""
    waiting, running = list(names), {}
    environment = dict(os.environ)
    if jobs > 1:
        environment |= {"OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = _start(folder / name, data_dir, device, draws, environment), time.time()
            for name, (process, start) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode != 0:
                    last = (folder / name / "log.txt").read_text().strip().splitlines()[-1:]
                    raise ExperimentError(f"cell {name} failed: {' '.join(last)}")
                console.print(
                    f"{name}: {time.time() - start:.0f} s, {len(waiting) + len(running)} left",
                    highlight=False,
                    soft_wrap=True,
                )
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _start(
    cell: Path, data_dir: Path | None, device: str, draws: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    arguments = [str(cell), device, str(draws), *([] if data_dir is None else [str(data_dir)])]
    module = f"{__package__}.cell"
    with (cell / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=log, stderr=log, env=environment
        )
