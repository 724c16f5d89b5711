"""Running networks one after another, each stored when it is done, and reporting on all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, write_json
from ..output import OutputFolder
from ..progress import RunProgress
from ..report import save_figures
from ..report.summary import print_run, write_run_page
from ..training import Parallel, choose_device, is_first_process
from .cell import OWNED, Cell, run_cell
from .configuration import Configuration
from .data import DetectionData, generate_data, open_data
from .figures import draw_figures
from .options import DataFolders
from .results import collect

__all__ = ["DataFolders", "collect_and_report", "load_data", "run_one", "run_study"]

CACHE = "cache"
"""Decoded images or features, while there is something to train."""

CELLS = "cells"
REPORT = ("figures", "report.html", "results.json")
GENERATED = "generated-images"


def load_data(
    folders: DataFolders, configuration: Configuration, output: Path, progress: RunProgress
) -> DetectionData:
    """Check the images on disk, or generate them in ``output``.

    Raises:
        ExperimentError: naming the files that cannot be used, or when there is nothing to test on.
    """
    roots = folders.roots
    if configuration.train_images is not None and configuration.test_images is not None:
        progress.stage("generating images", None)
        root = output / GENERATED
        generate_data(
            root,
            train=configuration.train_images,
            test=configuration.test_images,
            size=configuration.size,
        )
        roots = (root,)
    advance = progress.stage("checking images", None)
    data = open_data(
        roots,
        train_roots=folders.train,
        test_roots=folders.test,
        leave_out_bad=folders.leave_out_bad,
        # Beside the folder, which is not a run's yet.
        listing=output.with_name(f"{output.name}-unusable-files.txt"),
        report=lambda done, total: advance(done),
    )
    if not data.test:
        raise ExperimentError("there is nothing to test on: give --test-data, or --data with a test part")
    return data


def run_one(
    cell: Cell,
    configuration: Configuration,
    folders: DataFolders,
    *,
    output: Path,
    device: str = "auto",
    parallel: Parallel | None = None,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Train one network in ``output`` and report on it.

    Returns:
        The content of results.json; ``None`` in every process but the first of those that train together.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used, or training diverges.
    """
    console = console or Console(quiet=not is_first_process())
    place = choose_device(device)
    settings = configuration.to_json() | {"model": cell.model, "seed": cell.seed}
    folder = OutputFolder(
        output, settings, resume=resume, overwrite=overwrite, owned=(*OWNED, *REPORT, GENERATED, CACHE)
    )
    with (
        RunProgress(1, console) as progress,
        _claimed_with_data(folder, folders, configuration, progress) as data,
    ):
        console.print(f"Data: {data.describe()}", highlight=False, soft_wrap=True)
        result = run_cell(
            cell,
            data,
            configuration,
            folder=output,
            cache=output / CACHE,
            device=place,
            progress=progress,
            parallel=parallel,
            workers=workers,
        )
        if result is None:
            return None
        shutil.rmtree(output / CACHE, ignore_errors=True)
        if "diverged" in result:
            (output / "result.json").unlink()
            raise ExperimentError(result["diverged"])
        progress.stage("writing the report", None)
        results = collect_and_report(output, [result], {cell: output / "maps"}, data)
        progress.finish_cell(f"{cell}: {_summary(result)}")
    print_run(console, results, output, ["scores"])
    console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def run_study(
    models: Sequence[str],
    seeds: Sequence[int],
    configuration: Configuration,
    folders: DataFolders,
    *,
    output: Path,
    device: str = "auto",
    parallel: Parallel | None = None,
    workers: int = 0,
    resume: bool = False,
    results_folder: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Run every model with every seed, and report on all networks the folder holds.

    Several processes may work on one folder: each takes networks that nobody else works on. More models and seeds
    may be added later, in the same configuration.

    Returns:
        The content of results.json; ``None`` in every process but the first of those that train together.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used.
    """
    console = console or Console(quiet=not is_first_process())
    place = choose_device(device)
    cells = [Cell(model, seed) for seed in seeds for model in models]
    claim = OutputFolder(output, configuration.to_json(), resume=resume)
    with RunProgress(len(cells), console) as progress:
        with _claimed_with_data(claim, folders, configuration, progress) as data:
            # Claimed for this configuration, but not kept: each network has a lock of its own.
            pass
        console.print(f"Data: {data.describe()}", highlight=False, soft_wrap=True)
        for cell in cells:
            line = _study_cell(cell, data, configuration, output, place, progress, parallel, workers)
            progress.finish_cell(line)
        if not is_first_process():
            return None
        if all((output / CELLS / cell.folder / "result.json").is_file() for cell in cells):
            shutil.rmtree(output / CACHE, ignore_errors=True)
        progress.stage("writing the report", None)
        finished = {
            Cell(result["model"], result["seed"]): (result, path.parent / "maps")
            for path in sorted((output / CELLS).glob("*/result.json"))
            if (result := read_json(path))["images"] == data.fingerprint()
        }
        maps = {cell: folder for cell, (_, folder) in finished.items()}
        results = collect_and_report(output, [result for result, _ in finished.values()], maps, data)
        if results_folder is not None:
            collect_and_report(results_folder, results["cells"], maps, data)
    print_run(console, results, output, ["scores"])
    console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def _study_cell(
    cell: Cell,
    data: DetectionData,
    configuration: Configuration,
    output: Path,
    device: torch.device,
    progress: RunProgress,
    parallel: Parallel | None,
    workers: int,
) -> str:
    """Run a network of a study unless another process does; return a line about it."""
    folder = output / CELLS / cell.folder
    settings = configuration.to_json() | {"model": cell.model, "seed": cell.seed}
    try:
        with _claimed(OutputFolder(folder, settings, resume=True)):
            result = run_cell(
                cell,
                data,
                configuration,
                folder=folder,
                cache=output / CACHE,
                device=device,
                progress=progress,
                parallel=parallel,
                workers=workers,
            )
    except ExperimentError as error:
        if "in use by another run" not in str(error):
            raise
        return f"{cell}: another process works on it"
    return f"{cell}: {_summary(result)}"


def _summary(result: dict[str, Any] | None) -> str:
    if result is None:
        return "done"
    if "diverged" in result:
        return f"diverged ({result['diverged']})"
    scores = ", ".join(
        f"{name} S {values['s_measure']:.3f} F {values['mean_f']:.3f} E {values['mean_e']:.3f} MAE {values['mae']:.3f}"
        for name, values in result["scores"].items()
    )
    training = result["training"]
    rates = ""
    if training.get("steps_per_second"):
        rates = f", {training['steps_per_second']:.2g} steps/s (loader alone {training['loader_steps_per_second']:.2g})"
    return f"{scores}; {training['seconds']:.0f} s of training{rates}"


def collect_and_report(
    output: Path, cells: Sequence[dict[str, Any]], maps: dict[Cell, Path], data: DetectionData
) -> dict[str, Any]:
    """Write results.json, the figures and report.html from finished networks; return the results."""
    results = collect(cells)
    write_json(output / "results.json", results)
    save_figures(output / "figures", draw_figures(results, maps, data))
    write_run_page(output / "report.html", results)
    return results


@contextmanager
def _claimed_with_data(
    folder: OutputFolder, folders: DataFolders, configuration: Configuration, progress: RunProgress
) -> Iterator[DetectionData]:
    """Hold a folder, once the images on disk are known to be good; generated ones are written into it."""
    data = None if configuration.generated else load_data(folders, configuration, folder.path, progress)
    with _claimed(folder) as path:
        yield load_data(folders, configuration, path, progress) if data is None else data


@contextmanager
def _claimed(folder: OutputFolder) -> Iterator[Path]:
    """Hold a folder in the first process of those that train together; the others only use it."""
    if not is_first_process():
        yield folder.path
        return
    with folder as path:
        yield path
