"""Claim: the log-determinant of a small batch takes no longer to estimate on all of it than on a sixteenth, of a large
one much longer.

Training steps of one layer of certified attention with both, timed in turns, by the shape of the batch; ratios are of
medians of CPU time.

    python benchmarks/subsample.py
"""

from __future__ import annotations

import time
from functools import partial

import torch
from in_turns import medians, rounds_from_command_line
from torch import Tensor

import invertible_attention as ia

SHAPES = (
    (32, 4, 4, 4),
    (32, 12, 4, 4),
    (8, 12, 8, 8),
    (32, 48, 4, 4),
    (32, 12, 8, 8),
    (32, 24, 8, 8),
    (16, 12, 16, 16),
    (32, 12, 16, 16),
)


def seconds(layer: ia.InvertibleAttention, x: Tensor, share: float) -> float:
    """Return the CPU time of a training step."""
    layer.logdet = ia.RussianRoulette(subsample=share)
    start = time.process_time()
    z, logdet = layer.forward_and_logdet(x)
    (z.square().flatten(1).sum(1) / 2 - logdet).mean().backward()
    return time.process_time() - start


def main() -> None:
    rounds = rounds_from_command_line(__doc__, 9)
    torch.manual_seed(0)
    for response in ("embedded_gaussian", "concatenation", "gaussian"):
        for shape in SHAPES:
            layer, x = ia.InvertibleAttention(shape[1], response), torch.randn(shape)
            layer.initialize(x)
            whole, part = medians([partial(seconds, layer, x, share) for share in (1.0, 1 / 16)], rounds)
            print(
                f"{response:18} {shape}, {x.numel():6,} numbers: all of the batch takes {whole / part:.2f} of the time",
                flush=True,
            )


if __name__ == "__main__":
    main()
