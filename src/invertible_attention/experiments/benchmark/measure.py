"""Taking all measurements of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..study import RunProgress
from .configuration import PAPER_SIZE, PAPER_TOKENS, Configuration
from .implementations import IMPLEMENTATIONS, work
from .memory import peak_memory
from .released import measure_released
from .timing import interleaved, median

__all__ = ["measure"]

Record = dict[str, Any]


def measure(
    response: str,
    folder: Path,
    progress: RunProgress,
    *,
    configuration: Configuration,
    device: str,
    authors_code: Path | None,
) -> dict[str, list[Record]]:
    """Measure time and memory of a response with every implementation.

    Args:
        response: of the attention.
        folder: of these measurements.
        progress: shows a line about each step.
        configuration: sizes and repeats.
        device: where.
        authors_code: checkout of the released code, or ``None``.

    Returns:
        Lists of records: ``times``, ``memory`` and ``released``.
    """
    say = progress.say
    times = [
        record
        for tokens in configuration.tokens
        for record in _times(response, tokens, configuration, device, say)
    ]
    memory = [] if device != "cpu" else _memory(response, configuration, say)
    released = [] if authors_code is None else [_released(response, authors_code, say)]
    return {"times": times, "memory": memory, "released": released}


def fits(implementation: str, tokens: int, configuration: Configuration) -> bool:
    """Return whether an implementation's largest tensor is within the configuration."""
    return implementation != "reference" or 4 * tokens**2 <= configuration.matrix_bytes


def _times(
    response: str, tokens: int, configuration: Configuration, device: str, say: Callable[[str], None]
) -> list[Record]:
    records = []
    for backward in (False, True):
        if backward and tokens > configuration.most_backward_tokens:
            continue
        functions = {
            implementation: work(response, implementation, tokens, backward=backward, device=device)
            for implementation in IMPLEMENTATIONS
            if fits(implementation, tokens, configuration)
        }
        times = interleaved(functions, repeats=configuration.repeats, seconds=configuration.seconds)
        for implementation, taken in times.items():
            records.append(
                {
                    "response": response,
                    "contender": implementation,
                    "tokens": tokens,
                    "batch": 1,
                    "backward": backward,
                    "seconds": min(taken),
                    "median": median(taken),
                    "turns": len(taken),
                }
            )
        shown = ", ".join(f"{name} {min(taken) * 1e3:.2f} ms" for name, taken in times.items())
        say(f"{response}, {tokens} tokens, {'with gradients' if backward else 'forward'}: {shown}")
    return records


def _memory(response: str, configuration: Configuration, say: Callable[[str], None]) -> list[Record]:
    cases = [
        (implementation, tokens, 1, backward)
        for tokens in configuration.memory_tokens
        for implementation in IMPLEMENTATIONS
        for backward in (False, True)
        if fits(implementation, tokens, configuration)
        and not (backward and tokens > configuration.most_backward_tokens)
    ]
    if response == "concatenation":
        cases.append(("auto", configuration.claimed_tokens, configuration.batch, False))
    records = []
    for implementation, tokens, batch, backward in cases:
        size = peak_memory(response, implementation, tokens, batch=batch, backward=backward)
        records.append(
            {
                "response": response,
                "contender": implementation,
                "tokens": tokens,
                "batch": batch,
                "backward": backward,
                "bytes": size,
            }
        )
        if size is not None:
            what = "with gradients" if backward else "forward"
            say(f"{response}, {tokens} tokens, batch {batch}, {what}: {implementation} {size / 1e6:.0f} MB")
    return records


def _released(response: str, folder: Path, say: Callable[[str], None]) -> Record:
    found = measure_released(folder, response, PAPER_SIZE, repeats=1 if response == "concatenation" else 3)
    say(f"{response}, authors’ code: {found['seconds']:.2f} s, {found['bytes'] / 1e9:.2f} GB")
    return {"response": response, "tokens": PAPER_TOKENS} | found
