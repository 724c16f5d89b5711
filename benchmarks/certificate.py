"""What a certificate costs: looking at what is computed, whenever it is used, and norms of convolutions.

    python benchmarks/certificate.py

Prints, for a forward, a log-determinant and an inverse of a few blocks, the number of operators and the CPU time
with the check as ratios to those without it; then, of convolutions of many more channels on one side than on the other,
both for bounds through the squares of their symbols as ratios to those through the symbols. Measured in rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import invertible_attention as ia

_USERS = ("attention.evaluation", "flows.branches", "lipschitz.known", "lipschitz.module_bound", "residual")
_ROUNDS = 200


class Operators(TorchDispatchMode):
    """Counts operators."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def unchecked() -> ExitStack:
    """Trust every module."""
    stack = ExitStack()
    for user in _USERS:
        stack.enter_context(mock.patch(f"invertible_attention.{user}.doubt", return_value=None))
    return stack


def through_symbols() -> AbstractContextManager[object]:
    """Bound the norm of every convolution through its symbols."""
    return mock.patch("invertible_attention.lipschitz.symbols.Squares.of", return_value=None)


def measure(call: Callable[[], object]) -> tuple[int, float]:
    """Return the number of operators and the CPU time of one call, in seconds."""
    with Operators() as operators:
        call()
    start = time.process_time()
    call()
    return operators.count, time.process_time() - start


def compare(
    call: Callable[[], object], without: Callable[[], AbstractContextManager[object]], rounds: int
) -> str:
    """Return operators and time of a call as ratios to those under a context."""
    call()
    own, others = [], []
    for _ in range(rounds):
        own.append(measure(call))
        with without():
            others.append(measure(call))
    (operators, seconds), (fewer, least) = min(own), min(others)
    ratio = f"operators {operators / fewer:.3f} ({operators}), time {seconds / least:.3f}"
    return f"{ratio} ({1e3 * seconds:.2f} ms)"


def main() -> None:
    """Measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the time of the processor, which others do not take away
    branch = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    for name, block, shape in (
        ("attention", ia.InvertibleAttention(12), (4, 12, 8, 8)),
        ("convolutions", ia.flows.Residual(ia.flows.LipschitzConvBranch(12, 32, (8, 8))), (4, 12, 8, 8)),
        ("foreign layers", ia.flows.Residual(branch), (4, 64)),
    ):
        x = torch.randn(shape)
        block(x)
        block.eval()
        block.logdet = ia.PowerSeries(10)
        with torch.no_grad():
            z = block(x)
            for what, call in (
                ("forward", lambda block=block, x=x: block(x)),
                ("log-determinant", lambda block=block, x=x: block.forward_and_logdet(x)),
                ("inverse", lambda block=block, z=z: block.solve_inverse(z)),
            ):
                call()
                print(f"{name}, {what}: {compare(call, unchecked, _ROUNDS)}")
    for channels, hidden, size in ((12, 64, 16), (12, 512, 16), (48, 512, 8)):
        weight = torch.randn(hidden, channels, 3, 3)
        block = ia.flows.Residual(ia.flows.LipschitzConvBranch(channels, hidden, (size, size)))
        x = torch.randn(8, channels, size, size)
        for what, call in (
            (
                "bound",
                lambda weight=weight, size=size: ia.lipschitz.convolution_norm_upper_bound(
                    weight, (size,) * 2
                ),
            ),
            (
                "training step",
                lambda block=block, x=x: (
                    torch.cat([part.flatten() for part in block.forward_and_logdet(x)]).sum().backward()
                ),
            ),
        ):
            ratio = compare(call, through_symbols, _ROUNDS // 20)
            print(f"3×3 convolutions, {channels} to {hidden} channels at {size}×{size}, {what}: {ratio}")


if __name__ == "__main__":
    main()
