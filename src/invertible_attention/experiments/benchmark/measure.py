"""Taking all measurements of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS, RESPONSES, work
from .memory import peak_memory
from .released import measure_released
from .settings import PAPER_SIZE, PAPER_TOKENS, Settings
from .timing import interleaved, median

__all__ = ["measure"]

Record = dict[str, Any]


def measure(
    settings: Settings, *, device: str, authors_code: Path | None, say: Callable[[str], None]
) -> Record:
    """Measure time and memory of every response and contender.

    Args:
        settings: sizes and repeats.
        device: where.
        authors_code: checkout of the released code, or ``None``.
        say: called with a line about each step.

    Returns:
        Lists of records: ``times``, ``memory`` and ``released``.
    """
    times = [
        record
        for response in RESPONSES
        for tokens in settings.tokens
        for record in _times(response, tokens, settings, device, say)
    ]
    memory = [] if device != "cpu" else _memory(settings, say)
    released = [] if authors_code is None else _released(authors_code, say)
    return {"times": times, "memory": memory, "released": released}


def fits(contender: str, tokens: int, settings: Settings) -> bool:
    """Tell whether a contender's largest tensor is within the settings."""
    return contender != "reference" or 4 * tokens**2 <= settings.matrix_bytes


def _times(
    response: str, tokens: int, settings: Settings, device: str, say: Callable[[str], None]
) -> list[Record]:
    records = []
    for backward in (False, True):
        if backward and tokens > settings.most_backward_tokens:
            continue
        functions = {
            contender: work(response, contender, tokens, backward=backward, device=device)
            for contender in CONTENDERS
            if fits(contender, tokens, settings)
        }
        times = interleaved(functions, repeats=settings.repeats, seconds=settings.seconds)
        for contender, taken in times.items():
            records.append(
                {
                    "response": response,
                    "contender": contender,
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


def _memory(settings: Settings, say: Callable[[str], None]) -> list[Record]:
    cases = [
        (response, contender, tokens, 1, backward)
        for response in RESPONSES
        for tokens in settings.memory_tokens
        for contender in CONTENDERS
        for backward in (False, True)
        if fits(contender, tokens, settings) and not (backward and tokens > settings.most_backward_tokens)
    ]
    largest = min(PAPER_TOKENS, max(settings.tokens))
    cases.append(("concatenation", "auto", largest, settings.batch, False))
    records = []
    for response, contender, tokens, batch, backward in cases:
        size = peak_memory(response, contender, tokens, batch=batch, backward=backward)
        records.append(
            {
                "response": response,
                "contender": contender,
                "tokens": tokens,
                "batch": batch,
                "backward": backward,
                "bytes": size,
            }
        )
        if size is not None:
            what = "with gradients" if backward else "forward"
            say(f"{response}, {tokens} tokens, batch {batch}, {what}: {contender} {size / 1e6:.0f} MB")
    return records


def _released(folder: Path, say: Callable[[str], None]) -> list[Record]:
    records = []
    for response in RESPONSES:
        repeats = 1 if response == "concatenation" else 3
        found = measure_released(folder, response, PAPER_SIZE, repeats=repeats)
        records.append({"response": response, "tokens": PAPER_TOKENS} | found)
        say(f"{response}, authors’ code: {found['seconds']:.2f} s, {found['bytes'] / 1e9:.2f} GB")
    return records
