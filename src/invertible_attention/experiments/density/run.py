"""Train, evaluate and sample a density; each step leaves its results in the run's folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from ...flows import Flow
from ...logdet import Exact, LogDetEstimator, RussianRoulette
from ..errors import ExperimentError
from ..files import read_json, read_tensors, write_bytes, write_json, write_tensors
from ..metadata import run_metadata
from ..ranks import is_first_process
from ..report import save_figures
from ..report.summary import write_run_page
from ..study import CHECKPOINT, CONFIGURATION, OutputFolder, RunProgress
from ..training import Parallel, choose_device
from .baselines import check_library
from .configuration import Configuration
from .data import DensityData, load_data
from .evaluation import evaluation_estimator, score
from .figures import draw_curve
from .network import build_model, count_parameters
from .pictures import draw_samples, interpolate, round_trip_error, tile
from .tables import RUN
from .training import initialize, train

__all__ = ["evaluate_run", "sample_run", "train_cell", "train_run"]

OWNED = ("logs", CHECKPOINT, "model.safetensors", "results.json", "report.html", "samples.png")
OWNED = (*OWNED, "interpolation.png", "evaluation.json", "figures")

ROUND_TRIPS = 16
"""Samples whose way to their latents and back is measured."""


def train_run(
    configuration: Configuration,
    *,
    output: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    parallel: Parallel | None = None,
    resume: bool = False,
    overwrite: bool = False,
    draws: int = 4,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a density, evaluate it, draw its pictures and write its report.

    Args:
        configuration: what to train.
        output: folder for everything written.
        data_dir: local data.
        device: name of the device.
        parallel: over how many devices and machines, and in which precision.
        resume: continue an interrupted run of the same configuration.
        overwrite: delete an earlier run's results first.
        draws: dequantizations per test image in the final evaluation.
        console: where progress is shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the data, the device or the folder cannot be used.
    """
    check_library(configuration)
    first = is_first_process()
    console = (console or Console()) if first else Console(quiet=True)
    folder = OutputFolder(output, configuration.to_json(), resume=resume, overwrite=overwrite, owned=OWNED)
    # Lightning starts the other processes with the same command once the first has the folder.
    with folder if first else nullcontext():
        done = output / "results.json"
        if done.is_file():
            console.print(f"This run is finished: {output / 'report.html'}", highlight=False, soft_wrap=True)
            return read_json(done)
        with RunProgress(1, console, unit="density") as progress:
            results = train_cell(
                configuration,
                output,
                progress,
                data_dir=data_dir,
                device=device,
                parallel=parallel,
                draws=draws,
                say=progress.say,
            )
            if results is None:
                return {}
            # Last: its presence says that the run is done.
            write_json(done, results)
            (output / CHECKPOINT).unlink(missing_ok=True)
    _summary(console, results, output)
    return results


