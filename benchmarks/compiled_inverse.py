"""Is the compiled inverse at least as fast as the eager one? Ratios of times, both from the same run, on one thread.

python benchmarks/compiled_inverse.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import invertible_attention as ia
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.interop import FixedInverse, compile_branches, to_plain


def median_times(
    first: Callable[[], Tensor], second: Callable[[], Tensor], repeats: int
) -> tuple[float, float]:
    """CPU time of both in milliseconds, measured in rounds, so that both see the same load of the machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, record in zip((first, second), times, strict=True):
            start = time.process_time()
            function()
            record.append(1e3 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])


@torch.no_grad()
def measure(repeats: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(12, "embedded_gaussian").eval()
    x = torch.randn(16, 12, 8, 8)
    layer.initialize(x)
    z = layer(x)
    plain = to_plain(layer)
    fixed = FixedInverse(layer, steps=20)
    compiled = torch.compile(fixed, fullgraph=True)
    solver, plain_solver = compile_branches(layer), compile_branches(plain)
    cases = {
        "20 fixed steps": (lambda: fixed(z), lambda: compiled(z)),
        "Anderson": (lambda: layer.inverse(z), lambda: solver.inverse(z)),
        "Anderson, constraints baked in": (lambda: plain.inverse(z), lambda: plain_solver.inverse(z)),
    }
    found = {}
    for name, (eager, fast) in cases.items():
        difference = (eager() - fast()).abs().max().item()
        for _ in range(3):  # another number of samples left compiles once more
            fast()
        slow_time, fast_time = median_times(eager, fast, repeats)
        found[name] = {
            "eager_ms": slow_time,
            "compiled_ms": fast_time,
            "ratio": slow_time / fast_time,
            "difference": difference,
        }
        print(
            f"{name}: eager / compiled = {slow_time / fast_time:.2f}, difference {difference:.1e}", flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/compiled/inverse.json"))
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    metadata = run_metadata()
    result: dict[str, Any] = {
        "schema": "invertible-attention/compiled/1",
        "what": "16 samples of 64 tokens with 12 channels, embedded Gaussian, certified; CPU time, one thread",
        "repeats": arguments.repeats,
        "cases": measure(arguments.repeats),
        "run": metadata,
    }
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
