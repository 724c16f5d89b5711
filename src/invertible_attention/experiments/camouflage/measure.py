"""What one training step and one evaluation cost at a given size: seconds, and peak memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..training import choose_device
from .cell import Cell, build_network
from .configuration import Configuration

__all__ = ["Measurement", "measure", "measure_apart"]

MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    """The cost of a model.

    Args:
        model: variant of the row of Table 4.
        parameters: how many numbers are trained.
        step_seconds: of every training step, the first with what is only done once.
        evaluation_seconds: of one pass without gradients over a batch.
        step_mib: peak memory while training: of the process, on a GPU of what PyTorch has allocated there.
        evaluation_mib: the same while evaluating.
        idle_mib: memory before the first step, with the network built.
        loss: of the last step.
    """

    model: str
    parameters: int
    step_seconds: tuple[float, ...]
    evaluation_seconds: float
    step_mib: float
    evaluation_mib: float
    idle_mib: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return vars(self) | {"step_seconds": list(self.step_seconds)}


def measure_apart(
    models: Sequence[str],
    configuration: Configuration,
    *,
    steps: int = 1,
    device: str = "auto",
    threads: int | None = None,
    report: Callable[[str], None] | None = None,
) -> list[Measurement]:
    """Measure every model in a separate process, so that none inherits the memory of another.

    Args:
        models: names of rows of Table 4.
        configuration: backbone, size, batch and precision.
        steps: training steps.
        device: name of the device.
        threads: of the CPU, ``None`` for as many as there are.
        report: called with what is measured next.
    """
    found = []
    context = multiprocessing.get_context("spawn")
    for model in models:
        if report is not None:
            report(f"measuring {model}")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            task = pool.submit(measure, model, configuration, steps=steps, device=device, threads=threads)
            found.append(task.result())
    return found


def measure(
    model: str,
    configuration: Configuration,
    *,
    steps: int = 1,
    device: str = "auto",
    threads: int | None = None,
) -> Measurement:
    """Train on random images for some steps, evaluate one batch, and report what it took.

    Args:
        model: variant of the row of Table 4.
        configuration: backbone, size, batch and precision.
        steps: training steps.
        device: name of the device.
        threads: of the CPU, ``None`` for as many as there are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    network = build_network(Cell(model, 0), configuration).to(place)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # Pretrained backbones come in evaluation mode, in which a step costs less than one of training does.
    network.train()
    generator = torch.Generator().manual_seed(0)
    shape = (configuration.batch_size, 3, configuration.size, configuration.size)
    image = torch.randn(shape, generator=generator).to(place, memory_format=torch.channels_last)
    mask = (torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.8).float().to(place)
    optimizer = torch.optim.Adam(network.parameters(), lr=configuration.learning_rate)
    idle = _peak(place, reset=True)
    low = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(configuration.precision)
    seconds, loss = [], torch.zeros(())
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(place.type, low or torch.bfloat16, enabled=low is not None):
            logits = network(image).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(place)
        seconds.append(time.perf_counter() - start)
    trained = _peak(place, reset=True)
    network.eval()
    start = time.perf_counter()
    with torch.no_grad():
        network(image)
    _wait(place)
    evaluation = time.perf_counter() - start
    return Measurement(
        model=model,
        parameters=network.parameter_counts()["total"],
        step_seconds=tuple(round(value, 4) for value in seconds),
        evaluation_seconds=round(evaluation, 4),
        step_mib=trained,
        evaluation_mib=_peak(place),
        idle_mib=idle,
        loss=loss.item(),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device, *, reset: bool = False) -> float:
    """Return peak memory in MiB since the last reset."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / MIB
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return round(peak, 1)
    status = Path("/proc/self/status")
    if not status.exists():
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return round(kib / 1024, 1)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    if reset:
        # Not allowed everywhere; then the peak is that since the process began.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return round(int(line.split()[1]) / 1024, 1)
