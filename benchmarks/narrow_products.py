"""Claim: a CPU multiplies a strip of weights by few columns faster from the left, as the transposed of both.

A product with a strip and one with its transposed, in both orders and for vectors of several widths, timed in turns;
ratios are of medians of CPU time, below 1 where the transposed order is faster.

    python benchmarks/narrow_products.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
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
    times = [[seconds(order, strip, vectors) for order in orders] for _ in range(rounds + 1)][1:]
    straight, transposed = (statistics.median(column) for column in zip(*times, strict=True))
    return transposed / straight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for batch, rows, tokens in (
        (32, 32, 256),
        (4, 64, 1024),
        (1, 64, 4096),
        (1, 26, 9701),
        (2, 8, 20000),
        (1, 16, 65536),
    ):
        strip = torch.rand(batch, 1, rows, tokens)
        for width in (3, 8, 12, 16, 32):
            found = [
                ratio(m, torch.randn(batch, 1, m.shape[-1], width), arguments.rounds)
                for m in (strip, strip.mT)
            ]
            print(
                f"{batch} strips of {rows}×{tokens}, {width} columns: "
                f"product {found[0]:.2f}, with the transposed strip {found[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
