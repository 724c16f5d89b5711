"""Times that can be compared: implementations are measured in rounds, and the fastest round of each is compared.

A slow round says what else the machine was doing (see :mod:`timeit`); the middle round is kept next to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = ["exponent", "interleaved", "median"]


def interleaved(
    work: Mapping[str, Callable[[], None]], *, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Time functions in rounds, after one that is not counted.

    Args:
        work: what to time, by name.
        repeats: rounds, at most.
        seconds: no round begins after this time, but three are taken.

    Returns:
        Seconds of every round, by name.
    """
    for function in work.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in work}
    start = time.perf_counter()
    for round in range(repeats):
        if round >= 3 and time.perf_counter() - start > seconds:
            break
        for name, function in work.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return times


def median(times: Sequence[float]) -> float:
    """Return the middle time."""
    return float(np.median(times))


def exponent(tokens: Sequence[int], cost: Sequence[float]) -> float:
    """Fit ``cost = c N^e`` by least squares in logarithms.

    Example:
        >>> round(exponent([100, 200, 400], [1.0, 4.0, 16.0]), 6)
        2.0
    """
    return float(np.polyfit(np.log(tokens), np.log(cost), 1)[0])
