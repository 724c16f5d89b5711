"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "PAPER_SIZE", "PAPER_TOKENS", "QUICK", "Settings"]

PAPER_SIZE = (109, 89)
"""The paper's 218×178 images, squeezed."""

PAPER_TOKENS = 9701


@dataclass(frozen=True)
class Settings:
    """Sizes and repeats of a run.

    Args:
        tokens: numbers of tokens to time a forward pass at.
        most_backward_tokens: the most to time with gradients.
        memory_tokens: numbers of tokens to measure memory at.
        repeats: rounds of a timing, at most.
        seconds: time for a timing, about.
        matrix_bytes: largest score matrix the N×N reference is given.
        batch: samples of the large batch.
    """

    tokens: tuple[int, ...]
    most_backward_tokens: int
    memory_tokens: tuple[int, ...]
    repeats: int
    seconds: float
    matrix_bytes: int = 2**30
    batch: int = 64


FULL = Settings(
    tokens=(64, 256, 1024, 4096, PAPER_TOKENS, 16384, 32768, 65536),
    most_backward_tokens=16384,
    memory_tokens=(1024, 4096, PAPER_TOKENS, 16384, 65536),
    repeats=15,
    seconds=15.0,
)
QUICK = Settings(
    tokens=(64, 256, 1024, 2048),
    most_backward_tokens=2048,
    memory_tokens=(2048,),
    repeats=5,
    seconds=1.0,
    batch=2,
)
