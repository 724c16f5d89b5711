"""Is the compiled inverse at least as fast as the eager one? Prints the ratio of times, both from the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import invertible_attention as ia
from invertible_attention.interop import FixedInverse, compile_branches


def median_times(
    first: Callable[[], Tensor], second: Callable[[], Tensor], repeats: int
) -> tuple[float, float]:
    """Time both in turn, so that both see the same load of the machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, record in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(12, "embedded_gaussian").eval()
    z = layer(torch.randn(16, 12, 8, 8))
    fixed = FixedInverse(layer, steps=20)
    compiled, solver = torch.compile(fixed, fullgraph=True), compile_branches(layer)
    cases = {
        "fixed steps": (lambda: fixed(z), lambda: compiled(z)),
        "Anderson": (lambda: layer.inverse(z), lambda: solver.inverse(z)),
    }
    for name, (eager, fast) in cases.items():
        difference = (eager() - fast()).abs().max().item()
        slow_time, fast_time = median_times(eager, fast, 30)
        print(f"{name}: eager / compiled = {slow_time / fast_time:.2f}, difference {difference:.1e}")


if __name__ == "__main__":
    main()
