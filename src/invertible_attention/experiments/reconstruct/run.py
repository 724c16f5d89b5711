"""Running the cells of a configuration: every network trained, inverted and studied."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...flows import Sequential
from ..data import Images, draw_images, fit_counts, whole_test_images
from ..files import read_json, read_tensors, write_tensors
from ..metadata import run_metadata
from ..study import CELLS, RESULT, Report, RunProgress, Study, Workers
from ..study import Cell as StudyCell
from ..study.folder import rename_cells
from ..training import choose_device
from .batches import EpochBatches
from .configuration import Cell, Configuration, today
from .evaluation import Evaluation, evaluate
from .figures import draw_figures
from .network import build_network, choose_micro_batch, initialize
from .pictures import recover
from .results import collect, histogram
from .study import study
from .training import train

__all__ = ["run", "run_cell"]

MODEL = "model.safetensors"
PICTURES = "pictures"
OWNED = ("figures", "report.html", "results.json")


def run(
    configuration: Configuration,
    *,
    output: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    workers: Workers | None = None,
    resume: bool = False,
    reevaluate: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Run every cell that is not done yet, then write results.json, the figures and report.html.

    Args:
        configuration: what to run.
        output: folder for everything written.
        data_dir: local data.
        device: name of the device.
        workers: how many networks are trained at once, and where.
        resume: continue an interrupted run, or add cells to a finished one of the same settings.
        reevaluate: invert and study the networks that are trained already once more, with today's solvers.
        overwrite: delete an earlier run's results first.
        console: where progress and the table are shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used, or a network fails.
    """
    study = Study(
        output,
        configuration.to_json(),
        growing=("variants", "repeats"),
        today=today,
        owned=OWNED,
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        console=console,
    )
    place = choose_device(device)
    prints, title, about = {}, "", ""
    for repeat in range(1, configuration.repeats + 1):
        images = _draw(configuration, repeat, data_dir)
        prints[repeat], title, about = images.fingerprint(), images.title, images.about
    with study:
        whole = Configuration(**study.settings)
        names = {f"{c.constraint}-{c.normalization}-{c.response}-{c.repeat}": c.folder for c in whole.cells()}
        rename_cells(output, lambda name: names.get(name, name))

    def gather(finished: dict[str, dict[str, Any]]) -> dict[str, Any]:
        cells = [finished[cell.folder] for cell in whole.cells() if cell.folder in finished]
        return collect(cells, whole, title=title, about=about, device=place)

    results = study.run(
        [
            _cell(cell, configuration.seed_of(cell.repeat), prints[cell.repeat])
            for cell in configuration.cells()
        ],
        partial(
            run_cell, configuration=configuration, data_dir=data_dir, device=place, reevaluate=reevaluate
        ),
        Report(gather, lambda results: draw_figures(output, results), ["errors", "pictures"], _line),
        again=reevaluate,
    )
    if configuration.own_size:
        pictures = output / CELLS / "*" / PICTURES
        study.console.print(f"Recovered pictures: {pictures}", highlight=False, soft_wrap=True)
    return results


def _cell(cell: Cell, seed: int, images: str) -> StudyCell:
    return StudyCell(cell.folder, asdict(cell) | {"seed": seed}, cell, f"{cell.variant}, seed {seed}", images)


