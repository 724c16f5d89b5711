"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..settings import POSITIVE, Check, Settings, at_least, setting

__all__ = ["PAPER_SIZE", "PAPER_TOKENS", "QUICK", "Configuration"]

PAPER_SIZE = (109, 89)
"""The paper's 218×178 images, squeezed."""

PAPER_TOKENS = 9701

QUICK: dict[str, Any] = {
    "tokens": (64, 256, 1024, 2048),
    "most_backward_tokens": 2048,
    "memory_tokens": (2048,),
    "repeats": 5,
    "seconds": 1.0,
    "batch": 2,
}

SIZES = Check("positive numbers", lambda sizes: min(sizes, default=1) >= 1)


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings of a benchmark."""

    tokens: tuple[int, ...] = setting(
        (64, 256, 1024, 4096, PAPER_TOKENS, 16384, 32768, 65536),
        "Numbers of tokens to measure time at.",
        Check("one or more positive numbers", lambda sizes: min(sizes, default=0) >= 1),
    )
    most_backward_tokens: int = setting(
        16384, "Largest number of tokens to measure gradients at.", at_least(0)
    )
    memory_tokens: tuple[int, ...] = setting(
        (1024, 4096, PAPER_TOKENS, 16384, 65536), "Numbers of tokens to measure memory at.", SIZES
    )
    repeats: int = setting(15, "Rounds of a timing, at most.", at_least(1))
    seconds: float = setting(
        15.0, "Seconds after which no round of a timing begins, once there are three.", POSITIVE
    )
    matrix_bytes: int = setting(
        2**30, "Bytes of the largest N×N matrix to measure.", at_least(0), shown="1073741824, 1 GiB"
    )
    batch: int = setting(64, "Samples of the large batch that memory is measured with.", at_least(1))

    @property
    def claimed_tokens(self) -> int:
        """Number of tokens of the claims: the paper's, or the nearest below that is measured."""
        return max((size for size in self.tokens if size <= PAPER_TOKENS), default=min(self.tokens))
