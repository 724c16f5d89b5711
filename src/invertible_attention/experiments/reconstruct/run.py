"""Running the cells of a configuration, one after another, each stored when it is done."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from ...flows import Sequential
from ..data import Images, draw_images, fit_counts, whole_test_images
from ..errors import ExperimentError
from ..files import atomic_path, read_json, write_json
from ..metadata import run_metadata
from ..output import OutputFolder
from ..progress import RunProgress
from ..report import save_figures
from ..report.summary import print_run, write_run_page
from ..training import choose_device
from .batches import EpochBatches
from .configuration import Cell, Configuration
from .evaluation import Evaluation, evaluate
from .figures import draw_figures
from .network import build_network, choose_micro_batch, initialize
from .pictures import recover
from .results import collect, histogram
from .study import study
from .training import train

__all__ = ["run", "run_cell"]

RESULT = "result.json"
MODEL = "model.safetensors"
PICTURES = "pictures"
OWNED = ("cells", "figures", "report.html", "results.json")


def run(
    configuration: Configuration,
    *,
    output: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    reevaluate: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run every cell that is not done yet, then write results.json, the figures and report.html.

    Args:
        configuration: what to run.
        output: folder for everything written.
        data_dir: local data.
        device: name of the device.
        resume: continue an interrupted run of the same configuration.
        reevaluate: invert and study the networks that are trained already once more, with today's solvers.
        overwrite: delete an earlier run's results first.
        console: where progress and the table are shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used.
    """
    console = console or Console()
    place = choose_device(device)
    folder = OutputFolder(output, configuration.to_json(), resume=resume, overwrite=overwrite, owned=OWNED)
    with folder:
        cells = list(configuration.cells())
        finished, title, about = [], "", ""
        images: dict[int, Images] = {}
        with RunProgress(len(cells), console) as progress:
            for cell in cells:
                if cell.repeat not in images:
                    progress.stage("loading images", None)
                    images = {cell.repeat: _draw(configuration, cell.repeat, data_dir)}
                title, about = images[cell.repeat].title, images[cell.repeat].about
                result = run_cell(
                    cell,
                    images[cell.repeat],
                    configuration,
                    folder=output / "cells" / cell.folder,
                    data_dir=data_dir,
                    device=place,
                    progress=progress,
                    reevaluate=reevaluate,
                )
                finished.append(result)
                progress.finish_cell(_line(cell, result))
            progress.stage("writing the report", None)
            results = collect(finished, configuration, title=title, about=about, device=place)
            write_json(output / "results.json", results)
            save_figures(output / "figures", draw_figures(output, results))
            write_run_page(output / "report.html", results)
        print_run(console, results, output, ["errors"])
        if configuration.own_size:
            pictures = output / "cells" / "*" / PICTURES
            console.print(f"Recovered pictures: {pictures}", highlight=False, soft_wrap=True)
        console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


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
        f"{data_dir} is divided into {train} training and {test} test images "
        f"({wanted[0]} and {wanted[1]} where there are as many)",
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
    images: Images,
    configuration: Configuration,
    *,
    folder: Path,
    data_dir: Path | None = None,
    device: torch.device,
    progress: RunProgress,
    reevaluate: bool = False,
) -> dict[str, Any]:
    """Train, invert and study one network; return its result, from disk where it is done already.

    With ``reevaluate`` only the training is taken from disk. The authors' layer keeps estimating norms whenever it
    is evaluated, so its figures then differ a little.

    Raises:
        ExperimentError: when the stored result belongs to other images.
    """
    earlier = _finished(folder / RESULT, images) if (folder / RESULT).is_file() else None
    if earlier is not None and not reevaluate:
        return earlier
    seed = configuration.seed_of(cell.repeat)
    network = build_network(cell, configuration, seed=seed)
    trained = 0.0
    if earlier is None:
        training = _train(network, images, configuration, seed, folder, device, progress)
        trained = training["seconds"]
    else:
        training = {"run": earlier["run"]} | earlier["training"]
        network.load_state_dict(load_file(folder / MODEL))
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
    result = {
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
    _store(folder, network, evaluation, result)
    return result


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


def _finished(path: Path, images: Images) -> dict[str, Any]:
    result = read_json(path)
    if result["images"] != images.fingerprint():
        raise ExperimentError(
            f"{path} was made from other images: the data have changed since, choose another --output"
        )
    return result


def _store(folder: Path, network: Sequential, evaluation: Evaluation, result: dict[str, Any]) -> None:
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    images = {name: tensor.contiguous() for name, tensor in vars(evaluation.samples).items()}
    errors = {name: tensor.contiguous() for name, tensor in vars(evaluation.scores).items()}
    _save(folder / MODEL, state)
    _save(folder / "images.safetensors", images | errors)
    # Last: its presence says that the cell is done.
    write_json(folder / RESULT, result)
    (folder / "training.ckpt").unlink(missing_ok=True)


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _line(cell: Cell, result: dict[str, Any]) -> str:
    scores, inverse = result["reconstruction"], result["inverse"]
    error = "not finite" if scores["mse"] is None else f"{scores['mse']:.3g}"
    name = f"{cell.response} {cell.constraint} {cell.normalization}, seed {result['seed']}"
    return (
        f"{name}: MSE {error}, V-score {scores['v_score']:.1f} %, "
        f"{inverse['evaluations_mean']:.1f} evaluations, {result['run']['seconds']:.0f} s"
    )