def train_cell(
    configuration: Configuration,
    folder: Path,
    progress: RunProgress,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    parallel: Parallel | None = None,
    draws: int = 4,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Train a density in a folder, evaluate it, draw its pictures and its page, and return its results.

    Args:
        configuration: what to train.
        folder: for the weights and the pictures; a checkpoint in it is continued.
        progress: shows what is done.
        data_dir: local data.
        device: name of the device.
        parallel: over how many devices and machines, and in which precision.
        draws: dequantizations per test image in the final evaluation.
        say: called with a line about the model, and about every point of the learning curve.

    Raises:
        ExperimentError: when the data or the device cannot be used, or the model does not fit the images.
    """
    place = choose_device(device)
    data = load_data(configuration, data_dir)
    try:
        model = cast(Flow, build_model(configuration, data.shape, data.levels)).to(place)
    except ValueError as error:
        raise ExperimentError(f"this model does not fit the images: {error}") from error
    initialize(model, data.train, configuration.seed)
    untrained = copy.deepcopy(model)
    if say is not None:
        say(f"{configuration.name} on {data.title}: {count_parameters(model):,} parameters")
    stage = ("training, bits/dim", configuration.steps)
    if configuration.minutes is not None:
        stage = ("training, CPU seconds", max(1, round(60 * configuration.minutes)))
    training = train(
        model,
        data,
        configuration,
        device=place,
        folder=folder,
        parallel=parallel,
        report=progress.stage(*stage),
        report_point=None if say is None else lambda point: say(_line(point)),
    )
    if training is None:
        return None
    write_tensors(folder / "model.safetensors", model.state_dict())
    results = _results(configuration, data, model, training, place)
    progress.stage("evaluating", None)
    results["untrained"] = _final_score(untrained, data, draws=1, device=place)
    results["evaluation"] = _final_score(model, data, draws=draws, device=place)
    progress.stage("drawing", None)
    results["samples"] = _pictures(folder, model, data, seed=configuration.seed)
    save_figures(folder / "figures", [draw_curve([results])])
    write_run_page(folder / "report.html", results)
    return results


def evaluate_run(
    output: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    estimator: str = "roulette",
    terms: int = 20,
    probes: int = 4,
    draws: int = 4,
    images: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a trained density again, as thoroughly as asked, and write evaluation.json.

    Raises:
        ExperimentError: when the folder holds no trained density, or its data are not the same any more.
    """
    console = console or Console()
    place = choose_device(device)
    configuration, model, data = _load(output, data_dir, place)
    chosen: LogDetEstimator = (
        Exact() if estimator == "exact" else RussianRoulette(evaluation_exact_terms=terms, probes=probes)
    )
    start = time.perf_counter()
    result = score(
        model,
        data.test if images is None else data.test[:images],
        estimator=chosen,
        draws=draws,
        seed=configuration.seed,
        device=place,
    ).to_json()
    result["run"] = run_metadata(place) | {"seconds": time.perf_counter() - start}
    write_json(output / "evaluation.json", result)
    _say(console, f"{configuration.name}: {_bits(result)}")
    return result


def sample_run(
    output: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    count: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Draw samples and interpolations of a trained density into samples.png and interpolation.png.

    Raises:
        ExperimentError: when the folder holds no trained density, or the model has no temperature.
    """
    console = console or Console()
    _, model, data = _load(output, data_dir, choose_device(device))
    try:
        result = _pictures(output, model, data, count=count, temperature=temperature, seed=seed)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    _say(console, f"{result['converged']} of {count} samples: {output / 'samples.png'}")
    if result["converged"]:
        error = result["round_trip_error"]
        size = "cannot be inverted" if error is None else f"at most {error:.2g} of {data.levels} levels"
        _say(console, f"error after the way to their latents and back: {size}")
    return result


def _load(
    output: Path, data_dir: Path | None, place: torch.device
) -> tuple[Configuration, Flow, DensityData]:
    stored, weights = output / CONFIGURATION, output / "model.safetensors"
    if not stored.is_file() or not weights.is_file():
        raise ExperimentError(f"{output} holds no trained density: run density train --output {output} first")
    configuration = Configuration.from_json(read_json(stored))
    data = load_data(configuration, data_dir)
    model = cast(Flow, build_model(configuration, data.shape, data.levels))
    try:
        model.load_state_dict(read_tensors(weights))
    except RuntimeError as error:
        raise ExperimentError(f"{weights} does not hold the weights of this configuration") from error
    return configuration, model.to(place).eval(), data


def _final_score(model: Flow, data: DensityData, *, draws: int, device: torch.device) -> dict[str, Any]:
    estimator = evaluation_estimator(data.train[0].numel(), RussianRoulette(probes=2))
    return score(model, data.test, estimator=estimator, draws=draws, seed=0, device=device).to_json()


def _results(
    configuration: Configuration,
    data: DensityData,
    model: Flow,
    training: dict[str, Any],
    place: torch.device,
) -> dict[str, Any]:
    return {
        "schema": RUN.schema,
        "name": configuration.name,
        "configuration": configuration.to_json(),
        "data": {
            "title": data.title,
            "shape": list(data.shape),
            "levels": data.levels,
            "train_images": len(data.train),
            "test_images": len(data.test),
            "fingerprint": data.fingerprint,
        },
        "parameters": count_parameters(model),
        "training": {name: value for name, value in training.items() if name != "curve"},
        "curve": training["curve"],
        "run": run_metadata(place),
    }


def _pictures(
    output: Path, model: Flow, data: DensityData, *, count: int = 64, temperature: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    samples = draw_samples(model, count, seed=seed, temperature=temperature)
    if len(samples):
        write_bytes(output / "samples.png", tile(samples, 8, levels=data.levels))
    pairs = min(6, len(data.test) // 2)
    walks = interpolate(model, data.test[:pairs], data.test[pairs : 2 * pairs], steps=9)
    whole = [image for walk in walks if len(walk) == 9 for image in walk]
    if whole:
        write_bytes(output / "interpolation.png", tile(torch.stack(whole), 9, levels=data.levels))
    result = {"drawn": count, "converged": len(samples), "walks": pairs, "whole_walks": len(whole) // 9}
    return result | (
        {"round_trip_error": round_trip_error(model, samples[:ROUND_TRIPS])} if len(samples) else {}
    )


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _line(point: dict[str, Any]) -> str:
    shown: Callable[[float | None], str] = lambda value: "not finite" if value is None else f"{value:.4f}"  # noqa: E731
    return (
        f"step {point['step']}: train {shown(point['train'])}, test {shown(point['test'])} bits/dim, "
        f"{point['seconds']:.0f} s"
    )


def _bits(result: dict[str, Any]) -> str:
    if result["bits_per_dim"] is None:
        return f"not finite on {result['not_finite']} of {result['images'] * result['draws']} values"
    error = result["standard_error"]
    spread = "" if error is None else f" ± {error:.4f} (draws)"
    kind = "exact" if result["exact"] else "unbiased"
    return f"{result['bits_per_dim']:.4f}{spread} ± {result['sampling_error']:.4f} (images) bits/dim, {kind}"


def _summary(console: Console, results: dict[str, Any], output: Path) -> None:
    _say(console, f"untrained: {_bits(results['untrained'])}")
    _say(console, f"trained:   {_bits(results['evaluation'])}")
    _say(console, f"Report: {output / 'report.html'}")
