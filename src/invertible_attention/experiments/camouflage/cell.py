"""One network of a run: trained, applied, scored and audited."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files import read_json, write_json
from ..metadata import run_metadata
from ..ranks import is_first_process
from ..study import CHECKPOINT, RESULT, RunProgress
from ..training import Parallel
from ..variants import slug
from .audit import audit_network
from .configuration import Configuration
from .data import DetectionData, batches_per_second
from .evaluation import score_collection
from .models import MODELS
from .network import Detector, build_backbone, load_detector, save_detector
from .network.storage import NetworkDescription
from .predicting import write_maps
from .training import DivergedError, train, training_images

__all__ = ["MAPS", "OWNED", "Cell", "build_network", "run_cell"]

MAPS = "maps"
"""The folder of a network's maps of the test images."""

OWNED = ("logs", MAPS, "model.safetensors", RESULT, CHECKPOINT, "training.json")
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
        return slug(self.model, self.seed)

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
    what: tuple[Cell, DetectionData],
    folder: Path,
    progress: RunProgress,
    *,
    configuration: Configuration,
    cache: Path,
    device: torch.device,
    parallel: Parallel | None = None,
    decoders: int = 0,
) -> dict[str, Any] | None:
    """Train, apply, score and audit one network; return its result.

    Args:
        what: which network, and what it is trained and tested on.
        folder: for the weights and the maps; a checkpoint in it is continued.
        progress: shows what is done.
        configuration: how.
        cache: folder for decoded images or features, shared by the networks of a study.
        device: where it is trained.
        parallel: over which devices training is spread.
        decoders: threads that decode images; 0 for as many as there are cores.

    Returns:
        ``None`` in every process but the first of those that train together. A network whose loss stopped being a
        number has ``"diverged"`` in place of scores.
    """
    cell, data = what
    model = folder / "model.safetensors"
    base = {
        "model": cell.model,
        "seed": cell.seed,
        "images": data.fingerprint(),
        "configuration": configuration.to_json(),
    }
    if not (model.is_file() and (folder / "training.json").is_file()):
        try:
            trained = _train(cell, data, configuration, folder, cache, device, progress, parallel, decoders)
        except DivergedError as error:
            return base | {"diverged": str(error), "run": run_metadata(device)}
        if not is_first_process():
            return None
        write_json(folder / "training.json", trained)
    start = time.perf_counter()
    training = read_json(folder / "training.json")
    network, _ = load_detector(model)
    network.to(device)
    count = sum(len(collection) for collection in data.test)
    maps = folder / MAPS
    report = progress.stage(f"predicting {cell}", count)
    write_maps(network, data.test, maps, size=configuration.size, device=device, report=report)
    progress.stage(f"scoring {cell}", None)
    scores = {collection.name: score_collection(maps, collection).to_json() for collection in data.test}
    progress.stage(f"auditing {cell}", None)
    pairs = [pair for collection in data.test for pair in collection.pairs]
    audited = audit_network(
        network, pairs, size=configuration.size, images=configuration.audited_images, device=device
    )
    return base | {
        "parameters": network.parameter_counts(),
        "training": training,
        "test_images": {collection.name: len(collection) for collection in data.test},
        "scores": scores,
        "audit": audited,
        "run": run_metadata(device) | {"seconds": training["seconds"] + time.perf_counter() - start},
    }


def _train(
    cell: Cell,
    data: DetectionData,
    configuration: Configuration,
    folder: Path,
    cache: Path,
    device: torch.device,
    progress: RunProgress,
    parallel: Parallel | None,
    decoders: int,
) -> dict[str, Any]:
    """Train a network, store it, and return how training went."""
    pairs = data.train_pairs
    network = build_network(cell, configuration)
    report = progress.stage(f"preparing images for {cell}", len(pairs))
    images = training_images(
        network, pairs, configuration, folder=cache, device=device, workers=decoders, report=report
    )
    loading = batches_per_second(images, batch_size=configuration.batch_size, device=device)
    steps = configuration.epochs * max(1, len(pairs) // configuration.batch_size)
    seen: list[float] = []
    advance = progress.stage(f"training {cell}", steps)

    def on_step(step: int, loss: float) -> None:
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
        report=on_step,
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
