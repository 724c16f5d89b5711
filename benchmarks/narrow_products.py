"""Claim: a CPU multiplies a strip of weights by few columns faster from the left, as the transposed of both.

A product with a strip and one with its transposed, in both orders and for vectors of several widths, timed in turns;
ratios are of medians of CPU time, below 1 where the transposed order is faster.

    python benchmarks/narrow_products.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from in_turns import medians, rounds_from_command_line
from torch import Tensor


def seconds(product: Callable[[Tensor, Tensor], Tensor], strip: Tensor, vectors: Tensor) -> float:
    """Return the CPU time of some products."""
    start = time.process_time()
    for _ in range(4):
        product(strip, vectors)
    return time.process_time() - start


def ratio(strip: Tensor, vectors: Tensor, rounds: int) -> float:
    """Return the time of the transposed order in units of the other."""
    orders = (torch.matmul, lambda strip, vectors: (vectors.mT @ strip.mT).mT)
    straight, transposed = medians([partial(seconds, order, strip, vectors) for order in orders], rounds)
    return transposed / straight


def main() -> None:
    rounds = rounds_from_command_line(__doc__, 15)
    for batch, height, tokens in (
        (32, 32, 256),
        (4, 64, 1024),
        (1, 64, 4096),
        (1, 26, 9701),
        (2, 8, 20000),
        (1, 16, 65536),
    ):
        strip = torch.rand(batch, 1, height, tokens)
        for width in (3, 8, 12, 16, 32):
            found = [ratio(m, torch.randn(batch, 1, m.shape[-1], width), rounds) for m in (strip, strip.mT)]
            print(
                f"{batch} strips of {height}×{tokens}, {width} columns: "
                f"product {found[0]:.2f}, with the transposed strip {found[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
