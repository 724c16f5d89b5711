"""One network of a run: trained, applied, scored, audited, and stored when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ExperimentError
from ..files import read_json, write_json
from ..metadata import run_metadata
from ..progress import RunProgress
from ..training import Parallel, is_first_process
from .audit import audit_network
from .configuration import Configuration
from .data import DetectionData, batches_per_second
from .evaluation import score_collection
from .models import MODELS
from .network import Detector, build_backbone, load_detector, save_detector
from .network.storage import NetworkDescription
from .predicting import write_maps
from .training import DivergedError, train, training_images

__all__ = ["OWNED", "Cell", "build_network", "run_cell"]

OWNED = ("logs", "maps", "model.safetensors", "result.json", "training.ckpt", "training.json")
"""What a network's folder holds."""

LOSSES_KEPT = 200


@dataclass(frozen=True)
class Cell:
    """A row of Table 4 and a seed."""

    model: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.model}-{self.seed}"

    def __str__(self) -> str:
        return f"{MODELS[self.model].title}, seed {self.seed}"


def build_network(cell: Cell, configuration: Configuration) -> Detector:
    """Return the network of a cell before training; its random weights depend on the seed alone.

    Raises:
        ExperimentError: when the backbone's weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        backbone = build_backbone(configuration.backbone, configuration.weights)
        # Reading weights draws a varying number of random numbers.
        torch.manual_seed(cell.seed + 1)
        return Detector(
            backbone,
            MODELS[cell.model],
            levels=configuration.levels,
            coefficient=configuration.coefficient,
            heads=configuration.heads,
            frozen=configuration.freeze_backbone,
        )


def run_cell(
    cell: Cell,
    data: DetectionData,
    configuration: Configuration,
    *,
    folder: Path,
    cache: Path,
    device: torch.device,
    progress: RunProgress,
    parallel: Parallel | None = None,
    workers: int = 0,
) -> dict[str, Any] | None:
    """Train, apply, score and audit one network; return its result, from disk where it is done already.

    Args:
        cell: which network.
        data: what it is trained and tested on.
        configuration: how.
        folder: for the result, the weights and the maps.
        cache: folder for decoded images or features, shared by the networks of a study.
        device: where it is trained.
        progress: shows what is done.
        parallel: over which devices training is spread.
        workers: threads that decode images; 0 for as many as there are cores.

    Returns:
        The result as stored, ``None`` in every process but the first of those that train together. A network whose
        loss stopped being a number has ``"diverged"`` in place of scores.

    Raises:
        ExperimentError: when the stored result belongs to other images.
    """
    done = folder / "result.json"
    if done.is_file():
        return _checked(read_json(done), data, done)
    model = folder / "model.safetensors"
    base = {
        "model": cell.model,
        "seed": cell.seed,
        "images": data.fingerprint(),
        "configuration": configuration.to_json(),
    }
    if not (model.is_file() and (folder / "training.json").is_file()):
        try:
            trained = _train(cell, data, configuration, folder, cache, device, progress, parallel, workers)
        except DivergedError as error:
            result = base | {"diverged": str(error), "run": run_metadata(device)}
            write_json(done, result)
            return result
        if not is_first_process():
            return None
        write_json(folder / "training.json", trained)
    start = time.perf_counter()
    training = read_json(folder / "training.json")
    network, _ = load_detector(model)
    network.to(device)
    count = sum(len(collection) for collection in data.test)
    maps = folder / "maps"
    report = progress.stage(f"predicting {cell}", count)
    write_maps(network, data.test, maps, size=configuration.size, device=device, report=report)
    progress.stage(f"scoring {cell}", None)
    scores = {collection.name: score_collection(maps, collection).to_json() for collection in data.test}
    progress.stage(f"auditing {cell}", None)
    pairs = [pair for collection in data.test for pair in collection.pairs]
    audited = audit_network(
        network, pairs, size=configuration.size, images=configuration.audited_images, device=device
    )
    result = base | {
        "parameters": network.parameter_counts(),
        "training": training,
        "test_images": {collection.name: len(collection) for collection in data.test},
        "scores": scores,
        "audit": audited,
        "run": run_metadata(device) | {"seconds": training["seconds"] + time.perf_counter() - start},
    }
    # Last: its presence says that the network is done.
    write_json(done, result)
    (folder / "training.ckpt").unlink(missing_ok=True)
    return result


def _train(
    cell: Cell,
    data: DetectionData,
    configuration: Configuration,
    folder: Path,
    cache: Path,
    device: torch.device,
    progress: RunProgress,
    parallel: Parallel | None,
    workers: int,
) -> dict[str, Any]:
    """Train a network, store it, and return how training went."""
    pairs = data.train_pairs
    network = build_network(cell, configuration)
    report = progress.stage(f"preparing images for {cell}", len(pairs))
    images = training_images(
        network, pairs, configuration, folder=cache, device=device, workers=workers, report=report
    )
    loading = batches_per_second(images, batch_size=configuration.batch_size, device=device)
    steps = configuration.epochs * max(1, len(pairs) // configuration.batch_size)
    seen: list[float] = []
    advance = progress.stage(f"training {cell}", steps)

    def tell(step: int, loss: float) -> None:
        seen.append(time.perf_counter())
        advance(step, loss)

    losses, seconds = train(
        network,
        images,
        configuration,
        seed=cell.seed,
        device=device,
        folder=folder,
        parallel=parallel,
        report=tell,
    )
    if is_first_process():
        description = NetworkDescription(
            model=cell.model,
            backbone=network.backbone.description(),
            levels=configuration.levels,
            coefficient=configuration.coefficient,
            heads=configuration.heads,
            size=configuration.size,
        )
        save_detector(folder / "model.safetensors", network, description)
    return {
        "images": len(pairs),
        "steps": len(losses),
        "losses": _thinned(losses),
        "first_loss": _mean(losses[: max(1, len(losses) // 20)]),
        "last_loss": _mean(losses[-max(1, len(losses) // 20) :]),
        "seconds": seconds,
        "steps_per_second": (len(seen) - 1) / (seen[-1] - seen[0]) if len(seen) > 1 else None,
        "loader_steps_per_second": loading,
    }


def _thinned(losses: Sequence[float]) -> list[float]:
    """Return at most :data:`LOSSES_KEPT` means over equal stretches."""
    length = -(-len(losses) // LOSSES_KEPT)
    return [round(_mean(losses[i : i + length]), 6) for i in range(0, len(losses), length)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _checked(result: dict[str, Any], data: DetectionData, path: Path) -> dict[str, Any]:
    if result["images"] != data.fingerprint():
        raise ExperimentError(
            f"{path} was made from other images: the data have changed since, choose another --output"
        )
    return result
