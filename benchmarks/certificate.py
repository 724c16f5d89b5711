"""What it costs to look, whenever a certificate is used, at what is computed.

    python benchmarks/certificate.py

Prints, for a forward, a log-determinant and an inverse of a few blocks, the number of operators and the CPU time
with the check as ratios to those without it, measured in rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
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


def measure(call: Callable[[], object]) -> tuple[int, float]:
    """Return the number of operators and the CPU time of one call, in seconds."""
    with Operators() as operators:
        call()
    start = time.process_time()
    call()
    return operators.count, time.process_time() - start


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
                checked, trusted = [], []
                for _ in range(_ROUNDS):
                    checked.append(measure(call))
                    with unchecked():
                        trusted.append(measure(call))
                (operators, seconds), (fewer, least) = min(checked), min(trusted)
                ratio = f"operators {operators / fewer:.3f} ({operators}), time {seconds / least:.3f}"
                print(f"{name}, {what}: {ratio} ({1e3 * seconds:.2f} ms)")


if __name__ == "__main__":
    main()