def divide_folder(
    configuration: Configuration,
    data_dir: Path | None,
    *,
    fixed: tuple[bool, bool] = (False, False),
    console: Console | None = None,
) -> Configuration:
    """Return the configuration with numbers of images that its folder has, and say how it is divided.

    Args:
        configuration: what to run.
        data_dir: the folder.
        fixed: whether the numbers of training and of test images stay as they are.
        console: where the division is printed; the terminal by default.

    Raises:
        ExperimentError: when there is no such folder, or no image in it.
    """
    wanted = (configuration.train_images, configuration.test_images)
    train, test = fit_counts(
        configuration.dataset,
        train=wanted[0],
        test=wanted[1],
        fixed=fixed,
        data_dir=data_dir,
        random_crops=configuration.random_crops,
    )
    if (train, test) == wanted:
        return configuration
    (console or Console()).print(
        f"{data_dir}: {train} images for training and {test} for testing "
        f"(--train-images and --test-images choose other numbers)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    studied = min(configuration.studied_images, test)
    return replace(configuration, train_images=train, test_images=test, studied_images=studied)


def _draw(configuration: Configuration, repeat: int, data_dir: Path | None) -> Images:
    return draw_images(
        configuration.dataset,
        train=configuration.train_images,
        test=configuration.test_images,
        size=configuration.size,
        seed=configuration.seed_of(repeat),
        data_dir=data_dir,
        title=configuration.title,
        random_crops=configuration.random_crops,
    )


def run_cell(
    cell: Cell,
    folder: Path,
    progress: RunProgress,
    *,
    configuration: Configuration,
    data_dir: Path | None = None,
    device: torch.device,
    reevaluate: bool = False,
) -> dict[str, Any]:
    """Train, invert and study one network; return its result.

    With ``reevaluate`` the training of a network that is done is taken from disk. The authors' layer keeps estimating
    norms whenever it is evaluated, so its figures then differ a little.
    """
    progress.stage("loading images", None)
    images = _draw(configuration, cell.repeat, data_dir)
    done = folder / RESULT
    earlier = read_json(done) if reevaluate and done.is_file() else None
    seed = configuration.seed_of(cell.repeat)
    network = build_network(cell, configuration, seed=seed)
    trained = 0.0
    if earlier is None:
        training = _train(network, images, configuration, seed, folder, device, progress)
        trained = training["seconds"]
    else:
        training = {"run": earlier["run"]} | earlier["training"]
        network.load_state_dict(read_tensors(folder / MODEL))
        network.to(device)
    start = time.perf_counter()
    evaluation = evaluate(
        network,
        images.test,
        configuration,
        seed=seed,
        micro_batch=choose_micro_batch(configuration),
        device=device,
        report=progress.stage("inverting", configuration.test_images),
    )
    progress.stage("comparing solvers", None)
    details = study(network, images.test, configuration, seed=seed, device=device)
    pictures = {}
    if configuration.own_size:
        whole = whole_test_images(
            configuration.dataset,
            train=configuration.train_images,
            test=configuration.test_images,
            seed=seed,
            data_dir=data_dir,
        )
        report = progress.stage("inverting at own size", configuration.test_images)
        pictures = {"pictures": recover(network, whole, folder / PICTURES, device=device, report=report)}
    _store(folder, network, evaluation)
    return {
        "response": cell.response,
        "constraint": cell.constraint,
        "normalization": cell.normalization,
        "repeat": cell.repeat,
        "seed": seed,
        "images": images.fingerprint(),
        "training": training,
        "reconstruction": evaluation.scores.summary() | {"histogram": histogram(evaluation.scores.mse)},
        "inverse": evaluation.inverse,
        "study": details,
        **pictures,
        "run": run_metadata(device) | {"seconds": trained + time.perf_counter() - start},
    }


def _train(
    network: Sequential,
    images: Images,
    configuration: Configuration,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: RunProgress,
) -> dict[str, Any]:
    first = EpochBatches(images.train, batch_size=configuration.batch_size, seed=seed, epoch=0)
    initialize(network, next(iter(first)))
    steps = configuration.epochs * -(-configuration.train_images // configuration.batch_size)
    losses, seconds = train(
        network,
        images.train,
        configuration,
        seed=seed,
        micro_batch=choose_micro_batch(configuration),
        device=device,
        folder=folder,
        report=progress.stage("training", steps),
    )
    return {
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": seconds,
    }


def _store(folder: Path, network: Sequential, evaluation: Evaluation) -> None:
    write_tensors(folder / MODEL, network.state_dict())
    write_tensors(folder / "images.safetensors", vars(evaluation.samples) | vars(evaluation.scores))


def _line(result: dict[str, Any]) -> str:
    scores, inverse = result["reconstruction"], result["inverse"]
    error = "not finite" if scores["mse"] is None else f"{scores['mse']:.3g}"
    return (
        f"MSE {error}, V-score {scores['v_score']:.1f} %, {inverse['evaluations_mean']:.1f} evaluations, "
        f"{result['run']['seconds']:.0f} s"
    )
