"""Running networks one after another, each stored when it is done, and reporting on all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ExperimentError
from ..files import read_json, write_json
from ..ranks import is_first_process
from ..report import Figure
from ..report.migrate import migrated
from ..study import (
    CELLS,
    CHECKPOINT,
    CONFIGURATION,
    RESULT,
    OutputFolder,
    Report,
    RunProgress,
    Study,
    Workers,
    keep,
)
from ..study import Cell as StudyCell
from ..study.folder import differences, rename_cells
from ..training import Parallel, choose_device
from .cell import MAPS, OWNED, Cell, run_cell
from .configuration import Configuration
from .data import DetectionData, generate_data, open_data
from .figures import draw_figures
from .models import folder_today, row_today
from .options import DataFolders
from .results import SCHEMA, collect

__all__ = ["DataFolders", "load_data", "run_one", "run_study"]

CACHE = "cache"
"""Decoded images or features, while there is something to train."""

REPORT = ("figures", "report.html", "results.json")
GENERATED = "generated-images"


def load_data(
    folders: DataFolders, configuration: Configuration, output: Path, console: Console
) -> DetectionData:
    """Check the images on disk, or generate them in ``output``.

    Raises:
        ExperimentError: naming the files that cannot be used, or when there is nothing to test on.
    """
    roots = folders.roots
    with RunProgress(1, console, "images") as progress:
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
    console.print(f"Data: {data.describe()}", highlight=False, soft_wrap=True)
    return data


def run_one(
    cell: Cell,
    configuration: Configuration,
    folders: DataFolders,
    *,
    output: Path,
    device: str = "auto",
    parallel: Parallel | None = None,
    decoders: int = 0,
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
    settings = _settings(cell, configuration)
    owned = (*OWNED, *REPORT, GENERATED, CACHE)
    folder = OutputFolder(output, settings, resume=resume, overwrite=overwrite, owned=owned, today=_today)
    compute = _compute(configuration, output, device, parallel, decoders)
    found = None if configuration.generated else load_data(folders, configuration, output, console)
    with folder if is_first_process() else nullcontext():
        if is_first_process():
            adopt(output)
        data = found or load_data(folders, configuration, output, console)
        done = output / RESULT
        with RunProgress(1, console) as progress:
            result = read_json(done) if done.is_file() else compute((cell, data), output, progress)
            if result is None:
                return None
            if "diverged" in result:
                raise ExperimentError(result["diverged"])
            if result["images"] != data.fingerprint():
                raise ExperimentError(
                    f"{done} was made from other images: the data have changed since, choose another --output"
                )
            # Last: its presence says that the network is done.
            write_json(done, result)
            (output / CHECKPOINT).unlink(missing_ok=True)
            shutil.rmtree(output / CACHE, ignore_errors=True)
            progress.stage("writing the report", None)
            report = _report(lambda cell: output / MAPS, data)
            results = report.collect({cell.folder: result})
            report.write(output, results)
            progress.finish_cell(f"{cell}: {_summary(result)}")
    report.show(console, output, results)
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
    decoders: int = 0,
    workers: Workers | None = None,
    resume: bool = False,
    results_folder: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Run every model with every seed, and report on all networks the folder holds.

    Several processes may work on one folder: each takes networks that no other process works on. More models and seeds
    may be added later, in the same configuration: also to the results file in ``results_folder``, whose networks
    need not be there any more.

    Returns:
        The content of results.json; ``None`` in every process but the first of those that train together.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used, or a network fails.
    """
    console = console or Console(quiet=not is_first_process())
    found = None if configuration.generated else load_data(folders, configuration, output, console)
    study = Study(output, configuration.to_json(), resume=resume, workers=workers, console=console)
    with study:
        if is_first_process():
            adopt(output)
        data = found or load_data(folders, configuration, output, console)
    digest = data.fingerprint()
    cells = [
        _study_cell(cell, configuration, digest, data)
        for cell in (Cell(model, seed) for seed in seeds for model in models)
    ]
    report = _report(lambda cell: output / CELLS / cell.folder / MAPS, data)
    if results_folder is not None and is_first_process():
        _take_over(results_folder / report.results, output, configuration, digest)
    results = study.run(cells, _compute(configuration, output, device, parallel, decoders), report)
    if results is not None:
        if not study.begun():
            shutil.rmtree(output / CACHE, ignore_errors=True)
        if results_folder is not None:
            report.write(results_folder, results)
    return results


def _take_over(results: Path, output: Path, configuration: Configuration, digest: str) -> None:
    """Count networks as done that a results file has, in the same configuration and of the same images.

    Raises:
        ExperimentError: when the file holds a study of something else, which the report would replace.
    """
    if not results.is_file():
        return
    content = read_json(results)
    content = migrated(content) or content
    if content.get("schema") != SCHEMA:
        raise ExperimentError(f"{results} is no results file of a study: choose another --results")
    for result in content["cells"]:
        changes = differences(result["configuration"], configuration.portable())
        if result["images"] != digest:
            changes.append("other images")
        if changes:
            raise ExperimentError(
                f"{results} holds a study of another configuration ({'; '.join(changes)}): choose another --results"
            )
        cell = Cell(result["model"], result["seed"])
        keep(output, _study_cell(cell, configuration, digest), result)


def adopt(output: Path) -> None:
    """Call the networks that an earlier version left in a folder what they are called now.

    Raises:
        ExperimentError: when a process of that version works on one.
    """
    rename_cells(output, folder_today)
    for folder in (output, *(output / CELLS).glob("*/")):
        for path in (folder / CONFIGURATION, folder / RESULT):
            stored = read_json(path) if path.is_file() else {}
            if _today(stored) != stored:
                write_json(path, _today(stored))


def _today(stored: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored of a network, perhaps by an earlier version, with today's name of its row."""
    return stored | {"model": row_today(stored["model"])} if "model" in stored else stored


def _study_cell(
    cell: Cell, configuration: Configuration, digest: str, data: DetectionData | None = None
) -> StudyCell:
    return StudyCell(cell.folder, _settings(cell, configuration), (cell, data), str(cell), digest)


def _settings(cell: Cell, configuration: Configuration) -> dict[str, Any]:
    return configuration.to_json() | {"model": cell.model, "seed": cell.seed}


def _compute(
    configuration: Configuration, output: Path, device: str, parallel: Parallel | None, decoders: int
) -> Callable[..., dict[str, Any] | None]:
    return partial(
        run_cell,
        configuration=configuration,
        cache=output / CACHE,
        device=choose_device(device),
        parallel=parallel,
        decoders=decoders,
    )


def _report(maps: Callable[[Cell], Path], data: DetectionData) -> Report:
    """Return what is reported of the networks that were trained and tested on these images."""

    def mine(finished: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [result for result in finished.values() if result["images"] == data.fingerprint()]

    def draw(results: dict[str, Any]) -> list[Figure]:
        cells = [Cell(result["model"], result["seed"]) for result in results["cells"]]
        return draw_figures(results, {cell: maps(cell) for cell in cells}, data)

    return Report(lambda finished: collect(mine(finished)), draw, ["scores"], _summary)


def _summary(result: dict[str, Any]) -> str:
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
