"""Every command at its smallest size reproduces the stored numbers.

``python -m tests.experiments.test_numbers`` stores them again, which is right only where a change of the numbers is
meant.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from invertible_attention.cli import main

STORED = Path(__file__).with_name("numbers.json")

RECONSTRUCT = "reconstruct --size 12 12 --variants dot_product/certified dot_product/relaxed --repeats 2"
RECONSTRUCT += " --train-images 12 --test-images 5 --epochs 1 --batch-size 8 --device cpu"
DENSITY = "--quick --blocks 1 --hidden-channels 4 --train-images 32 --test-images 4 --batch-size 16 --steps 4"
DENSITY += " --device cpu --draws 2"
CAMOUFLAGE = "--backbone tiny --size 48 --batch-size 2 --epochs 1 --learning-rate 1e-3 --device cpu"

COMMANDS = {
    "reconstruct": (RECONSTRUCT, "results.json"),
    "density train": (f"density train {DENSITY} --attention concatenation", "results.json"),
    "density study": (f"density study {DENSITY} --variants none gaussian/relaxed --seeds 2", "study.json"),
    "camouflage train": (
        f"camouflage train {CAMOUFLAGE} --data DATA --model concatenation/ordinary",
        "results.json",
    ),
    "camouflage study": (
        f"camouflage study {CAMOUFLAGE} --data DATA --models none concatenation/ordinary --seeds 0 1",
        "results.json",
    ),
    "audit --attack": ("audit --attack --configurations 200 --networks 1 --steps 1", "results.json"),
}

BY_MACHINE = {
    "run",
    "configuration",
    "base",
    "seconds",
    "processor_seconds",
    "median",
    "turns",
    "growth",
    "claims",
}
BY_MACHINE |= {"training_seconds", "steps_per_second", "loader_steps_per_second"}
BY_MACHINE |= {
    "at_equal_time",
    "difference_at_equal_time",
    "fingerprint",
    "images",
    "spectral_radius_seconds",
}
"""What depends on the machine, or is how a command was called."""

SPREADS = {"deviation", "standard_error"}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number by its path; of long lists of numbers their length, mean and ends."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in BY_MACHINE and not name.endswith("_seconds"):
                yield from numbers(inner, f"{path}/{name}")
    elif isinstance(value, list) and len(value) > 4 and all(isinstance(item, int | float) for item in value):
        yield path, [len(value), statistics.fmean(value), value[0], value[-1]]
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{number}")
    elif not isinstance(value, str):
        yield path, value


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a command in a folder and return its numbers."""
    arguments, file = COMMANDS[name]
    if "DATA" in arguments:
        write_pairs(folder / "data")
    given = [str(folder / "data") if word == "DATA" else word for word in arguments.split()]
    assert main([*given, "--output", str(folder / "run")]) == 0
    return dict(numbers(json.loads((folder / "run" / file).read_text())))


def write_pairs(root: Path) -> None:
    """Write six training pairs and three test pairs of CAMO."""
    for part, count in (("TrainDataset", 6), ("TestDataset/CAMO", 3)):
        for number in range(count):
            random = np.random.default_rng(number)
            mask = np.zeros((30, 40), np.uint8)
            mask[5:20, 5 : 15 + number] = 255
            for kind, pixels in (("Imgs", random.integers(0, 256, (30, 40, 3), np.uint8)), ("GT", mask)):
                (root / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / part / kind / f"{number}.png")


def allowance(path: str, stored: dict[str, Any]) -> float:
    """Return by how much a number may differ besides its own share."""
    parent, _, last = path.rpartition("/")
    if "/adaptive_" in path:
        return 5e-3  # of maps cut at a threshold of their own, where pixels cross it one by one
    # The spread of numbers that are right to so much of themselves is right to so much of them, not of itself.
    mean = stored.get(f"{parent}/mean") if last in SPREADS else None
    return max(2e-5, 2e-3 * abs(mean or 0.0))


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering", "one_thread")
@pytest.mark.parametrize("name", COMMANDS)
def test_small_run_reproduces_the_stored_numbers(name: str, tmp_path: Path) -> None:
    if name.startswith("camouflage"):
        pytest.importorskip("transformers")
        pytest.importorskip("py_sod_metrics")
    found, stored = run(name, tmp_path), json.loads(STORED.read_text())[name]
    assert set(found) >= set(stored)
    for path, expected in stored.items():
        # Another processor rounds differently; another seed, order or method differs more.
        close = None if expected is None else pytest.approx(expected, rel=2e-3, abs=allowance(path, stored))
        assert found[path] == close, path


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            found[command] = run(command, Path(folder))
    lines = [
        f'"{name}": {{\n'
        + ",\n".join(f" {json.dumps(path)}: {json.dumps(value)}" for path, value in own.items())
        for name, own in found.items()
    ]
    STORED.write_text("{\n" + "\n},\n".join(lines) + "\n}\n}\n")
