"""What a visitor of the page can choose."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ExperimentError
from ..published import RESPONSES
from ..variants import variant

__all__ = ["CONSTRAINTS", "NORMALIZATIONS", "SIZES", "STEPS", "Options"]

CONSTRAINTS = {
    "certified": "Certified: the inverse exists, whatever the weights",
    "relaxed": "Relaxed: the paper’s Section 2.4, no promise",
    "released": "The authors’ code, no promise",
}
NORMALIZATIONS = {
    "column": "Column: what a pixel block gives adds up to 1 (the paper)",
    "row": "Row: what a pixel block receives adds up to 1 (as in transformers)",
    "all": "All: everything adds up to 1",
}
SIZES = (32, 64, 96)
"""Sides of the square the picture is brought to, in pixels."""
STEPS = 200
"""Most training steps."""


@dataclass(frozen=True)
class Options:
    """How the network is made and trained; by default so that a pixel's attention can be seen.

    Args:
        response: how pairs of tokens are scored.
        normalization: what weights sum to one along; the released code has its own.
        constraint: what limits the Lipschitz constant.
        size: side of the square picture in pixels.
        steps: training steps on the picture.
        seed: of weights, noise and target.

    Raises:
        ExperimentError: naming the value that is not one of the choices.
    """

    response: str = "gaussian"
    normalization: str = "row"
    constraint: str = "certified"
    size: int = 64
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("response", tuple(RESPONSES)),
            ("normalization", tuple(NORMALIZATIONS)),
            ("constraint", tuple(CONSTRAINTS)),
            ("size", SIZES),
        ):
            if getattr(self, name) not in known:
                choices = ", ".join(map(str, known))
                raise ExperimentError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name, most in (("steps", STEPS), ("seed", 2**31 - 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= most:
                raise ExperimentError(f"{name} must be a whole number from 0 to {most}, got {value!r}")

    @property
    def variants(self) -> tuple[str, str]:
        """The network that was chosen and the one it is compared with, as the commands call them."""
        chosen, other = (variant(self.response, c, self.normalization) for c in (self.constraint, self.other))
        return chosen, other

    @property
    def other(self) -> str:
        """The constraint to compare with: the authors' code, or ours where that was chosen."""
        return "certified" if self.constraint == "released" else "released"
