"""What benchmarks that time alternatives in turns share: their options, and the medians of the times."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch


def rounds_from_command_line(description: str | None, rounds: int) -> int:
    """Read the number of rounds, and set the number of threads."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments.rounds


def medians(alternatives: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Return the median of what each alternative returns, called in turns; a first round does not count."""
    times = [[alternative() for alternative in alternatives] for _ in range(rounds + 1)]
    return [statistics.median(column[1:]) for column in zip(*times, strict=True)]
