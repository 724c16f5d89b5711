"""Claim: the CPU's fused attention kernels take longer for heads of fewer than sixteen features than for sixteen.

The kernel and its gradient with eight features, as other fused kernels want them, and with as many as they are padded
to here, timed in turns; ratios are of medians of CPU time.

    python benchmarks/head_width.py
"""

from __future__ import annotations

import time
from functools import partial

import torch
from in_turns import medians, rounds_from_command_line
from torch.nn import functional as F

from invertible_attention.attention.functional.fused import padded


def seconds(width: int, batch: int, heads: int, tokens: int) -> float:
    """Return the CPU time of one attention and its gradient with heads of this width."""
    inputs = [torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3)]
    start = time.process_time()
    F.scaled_dot_product_attention(*inputs, scale=1.0).sum().backward()
    return time.process_time() - start


def main() -> None:
    rounds = rounds_from_command_line(__doc__, 9)
    wide = padded(torch.zeros(1, 1, 1, 1))[0].shape[-1]
    for shape in ((32, 4, 256), (4, 4, 1024), (1, 1, 4096)):
        narrow, padded_time = medians([partial(seconds, width, *shape) for width in (8, wide)], rounds)
        print(f"{shape}: {wide} features take {padded_time / narrow:.2f} of the time of 8", flush=True)


if __name__ == "__main__":
    main()
