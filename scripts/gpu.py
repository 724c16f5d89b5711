"""Run the library's tests, the benchmark and a training step on the device of this machine, in at most 12 minutes.

python scripts/gpu.py [--device cuda] [--output results/gpu] [--quick]

Needs an installed PyTorch and the package with the extras ``experiments`` and ``dev``. Writes ``tests.txt``,
``benchmark/`` and ``training-step.json``, each as soon as it is there; without the device the CPU is used.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import invertible_attention as ia
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.flows import Flow, i_resnet

TESTS = [f"tests/{name}" for name in ("attention", "flows", "lipschitz", "logdet", "solvers")]
SECONDS = {"training step": 150, "benchmark": 240, "tests": 300}
ATTENTION: dict[str, Callable[[int], ia.Bijection] | None] = {
    "none": None,
    "Concatenation": lambda channels: ia.InvertibleAttention(channels, "concatenation"),
    "Embedded, 4 heads, position prior": lambda channels: ia.InvertibleAttention(
        channels, "embedded_gaussian", heads=4, position_prior=ia.TorusPrior(2, 4)
    ),
}


def build(attention: str, blocks: int, channels: int, images: torch.Tensor) -> Flow:
    """Return the i-ResNet with or without attention, initialized where the images are."""
    torch.manual_seed(0)
    flow = i_resnet(blocks=(blocks,) * 3, hidden_channels=channels, attention=ATTENTION[attention])
    flow.to(images.device).initialize(images)
    return flow


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def busy(step: Callable[[], object]) -> float:
    """Return for how many seconds of a step the GPU computes."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def training_step(
    attention: str, blocks: int, channels: int, batch: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Time a step; on a GPU, say how much memory it takes and for how long it computes."""
    images = torch.randint(0, 256, (batch, 3, 32, 32)).to(device)
    flow = build(attention, blocks, channels, images)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        flow.bits_per_dim(images).mean().backward()
        optimizer.step()

    step()
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - start)
    row: dict[str, Any] = {"attention": attention, "seconds": statistics.median(times)}
    if device.type == "cuda":
        row |= {"mib": torch.cuda.max_memory_allocated(device) / 2**20, "busy_seconds": busy(step)}
    return row


def run(name: str, command: list[str], log: Path) -> int | None:
    """Run a command, with what it says in a file, for as long as its share of the time."""
    with log.open("w") as file:
        try:
            return subprocess.run(
                [sys.executable, "-m", *command], stdout=file, stderr=file, timeout=SECONDS[name], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {SECONDS[name]} s\n")
            return None


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("results/gpu"))
    parser.add_argument("--quick", action="store_true", help="a small step, and a few tests")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: everything runs on the CPU, with a small step", flush=True)
        device, arguments.quick = torch.device("cpu"), True
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    size = (
        {"blocks": 1, "channels": 32, "batch": 8}
        if arguments.quick
        else {"blocks": 16, "channels": 512, "batch": 64}
    )
    rows, start = [], time.monotonic()
    for attention in ATTENTION:
        if time.monotonic() - start > SECONDS["training step"]:
            break
        row = training_step(attention, **size, device=device, rounds=3 if arguments.quick else 8)
        rows.append(row)
        print(f"training step, {attention}: {1e3 * row['seconds']:.0f} ms", flush=True)
    content = {
        "schema": "invertible-attention/device-step/1",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "settings": size,
        "seed": 0,
        "rows": rows,
        "run": run_metadata(),
    }
    write_json(output / "training-step.json", content)

    commands = {
        "benchmark": ["invertible_attention", "benchmark", "--quick", "--output", str(output / "benchmark")],
        "tests": [
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            *TESTS[3 if arguments.quick else 0 :],
        ],
    }
    for name, command in commands.items():
        status = run(name, [*command, "--device", device.type], output / f"{name}.txt")
        print(f"{name}: " + ("out of time" if status is None else f"exit status {status}"), flush=True)


if __name__ == "__main__":
    main()
